"""The family of attention layers: what each takes, counts and computes, over one table of names."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention, SpatialGroupEnhance, attention_names, create_attention
from shuffle_attention.attention import largest_groups
from shuffle_attention.attention.shuffle_ablation import ShuffleAttentionAblation
from shuffle_attention.kernels import reference

NAMES = attention_names()
# Layers that are this package's own: name, options.
OWN = {
    "sge": ("sge", {}),
    "shuffle": ("shuffle", {}),
    "no-norm": ("shuffle", {"norm": False}),
    "conv1x1": ("shuffle", {"gate": "conv1x1"}),
    "no-gate": ("shuffle", {"gate": "none"}),
}


def randomised(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


def random_map(shape, dtype=torch.float32, scale=1.0) -> Tensor:
    return (scale * (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5)).to(dtype)


def count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def test_the_names():
    assert NAMES == ["none", "se", "cbam", "gc", "sge", "eca", "shuffle"]
    assert {name: type(create_attention(name, 64, groups="auto")) for name in ("sge", "shuffle")} == {
        "sge": SpatialGroupEnhance,
        "shuffle": ShuffleAttention,
    }


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_memory_format_stay(name):
    layer = randomised(create_attention(name, 128))
    for shape in ((2, 128, 7, 5), (1, 128, 1, 1)):
        layer.train(shape[0] > 1)
        x = random_map(shape)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            y = layer(x.contiguous(memory_format=memory_format))
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert y.is_contiguous(memory_format=memory_format)
            assert y.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer.eval()(x.bfloat16())
    assert y.isfinite().all()
    layer = create_attention(name, 128, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} <= {("meta", torch.float16)}


@pytest.mark.parametrize("name", [*NAMES, "no-norm", "conv1x1", "no-gate"])
def test_gradients_are_right(name):
    name, options = OWN.get(name, (name, {}))
    layer = randomised(create_attention(name, 8, dtype=torch.float64, **options, **groups_of(name)))
    x = random_map((2, 8, 3, 2), torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def groups_of(name: str) -> dict[str, int]:
    return {"groups": 2} if name in ("sge", "shuffle") else {}


@pytest.mark.parametrize("name", NAMES)
def test_copied_pickled_and_loaded(name):
    layer = randomised(create_attention(name, 128)).eval()
    x = random_map((1, 128, 4, 4))
    fresh = create_attention(name, 128).eval()
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("case", OWN)
def test_compiled_traced_and_exported_whole(case):
    name, options = OWN[case]
    layer = randomised(create_attention(name, 16, groups=4, **options))
    x = random_map((2, 16, 5, 4))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    found, expected = (torch.autograd.grad(f(x).square().sum(), list(layer.parameters())) for f in (compiled, layer))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_fx_traces_spatial_group_enhancement():
    layer = randomised(SpatialGroupEnhance(16, 4))
    x = random_map((2, 16, 5, 4))
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


# Counted by hand from the papers: h = C / 16, fully connected layers with biases (SE, CBAM, GC), a 7x7 convolution
# of two maps with BatchNorm (CBAM), LayerNorm of h and a 1x1 convolution to one map (GC), one kernel (ECA).
@pytest.mark.parametrize(
    ("name", "c64", "c256", "c2048"),
    [
        ("none", 0, 0, 0),
        ("se", 2 * 64 * 4 + 68, 2 * 256 * 16 + 272, 2 * 2048 * 128 + 2176),
        ("cbam", 2 * 64 * 4 + 68 + 100, 2 * 256 * 16 + 272 + 100, 2 * 2048 * 128 + 2176 + 100),
        ("sge", 128, 128, 128),
        ("eca", 3, 5, 7),
        ("gc", 512 + 68 + 8 + 65, 8192 + 272 + 32 + 257, 524288 + 2176 + 256 + 2049),
        ("shuffle", 6, 12, 96),
    ],
)
def test_parameters_are_those_of_the_papers(name, c64, c256, c2048):
    groups = {"groups": "auto"} if name == "shuffle" else {}
    assert [count(create_attention(name, c, **groups)) for c in (64, 256, 2048)] == [c64, c256, c2048]


def test_options_reach_the_layer():
    assert create_attention("se", 256, rd_ratio=1 / 4).fc1.out_channels == 64
    assert create_attention("eca", 256, kernel_size=9).conv.kernel_size == (9,)
    assert create_attention("cbam", 64, spatial_kernel_size=3).spatial.conv.conv.kernel_size == (3, 3)
    assert create_attention("gc", 64, fuse_scale=True, fuse_add=False).mlp_add is None
    assert create_attention("shuffle", 64, groups=8).groups == 8


def test_each_starts_as_published():
    x = random_map((2, 64, 5, 5))
    assert torch.equal(create_attention("gc", 64)(x), x)
    cbam = create_attention("cbam", 64)
    torch.testing.assert_close(cbam(x), cbam.channel(x) / 2)
    torch.testing.assert_close(create_attention("sge", 64)(x), x * torch.sigmoid(torch.ones(())))


def test_groups_that_fit_are_found():
    assert create_attention("shuffle", 40, groups="auto").groups == 20
    assert create_attention("sge", 40, groups="auto").groups == 40
    assert create_attention("sge", 2048, groups="auto").groups == 64
    assert [largest_groups(96), largest_groups(96, parts=1), largest_groups(2048, 16)] == [48, 48, 16]


@pytest.mark.parametrize(
    ("attention", "channels", "options", "message"),
    [
        ("shufle", 64, {}, "no attention 'shufle'; did you mean shuffle? there are none, se, "),
        ("xyz", 64, {}, "no attention 'xyz'; there are none, se, "),
        ("se", 64, {"groups": 4}, "'se' has no option groups; it takes rd_ratio, rd_channels"),
        ("none", 64, {"groups": 4}, "'none' has no option groups; it takes none"),
        ("shuffle", 64, {"rd_ratio": 4}, "it takes groups, eps, norm, gate, shuffle, gain"),
        ("shuffle", 7, {"groups": "auto"}, "multiple of 2, got channels=7"),
        ("sge", 40, {}, "multiple of groups, .* channels=40 and groups=64; .* fit: 40"),
        ("se", 0, {}, "positive whole number, got channels=0"),
        ("shuffle", 64.0, {}, "positive whole number, got channels=64.0"),
        ("none", "64", {}, "positive whole number, got channels='64'"),
        (["se"], 64, {}, "no attention \\['se'\\]"),
        ("eca", 64, {"gamma": 0}, "gamma=0 cannot be used"),
        ("eca", 64, {"kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ("se", 64, {"rd_ratio": "x"}, "attention='se', channels=64, rd_ratio='x' cannot be used"),
        ("shuffle", 128, {"gate": "conv"}, "gate must be one of affine, conv1x1, none, got 'conv'"),
    ],
)
def test_invalid_arguments_are_refused(attention, channels, options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        create_attention(attention, channels, **options)


def enhanced(x: Tensor, layer: SpatialGroupEnhance) -> Tensor:
    """The equations of the paper, group by group in float64 NumPy, with the deviation of the published code."""
    maps = x.double().numpy()
    out = np.empty_like(maps)
    size = maps.shape[1] // layer.groups
    for sample in range(len(maps)):
        for g in range(layer.groups):
            group = maps[sample, g * size : (g + 1) * size]
            t = np.tensordot(group.mean((1, 2)), group, 1)
            t = (t - t.mean()) / (t.std(ddof=1) + 1e-5)
            gate = layer.weight[0, g].item() * t + layer.bias[0, g].item()
            out[sample, g * size : (g + 1) * size] = group / (1 + np.exp(-gate))
    return torch.from_numpy(out)


def test_spatial_group_enhancement_is_its_definition():
    layer = randomised(SpatialGroupEnhance(12, 3, dtype=torch.float64))
    x = random_map((2, 12, 5, 4), torch.float64)
    torch.testing.assert_close(layer(x).detach(), enhanced(x, layer), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"multiple of 3 groups, H, W\), got \(2, 12, 5\)"):
        layer(x[..., 0])


def test_spatial_group_enhancement_is_stable_in_half_precision():
    """On a map whose products leave the range of float16, as the published order of operations lets them."""
    layer = randomised(SpatialGroupEnhance(16, 2))
    x = random_map((2, 16, 5, 4), torch.float16, scale=200)
    products = (x.view(4, 8, 20) * x.view(4, 8, 20).mean(-1, keepdim=True)).sum(1)
    assert (products - products.mean(1, keepdim=True)).isnan().any()
    for autocast in (False, True):
        x.requires_grad_().grad = None
        with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
            y = layer(x)
        assert y.dtype == torch.float16
        torch.testing.assert_close(y.detach().double(), enhanced(x.detach(), layer), rtol=2e-3, atol=1e-2)
        y.sum().backward()
        assert x.grad.isfinite().all()


def test_spatial_group_enhancement_of_one_place_and_of_a_flat_map():
    layer = randomised(SpatialGroupEnhance(4, 2))
    for x in (random_map((3, 4, 1, 1)), torch.ones(3, 4, 2, 2), torch.ones(0, 4, 2, 2)):
        x.requires_grad_()
        expected = x * torch.sigmoid(layer.bias).repeat_interleave(2, 1)
        torch.testing.assert_close(layer(x), expected)
        layer(x).sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("shape", [(2, 24, 7, 5), (2, 24, 9), (1, 24, 2, 3, 2), (2, 24, 1, 1), (0, 24, 2, 2)])
def test_the_ablation_with_nothing_left_out_is_the_layer(shape, shuffle):
    layer = randomised(ShuffleAttention(24, 3, shuffle=shuffle, dtype=torch.float64))
    ablation = ShuffleAttentionAblation(24, 3, shuffle=shuffle, dtype=torch.float64)
    ablation.load_state_dict(layer.state_dict())
    x = random_map(shape, torch.float64)
    torch.testing.assert_close(ablation(x), layer(x), rtol=1e-14, atol=1e-14)
    values = (layer.cweight, layer.cbias, layer.sweight, layer.sbias, layer.gn.weight, layer.gn.bias)
    exact = reference.shuffle_attention(x, *values, layer.gn.eps, shuffle)
    torch.testing.assert_close(ablation(x), exact, rtol=0, atol=0)
    found, expected = (torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (ablation, layer))
    torch.testing.assert_close(found, expected)


def gates(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Factors that a layer of one group without shuffle applies to the two halves of its channels."""
    return tuple((layer(x) / x).chunk(2, 1))


# n = 4: an affine has 4 n, a 1x1 convolution 2 n (n + 1), GroupNorm 2 n parameters.
@pytest.mark.parametrize(
    ("options", "parameters", "keys"),
    [
        ({}, 24, "cweight cbias sweight sbias gn.weight gn.bias"),
        ({"norm": False}, 16, "cweight cbias sweight sbias"),
        ({"gate": "none"}, 8, "gn.weight gn.bias"),
        ({"gate": "none", "norm": False}, 0, ""),
        ({"gate": "conv1x1"}, 48, "cweight cbias sweight sbias gn.weight gn.bias"),
    ],
)
def test_ablations_change_what_they_say(options, parameters, keys):
    layer = create_attention("shuffle", 8, groups=1, shuffle=False, dtype=torch.float64, **options)
    assert isinstance(layer, ShuffleAttentionAblation if options else ShuffleAttention)
    assert (count(layer), list(layer.state_dict())) == (parameters, keys.split())
    x = random_map((2, 8, 3, 4), torch.float64)
    found = gates(layer, x)
    if options.get("gate") != "none":
        assert all(torch.allclose(gate, torch.sigmoid(torch.ones_like(gate))) for gate in found)
    layer = randomised(layer)
    p = dict(layer.named_parameters())
    channel, spatial = x.chunk(2, 1)
    s = [channel.mean((2, 3), keepdim=True), spatial]
    if options.get("norm", True):
        s[1] = nn.functional.group_norm(spatial, 4, p["gn.weight"], p["gn.bias"])
    for branch, statistic, gate in zip("cs", s, gates(layer, x), strict=True):
        match options.get("gate", "affine"):
            case "none":
                expected = statistic
            case "affine":
                expected = p[f"{branch}weight"] * statistic + p[f"{branch}bias"]
            case "conv1x1":
                expected = nn.functional.conv2d(statistic, p[f"{branch}weight"], p[f"{branch}bias"].flatten())
        torch.testing.assert_close(gate, torch.sigmoid(expected).expand_as(gate))


@pytest.mark.parametrize("groups", [8, 16, 32, 64, 128])
def test_every_number_of_groups_of_the_paper(groups):
    for gate, parameters in (("affine", 6 * 128 // groups), ("conv1x1", 2 * 128 // groups * (128 // groups + 2))):
        layer = create_attention("shuffle", 256, groups=groups, gate=gate)
        assert count(layer) == parameters
        assert layer(random_map((1, 256, 2, 2))).shape == (1, 256, 2, 2)


def test_groups_share_the_convolution_of_the_ablation():
    layer = randomised(create_attention("shuffle", 16, groups=2, gate="conv1x1", shuffle=False))
    x = random_map((1, 8, 3, 3))
    y = layer(torch.cat([x, x], 1))
    torch.testing.assert_close(y[:, :8], y[:, 8:])
