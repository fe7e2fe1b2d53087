"""Networks with every attention of the family, and ShuffleNet v2: names, counts, and what timm gives a network."""

import functools

import pytest
import timm
import timm.optim
import torch
import torchvision
from torch import nn

from conftest import QUICK, sanet_here
from shuffle_attention import AttentionSpec, ShuffleAttention, SpatialGroupEnhance, attention_names, register_attention
from shuffle_attention.attention import spec
from shuffle_attention.attention.shuffle_ablation import ShuffleAttentionAblation
from shuffle_attention.models import fused_block
from shuffle_attention.models import sa_resnet as models
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.sanet.tasks.classification.predictor import restore_network

NAMES = attention_names()
SHUFFLENETS = ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"]


def build(attention: str, depth: int = 18, **kwargs) -> nn.Module:
    name, options = resnet_with(attention, depth)
    return timm.create_model(name, **options, **kwargs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def attention_of(block: nn.Module) -> nn.Module | None:
    return block.sa if hasattr(block, "sa") else block.se


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]


def test_timm_has_them_all():
    for depth in models.STAGES:
        assert all(timm.is_model(resnet_with(attention, depth)[0]) for attention in NAMES)
    assert [resnet_with(attention, 50)[0] for attention in NAMES] == [
        "resnet50",
        "seresnet50",
        "cbam_resnet50",
        "gc_resnet50",
        "sge_resnet50",
        "eca_resnet50",
        "sa_resnet50",
    ]


# What one layer over C channels adds, counted from the papers.
ADDED = {
    "none": lambda c: 0,
    "se": lambda c: 2 * c * (c // 16) + c // 16 + c,
    "cbam": lambda c: 2 * c * (c // 16) + c // 16 + c + 2 * 7 * 7 + 2,
    "sge": lambda c: 128,
    "eca": lambda c: {64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}[c],
    "gc": lambda c: 2 * c * (c // 16) + 3 * (c // 16) + 2 * c + 1,
    "shuffle": lambda c: 6 * max(c // 128, 1),
}


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("attention", NAMES)
def test_parameters(attention, depth):
    with torch.device("meta"):
        found, plain = build(attention, depth), timm.create_model(f"resnet{depth}")
    widths = [(64 if depth < 50 else 256) << stage for stage in range(4)]
    expected = sum(n * ADDED[attention](c) for n, c in zip(models.STAGES[depth], widths, strict=True))
    assert count(found) - count(plain) == expected
    assert plain.state_dict().keys() <= found.state_dict().keys()


@pytest.mark.parametrize("attention", NAMES)
def test_forward_and_backward(attention):
    model = build(attention, num_classes=3)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 3)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", NAMES)
def test_networks_differ_in_their_attention_alone(attention):
    """Started alike, and, with the attention taken out, the plain network, whose weights they take."""
    model, plain = build(attention, num_classes=3), build("none", num_classes=3)
    assert all(block.bn2.weight.eq(1).all() for block in blocks(model))
    own = model.state_dict()
    for key, value in plain.state_dict().items():
        if value.numel() > 10_000:
            torch.testing.assert_close(own[key].std(), value.std(), rtol=0.05, atol=0)
    model.load_state_dict(plain.state_dict(), strict=False)
    for block in blocks(model):
        if attention != "none":
            setattr(block, "sa" if hasattr(block, "sa") else "se", nn.Identity())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_each_starts_as_published_within_a_network_too():
    """timm initialises every convolution of a ResNet alike, those of the attention among them."""
    model, plain = build("gc", num_classes=3).eval(), build("none", num_classes=3).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), plain(x))
    assert all(block.se.spatial.conv.bn.weight.eq(0).all() for block in blocks(build("cbam")))


@pytest.mark.parametrize("attention", ["cbam", "sge"])
def test_timms_arguments_hold(attention):
    model = build(attention, num_classes=5, in_chans=1, drop_path_rate=0.2, drop_rate=0.1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert sum(block.drop_path is not None for block in blocks(model)) == 7
    features = build(attention, features_only=True, out_indices=(1, 4))
    assert [tuple(f.shape) for f in features(torch.randn(2, 3, 32, 32))] == [(2, 64, 8, 8), (2, 512, 1, 1)]


def test_gradient_checkpointing_changes_nothing():
    for model in (build("gc", num_classes=3), timm.create_model("shufflenet_v2_x0_5", num_classes=3)):
        x = torch.randn(2, 3, 32, 32)
        gradients = []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        torch.testing.assert_close(*gradients)


def test_options_of_the_attention_reach_every_block():
    model = build("se", attention_options={"rd_ratio": 1 / 4})
    assert [block.se.fc1.out_channels for block in blocks(model)] == [16, 16, 32, 32, 64, 64, 128, 128]
    with pytest.raises(ValueError, match="'sge' has no option rd_ratio; it takes groups, eps"):
        build("sge", attention_options={"rd_ratio": 1 / 4})


def test_gates_of_spatial_group_enhancement_are_not_decayed_where_norms_are_not():
    model = build("sge")
    _, decayed = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=0.1).param_groups
    gates = {id(p) for m in model.modules() if isinstance(m, SpatialGroupEnhance) for p in m.parameters()}
    assert len(gates) == 16
    assert not gates & {id(p) for p in decayed["params"]}


def test_the_ablation_as_a_network_steps_aside_from_the_fused_tail(monkeypatch):
    op = fused_block.block_tail

    def without_attention(u, shortcut, norm, attention, **options):
        assert (attention, shortcut) == (None, None), "the fused end of a block ran"
        return op(u, shortcut, norm, attention, **options)

    monkeypatch.setattr(fused_block, "block_tail", without_attention)
    model = build("shuffle", num_classes=3, groups=16, attention_options={"gate": "conv1x1", "norm": False}).eval()
    assert all(isinstance(block.sa, ShuffleAttentionAblation) for block in blocks(model))
    assert [block.sa.groups for block in blocks(model)] == [16] * 8
    assert len(model.no_weight_decay()) == 8 * 4
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with torch.device("meta"):
        same = build("shuffle", attention_options={"gate": "affine"})
    assert all(isinstance(block.sa, ShuffleAttention) for block in blocks(same))


def test_saved_for_the_hugging_face_hub_and_read_back(tmp_path):
    model = build("eca", num_classes=5, attention_options={"kernel_size": 7}).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shufle", 50), "no attention 'shufle'; did you mean shuffle. there are none, se"),
        (("se", 20), "no ResNet of depth 20; there are 18, 34, 50, 101, 152"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet_with(*arguments)


@pytest.mark.parametrize("name", SHUFFLENETS)
def test_shufflenet_is_torchvisions(name):
    model, theirs = timm.create_model(name, num_classes=4), getattr(torchvision.models, name)(num_classes=4)
    assert list(model.state_dict()) == list(theirs.state_dict())
    model.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), theirs.eval()(x))
    cfg = model.pretrained_cfg
    assert cfg["url"] == torchvision.models.get_model_weights(name).DEFAULT.url
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


def test_shufflenet_takes_timms_arguments():
    model = timm.create_model("shufflenet_v2_x0_5", num_classes=5, in_chans=1, drop_rate=0.5)
    x = torch.randn(2, 1, 64, 64)
    assert model(x).shape == (2, 5)
    assert not torch.equal(model(x), model(x))
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 1024, 2, 2)
    features = timm.create_model("shufflenet_v2_x0_5", features_only=True)
    assert features.feature_info.channels() == [24, 24, 48, 96, 192]
    assert [f.shape[-1] for f in features(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 4, 2]
    bare = timm.create_model("shufflenet_v2_x0_5", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in bare.parameters()} == {("meta", torch.bfloat16)}


def test_shufflenet_is_trained_and_evaluated_by_the_commands(shared_tree, tmp_path):
    arguments = [*QUICK, "--model", "shufflenet_v2_x0_5", "--model-args", "{}", "--epochs", "1", "--grad-checkpointing"]
    assert sanet_here("train", *arguments, "--data", shared_tree, "--output", tmp_path / "run") == 0
    checkpoint = tmp_path / "run" / "last.pt"
    restored = restore_network(checkpoint)
    assert (type(restored.model).__name__, restored.num_classes) == ("ShuffleNetV2", 4)
    assert sanet_here("eval", checkpoint, "--data", shared_tree, "--device", "cpu", "--workers", "0") == 0


def test_narrow_stages_have_as_many_groups_as_fit():
    model = timm.create_model("sge_resnet18", channels=(16, 32, 64, 128))
    groups = [layer.groups for layer in model.modules() if isinstance(layer, SpatialGroupEnhance)]
    assert groups == [16, 16, 32, 32, 64, 64, 64, 64]
    with pytest.raises(ValueError, match="nearest groups that fit: 16"):
        timm.create_model("sge_resnet18", channels=(16, 32, 64, 128), attention_options={"groups": 64})


class Mix(nn.Module):
    """A toy attention, which starts as the identity: x + conv(mean(x))."""

    def __init__(self, channels: int, *, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=bias)
        nn.init.zeros_(self.conv.weight)
        nn.init.constant_(self.conv.bias, 0) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x.mean((2, 3), keepdim=True))


def test_a_layer_from_outside_is_used_by_name(monkeypatch):
    monkeypatch.setattr(spec, "_SPECS", dict(spec._SPECS))
    with pytest.raises(ValueError, match="no attention 'mix'"):
        resnet_with("mix", 18)
    register_attention(AttentionSpec(name="mix", build=Mix, decays=False))
    name, options = resnet_with("mix", 18)
    assert (name, options) == ("attention_resnet18", {"attention": "mix", "zero_init_last": False})
    model, plain = build("mix", num_classes=3).eval(), build("none", num_classes=3).eval()
    assert all(isinstance(block.se, Mix) for block in blocks(model))
    assert len(model.no_weight_decay()) == 16
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), plain(x))  # the start of the layer, which timm would initialise as a convolution


def test_a_callable_stands_where_a_name_does():
    assert resnet_with("se", 18)[0] == "se_resnet18"
    for attention in (Mix, functools.partial(Mix, bias=False), AttentionSpec(name="m", build=Mix)):
        assert all(isinstance(block.se, Mix) for block in blocks(build(attention)))
    model = timm.create_model("attention_resnet50", attention=Mix, attention_options={"bias": False})
    assert all(block.se.conv.bias is None for block in blocks(model))
    narrow = timm.create_model("attention_resnet18", attention=SpatialGroupEnhance, channels=(16, 32, 64, 128))
    assert [block.se.groups for block in blocks(narrow)] == [16, 16, 32, 32, 64, 64, 64, 64]
    with pytest.raises(TypeError, match="attention"):
        timm.create_model("attention_resnet18")
