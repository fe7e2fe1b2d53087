"""The registry: specs, callables, identity starts and weight decay."""

import functools

import pytest
import timm
import torch
from torch import Tensor, nn

from shuffle_attention import (
    AttentionSpec,
    ShuffleAttention,
    attach,
    attention_names,
    create_attention,
    register_attention,
)
from shuffle_attention.attention import Blend, SpatialGroupEnhance, create_identity, gate_names, get_spec, spec
from shuffle_attention.attention.shuffle import IDENTITY_GAIN
from shuffle_attention.errors import InputError


class Scale(nn.Module):
    """A toy attention: one factor per channel."""

    def __init__(self, channels: int, *, start: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, channels, 1, 1), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(spec, "_SPECS", dict(spec._SPECS))
    return register_attention(
        AttentionSpec(
            name="scale", build=Scale, identity=lambda layer, start=1.0: layer if start == 1 else None, decays=False
        )
    )


def test_a_layer_from_outside_is_used_by_name(registered):
    assert attention_names()[-1] == "scale"
    layer = create_attention("scale", 8, start=2.0, dtype=torch.float64)
    assert isinstance(layer, Scale)
    assert (layer.weight.dtype, layer.weight.unique().item()) == (torch.float64, 2)
    with pytest.raises(InputError, match="'scale' has no option groups; it takes start"):
        create_attention("scale", 8, groups=4)
    with pytest.raises(InputError, match="no attention 'scales'; did you mean scale"):
        create_attention("scales", 8)
    identity = create_identity("scale", 8, device="meta")
    assert type(identity) is Scale
    assert all(p.is_meta for p in identity.parameters())
    assert gate_names(nn.Sequential(nn.Conv2d(3, 8, 1), layer)) == {"1.weight"}
    assert register_attention(registered) is get_spec("scale") is get_spec(Scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "se", "build": Scale}, "there is an attention 'se' already"),
        ({"name": "my layer", "build": Scale}, "letters, digits and underscores, got 'my layer'"),
        ({"name": "x", "build": lambda channels: Scale(channels), "decays": False}, "needs the classes"),
    ],
)
def test_specs_that_do_not_work_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        register_attention(AttentionSpec(**arguments))


def test_a_callable_stands_where_a_name_does():
    for make in (Scale, functools.partial(Scale, start=3.0), lambda channels: Scale(channels), lambda c, **k: Scale(c)):
        layer = create_attention(make, 8, dtype=torch.float64)
        assert isinstance(layer, Scale)
        assert layer.weight.dtype == torch.float64
        assert isinstance(create_identity(make, 8), Blend)
    assert isinstance(create_attention(functools.partial(create_attention, "sge"), 64), SpatialGroupEnhance)
    assert get_spec(ShuffleAttention) is get_spec("shuffle")
    with pytest.raises(InputError, match="a class or a function of the channels, not one layer Scale"):
        create_attention(Scale(8), 8)
    with pytest.raises(InputError, match="must be a torch.nn.Module, got Tensor"):
        create_attention(torch.zeros, 8)
    with pytest.raises(InputError, match="attention='Scale', channels=8, start='x' cannot be used"):
        create_attention(Scale, 8, start="x")


# Layers that can start as the identity by themselves, and options with which they cannot.
@pytest.mark.parametrize(
    ("name", "options", "possible"),
    [
        ("none", {}, True),
        ("shuffle", {"groups": "auto"}, True),
        ("shuffle", {"groups": 4, "eps": 1e-3, "shuffle": False}, True),
        ("shuffle", {"groups": 4, "shuffle": True}, False),
        ("shuffle", {"groups": 4, "norm": False}, False),
        ("shuffle", {"groups": 4, "gate": "conv1x1"}, False),
        ("shuffle", {"groups": 4, "gain": 2.0}, False),
        ("gc", {}, True),
        ("gc", {"fuse_scale": True}, False),
        ("sge", {"groups": 4}, False),
        ("se", {}, False),
        ("cbam", {}, False),
        ("eca", {}, False),
    ],
)
def test_identity_starts(name, options, possible):
    layer = create_identity(name, 24, dtype=torch.float64, **options)
    assert (type(layer) is not Blend) == possible
    x = torch.randn(2, 24, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x, rtol=1e-15, atol=0)
    with pytest.raises(InputError, match="has no option colour"):
        create_identity(name, 24, colour="red")


def test_options_of_timms_layers_are_those_that_timm_has():
    import inspect

    from timm.layers import get_attn

    for name in ("se", "cbam", "gc", "eca"):
        layer: type = get_attn(name)
        taken = inspect.signature(layer).parameters.keys() - {"channels", "device", "dtype", "init_last_zero"}
        assert set(get_spec(name).options) == taken


def test_every_spec_says_what_the_documentation_needs():
    for name in attention_names():
        each = get_spec(name)
        assert each.parameters
        assert name == "none" or (each.notes and each.source and each.arxiv)


def test_a_gain_is_a_factor_and_an_entry_of_the_state_dict():
    torch.manual_seed(0)
    plain, layer = ShuffleAttention(16, 2), ShuffleAttention(16, 2, gain=IDENTITY_GAIN)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(layer(x), plain(x) * IDENTITY_GAIN)
    assert layer.state_dict().keys() - plain.state_dict().keys() == {"gain"}
    assert float(layer.state_dict()["gain"]) == pytest.approx(IDENTITY_GAIN)
    with pytest.raises(RuntimeError, match="Missing key.*gain"):
        layer.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*gain"):
        plain.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="gain is 2.0000, but this layer has gain=1.3679"):
        layer.load_state_dict(ShuffleAttention(16, 2, gain=2.0).state_dict(), strict=False)
    layer.load_state_dict(ShuffleAttention(16, 2, gain=IDENTITY_GAIN, dtype=torch.bfloat16).state_dict())
    meta = ShuffleAttention(16, 2, gain=2.0, device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    assert float(meta.state_dict()["gain"]) == 2
    for gain in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="gain must be a positive number"):
            ShuffleAttention(16, 2, gain=gain)
    with pytest.raises(InputError, match="needs the whole layer, got norm=False"):
        create_attention("shuffle", 16, groups=2, norm=False, gain=2.0)


def test_a_layer_from_outside_is_attached_by_name_or_as_a_callable(registered):
    x = torch.randn(1, 3, 64, 64)
    for attention, alpha in (("scale", False), (Scale, False), (functools.partial(Scale, start=2.0), True)):
        model = timm.create_model("resnet18", num_classes=3).eval()
        expected = model(x)
        report = attach(model, attention)
        assert len(report.layers) == 8
        assert torch.equal(model(x), expected)
        names = {name for name, _ in model.named_parameters()}
        assert gate_names(model) <= names
        assert len(gate_names(model)) == 8
        assert any(name.endswith(".alpha") for name in names) == alpha


def test_a_comparison_registers_callables_so_that_recipes_can_name_them(registered):
    from shuffle_attention.sanet.compare.variants import variants_of

    class Other(Scale):
        pass

    for _ in range(2):  # a second comparison with the same class
        plain, scale, other = variants_of(["none", Scale, Other], 18, [])
        assert (plain.model, scale.name, other.name) == ("resnet18", "scale", "Other")
        assert other.model_args["attention"] == "Other"
        assert isinstance(create_attention("Other", 8), Other)
