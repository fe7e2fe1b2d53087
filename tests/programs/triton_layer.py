"""Compare the layer's Triton kernels with the reference over the table of cases."""

import pytest
import torch
import triton_on_cpu  # noqa: F401

from layer_cases import CASES, LAYOUTS, parameters, random_layer, random_map
from shuffle_attention.kernels import backends, reference
from shuffle_attention.kernels.backends.triton import launch

forward = torch.ops.shuffle_attention.shuffle_attention
backward = torch.ops.shuffle_attention.shuffle_attention_backward
BROAD = launch.Sizes(warp_values=4096, values_in_nhwc=8192)  # few programs, for the interpreter's sake
TINY = launch.Sizes(values=128, warp_values=128, values_in_nhwc=128, layer_channels=4)  # planes do not fit one tile
DTYPES = ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2))
CASES = {**CASES, "many-tiles": ((1, 8, 19, 11), 2), "many-channels": ((1, 136, 5, 5), 17)}
checked = 0
for case, (shape, groups) in CASES.items():
    launch.SIZES = TINY if case == "many-tiles" else BROAD
    for layout in LAYOUTS:
        if (layout == "channels-last" and len(shape) == 3) or (layout == "expanded" and shape[0] == 0):
            continue
        native = layout in ("contiguous", "channels-last")  # others are brought into one of these
        for shuffle, (dtype, tolerance) in [(True, kind) for kind in DTYPES] + [(False, DTYPES[0])]:
            plain = dtype == torch.float32 and shuffle
            if not native and not (plain and case == "odd"):
                continue
            if not plain and case not in ("odd", "one-pixel", "no-images", "many-tiles"):
                continue
            exact = [p.detach() for p in parameters(random_layer(shape[1], groups))]
            rounded = [p.float() for p in exact]
            x, grad = random_map(shape, dtype, layout), random_map(shape, dtype).flip(0)
            settings = (1e-5, shuffle, 0.7 if case in ("odd", "many-tiles") else 1.0)
            y = forward(x, *rounded, *settings)
            got = y, *backward(grad, x, *rounded, *settings)
            arguments = (x.double(), *exact, *settings)
            expected = (
                reference.shuffle_attention(*arguments),
                *reference.shuffle_attention_backward(grad.double(), *arguments),
            )
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == (dtype if a.shape == shape else torch.float32)
                worst = (a.double() - b).abs().max().item() if b.numel() else 0.0
                # A gradient of a parameter is a sum in which much cancels.
                assert worst <= 5 * tolerance * max(1.0, b.abs().max().item() if b.numel() else 0), (
                    case,
                    layout,
                    shuffle,
                    dtype,
                    worst,
                )
            for result in (y, got[1]):
                assert result.stride() == torch.empty_like(x).stride(), (case, layout)
            checked += 1
launch.SIZES = launch.Sizes()
large = random_map((2, 8, 66, 65), torch.float32) + 1e4
weights = [p.detach().float() for p in parameters(random_layer(8, 2))]
for x in (large, large.to(memory_format=torch.channels_last)):
    exact = reference.shuffle_attention(x.double(), *(w.double() for w in weights), 1e-5, True)
    error = (forward(x, *weights, 1e-5, True).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-3, error

# A kernel is launched on the device of its map, where all its tensors must be.
devices, device_of = [], torch.cuda.device_of
torch.cuda.device_of = lambda x: (devices.append(x), device_of(x))[1]
forward(large, *weights, 1e-5, True)
assert len(devices) == 1
assert devices[0] is large
with pytest.raises(RuntimeError, match="the map is on cpu, but a tensor is on meta"):
    backends.triton._run("shuffle_attention", large, weights[0].to("meta"), *weights[1:], 1e-5, True)
print("checked", checked)
