"""The CPU kernels against the reference, over one table of maps and one of tolerances."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maps import MapCase, channels_last, contiguous, every_other, in_turn, opcheck, transposed
from shuffle_attention.kernels import LIBRARY, reference, shuffle_attention
from shuffle_attention.kernels.backends import cpu as library

pytestmark = pytest.mark.skipif(not library.LIBRARY.exists(), reason="the CPU kernels were not built")
FORWARD = torch.ops.shuffle_attention.shuffle_attention.default
BACKWARD = torch.ops.shuffle_attention.shuffle_attention_backward.default


class Case(MapCase):
    @property
    def n(self) -> int:
        return self.shape[1] // (2 * self.groups)

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """Map, gradient of the output and six parameters, the same for every type up to rounding."""
        generator = torch.Generator().manual_seed(sum(self.shape))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x, grad = self.layout((2 * normal(*self.shape) + 1).to(dtype)), normal(*self.shape).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return [x, grad, *(normal(1, self.n, 1, 1).to(wide) for _ in range(6))]


CASES = [
    Case((2, 256, 7, 7), 64),
    Case((2, 256, 7, 7), 64, channels_last),
    Case((2, 128, 7, 7), 2, channels_last),
    Case((1, 16, 56, 56), 2),
    Case((1, 16, 56, 56), 2, channels_last),
    Case((5, 128, 40, 40), 4, channels_last),
    Case((5, 128, 40, 40), 4, channels_last, shuffle=False),
    Case((2, 8, 14, 14), 1),
    Case((3, 64, 1, 1), 8),
    Case((3, 12, 5, 3), 2),
    Case((3, 12, 5, 3), 2, channels_last),
    Case((3, 12, 5, 3), 3, shuffle=False),
    Case((3, 84, 5, 3), 3, channels_last, shuffle=False),
    Case((2, 84, 6, 11), 3, channels_last),
    Case((2, 96, 5, 3), 3, channels_last),
    Case((2, 72, 5, 3), 1, channels_last, shuffle=False),
    Case((2, 20, 37), 5),
    Case((2, 20, 37), 5, channels_last),
    Case((2, 8, 3, 4, 5), 2),
    Case((2, 8, 3, 4, 5), 2, channels_last),
    Case((2, 8, 6, 5), 2, transposed),
    Case((2, 8, 6, 5), 2, every_other),
    Case((0, 8, 4, 4), 2),
    Case((0, 8, 4, 4), 2, channels_last),
    Case((1, 2, 259, 259), 1),
    Case((1, 2, 259, 259), 1, channels_last),
    Case((2, 64, 7, 7), 8, gain=1.37),
    Case((2, 64, 7, 7), 8, channels_last, gain=1.37),
    Case((2, 12, 5, 3), 3, shuffle=False, gain=0.3),
    Case((2, 12, 5, 3), 3, channels_last, shuffle=False, gain=0.3),
    Case((2, 128, 40, 40), 4, gain=1.37),
    Case((2, 128, 40, 40), 4, channels_last, gain=1.37),
]
# Of a value of the size of 1; a sum of k values is allowed sqrt(k) times as much.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
cases = pytest.mark.parametrize("case", CASES, ids=str)
small_cases = pytest.mark.parametrize("case", [c for c in CASES if 0 < torch.Size(c.shape).numel() < 10_000], ids=str)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill new memory with NaN, so that an output that is not written fails."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def attend(case: Case, x: Tensor, *params: Tensor) -> Tensor:
    return shuffle_attention(x, *params, groups=case.groups, shuffle=case.shuffle, gain=case.gain)


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def test_serves_the_op():
    for op in (FORWARD, BACKWARD):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CPU")


@dtypes
@cases
def test_forward(case: Case, dtype: torch.dtype):
    x, _, *params = case.tensors(dtype)
    y = attend(case, x, *params)
    assert (y.dtype, y.stride()) == (x.dtype, torch.empty_like(x).stride())
    expected = reference.shuffle_attention(x.double(), *(p.double() for p in params), 1e-5, case.shuffle, case.gain)
    assert_near(y, expected, TOLERANCES[dtype])


@dtypes
@cases
def test_gradients(case: Case, dtype: torch.dtype):
    x, grad, *params = case.tensors(dtype)
    leaves = [t.requires_grad_() for t in (x, *params)]
    got = torch.autograd.grad(attend(case, *leaves), leaves, grad)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    y = reference.shuffle_attention(*doubles, 1e-5, case.shuffle, case.gain)
    want = torch.autograd.grad(y, doubles, grad.double())
    assert (got[0].dtype, got[0].stride()) == (x.dtype, torch.empty_like(x).stride())
    # One pixel alone has rstd = 1 / sqrt(eps) and a gradient through it of exactly nothing.
    assert_near(got[0], want[0], 4 * TOLERANCES[dtype])
    terms = x.numel() / params[0].numel()
    for g, w, p in zip(got[1:], want[1:], params, strict=True):
        assert (g.dtype, g.shape) == (p.dtype, p.shape)
        assert_near(g, w, TOLERANCES[p.dtype] * max(terms, 1) ** 0.5)


def test_planes_without_pixels():
    x, grad, *params = Case((2, 8, 0, 4), 2).tensors(torch.float32)
    assert FORWARD(x, *params, 1e-5, True).shape == x.shape
    dx, *dparams = BACKWARD(grad, x, *params, 1e-5, True)
    assert dx.shape == x.shape
    assert not any(g.any() for g in dparams)


@small_cases
def test_gradcheck(case: Case):
    x, _, *params = case.tensors(torch.float64)
    leaves = [t.requires_grad_() for t in (x, *params)]
    assert torch.autograd.gradcheck(lambda *t: attend(case, *t), leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@in_turn([c for c in CASES if 0 < torch.Size(c.shape).numel() < 10_000])
def test_opcheck(case: Case, dtype: torch.dtype):
    x, grad, *params = case.tensors(dtype)
    x.requires_grad_()
    opcheck(FORWARD, (x, *params, 1e-5, case.shuffle, case.gain), traced=True)
    opcheck(BACKWARD, (grad, x.detach(), *params, 1e-5, case.shuffle, case.gain), traced=True)


@pytest.mark.parametrize(
    "case",
    [Case((5, 320, 9, 9), 5), Case((5, 320, 9, 9), 5, channels_last), Case((3, 64, 48, 48), 4, channels_last)],
    ids=str,
)
def test_does_not_depend_on_the_number_of_threads(case: Case, threads):
    x, grad, *params = case.tensors(torch.float32)

    def results(count: int) -> list[Tensor]:
        threads(count)
        return [FORWARD(x, *params, 1e-5, True), *BACKWARD(grad, x, *params, 1e-5, True)]

    alone = results(1)
    for count in (2, 3, 4):
        for a, b in zip(alone, results(count), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("size", [7, 40, 300])
def test_large_mean(size: int, layout):
    """A mean of 10^4 deviations costs the variance nothing, nor do planes whose parts differ."""
    case = Case((1, 4, size, size), 1, layout)
    x, _, *params = case.tensors(torch.float32)
    for far in (x + 1e4, x + 1e3 * (torch.arange(size) < size // 2)[:, None]):
        far = layout(far)
        expected = reference.shuffle_attention(far.double(), *(p.double() for p in params), 1e-5, True)
        torch.testing.assert_close(attend(case, far, *params).double(), expected, rtol=1e-5, atol=1e-5)


@dtypes
def test_gate_over_its_whole_range(dtype: torch.dtype):
    """The sigmoid, through planes whose logits are known: from 0 to 1, saturated, infinite and NaN."""
    logits = torch.cat([torch.linspace(-130, 130, 2601), torch.tensor([-1e30, 1e30, -torch.inf, torch.inf, torch.nan])])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    zero, bias = torch.zeros(len(logits)), logits.to(wide)
    x = torch.ones(1, 2 * len(logits), 3, dtype=dtype)
    params = [zero.to(wide), bias, zero.to(wide), bias, zero.to(wide), zero.to(wide)]
    y = FORWARD(x, *params, 1e-5, False)[0, :, 0].double().reshape(2, -1)
    expected = bias.double().sigmoid()
    # The logit is rounded once more on its way into the power of two.
    relative = torch.finfo(dtype).eps + torch.finfo(wide).eps * bias.double().abs().clamp(2, 130)
    assert torch.equal(y.isnan(), expected.isnan().expand_as(y))
    error = (y - expected).abs()[:, :-1]
    assert (error <= (relative * expected + torch.finfo(dtype).smallest_normal)[:-1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_half_types_are_rounded_as_pytorch_does(dtype: torch.dtype):
    """Every value whose variance is finite through a gate of 1, then through one that makes ties likely."""
    x = torch.arange(0x7BFF if dtype == torch.float16 else 0x5800, dtype=torch.int16).view(dtype)
    x = torch.stack([x, -x]).reshape(2, 1, -1).repeat(1, 2, 1)
    wide_open, zero = torch.full((1,), 100.0), torch.zeros(1)
    y = FORWARD(x, zero, wide_open, zero, wide_open, zero, zero, 1e-5, True)
    assert torch.equal(y, x)
    halfway = torch.full((1,), -(2.0**-11 if dtype == torch.float16 else 2.0**-8)).log1p()
    gate = (halfway - torch.log(-torch.expm1(halfway))).float()
    y = FORWARD(x, zero, gate, zero, gate, zero, zero, 1e-5, True)
    assert torch.equal(y, (x.float() * gate.sigmoid()).to(dtype))


@pytest.mark.parametrize(("x", "n"), [((2, 6, 3, 3), 2), ((2, 4), 1), ((2, 4, 1, 1, 1, 1), 1), ((2, 4, 3), 0)], ids=str)
def test_op_refuses_what_does_not_fit(x: tuple[int, ...], n: int):
    with pytest.raises(RuntimeError):
        FORWARD(torch.zeros(x), *[torch.zeros(n)] * 6, 1e-5, True)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("inf"), float("nan")])
def test_op_refuses_gains_that_are_not_positive(gain: float):
    with pytest.raises(RuntimeError, match="gain must be positive and finite"):
        FORWARD(torch.zeros(2, 4, 3), *[torch.zeros(1)] * 6, 1e-5, True, gain)


def test_does_without_the_library(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(library, "loaded", True)
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "missing.so")
    library.register(LIBRARY)
    assert not library.loaded
    assert "C++ compiler" in caplog.text


def test_broken_library_is_an_error(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setattr(library, "loaded", True)
    monkeypatch.setattr(library, "LIBRARY", broken)
    with pytest.raises(OSError, match=r"broken\.so"):
        library.register(LIBRARY)


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="this is the inner run")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_lesser_instruction_sets(capability: str):
    """The same comparisons, of the layer and of the block's end, on what an older processor would run."""
    files = [__file__, Path(__file__).with_name("test_cpu_block_tail.py")]
    chosen = "not float64 and (forward or gate or half or equals or large_mean or huge or (gradients and float32))"
    command = [sys.executable, "-m", "pytest", *files, "-k", chosen, "-p", "no:cacheprovider", "--noconftest"]
    run = subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": capability}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
