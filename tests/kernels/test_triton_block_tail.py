"""The Triton kernels of a block's end, through the dispatcher: what is registered for CUDA serves the CPU here.

In Triton's interpreter, in a process of its own, and against the modules one by one: the comparisons are those of
``test_cpu_block_tail``.
"""

import importlib.util

import pytest
from test_triton_layer import run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRETED = """
import copy, itertools, torch
load, torch.ops.load_library = torch.ops.load_library, lambda path: None  # the CPU's own kernels, replaced here
import shuffle_attention.kernels
torch.ops.load_library = load
import test_cpu_block_tail as t
from shuffle_attention.kernels import block_reference, block_tail as block
from shuffle_attention.kernels.backends.triton import block_tail as triton_block

block._forward.register_kernel("cpu")(block.forward_cuda)
block._backward.register_kernel("cpu")(block.backward_cuda)
torch.use_deterministic_algorithms(True)  # fills new memory with NaN
# Few programs, for the interpreter's sake; and tiles so small that a little map has several of everything.
BROAD = triton_block.Sizes(warp_values=4096, values_in_rows=8192)
TINY = triton_block.Sizes(
    values=16, warp_values=64, values_in_rows=128, channels=4, most_tiles=2, programs=2, pooled_samples=2
)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

triton_block.SIZES = BROAD
t.test_maps_without_values((0, 8, 4, 4), True)
block_reference.block_tail = block_reference.block_tail_backward = None  # nothing else falls back on them

ends = list(itertools.product([True, False], repeat=3))  # training, shortcut, ReLU
shapes = [((3, 12, 5, 3), 2), ((2, 20, 37), 5), ((2, 8, 3, 4, 5), 2), ((3, 16, 1, 1), 4), ((1, 12, 4, 4), 3)]
layouts = [(t.contiguous, True), (t.channels_last, True), (t.channels_last, False)]
cases = [t.Case(*shape, *layout) for shape, layout in itertools.product(shapes, layouts)]
cases += [t.Case((2, 16, 7, 7), 2, layout, gain=1.37) for layout in (t.contiguous, t.channels_last)]
cases += [t.Case((2, 12, 5, 3), 2, shuffle=False), t.Case((2, 8, 6, 5), 2, t.transposed)]
settings = zip(itertools.cycle([F32, BF16, F32, F16]), itertools.cycle(ends))
checked = 0
for case, (dtype, end) in zip(cases, settings):
    t.compare(case, dtype, *end)
    checked += 1
for layout, end in zip(itertools.cycle((t.contiguous, t.contiguous, t.channels_last)), ends):
    t.compare(t.Case((3, 12, 4, 3), 3, layout), F32, *end)
    checked += 1
for sizes, layout in ((TINY, t.contiguous), (TINY, t.channels_last), (BROAD, t.channels_last)):
    triton_block.SIZES = sizes
    t.compare(t.Case((3, 12, 5, 9), 3, layout), F32, True, True, True)
    t.test_large_mean(6, layout)
    t.test_zero_weight_and_values_that_are_not_finite(layout)
    checked += 3

case = t.Case((3, 8, 5, 3), 2)
for momentum in (0.1, None):
    norm, attention = (m.float() for m in case.modules(momentum=momentum))
    expected = copy.deepcopy(norm)
    u, shortcut, _ = case.maps(F32)
    for scale in (1, 3, -2):
        t.block_tail(scale * u, shortcut, norm, attention)
        t.by_modules(scale * u, shortcut, expected, attention)
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(dict(norm.state_dict()), dict(expected.state_dict()), rtol=1e-5, atol=1e-6)
t.test_keeps_the_map_and_the_output_alone(True)
print("checked", checked)
"""


def test_interpreted_they_are_the_modules_in_every_setting():
    assert int(run(INTERPRETED, TRITON_INTERPRET="1").split()[-1]) == 36
