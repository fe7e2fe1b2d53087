"""The fused end of a residual block against the modules one by one, over one table of maps and one of settings."""

import copy

import pytest
import torch
from torch import Tensor

from maps import channels_last, contiguous, in_turn, opcheck
from shuffle_attention.models.fused_block import block_tail
from tail_cases import (
    CASES,
    TOLERANCES,
    Case,
    assert_near,
    by_modules,
    check_infinite_and_huge_values,
    check_kept_tensors,
    check_large_mean,
    check_maps_without_values,
    check_zero_weight_and_values_that_are_not_finite,
    compare,
    gradients,
)

FORWARD = torch.ops.shuffle_attention.block_tail.default
OVER = torch.ops.shuffle_attention.block_tail_.default
BACKWARD = torch.ops.shuffle_attention.block_tail_backward.default


cases = pytest.mark.parametrize("case", CASES, ids=str)
small_maps = [case for case in CASES if torch.Size(case.shape).numel() < 3_000]
small_cases = pytest.mark.parametrize("case", small_maps, ids=str)
straight = [case for case in small_maps if not case.shuffle or case.groups == 0]
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
ends = pytest.mark.parametrize(
    ("with_shortcut", "relu"),
    [(True, True), (False, True), (True, False), (False, False)],
    ids=["whole", "no-shortcut", "no-relu", "neither"],
)


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
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[15], Case((3, 7, 5, 3), 0)], ids=str)
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
@pytest.mark.parametrize("groups", [2, 0])
@modes
def test_maps_without_values(shape: tuple[int, ...], training: bool, groups: int):
    check_maps_without_values(shape, training, groups=groups)


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
    for case, with_shortcut in ((Case((2, 8, 3, 2), 2), True), (Case((2, 3, 3, 2), 0), False)):
        norm, attention = (m.train(training) for m in case.modules())
        u, shortcut, _ = case.maps()
        shortcut = (shortcut + 1).requires_grad_() if with_shortcut else None
        maps = [u.requires_grad_()] + [shortcut] * with_shortcut
        assert torch.autograd.gradgradcheck(
            lambda u, *_, s=shortcut, m=(norm, attention): block_tail(u, s, *m),
            [*maps, *norm.parameters(), *attention.parameters()],
            fast_mode=True,
        )


def arguments(case: Case, dtype: torch.dtype, training: bool, with_shortcut: bool, relu: bool):
    """Return the arguments of the forward and of the backward op."""
    norm, attention = case.modules(torch.float64 if dtype == torch.float64 else torch.float32)
    u, shortcut, grad = case.maps(dtype)
    sa = [p.detach() for p in attention.parameters()] or [None] * 6
    parameters = [None] * 4 + sa
    if case.normalised:
        given = [None, None] if training else [norm.running_mean, norm.running_var]
        parameters = [norm.weight.detach(), norm.bias.detach(), *given, *sa]
    shortcut = shortcut if with_shortcut else None
    forward = (u, shortcut, *parameters, 1e-5, 1e-5, case.shuffle, relu, case.gain)
    out, statistics, moments = FORWARD(*forward)
    mask = relu and not (with_shortcut or case.groups)
    out, statistics = out if relu and not mask else None, statistics if case.groups else moments
    settings = (1e-5, 1e-5, case.shuffle, with_shortcut, case.gain, mask)
    backward = (grad, u, out, statistics, *parameters, *settings)
    return forward, backward


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@ends
@modes
@in_turn([c for c in CASES if c.shape in {(3, 12, 5, 3), (2, 8, 6, 5), (3, 7, 5, 3), (2, 16, 7, 7)}])
def test_opcheck(case: Case, dtype, training: bool, with_shortcut: bool, relu: bool):
    forward, backward = arguments(case, dtype, training, with_shortcut, relu)
    traced = case.shape in {(3, 12, 5, 3), (3, 7, 5, 3)}
    opcheck(FORWARD, (forward[0].requires_grad_(), *forward[1:]), traced=traced)
    opcheck(BACKWARD, (backward[0], backward[1].detach(), *backward[2:]), traced=traced)


@modes
@pytest.mark.parametrize(
    "case",
    [
        *(Case((5, 320, 9, 9), groups, layout) for groups in (5, 0) for layout in (contiguous, channels_last)),
        Case((1, 64, 48, 48), 4, channels_last),
        Case((1, 63, 48, 48), 0, channels_last),
    ],
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
    check_large_mean(size, layout)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_zero_weight_and_values_that_are_not_finite(layout):
    check_zero_weight_and_values_that_are_not_finite(layout)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("value", [1e30, -1e30, torch.inf, -torch.inf])
def test_infinite_and_huge_values(value: float, layout):
    check_infinite_and_huge_values(value, layout)


@pytest.mark.parametrize("groups", [2, 0])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_keeps_the_map_and_the_output_alone(with_shortcut: bool, groups: int):
    check_kept_tensors(with_shortcut, groups)


@ends
@dtypes
@pytest.mark.parametrize("case", [c for c in small_maps if c.normalised], ids=str)
def test_statistics_of_the_batch_given_back_lead_to_the_same_bits(case: Case, dtype, with_shortcut: bool, relu: bool):
    forward, _ = arguments(case, dtype, True, with_shortcut, relu)
    out, _, moments = FORWARD(*forward)
    again, _, _ = FORWARD(*forward[:4], *moments, *forward[6:])
    assert torch.equal(out, again)


def arguments_over(case: Case, dtype, with_shortcut: bool, relu: bool):
    """Arguments of the op that writes over the map."""
    (*maps_and_parameters, norm_eps, eps, _, relu, gain), _ = arguments(case, dtype, False, with_shortcut, relu)
    return *maps_and_parameters, norm_eps, eps, relu, gain


@ends
@in_turn(straight)
def test_opcheck_of_writing_over_the_map(case: Case, dtype, with_shortcut: bool, relu: bool):
    opcheck(OVER, arguments_over(case, dtype, with_shortcut, relu), traced=True)


@ends
@dtypes
@pytest.mark.parametrize("case", straight, ids=str)
def test_written_over_the_map_it_is_the_same(case: Case, dtype, with_shortcut: bool, relu: bool):
    u, shortcut, *inputs = arguments_over(case, dtype, with_shortcut, relu)
    *rest, last_relu, gain = inputs
    expected, _, _ = FORWARD(u, shortcut, *rest, False, last_relu, gain)
    for added in (shortcut, u):  # the map itself may be added
        if added is u:
            expected, _, _ = FORWARD(u, u, *rest, False, last_relu, gain)
        target = case.layout(u.clone())
        version = target._version
        OVER(target, target if added is u else added, *inputs)
        assert torch.equal(target, expected)
        assert target._version > version


def test_refuses_to_write_where_something_else_is_read_or_recorded():
    case = Case((2, 8, 5, 3), 0)
    (u, _, *rest), _ = arguments(case, torch.float32, False, False, True)
    inputs = (*rest[:12], *rest[13:])
    memory = torch.randn(3, 8, 5, 3)
    with pytest.raises(RuntimeError, match="share memory"):
        OVER(memory[:2], memory[1:], *inputs)
    with pytest.raises(RuntimeError, match="single memory location|aten::copy_"):
        OVER(u[:, :1].expand_as(u), None, *inputs)
    with pytest.raises(RuntimeError, match="records no gradient"):
        OVER(u.requires_grad_(), None, *inputs)
    with pytest.raises(RuntimeError, match="needs the statistics"):
        OVER(u.detach(), None, *inputs[:2], None, None, *inputs[4:])


@modes
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("groups", [3, 0])
def test_compiled_whole_it_gives_the_same(layout, training: bool, groups: int):
    case = Case((3, 24, 7, 5), groups, layout)
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
