"""The Triton kernels of a block's end, through the dispatcher: what is registered for CUDA serves the CPU here.

In Triton's interpreter, in a process of its own, and against the modules one by one: the comparisons are those of
``test_block``. Tiles are cut so small that little maps have several of everything.
"""

import importlib.util

import pytest

from test_triton_kernels import run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

PRELUDE = """
import itertools, torch
torch.ops.load_library = lambda path: None  # the CPU's own kernels, whose place is taken
import test_block as t
from shuffle_attention.ops import block, triton_block

block._forward.register_kernel("cpu")(block.forward_cuda)
block._backward.register_kernel("cpu")(block.backward_cuda)
BROAD = triton_block.Sizes(warp_values=4096, values_in_rows=8192)  # few programs, for the interpreter's sake
torch.use_deterministic_algorithms(True)  # fills new memory with NaN
TINY = triton_block.Sizes(
    values=32, warp_values=32, values_in_rows=128, channels=4, most_tiles=3, programs=2, pooled_samples=2
)
"""

INTERPRETED = (
    PRELUDE
    + """
t.block_tail.__globals__["block_reference"].block_tail = None  # nothing falls back on it
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ends = list(itertools.product([True, False], repeat=3))  # training, shortcut, ReLU
shapes = [((3, 12, 5, 3), 2), ((2, 20, 37), 5), ((2, 8, 3, 4, 5), 2), ((3, 16, 1, 1), 4), ((1, 12, 4, 4), 3)]
cases = [t.Case(*shape, layout, shuffle) for shape in shapes for layout, shuffle in (
    (t.contiguous, True), (t.channels_last, True), (t.channels_last, False))]
triton_block.SIZES = BROAD
cases += [t.Case((2, 12, 5, 3), 2, shuffle=False), t.Case((2, 8, 6, 5), 2, t.transposed)]
dtypes = itertools.cycle([F32, BF16, F32, F16])
checked = 0
for case, dtype, end in zip(cases, dtypes, itertools.cycle(ends)):
    t.compare(case, dtype, *end)
    checked += 1
for layout, end in itertools.product((t.contiguous, t.channels_last), ends):
    t.compare(t.Case((3, 12, 4, 3), 3, layout), F32, *end)
    checked += 1
triton_block.SIZES = TINY
for layout, training in itertools.product((t.contiguous, t.channels_last), (True, False)):
    t.compare(t.Case((3, 12, 5, 15), 3, layout), F32, training, True, True)
    checked += 1
print("checked", checked)
"""
)

STATISTICS = (
    PRELUDE
    + """
import copy
for layout, sizes in itertools.product((t.contiguous, t.channels_last), (BROAD, TINY)):
    triton_block.SIZES = sizes
    t.test_large_mean(9, layout)
    t.test_zero_weight_and_values_that_are_not_finite(layout)
case = t.Case((3, 8, 5, 3), 2)
for momentum in (0.1, None):
    norm, attention = (m.float() for m in case.modules(momentum=momentum))
    expected = copy.deepcopy(norm)
    u, shortcut, _ = case.maps(torch.float32)
    for scale in (1, 3, -2):
        t.block_tail(scale * u, shortcut, norm, attention)
        t.by_modules(scale * u, shortcut, expected, attention)
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(dict(norm.state_dict()), dict(expected.state_dict()), rtol=1e-5, atol=1e-6)
t.test_maps_without_values((0, 8, 4, 4), True)
t.test_keeps_the_map_and_the_output_alone(True)
print("done")
"""
)


def test_interpreted_they_are_the_modules_in_every_setting():
    assert int(run(INTERPRETED, TRITON_INTERPRET="1").split()[-1]) == 37


def test_interpreted_their_statistics_lose_no_digits():
    assert "done" in run(STATISTICS, TRITON_INTERPRET="1")
