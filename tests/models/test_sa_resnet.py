"""The networks: names, counts and keys as published, and what timm gives a ResNet."""

import math

import pytest
import timm
import timm.optim
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shuffle_attention import ShuffleAttention
from shuffle_attention.models import sa_resnet as models

NETWORKS = ["sa_resnet18", "sa_resnet34", "sa_resnet50", "sa_resnet101", "sa_resnet152"]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_timm_lists_them():
    assert sorted(timm.list_models("sa_*")) == sorted(NETWORKS)


# Totals of the published networks, counted in its released code; 18 and 34 follow from 6 values for each n.
@pytest.mark.parametrize(
    ("name", "total", "added", "entries"),
    [
        ("sa_resnet18", 11_689_608, 96, 170),
        ("sa_resnet34", 21_797_858, 186, 314),
        ("sa_resnet50", 25_557_740, 708, 416),
        ("sa_resnet101", 44_550_684, 1_524, 824),
        ("sa_resnet152", 60_195_052, 2_244, 1_232),
    ],
)
def test_parameters_and_entries(name, total, added, entries):
    with torch.device("meta"):
        model, plain = timm.create_model(name), timm.create_model(name.removeprefix("sa_"))
    assert parameters(model) == total
    assert parameters(model) - parameters(plain) == added
    assert len(model.state_dict()) == entries
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert all(".sa." in key for key in extra)
    assert plain.state_dict().keys() <= model.state_dict().keys()


# Convolutions and classifier, and all as the paper counts (table 1: 4.125 and 7.854): pointwise work too, and of
# attention the pooling of the half of its channels that is gated by channel.
@pytest.mark.parametrize(
    ("name", "convolutions", "all_of_it"),
    [
        ("sa_resnet18", 1.814, 1.823),
        ("sa_resnet34", 3.664, 3.676),
        ("sa_resnet50", 4.089, 4.125),
        ("sa_resnet101", 7.801, 7.854),
        ("sa_resnet152", 11.514, 11.587),
    ],
)
def test_multiply_adds(name, convolutions, all_of_it):
    model = timm.create_model(name).eval()
    pointwise = 0

    def count(module, inputs, output):
        nonlocal pointwise
        per_value = {nn.BatchNorm2d: 2, nn.ReLU: 1, nn.MaxPool2d: 1, ShuffleAttention: 0.5}.get(type(module), 0)
        pointwise += per_value * inputs[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    found = counter.get_total_flops() / 2
    assert round(found / 1e9, 3) == convolutions
    assert round((found + pointwise) / 1e9, 3) == all_of_it


def test_every_block_has_64_groups_where_they_fit():
    for name, expected in (("sa_resnet50", {64}), ("sa_resnet18", {32, 64})):
        with torch.device("meta"):
            model = timm.create_model(name)
        assert {m.groups for m in model.modules() if isinstance(m, ShuffleAttention)} == expected
    with torch.device("meta"):
        model = timm.create_model("sa_resnet50", groups=16)
    assert {m.groups for m in model.modules() if isinstance(m, ShuffleAttention)} == {16}


@pytest.mark.parametrize("name", ["sa_resnet18", "sa_resnet50"])
def test_attention_stands_before_the_addition(name):
    """With its gates wide open and no shuffle a network is the plain one, whose weights it takes."""
    model, plain = timm.create_model(name, num_classes=7), timm.create_model(name.removeprefix("sa_"), num_classes=7)
    model.load_state_dict(plain.state_dict(), strict=False)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            module.shuffle = False
            nn.init.constant_(module.cbias, 40.0)
            nn.init.constant_(module.sbias, 40.0)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    torch.testing.assert_close(model.train()(x), plain.train()(x))


def test_timms_arguments_hold():
    model = timm.create_model("sa_resnet18", num_classes=5, in_chans=1, drop_path_rate=0.2, drop_rate=0.1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert sum(block.drop_path is not None for block in model.modules() if isinstance(block, models.SABasicBlock)) == 7
    features = timm.create_model("sa_resnet18", features_only=True, out_indices=(1, 4))
    assert [tuple(f.shape) for f in features(torch.randn(1, 3, 64, 64))] == [(1, 64, 16, 16), (1, 512, 2, 2)]
    assert features.feature_info.channels() == [64, 512]
    model.reset_classifier(3)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)
    dilated = timm.create_model("sa_resnet50", output_stride=8, num_classes=0, global_pool="")
    assert dilated(torch.randn(1, 3, 64, 64)).shape == (1, 2048, 8, 8)


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = timm.create_model("sa_resnet18", num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_last_norm_of_a_branch_starts_at_one_as_published():
    assert all(block.bn2.weight.eq(1).all() for block in timm.create_model("sa_resnet18").layer2)
    timms = timm.create_model("sa_resnet18", zero_init_last=True)
    assert all(block.bn2.weight.eq(0).all() for block in timms.layer2)


def test_gates_are_not_decayed_where_norms_are_not():
    model = timm.create_model("sa_resnet18")
    kept, decayed = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=0.1).param_groups
    assert (kept["weight_decay"], decayed["weight_decay"]) == (0, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert not [names[id(p)] for p in decayed["params"] if ".sa." in names[id(p)]]


def test_pretrained_takes_ones_own_file(tmp_path):
    model = timm.create_model("sa_resnet18")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "own.pth.tar")
    other = timm.create_model(
        "sa_resnet18", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth.tar")}
    )
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_saved_for_the_hugging_face_hub_and_read_back(tmp_path):
    model = timm.create_model("sa_resnet18", num_classes=5, groups=8).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), other(x))


def test_compiled_and_exported_whole():
    model = timm.create_model("sa_resnet18", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_small_input_stem_keeps_the_resolution():
    model = timm.create_model("sa_resnet18", num_classes=3, in_chans=1)
    models.small_input_stem(model)
    shapes = []
    model.layer1.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    assert shapes == [(2, 64, 32, 32)]
    assert math.isclose(float(model.conv1.weight.detach().std()), math.sqrt(2 / (9 * 64)), rel_tol=0.15)
    with pytest.raises(ValueError, match="does not have both"):
        models.small_input_stem(nn.Sequential(nn.Conv2d(3, 8, 3)))
