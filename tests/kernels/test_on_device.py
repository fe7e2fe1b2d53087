"""The kernels on a GPU against float64 on the CPU; skipped where there is none.

``benchmarks/device.py check`` runs this file and records what each test says. With ``KERNEL_TEST_DEVICE=cpu`` and
``TRITON_INTERPRET=1`` the Triton kernels run on a CPU, in their interpreter.
"""

import copy
import itertools
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tail_cases as tails
from layer_cases import CASES as MAPS
from layer_cases import LAYOUTS, random_layer, random_map
from maps import channels_last, contiguous
from shuffle_attention import ShuffleAttention
from shuffle_attention.models.fused_block import block_tail

DEVICE = os.environ.get("KERNEL_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET"):
    from programs import triton_on_cpu  # noqa: F401 - the Triton kernels serve the CPU

TYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # and the error that rounding explains
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="CUDA only")
types = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])
layouts = pytest.mark.parametrize("layout", [contiguous, channels_last])
ENDS = [
    (case, end)  # training, shortcut, ReLU
    for case in tails.CASES
    for end in itertools.product([True, False], repeat=3)
    if case.shape[1] == 12 or end in ((True, True, True), (False, True, True))
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill new memory with NaN; leave a process whose device is lost, so that xdist goes on in another."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    if DEVICE == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@types
@pytest.mark.parametrize(("case", "end"), ENDS, ids=str)
def test_tail(case: tails.Case, end: tuple[bool, bool, bool], dtype: torch.dtype):
    tails.compare(case, dtype, *end, DEVICE)


@types
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for (name, (shape, _)), layout in itertools.product(MAPS.items(), LAYOUTS)
        if not (layout == "channels-last" and len(shape) == 3) and not (layout == "expanded" and shape[0] == 0)
    ],
)
def test_layer(name: str, layout: str, dtype: torch.dtype):
    shape, groups = MAPS[name]
    exact = random_layer(shape[1], groups)
    module = copy.deepcopy(exact).float().to(DEVICE)
    x, grad = random_map(shape, dtype, layout), random_map(shape, dtype).flip(0)
    leaf, double = x.to(DEVICE).requires_grad_(), x.double().requires_grad_()
    y, expected = module(leaf), exact(double)
    got = y, *torch.autograd.grad(y, [leaf, *module.parameters()], grad.to(y))
    want = expected, *torch.autograd.grad(expected, [double, *exact.parameters()], grad.double())
    assert y.stride() == torch.empty_like(leaf).stride()
    for a, b in zip(got, want, strict=True):
        # A gradient of a parameter is a sum in which much cancels.
        scale = max(1.0, b.abs().max().item() if b.numel() else 0.0)
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=8 * TYPES[dtype] * scale)


@layouts
@pytest.mark.parametrize("size", [7, 40, 150])
def test_large_mean(size: int, layout):
    tails.check_large_mean(size, layout, DEVICE)


@layouts
def test_zero_weight_and_values_that_are_not_finite(layout):
    tails.check_zero_weight_and_values_that_are_not_finite(layout, DEVICE)


@layouts
@pytest.mark.parametrize("value", [1e30, -1e30, torch.inf, -torch.inf])
def test_infinite_and_huge_values(value: float, layout):
    tails.check_infinite_and_huge_values(value, layout, DEVICE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
def test_maps_without_values(shape: tuple[int, ...], training: bool):
    tails.check_maps_without_values(shape, training, DEVICE)


def a_step(layout, device: str = DEVICE, shape=(3, 24, 7, 5), dtype=torch.float32) -> tuple[Tensor, Callable]:
    """Return a map, and a function that runs the tail on it, forward and backward."""
    case = tails.Case(shape, 3, layout)
    norm, attention = (module.float().to(device) for module in case.modules())
    u, shortcut, grad = (t.to(device) for t in case.maps(dtype))
    wanted = [u.requires_grad_(), shortcut.requires_grad_(), *norm.parameters(), *attention.parameters()]

    def step(tail: Callable = block_tail) -> list[Tensor]:
        y = tail(u, shortcut, norm, attention)
        return [y, *torch.autograd.grad(y, wanted, grad)]

    return u, step


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=0)


@layouts
def test_repeated_it_gives_the_same(layout):
    _, step = a_step(layout, shape=(4, 96, 28, 28), dtype=torch.bfloat16)
    assert_equal(step(), step())


@layouts
def test_compiled_whole_it_gives_the_same(layout):
    _, step = a_step(layout)
    torch.testing.assert_close(step(torch.compile(block_tail, fullgraph=True)), step())


@on_cuda
@layouts
def test_replayed_as_a_cuda_graph_it_reads_new_values(layout):
    u, step = a_step(layout)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(), step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        u.copy_(u.flip(0) + 1)
    graph.replay()
    assert_equal(results, step())


@on_cuda
@layouts
def test_runs_on_the_current_stream(layout):
    u, step = a_step(layout)
    changed = (u.detach() + 1).clone()
    step()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)  # the default stream would not wait for the change
        u.detach().copy_(changed)
        got = step()
    torch.cuda.synchronize()
    assert_equal(got, step())


@on_cuda
@layouts
def test_runs_on_the_device_of_the_map(layout):
    """With one device, the last one is the current one."""
    last = f"cuda:{torch.cuda.device_count() - 1}"
    assert_equal(a_step(layout, last)[1](), a_step(layout, "cuda:0")[1]())


@on_cuda
@layouts
def test_map_of_more_values_than_32_bits_count(layout):
    batch, channels, size = 130, 256, 256
    norm, attention = nn.BatchNorm2d(channels).to(DEVICE).eval(), ShuffleAttention(channels).to(DEVICE)
    x = torch.empty(batch, channels, size, size, dtype=torch.bfloat16, device=DEVICE)
    x = (x.to(memory_format=torch.channels_last) if layout is channels_last else x).normal_()
    for call in (attention, lambda x: block_tail(x, x.detach(), norm, attention)):
        ends = []
        for part in (x, x[-1:].clone()):
            leaf = part.detach().requires_grad_()
            y = call(leaf)
            (dx,) = torch.autograd.grad(y, leaf, y.detach())
            ends.append((y.detach()[-1:].clone(), dx[-1:].clone()))
            del y, dx
        for whole, alone in zip(*ends, strict=True):
            torch.testing.assert_close(whole, alone, rtol=1e-2, atol=1e-2)
