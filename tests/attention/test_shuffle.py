"""The layer against its definition, over one table of shapes, layouts and types."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from layer_cases import CASES, LAYOUTS, parameters, random_layer, random_map
from shuffle_attention import ShuffleAttention
from shuffle_attention.attention import fitting_groups
from shuffle_attention.kernels import reference, shuffle_attention

# Largest error relative to the largest value: rounding of the type times a little for the sums.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def table():
    for case, (shape, _) in CASES.items():
        for layout in LAYOUTS:
            if layout == "channels-last" and len(shape) == 3:
                continue
            if layout == "expanded" and shape[0] == 0:
                continue
            yield pytest.param(case, layout, id=f"{case}-{layout}")


def by_definition(x: Tensor, layer: ShuffleAttention) -> Tensor:
    """The equations of the paper, plane by plane in float64 NumPy: nothing is shared with the package."""
    maps = x.detach().double().numpy()
    cw, cb, sw, sb, gw, gb = (p.detach().double().numpy().reshape(-1) for p in parameters(layer))
    n, channels = len(cw), maps.shape[1]
    out = np.full_like(maps, np.nan)
    for sample in range(maps.shape[0]):
        for c in range(channels):
            plane = maps[sample, c]
            r = c % (2 * n)
            if plane.size == 0:
                continue
            if r < n:
                gate = cw[r] * plane.mean() + cb[r]
            else:
                j = r - n
                xhat = (plane - plane.mean()) / np.sqrt(plane.var() + layer.gn.eps)
                gate = sw[j] * (gw[j] * xhat + gb[j]) + sb[j]
            to = c % (channels // 2) * 2 + c // (channels // 2) if layer.shuffle else c
            out[sample, to] = plane / (1 + np.exp(-gate))
    return torch.from_numpy(out)


def relative_error(found: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("case", "layout"), list(table()))
def test_output_is_the_definition(case, layout, dtype):
    shape, groups = CASES[case]
    layer = random_layer(shape[1], groups)
    x = random_map(shape, dtype, layout)
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert y.stride() == torch.empty_like(x).stride()
    assert relative_error(y, by_definition(x, layer)) < TOLERANCES[dtype]


def test_without_shuffle_the_channels_stay():
    layer = random_layer(16, 2, shuffle=False)
    x = random_map((2, 16, 4, 4))
    assert relative_error(layer(x), by_definition(x, layer)) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("case", "layout"), list(table()))
def test_gradients_are_those_of_autograd_through_the_reference(case, layout, dtype):
    shape, groups = CASES[case]
    layer = random_layer(shape[1], groups)
    x = random_map(shape, dtype, layout).requires_grad_()
    upstream = random_map(shape, dtype).flip(0)
    found = torch.autograd.grad(layer(x), [x, *parameters(layer)], upstream)

    exact = x.detach().double().requires_grad_()
    y = reference.shuffle_attention(exact, *parameters(layer), layer.gn.eps, layer.shuffle)
    expected = torch.autograd.grad(y, [exact, *parameters(layer)], upstream.double())
    for gradient, wanted, of in zip(found, expected, [x, *parameters(layer)], strict=True):
        assert (gradient.dtype, gradient.shape) == (of.dtype, of.shape)
        # Gradients of the parameters are sums over the whole map, in float32 unless the map is float64.
        assert relative_error(gradient, wanted) < TOLERANCES[dtype] * 5 or wanted.abs().max() < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_the_reference_knows_its_own_gradients(case):
    """It is the op's body where there are no kernels, and what is differentiated for second derivatives."""
    shape, groups = CASES[case]
    layer = random_layer(shape[1], groups)
    for shuffle in (True, False):
        inputs = [random_map(shape).requires_grad_(), *parameters(layer)]
        y = reference.shuffle_attention(*inputs, 1e-5, shuffle)
        upstream = random_map(shape).flip(0)
        expected = torch.autograd.grad(y, inputs, upstream)
        found = reference.shuffle_attention_backward(upstream, *(t.detach() for t in inputs), 1e-5, shuffle)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", ["odd", "one-pixel", "most-groups", "sequence", "volume"])
def test_gradcheck_once_and_twice(case):
    shape, groups = CASES[case]
    layer = random_layer(shape[1], groups)
    inputs = (random_map((1, *shape[1:])).requires_grad_(), *parameters(layer))

    def run(*tensors):
        return shuffle_attention(*tensors, groups=groups)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


# opcheck itself looks at the gradients of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("case", ["odd", "no-images"])
def test_opcheck(case, layout):
    shape, groups = CASES[case]
    tensors = [random_map(shape, torch.float32, layout), *parameters(random_layer(shape[1], groups, torch.float32))]
    arguments = [t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.shuffle_attention.shuffle_attention.default, (*arguments, 1e-5, True))
    torch.library.opcheck(
        torch.ops.shuffle_attention.shuffle_attention_backward.default,
        (torch.randn(shape), *(t.detach() for t in arguments), 1e-5, True),
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_compiled_whole_it_gives_the_same(layout):
    layer = random_layer(24, 3, torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    x = random_map((3, 24, 7, 5), torch.float32, layout)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), compiled(inputs[1])]
    assert torch.equal(*outputs)
    assert outputs[0].stride() == outputs[1].stride()
    for y in outputs:
        y.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_exported_with_any_batch_and_size():
    layer = random_layer(16, 2, torch.float32)
    dynamic = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(layer, (random_map((2, 16, 5, 6), torch.float32),), dynamic_shapes=(dynamic,))
    x = random_map((3, 16, 9, 4), torch.float32)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_and_exported_programs_run_without_this_package():
    layer, x = random_layer(16, 2, torch.float32), random_map((2, 16, 5, 6), torch.float32)
    assert "shuffle_attention" not in str(torch.export.export(layer, (x,)).graph)
    with pytest.warns((FutureWarning, DeprecationWarning), match="jit.trace"):
        traced = torch.jit.trace(layer, x)
    assert "shuffle_attention::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))


def test_traced_by_fx_as_one_call():
    layer = random_layer(16, 2, torch.float32)
    traced = torch.fx.symbolic_trace(layer)
    assert [node.op for node in traced.graph.nodes].count("call_function") == 1
    x = random_map((2, 16, 5, 6), torch.float32)
    assert torch.equal(traced(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_type_is_that_of_the_map(dtype):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), random_layer(16, 2, torch.float32))
    with torch.autocast("cpu", dtype):
        y = network(torch.randn(2, 3, 4, 4))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_a_large_mean_costs_no_digits():
    layer = random_layer(8, 1, torch.float32)
    x = random_map((2, 8, 7, 7), torch.float32) + 1e4
    # The spatial gate sees deviations of about 2 on 10,000: float32 keeps 1e-3 / 2 of such a deviation.
    assert relative_error(layer(x), by_definition(x, layer)) < 1e-3


def test_copies_and_pickles_compute_the_same():
    layer = random_layer(16, 4, shuffle=False, eps=1e-3)
    x = random_map((2, 16, 3, 3))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)


def test_parameters_that_others_put_in_place_are_what_it_computes_with():
    """Pruning, parametrisation and functional calls each keep what is to be computed with in another place."""
    x = random_map((2, 16, 5, 5))
    whole = random_layer(16, 2)
    twice = {name: 2 * value.detach() for name, value in whole.named_parameters()}
    doubled = copy.deepcopy(whole)
    doubled.load_state_dict(twice)
    expected = doubled(x)
    assert not torch.allclose(whole(x), expected)
    assert torch.equal(torch.func.functional_call(whole, twice, x), expected)

    class Double(torch.nn.Module):
        def forward(self, value):
            return 2 * value

    parametrised = copy.deepcopy(whole)
    for name in twice:
        place = parametrised.gn if name.startswith("gn.") else parametrised
        register_parametrization(place, name.removeprefix("gn."), Double())
    assert torch.equal(parametrised(x), expected)
    pruned = copy.deepcopy(whole)
    prune.custom_from_mask(pruned, "cweight", torch.zeros_like(pruned.cweight))
    zero = copy.deepcopy(whole)
    torch.nn.init.zeros_(zero.cweight)
    assert torch.equal(pruned(x), zero(x))


def test_at_its_start_it_is_a_scaled_permutation():
    layer = ShuffleAttention(8, 2)
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    expected = torch.tensor([0.0, 4, 1, 5, 2, 6, 3, 7]) * torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(layer(x).flatten(), expected)


def test_names_and_shapes_of_the_published_layer():
    entries = {name: tuple(value.shape) for name, value in ShuffleAttention(512, 64).state_dict().items()}
    gate = (1, 4, 1, 1)
    assert entries == {
        "cweight": gate,
        "cbias": gate,
        "sweight": gate,
        "sbias": gate,
        "gn.weight": (4,),
        "gn.bias": (4,),
    }


def test_device_and_dtype_are_taken():
    layer = ShuffleAttention(16, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


def test_groups_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"channels=40 and groups=8; the nearest groups that fit: 5 and 10"):
        ShuffleAttention(40, 8)
    with pytest.raises(ValueError, match=r"channels=64 and groups=64; .*: 32$"):
        ShuffleAttention(64)
    with pytest.raises(ValueError, match=r"groups=0; .*: 1$"):
        ShuffleAttention(64, 0)
    with pytest.raises(ValueError, match="even number, got channels=7"):
        ShuffleAttention(7, 1)
    assert fitting_groups(40) == [1, 2, 4, 5, 10, 20]


def test_maps_that_do_not_fit_are_refused():
    layer = ShuffleAttention(16, 2)
    with pytest.raises(ValueError, match=r"16 channels .* got \(1, 8, 4, 4\)"):
        layer(torch.randn(1, 8, 4, 4))
    with pytest.raises(ValueError, match=r"1 to 3 spatial dimensions, got \(1, 16\)"):
        layer(torch.randn(1, 16))
    with pytest.raises(TypeError, match="floating-point type, got torch.int64"):
        layer(torch.zeros(1, 16, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="the same number of values"):
        shuffle_attention(torch.randn(1, 16, 4, 4), *parameters(layer)[:5], torch.ones(3), groups=2)


def test_importing_the_package_loads_neither_timm_nor_torchvision():
    import subprocess
    import sys

    code = (
        "import sys, shuffle_attention; shuffle_attention.create_attention('sge', 64); "
        "print([m for m in ('timm', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
