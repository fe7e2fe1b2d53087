"""The Triton kernels: the layer's in Triton's interpreter, and all of them compiled for GPUs that are not here.

Both need a process of their own, since a kernel is interpreted or compiled as the environment says when it is made.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRETED = """
import torch
load, torch.ops.load_library = torch.ops.load_library, lambda path: None  # the CPU's own kernels, replaced here
import shuffle_attention.kernels
torch.ops.load_library = load
from test_shuffle import CASES, LAYOUTS, parameters, random_layer, random_map
from shuffle_attention.kernels import layer, reference
from shuffle_attention.kernels.backends.triton import layer as triton_kernels

layer._forward.register_kernel("cpu")(layer.forward_cuda)
layer._backward.register_kernel("cpu")(layer.backward_cuda)
forward, backward = (getattr(torch.ops.shuffle_attention, "shuffle_attention" + way) for way in ("", "_backward"))
TILE = triton_kernels._TILE
DTYPES = ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2))
CASES = {**CASES, "many-tiles": ((1, 8, 19, 11), 2), "many-channels": ((1, 136, 5, 5), 17)}
checked = 0
for case, (shape, groups) in CASES.items():
    triton_kernels._TILE = 128 if case == "many-tiles" else TILE  # then planes do not fit one
    triton_kernels._CHANNELS = 4 if case == "many-tiles" else 32
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
            found = y, *backward(grad, x, *rounded, *settings)
            arguments = (x.double(), *exact, *settings)
            expected = (
                reference.shuffle_attention(*arguments),
                *reference.shuffle_attention_backward(grad.double(), *arguments),
            )
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == (dtype if a.shape == shape else torch.float32)
                worst = (a.double() - b).abs().max().item() if b.numel() else 0.0
                # A gradient of a parameter is a sum in which much cancels.
                assert worst <= 5 * tolerance * max(1.0, b.abs().max().item() if b.numel() else 0), (
                    case, layout, shuffle, dtype, worst)
            for map in (y, found[1]):
                assert map.stride() == torch.empty_like(x).stride(), (case, layout)
            checked += 1
triton_kernels._TILE, triton_kernels._CHANNELS = TILE, 32
large = random_map((2, 8, 66, 65), torch.float32) + 1e4
weights = [p.detach().float() for p in parameters(random_layer(8, 2))]
for x in (large, large.to(memory_format=torch.channels_last)):
    exact = reference.shuffle_attention(x.double(), *(w.double() for w in weights), 1e-5, True)
    error = (forward(x, *weights, 1e-5, True).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-3, error
print("checked", checked)
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from shuffle_attention.kernels.backends.triton import layer, tail_gates as gates
from shuffle_attention.kernels.backends.triton import tail_planes as planes, tail_rows as rows

MAPS = ("x", "u", "shortcut", "grad", "out", "dshortcut", "du")
NUMBERS = ("eps", "norm_eps", "values", "gain")
COUNTS = ("rows", "batch", "channels", "half", "units", "pixels", "chunks", "tiles", "length", "n")
TWO_WAYS = {"shuffle": True, "backward": True}
FORWARD = {"shuffle": True, "add": True, "relu": True}
SUMS = {"shuffle": True, "relu": True, "separate": True}
BACKWARD = {"shuffle": True, "relu": False}
IN_PLANES, IN_ROWS = {"MULTIPLE": 16, "ROWS": 1, "BLOCK": 4096}, {"PIXELS": 16, "CHANNELS": 64}
MERGED, POOLED = {"CHUNKS": 16, "CHANNELS": 64}, {"SAMPLES": 128, "CHANNELS": 8, "by_batch": True}
KERNELS = [
    (layer._planes, {"whole": True, "ROWS": 64, "BLOCK": 64, **TWO_WAYS}),
    (layer._planes, {"whole": False, "ROWS": 1, "BLOCK": 4096, **TWO_WAYS}),
    (layer._rows, {"PIXELS": 128, "CHANNELS": 32, **TWO_WAYS}),
    (planes.statistics_planes, IN_PLANES),
    (planes.output_planes, IN_PLANES | FORWARD),
    (planes.sums_planes, IN_PLANES | SUMS),
    (planes.gradient_planes, IN_PLANES | BACKWARD),
    (rows.statistics_rows, IN_ROWS),
    (rows.output_rows, IN_ROWS | FORWARD),
    (rows.sums_rows, IN_ROWS | SUMS),
    (rows.gradient_rows, IN_ROWS | BACKWARD),
    (gates.merge_statistics, MERGED),
    (gates.merge_sums, MERGED),
    (gates.pool_statistics, POOLED),
    (gates.pool_gradients, POOLED),
    (gates.attention_gradients, {"GROUPS": 32, "WIDTH": 16}),
]


def kind(name):
    return "*bf16" if name in MAPS else "fp32" if name in NUMBERS else "i32" if name in COUNTS else "*fp32"


for kernel, fixed in KERNELS:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else kind(name) for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in fixed and name in MAPS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert "cubin" in compiled.asm
    if fixed.get("BLOCK") == 4096 and kernel is not layer._planes:
        assert "ld.global.v4" in compiled.asm["ptx"], kernel  # planes of a multiple of 16 pixels, 16 bytes at a time
print("compiled")
"""


def run(code: str, **environment: str) -> str:
    path = os.pathsep.join(
        [
            str(Path(__file__).parent),
            *(str(Path(__file__).parents[1] / name) for name in ("", "attention")),
            os.environ.get("PYTHONPATH", ""),
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interpreted_they_are_the_reference_over_the_table_of_cases():
    assert int(run(INTERPRETED, TRITON_INTERPRET="1").split()[-1]) == 52


def test_they_compile_for_hopper(tmp_path):
    assert "compiled" in run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
