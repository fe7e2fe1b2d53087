"""The fused end of a residual block against its modules one by one: cases and comparisons for any backend."""

import copy
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from maps import MapCase, channels_last, every_other, transposed
from shuffle_attention import ShuffleAttention
from shuffle_attention.kernels import block_reference, reference
from shuffle_attention.models.fused_block import block_tail

NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Case(MapCase):
    """Without groups there is no attention."""

    normalised: bool = True

    def __str__(self) -> str:
        return super().__str__() + "-no-norm" * (not self.normalised)

    def modules(self, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Module, nn.Module]:
        channels = self.shape[1]
        norm = attention = nn.Identity()
        if self.normalised:
            norm = NORMS[len(self.shape)](channels, dtype=dtype, **options)
        if self.groups:
            attention = ShuffleAttention(channels, self.groups, shuffle=self.shuffle, gain=self.gain, dtype=dtype)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in [*norm.parameters(), *attention.parameters()]:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            if getattr(norm, "running_mean", None) is not None:
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
    # Without attention the number of channels may be odd.
    Case((3, 7, 5, 3), 0),
    Case((3, 7, 5, 3), 0, channels_last),
    Case((2, 256, 7, 7), 0),
    Case((2, 131, 7, 7), 0, channels_last),
    Case((5, 37, 20, 20), 0, channels_last),
    Case((3, 33, 1, 1), 0),
    Case((2, 5, 37), 0),
    Case((2, 5, 3, 4, 5), 0, channels_last),
    Case((2, 7, 6, 5), 0, every_other),
    Case((1, 3, 180, 180), 0),
    Case((1, 3, 180, 180), 0, channels_last),
    Case((2, 96, 56, 56), 0, channels_last),
    Case((3, 12, 5, 3), 2, normalised=False),
    Case((3, 84, 5, 3), 3, channels_last, shuffle=False, normalised=False),
    Case((2, 128, 20, 20), 4, channels_last, gain=1.37, normalised=False),
    Case((3, 7, 5, 3), 0, normalised=False),
    Case((2, 7, 6, 5), 0, channels_last, normalised=False),
]
SINGLE_AND_HALF = (torch.float32, torch.bfloat16)
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


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


def check_large_mean(size: int, layout, device: str = "cpu") -> None:
    """Check that a mean of 10^4 deviations costs the variances nothing, nor do planes whose parts differ."""
    case = Case((2, 4, size, size), 1, layout)
    norm, attention = (m.requires_grad_(False) for m in case.modules())
    u, shortcut, _ = case.maps(torch.float32)
    for far in (u + 1e4, u + 1e3 * (torch.arange(size) < size // 2)[:, None]):
        far = layout(far)
        expected = by_modules(far.double(), shortcut.double(), norm.double(), attention.double())
        got = block_tail(far.to(device), shortcut.to(device), norm.float().to(device), attention.float().to(device))
        torch.testing.assert_close(got.cpu().double(), expected, rtol=2e-5, atol=2e-5)
        norm.cpu(), attention.cpu()


def check_zero_weight_and_values_that_are_not_finite(layout, device: str = "cpu") -> None:
    case = Case((2, 8, 5, 5), 2, layout)
    norm, attention = (m.to(device) for m in case.modules(torch.float32))
    nn.init.zeros_(norm.weight)
    u, shortcut, grad = (t.to(device) for t in case.maps(torch.float32))
    y, got = gradients(block_tail, u, shortcut, grad, norm, attention, True)
    expected, want = gradients(by_modules, u, shortcut, grad, norm, attention, True)
    for g, w in zip([y, *got], [expected, *want], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-3)  # planes are constant, up to rounding
    shortcut[0, 3, 2, 2] = torch.nan
    shortcut[1, 4, 1, 1] = torch.inf
    y, expected = block_tail(u, shortcut, norm, attention), by_modules(u, shortcut, norm, attention)
    torch.testing.assert_close(y, expected, equal_nan=True)


def check_infinite_and_huge_values(value: float, layout, device: str = "cpu", *, types=SINGLE_AND_HALF) -> None:
    """Check that both ops equal the reference wherever that is finite: saturated gates, an overflowing variance."""
    ops = torch.ops.shuffle_attention
    for dtype, size in product(types, (2, 7, 20)):
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
        case = Case((2, 16, size, size), 2, layout)
        norm, attention = (m.requires_grad_(False).to(device) for m in case.modules(torch.float32))
        u, shortcut, grad = (t.to(device) for t in case.maps(dtype))
        u[0, :, 1, 0] = value
        six, settings = list(attention.parameters()), (1e-5, True)
        pairs = [
            (ops.shuffle_attention(u, *six, *settings), reference.shuffle_attention(u.float(), *six, *settings)),
            (
                ops.shuffle_attention_backward(grad, u, *six, *settings)[0],
                reference.shuffle_attention_backward(grad.float(), u.float(), *six, *settings)[0],
            ),
        ]
        for statistics in ((None, None), (norm.running_mean, norm.running_var)):
            parameters = (norm.weight, norm.bias, *statistics, *six, 1e-5, *settings, True)
            y, of_planes, _ = ops.block_tail(u, shortcut, *parameters)
            expected, _, _ = block_reference.block_tail(u.float(), shortcut.float(), *parameters)
            du, *_ = ops.block_tail_backward(grad, u, y, of_planes, *parameters)
            wanted, *_ = block_reference.block_tail_backward(grad.float(), u.float(), y, of_planes, *parameters)
            pairs += [(y, expected), (du, wanted)]
        for got, want in pairs:
            finite = want.isfinite()
            finite[0, :, 1, 0] &= abs(value) < torch.inf  # an infinite value itself may become NaN
            torch.testing.assert_close(got.float()[finite], want[finite], rtol=tolerance, atol=tolerance)


def check_kept_tensors(with_shortcut: bool, groups: int = 2) -> None:
    """Check that the op keeps its input and output for the backward pass, and small tensors beside.

    Without attention and shortcut it keeps its input alone.
    """
    case = Case((2, 16, 20, 20), groups)
    norm, attention = case.modules(torch.float32)
    u, shortcut, _ = case.maps(torch.float32)
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = block_tail(u.requires_grad_(), shortcut if with_shortcut else None, norm, attention)
    maps = {u.data_ptr(), y.data_ptr()} if groups or with_shortcut else {u.data_ptr()}
    assert {t.data_ptr() for t in kept if t.numel() >= u.numel()} == maps
    assert sum(t.numel() for t in kept if t.numel() < u.numel()) < 10 * 2 * 16


def check_maps_without_values(shape: tuple[int, ...], training: bool, device: str = "cpu", groups: int = 2) -> None:
    case = Case(shape, groups)
    norm, attention = (m.train(training).to(device) for m in case.modules())
    before = copy.deepcopy(norm.state_dict())
    u, shortcut, grad = (t.to(device) for t in case.maps())
    y, got = gradients(block_tail, u, shortcut, grad, norm, attention, True)
    assert y.shape == got[0].shape == got[1].shape == shape
    assert not any(g.any() for g in got)
    assert torch.equal(norm.running_var, before["running_var"])
