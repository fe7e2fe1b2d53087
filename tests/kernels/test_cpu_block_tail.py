"""The fused end of a residual block against the modules one by one, over one table of maps and one of settings."""

import copy

import pytest
import torch
from torch import Tensor, nn

from maps import MapCase, channels_last, contiguous, every_other, transposed
from shuffle_attention import ShuffleAttention
from shuffle_attention.models.fused_block import block_tail

FORWARD = torch.ops.shuffle_attention.block_tail.default
BACKWARD = torch.ops.shuffle_attention.block_tail_backward.default
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Case(MapCase):
    def modules(self, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Module, ShuffleAttention]:
        channels = self.shape[1]
        norm = NORMS[len(self.shape)](channels, dtype=dtype, **options)
        attention = ShuffleAttention(channels, self.groups, shuffle=self.shuffle, gain=self.gain, dtype=dtype)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in [*norm.parameters(), *attention.parameters()]:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            if norm.running_mean is not None:
                norm.running_mean.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
                norm.running_var.copy_(torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5)
        return norm, attention

    def maps(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Map, shortcut and gradient of the output, the same for every type up to rounding."""
        generator = torch.Generator().manual_seed(sum(self.shape))
        normal = [torch.randn(self.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        return self.layout((2 * normal[0] + 1).to(dtype)), self.layout(normal[1].to(dtype)), normal[2].to(dtype)


CASES = [
    Case((2, 256, 7, 7), 64),
    Case((3, 256, 7, 7), 64, channels_last),
    Case((2, 128, 7, 7), 2, channels_last),
    Case((2, 16, 56, 56), 2),
    Case((2, 16, 56, 56), 2, channels_last),
    Case((5, 128, 20, 20), 4, channels_last),
    Case((5, 128, 20, 20), 4, channels_last, shuffle=False),
    Case((2, 8, 14, 14), 1),
    Case((4, 8, 3, 2), 1),
    Case((3, 64, 1, 1), 8),
    Case((3, 12, 5, 3), 2),
    Case((3, 12, 5, 3), 2, channels_last),
    Case((3, 12, 5, 3), 3, shuffle=False),
    Case((3, 84, 5, 3), 3, channels_last, shuffle=False),
    Case((2, 84, 6, 11), 3, channels_last),
    Case((2, 20, 37), 5),
    Case((2, 20, 37), 5, channels_last),
    Case((2, 8, 3, 4, 5), 2),
    Case((2, 8, 3, 4, 5), 2, channels_last),
    Case((2, 8, 6, 5), 2, transposed),
    Case((2, 8, 6, 5), 2, every_other),
    Case((1, 4, 180, 180), 1),
    Case((1, 4, 180, 180), 1, channels_last),
    Case((2, 96, 56, 56), 3, channels_last),
    Case((2, 16, 7, 7), 2, gain=1.37),
    Case((2, 16, 7, 7), 2, channels_last, gain=1.37),
    Case((2, 16, 30, 30), 2, shuffle=False, gain=0.3),
    Case((2, 16, 30, 30), 2, channels_last, shuffle=False, gain=0.3),
]
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
cases = pytest.mark.parametrize("case", CASES, ids=str)
small_cases = pytest.mark.parametrize("case", [c for c in CASES if torch.Size(c.shape).numel() < 3_000], ids=str)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
ends = pytest.mark.parametrize(
    ("with_shortcut", "relu"),
    [(True, True), (False, True), (True, False), (False, False)],
    ids=["whole", "no-shortcut", "no-relu", "neither"],
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills new memory with NaN, so that an output which is not written cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def by_modules(u: Tensor, shortcut: Tensor | None, norm, attention, *, relu: bool = True) -> Tensor:
    y = attention(norm(u))
    if shortcut is not None:
        y = y + shortcut
    return y.relu() if relu else y


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    scale = want.abs().max().item()
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance * scale + 1e-20)


def gradients(tail, u: Tensor, shortcut: Tensor | None, grad: Tensor, norm, attention, relu: bool):
    leaves = [t.detach().clone().requires_grad_() for t in (u, shortcut) if t is not None]
    y = tail(leaves[0], leaves[1] if shortcut is not None else None, norm, attention, relu=relu)
    return y, torch.autograd.grad(y, [*leaves, *norm.parameters(), *attention.parameters()], grad)


def compare(
    case: Case, dtype: torch.dtype, training: bool, with_shortcut: bool, relu: bool, device: str = "cpu"
) -> None:
    u, shortcut, grad = case.maps(dtype)
    shortcut = shortcut if with_shortcut else None
    norm, attention = (m.train(training) for m in case.modules())
    exact = copy.deepcopy(norm), copy.deepcopy(attention)
    if dtype != torch.float64:
        norm, attention = norm.float(), attention.float()
    moved = [t if t is None else t.to(device) for t in (u, shortcut, grad)]
    y, got = gradients(block_tail, *moved, norm.to(device), attention.to(device), relu)
    y, got = y.cpu(), [g.cpu() for g in got]
    doubles = [t if t is None else t.double() for t in (u, shortcut, grad)]
    expected, _ = gradients(by_modules, *doubles, *exact, relu)
    assert (y.dtype, y.stride()) == (u.dtype, torch.empty_like(u).stride())
    assert_near(y, expected, TOLERANCES[dtype])
    # Where ReLU is within rounding of its kink, either side is right: the gradient is let through by one mask.
    masked = doubles[2] * (y > 0) if relu else doubles[2]
    _, want = gradients(by_modules, *doubles[:2], masked, *exact, False)
    assert (got[0].dtype, got[0].stride()) == (u.dtype, torch.empty_like(u).stride())
    # Parameters' gradients are sums, whose terms may cancel.
    for g, w in zip(got, want, strict=True):
        assert_near(g, w, TOLERANCES[dtype] * 8)


@dtypes
@cases
def test_equals_the_modules(case: Case, dtype: torch.dtype):
    compare(case, dtype, training=True, with_shortcut=True, relu=True)


@ends
@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@small_cases
def test_equals_the_modules_in_every_setting(case: Case, dtype, training: bool, with_shortcut: bool, relu: bool):
    compare(case, dtype, training, with_shortcut, relu)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[15]], ids=str)
def test_running_statistics(case: Case, momentum: float | None):
    norm, attention = case.modules(momentum=momentum)
    expected = copy.deepcopy(norm)
    u, shortcut, _ = case.maps()
    for scale in (1, 3, -2):
        block_tail(scale * u, shortcut, norm, attention)
        by_modules(scale * u, shortcut, expected, attention)
    assert norm.num_batches_tracked == expected.num_batches_tracked == 3
    torch.testing.assert_close(dict(norm.state_dict()), dict(expected.state_dict()), rtol=1e-12, atol=1e-12)
    norm.eval(), expected.eval()
    y = block_tail(u, shortcut, norm, attention)
    assert_near(y, by_modules(u, shortcut, expected, attention), 1e-12)
    torch.testing.assert_close(dict(norm.state_dict()), dict(expected.state_dict()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
@modes
def test_norms_without_parameters_or_running_statistics(options: dict, training: bool):
    case = Case((3, 12, 5, 3), 2)
    norm, attention = (m.train(training) for m in case.modules(**options))
    u, shortcut, _ = case.maps()
    assert_near(block_tail(u, shortcut, norm, attention), by_modules(u, shortcut, norm, attention), 1e-12)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
@modes
def test_maps_without_values(shape: tuple[int, ...], training: bool):
    case = Case(shape, 2)
    norm, attention = (m.train(training) for m in case.modules())
    before = copy.deepcopy(norm.state_dict())
    u, shortcut, grad = case.maps()
    y, got = gradients(block_tail, u, shortcut, grad, norm, attention, True)
    assert y.shape == got[0].shape == got[1].shape == shape
    assert not any(g.any() for g in got)
    assert torch.equal(norm.running_var, before["running_var"])


@modes
@small_cases
def test_gradcheck(case: Case, training: bool):
    norm, attention = (m.train(training) for m in case.modules())
    u, shortcut, _ = case.maps()
    leaves = [u.requires_grad_(), shortcut.requires_grad_(), *norm.parameters(), *attention.parameters()]
    # Away from its kink: what ReLU does there the comparison with the modules shows.
    assert torch.autograd.gradcheck(
        lambda u, s, *_: block_tail(u, s, norm, attention, relu=False), leaves, fast_mode=True
    )


@modes
def test_gradgradcheck(training: bool):
    case = Case((2, 8, 3, 2), 2)
    norm, attention = (m.train(training) for m in case.modules())
    u, shortcut, _ = case.maps()
    leaves = [u.requires_grad_(), (shortcut + 1).requires_grad_(), *norm.parameters(), *attention.parameters()]
    assert torch.autograd.gradgradcheck(lambda u, s, *_: block_tail(u, s, norm, attention), leaves, fast_mode=True)


def arguments(case: Case, dtype: torch.dtype, training: bool, with_shortcut: bool, relu: bool):
    """What the forward and the backward op are called with."""
    norm, attention = case.modules(torch.float64 if dtype == torch.float64 else torch.float32)
    u, shortcut, grad = case.maps(dtype)
    sa = [p.detach() for p in attention.parameters()]
    given = [None, None] if training else [norm.running_mean, norm.running_var]
    parameters = [norm.weight.detach(), norm.bias.detach(), *given, *sa]
    shortcut = shortcut if with_shortcut else None
    forward = (u, shortcut, *parameters, 1e-5, 1e-5, case.shuffle, relu, case.gain)
    out, statistics, _ = FORWARD(*forward)
    backward = (
        grad,
        u,
        out if relu else None,
        statistics,
        *parameters,
        1e-5,
        1e-5,
        case.shuffle,
        with_shortcut,
        case.gain,
    )
    return forward, backward


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@ends
@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.shape in {(3, 12, 5, 3), (2, 8, 6, 5)} or (c.gain != 1 and c.shape == (2, 16, 7, 7))],
    ids=str,
)
def test_opcheck(case: Case, dtype, training: bool, with_shortcut: bool, relu: bool):
    forward, backward = arguments(case, dtype, training, with_shortcut, relu)
    torch.library.opcheck(FORWARD, (forward[0].requires_grad_(), *forward[1:]))
    torch.library.opcheck(BACKWARD, (backward[0], backward[1].detach(), *backward[2:]))


@modes
@pytest.mark.parametrize(
    "case",
    [Case((5, 320, 9, 9), 5), Case((5, 320, 9, 9), 5, channels_last), Case((1, 64, 48, 48), 4, channels_last)],
    ids=str,
)
def test_does_not_depend_on_the_number_of_threads(case: Case, training: bool, threads):
    forward, backward = arguments(case, torch.float32, training, True, True)

    def results(count: int) -> list[Tensor]:
        threads(count)
        return [*FORWARD(*forward), *BACKWARD(*backward)]

    alone = results(1)
    for count in (2, 3, 4):
        for a, b in zip(alone, results(count), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("size", [7, 40, 150])
def test_large_mean(size: int, layout):
    """A mean of 10^4 deviations costs the variances nothing, nor do planes whose parts differ."""
    case = Case((2, 4, size, size), 1, layout)
    norm, attention = (m.requires_grad_(False) for m in case.modules())
    u, shortcut, _ = case.maps(torch.float32)
    for far in (u + 1e4, u + 1e3 * (torch.arange(size) < size // 2)[:, None]):
        far = layout(far)
        expected = by_modules(far.double(), shortcut.double(), norm.double(), attention.double())
        got = block_tail(far, shortcut, norm.float(), attention.float())
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_zero_weight_and_values_that_are_not_finite(layout):
    case = Case((2, 8, 5, 5), 2, layout)
    norm, attention = case.modules(torch.float32)
    nn.init.zeros_(norm.weight)
    u, shortcut, grad = case.maps(torch.float32)
    y, got = gradients(block_tail, u, shortcut, grad, norm, attention, True)
    expected, want = gradients(by_modules, u, shortcut, grad, norm, attention, True)
    for g, w in zip([y, *got], [expected, *want], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-3)  # planes are constant, up to rounding
    shortcut[0, 3, 2, 2] = torch.nan
    shortcut[1, 4, 1, 1] = torch.inf
    y, expected = block_tail(u, shortcut, norm, attention), by_modules(u, shortcut, norm, attention)
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("with_shortcut", [True, False])
def test_keeps_the_map_and_the_output_alone(with_shortcut: bool):
    case = Case((2, 16, 20, 20), 2)
    norm, attention = case.modules(torch.float32)
    u, shortcut, _ = case.maps(torch.float32)
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = block_tail(u.requires_grad_(), shortcut if with_shortcut else None, norm, attention)
    assert sorted(t.data_ptr() for t in kept if t.numel() >= u.numel()) == sorted([u.data_ptr(), y.data_ptr()])
    assert sum(t.numel() for t in kept if t.numel() < u.numel()) < 10 * 2 * 16


@modes
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_compiled_whole_it_gives_the_same(layout, training: bool):
    case = Case((3, 24, 7, 5), 3, layout)
    norm, attention = (m.train(training) for m in case.modules(torch.float32))
    other = copy.deepcopy(norm)
    u, shortcut, grad = case.maps(torch.float32)
    compiled = torch.compile(block_tail, fullgraph=True)
    y, got = gradients(block_tail, u, shortcut, grad, norm, attention, True)
    again, found = gradients(compiled, u, shortcut, grad, other, attention, True)
    assert y.stride() == again.stride()
    for a, b in zip([y, *got, *norm.buffers()], [again, *found, *other.buffers()], strict=True):
        torch.testing.assert_close(a, b)


def test_refuses_what_does_not_fit():
    norm, attention = Case((2, 8, 3, 3), 2).modules(torch.float32)
    u = torch.zeros(2, 8, 3, 3)
    with pytest.raises(ValueError, match=r"the shape and type of u, got \(2, 8, 3, 1\)"):
        block_tail(u, u[..., :1], norm, attention)
    with pytest.raises(ValueError, match="float64"):
        block_tail(u, u.double(), norm, attention)
    with pytest.raises(ValueError, match="same number of channels"):
        block_tail(u[:, :4], None, norm, attention)
    with pytest.raises(ValueError, match="1 to 3 spatial"):
        block_tail(u[..., 0, 0], None, norm, attention)
    with pytest.raises(ValueError, match="more than 1 value"):
        block_tail(u[:1, :, :1, :1], None, norm, attention)
    with pytest.raises(TypeError, match="floating-point"):
        block_tail(u.long(), None, norm, attention)
