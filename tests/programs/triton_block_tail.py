"""Compare the Triton kernels of a block's end with the modules one by one."""

import copy
import itertools

import torch
import triton_on_cpu  # noqa: F401

from maps import channels_last, contiguous, every_other, transposed
from shuffle_attention.kernels.backends.triton import launch
from shuffle_attention.kernels.schema import REFERENCES
from shuffle_attention.models.fused_block import block_tail
from tail_cases import (
    Case,
    by_modules,
    check_infinite_and_huge_values,
    check_kept_tensors,
    check_large_mean,
    check_maps_without_values,
    check_zero_weight_and_values_that_are_not_finite,
    compare,
)

# Few programs, for the interpreter's sake; and tiles so small that a little map has several of everything.
BROAD = launch.Sizes(warp_values=4096, values_in_nhwc=8192)
TINY = launch.Sizes(
    values=16, warp_values=64, values_in_nhwc=128, channels=4, most_tiles=2, programs=2, pooled_samples=2
)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

launch.SIZES = BROAD
check_maps_without_values((0, 8, 4, 4), True)
for name in ("block_tail", "block_tail_backward", "block_tail_"):
    del REFERENCES[name]  # nothing below falls back on them

ends = list(itertools.product([True, False], repeat=3))  # training, shortcut, ReLU
shapes = [((3, 12, 5, 3), 2), ((2, 20, 37), 5), ((2, 8, 3, 4, 5), 2), ((3, 16, 1, 1), 4), ((1, 12, 4, 4), 3)]
layouts = [(contiguous, True), (channels_last, True), (channels_last, False)]
cases = [Case(*shape, *layout) for shape, layout in itertools.product(shapes, layouts)]
cases += [Case((2, 16, 7, 7), 2, layout, gain=1.37) for layout in (contiguous, channels_last)]
cases += [Case((2, 12, 5, 3), 2, shuffle=False), Case((2, 8, 6, 5), 2, transposed)]
settings = zip(itertools.cycle([F32, BF16, F32, F16]), itertools.cycle(ends), strict=False)
checked = 0
for case, (dtype, end) in zip(cases, settings, strict=False):
    compare(case, dtype, *end)
    checked += 1
for layout, end in zip(itertools.cycle((contiguous, contiguous, channels_last)), ends, strict=False):
    compare(Case((3, 12, 4, 3), 3, layout), F32, *end)
    checked += 1
for sizes, layout in ((TINY, contiguous), (TINY, channels_last), (BROAD, channels_last)):
    launch.SIZES = sizes
    compare(Case((3, 12, 5, 9), 3, layout), F32, True, True, True)
    check_large_mean(6, layout)
    check_zero_weight_and_values_that_are_not_finite(layout)
    checked += 3

with torch.no_grad():
    for layout in (contiguous, channels_last, every_other):
        case = Case((3, 12, 5, 3), 3, layout, shuffle=False)
        norm, attention = (module.float().eval() for module in case.modules())
        u, shortcut, _ = case.maps(F32)
        for added in (None, shortcut, u):
            expected, target = block_tail(u, added, norm, attention), layout(u.clone())
            assert block_tail(target, target if added is u else added, norm, attention, over=True) is target
            assert torch.equal(target, expected)
    memory = torch.randn(4, 12, 5, 3)
    expected = block_tail(memory[1:].clone(), memory[:3].clone(), norm, attention)
    assert torch.equal(block_tail(memory[1:], memory[:3], norm, attention, over=True), expected)

case = Case((3, 8, 5, 3), 2)
for momentum in (0.1, None):
    norm, attention = (m.float() for m in case.modules(momentum=momentum))
    expected = copy.deepcopy(norm)
    u, shortcut, _ = case.maps(F32)
    for scale in (1, 3, -2):
        block_tail(scale * u, shortcut, norm, attention)
        by_modules(scale * u, shortcut, expected, attention)
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(dict(norm.state_dict()), dict(expected.state_dict()), rtol=1e-5, atol=1e-6)
check_kept_tensors(True)
check_infinite_and_huge_values(1e30, contiguous, types=[F32])
check_infinite_and_huge_values(-torch.inf, channels_last, types=[BF16])
print("checked", checked)
