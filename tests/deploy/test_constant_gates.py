"""Removal of constant gates: exact where they are constant, bounded where they nearly are, and a reason otherwise."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from conftest import sanet_here
from networks import Plain
from shuffle_attention import ShuffleAttention, attach, deploy
from shuffle_attention.attention import Blend, SpatialGroupEnhance, attention_names, create_attention
from shuffle_attention.attention.spec import factors
from shuffle_attention.deploy import ConstantGatesReport, api, drop_constant_gates, rewrite
from shuffle_attention.errors import InputError
from shuffle_attention.explain.gate_statistics import attention_modules, gate_statistics
from shuffle_attention.models.attention_resnet import AttentionResNet
from shuffle_attention.models.detectors import create_detector
from shuffle_attention.models.sa_resnet import SABasicBlock, SABottleneck, SAResNet
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification import constant_gates
from shuffle_attention.sanet.tasks.classification.predictor import restore_network

IMAGES = torch.randn(3, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NARROW = (8, 16, 32, 64)


def spread(model: nn.Module, constant: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """Return a model in float64 with norms and attention at random, and chosen attention with constant gates."""
    torch.manual_seed(3)
    layers = attention_modules(model)
    for parameter in (p for layer in layers.values() for p in layer.parameters()):
        nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    # The last weights before the gates, by their names in each kind of layer.
    last = "cweight", "sweight", "fc2.weight", "conv.weight", "conv.bn.weight", "weight"
    for name, layer in layers.items():
        if constant(name):
            inner = layer.layer if isinstance(layer, Blend) else layer
            for key, parameter in inner.named_parameters():
                ends = key == "weight" if isinstance(inner, SpatialGroupEnhance) else key.endswith(last[:-1])
                if ends and "conv.conv" not in key:
                    nn.init.zeros_(parameter)
    return model.double().eval()


def sa_resnet(block: type[nn.Module] = SABasicBlock, **options) -> nn.Module:
    return SAResNet(block, (2, 1, 2, 1), num_classes=5, channels=NARROW, block_args={"groups": 4}, **options)


def attached(model: nn.Module, attention: str = "shuffle", **options) -> nn.Module:
    attach(model, attention, **options)
    return model


def resnet(**options) -> nn.Module:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, **options)


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).abs().max() / expected.abs().max())


MODELS = {
    "SA-ResNet, basic": sa_resnet,
    "SA-ResNet, bottleneck": lambda: sa_resnet(SABottleneck),
    "attached": lambda: attached(resnet(channels=NARROW)),
    "attached with shuffle": lambda: attached(resnet(channels=NARROW), start="published"),
    "attached by hooks": lambda: attached(Plain(), where="norm2", start="published"),
    "attached to a convolution": lambda: attached(Plain(), where="conv[14]", start="published"),
    "SE attached": lambda: attached(resnet(channels=NARROW), "se"),
    **{
        name: lambda name=name: AttentionResNet(name, None, BasicBlock, (1, 1, 1, 1), num_classes=5, channels=NARROW)
        for name in ("se", "eca", "cbam")
    },
    "sge": lambda: AttentionResNet("sge", {"groups": 4}, BasicBlock, (1, 1, 1, 1), num_classes=5, channels=NARROW),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_constant_gates_fold_exactly(name):
    model = spread(MODELS[name]())
    before = copy.deepcopy(model.state_dict())
    plain, report = drop_constant_gates(model, [IMAGES[:2], IMAGES[2:]], 1e-9)
    assert distance(plain(IMAGES), model(IMAGES)) < 1e-13
    assert report.folded == [*attention_modules(model)]
    assert (report.kept, report.images) == ({}, 3)
    assert not attention_modules(plain)
    assert not {type(module).__module__.split(".")[0] for module in plain.modules()} & {"shuffle_attention"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert attention_modules(model)


@torch.no_grad()
def test_without_attention_timm_and_torchvision_load_the_weights():
    model = spread(SAResNet(SABasicBlock, (1, 1, 1, 1), num_classes=5))
    plain, _ = drop_constant_gates(model, [IMAGES], 1e-9)
    assert type(plain) is ResNet
    assert type(plain.layer1[0]) is BasicBlock
    for other in (resnet(), torchvision.models.ResNet(TorchvisionBlock, [1, 1, 1, 1], num_classes=5)):
        other.double().eval().load_state_dict(plain.state_dict(), strict=True)
        assert distance(other(IMAGES), model(IMAGES)) < 1e-13


@pytest.mark.parametrize("block", [SABasicBlock, SABottleneck])
@torch.no_grad()
def test_stages_that_are_folded_in_part_keep_their_shuffle_right(block):
    model = spread(sa_resnet(block), lambda name: name in ("layer1.0.sa", "layer3.1.sa", "layer4.0.sa"))
    partly, report = drop_constant_gates(model, [IMAGES], 1e-9)
    assert report.folded == ["layer1.0.sa", "layer3.1.sa", "layer4.0.sa"]
    assert set(report.kept) == {"layer1.1.sa", "layer2.0.sa", "layer3.0.sa"}
    assert distance(partly(IMAGES), model(IMAGES)) < 1e-13
    fast, rewritten = rewrite(partly, example=IMAGES)
    assert sorted(rewritten.unshuffled) == sorted(report.kept)
    assert distance(fast(IMAGES), model(IMAGES)) < 1e-12


@torch.no_grad()
def test_a_model_whose_gates_vary_stays_as_it_is():
    model = spread(sa_resnet(), lambda name: False)
    same, report = drop_constant_gates(model, [IMAGES], 1e-3)
    assert not report.folded
    assert set(report.kept.values()) == {"its gates deviate by more than 0.001"}
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(same(IMAGES), model(IMAGES))


@torch.no_grad()
def test_statistics_are_those_of_all_gates_at_once():
    torch.manual_seed(0)
    layer = nn.Sequential(ShuffleAttention(8, 2, gain=1.5)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(7, 8, 3, 5, dtype=torch.float64)
    statistics, without = gate_statistics(layer, x.split(2))
    measured = statistics["0"]
    own = factors(layer[0], x).flatten(2)
    mean = own.mean((0, 2))
    assert not without
    assert measured.images == 7
    expected = {
        "low": own.amin((0, 2)),
        "high": own.amax((0, 2)),
        "mean": mean,
        "deviation": (own - mean[:, None]).abs().amax((0, 2)),
        "over_images": (own.mean(2) - mean).abs().amax(0),
        "over_positions": (own - own.mean(2, keepdim=True)).abs().amax((0, 2)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(measured, name), value, rtol=1e-12, atol=1e-12)
    assert measured.spatial.tolist() == layer[0].spatial_channels().tolist()


@torch.no_grad()
def test_the_tolerance_limits_the_deviation_and_the_change_of_a_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ShuffleAttention(8, 2)).double()
    for parameter in model[1].parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    deviation = float(gate_statistics(model, [IMAGES])[0]["1"].deviation.max())
    assert drop_constant_gates(model, [IMAGES], 0.999 * deviation)[1].folded == []
    folded, report = drop_constant_gates(model, [IMAGES], 1.001 * deviation)
    assert report.folded == ["1"]
    assert max(branch.deviation for branch in report.gates) == deviation
    x = model[0](IMAGES)[:, model[1].destinations().argsort()]
    assert ((folded(IMAGES) - model(IMAGES)).abs() <= deviation * x.abs() + 1e-12).all()


@torch.no_grad()
def test_gates_must_be_constant_over_images_and_positions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ShuffleAttention(8, 2)).double()
    layer = model[1]
    layer.sweight.fill_(1.0)
    _, report = drop_constant_gates(model, [IMAGES[:1]] * 2, 1e-3)  # the same image again
    channel, spatial = report.gates
    assert (channel.deviation, spatial.over_images) == pytest.approx((0, 0), abs=1e-12)
    assert spatial.over_positions > 0.1
    assert report.folded == []
    layer.sweight.zero_()
    layer.cweight.fill_(1.0)
    channel, spatial = drop_constant_gates(model, [IMAGES], 1e-3)[1].gates
    assert (channel.over_positions, spatial.deviation) == pytest.approx((0, 0), abs=1e-12)
    assert channel.over_images == channel.deviation > 1e-3


class Net(nn.Module):
    """A convolution, a norm, attention and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.sa = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), ShuffleAttention(16, groups=2)
        self.head = nn.Linear(16, 5)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sa(self.between(self.norm(self.conv(x)))).mean((2, 3)))


class ReadsTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.head((self.sa(y) + y).mean((2, 3)))


class RunsTwice(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.sa(x)


class Squared(ShuffleAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class NeverRuns(Net):
    def __init__(self):
        super().__init__()
        self.other = ShuffleAttention(16, groups=2)


OBSTACLES = {
    "gates that vary": (lambda m: nn.init.ones_(m.sa.sweight), "deviate by more than"),
    "gates that are not numbers": (lambda m: nn.init.constant_(m.sa.cbias, torch.nan), "deviate by more than"),
    "a map that is read twice": (lambda m: setattr(m, "__class__", ReadsTwice), "read elsewhere too"),
    "a layer that runs twice": (lambda m: setattr(m, "__class__", RunsTwice), "does not run exactly once"),
    "an operation between": (lambda m: setattr(m, "between", torch.relu), "not the output of a norm or convolution"),
    "a hook of the layer": (lambda m: m.sa.register_forward_hook(lambda *_: None), "hooks see it"),
    "a hook of the norm": (lambda m: m.norm.register_forward_hook(lambda *_: None), "norm has hooks"),
    "a norm without weights": (lambda m: setattr(m, "norm", nn.BatchNorm2d(16, affine=False)), "norm has no weight"),
    "a subclass": (lambda m: setattr(m.sa, "__class__", Squared), "not its input times its gates"),
    "a context that is added": (lambda m: setattr(m, "sa", create_attention("gc", 16)), "does not multiply"),
}


@pytest.mark.parametrize("case", OBSTACLES)
@torch.no_grad()
def test_a_layer_that_cannot_be_folded_stays_and_is_reported(case):
    change, reason = OBSTACLES[case]
    model = Net()
    change(model)
    model.double().eval()
    same, report = drop_constant_gates(model, [IMAGES], 1e-6)
    assert not report.folded
    assert reason in report.kept["sa"]
    assert reason in str(report)
    torch.testing.assert_close(same(IMAGES), model(IMAGES), rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def test_a_shuffle_needs_a_dense_convolution_and_factors_alone_do_not():
    for shuffle in (True, False):
        model = nn.Sequential(
            nn.Conv2d(4, 16, 3, groups=4), nn.BatchNorm2d(16), ShuffleAttention(16, 2, shuffle=shuffle)
        )
        spread(model)
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        new, report = drop_constant_gates(model, [x], 1e-9)
        assert bool(report.folded) != shuffle
        assert not shuffle or "needs a convolution in one group" in report.kept["2"]
        assert distance(new(x), model(x)) < 1e-13


@torch.no_grad()
def test_detectors_are_folded_in_their_backbone():
    options = {"channels": NARROW, "groups": 4}
    model = spread(
        create_detector("fcos", "sa_resnet18", 3, min_size=64, backbone_options=options, pyramid_channels=64)
    )
    images = [torch.rand(3, 70, 90, dtype=torch.float64)]
    plain, report = drop_constant_gates(model, [images], 1e-9)
    assert len(report.folded) == 8
    for a, b in zip(plain(images)[0].values(), model(images)[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "batches", "tolerance", "message"),
    [
        (Net(), [IMAGES.float()], -0.1, "at least 0, got -0.1"),
        (Net(), [IMAGES.float()], float("nan"), "at least 0, got nan"),
        (Net(), [], 0.1, "there are no images"),
        (nn.Conv2d(3, 4, 1), [IMAGES.float()], 0.1, "Conv2d has no attention layers"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, batches, tolerance, message):
    with pytest.raises(InputError, match=message):
        drop_constant_gates(model, batches, tolerance)


def test_every_attention_has_factors_or_says_so():
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    for name in set(attention_names()) - {"none"}:
        layer = nn.Sequential(create_attention(name, 16, **({"groups": 2} if name in ("shuffle", "sge") else {})))
        statistics, without = gate_statistics(spread(layer, lambda name: False), [x])
        assert (list(statistics), list(without)) == ([], ["0"]) if name == "gc" else (["0"], [])


def test_the_command_writes_a_checkpoint_of_a_plain_model(run, shared_tree, tmp_path, capsys):
    path, certificate = tmp_path / "plain.pth", tmp_path / "certificate.json"
    options = ("--data", shared_tree, "--max-loss", "20", "--json", certificate)
    assert sanet_here("export", run / "best.pt", "--drop-constant-gates", "1", "--output", path, *options) == 0
    assert "8 of 8 attention layers folded: constant within 1 over" in capsys.readouterr().out
    facts = json.loads(certificate.read_text())
    assert (facts["passed"], facts["unaltered"], facts["file"]) == (True, True, str(path))
    assert len(facts["details"]["constant_gates"]["folded"]) == 8
    plain, before = restore_network(path), restore_network(run / "best.pt")
    assert (plain.recipe.model, plain.classes) == ("resnet18", before.classes)
    other = timm.create_model("resnet18", num_classes=plain.num_classes, **plain.recipe.model_args)
    other.load_state_dict(torch.load(path)["model"], strict=True)


def worse(model: nn.Module, batches: object, tolerance: float) -> tuple[nn.Module, ConstantGatesReport]:
    """Fold constant gates, and swap the answers."""
    folded, report = drop_constant_gates(model, batches, tolerance)
    folded.fc.weight.neg_()
    folded.fc.bias.neg_()
    return folded, report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop-constant-gates", "1"], "plain.pth was not written: it loses"),
        (["--drop-constant-gates", "0"], "8 attention layers are not constant within 0: layer1.0.sa, layer1.1.sa"),
        (["--drop-constant-gates", "-1"], "must be at least 0"),
        (["--max-loss", "1"], "--drop-constant-gates TOLERANCE too"),
    ],
)
def test_the_command_leaves_nothing_behind(arguments, message, run, shared_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constant_gates, "drop_constant_gates", worse)
    path = tmp_path / "plain.pth"
    path.write_text("kept")
    assert sanet_here("export", run / "best.pt", *arguments, "--data", shared_tree, "--output", path) == 2
    assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["plain.pth"]
    assert path.read_text() == "kept"


def test_a_file_with_constant_gates_is_certified_by_its_accuracy(run, shared_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "_formats", {})
    deploy.register_format(deploy.Format("toy", ".toy", write_toy, load_toy))
    options = ("--drop-constant-gates", "1", "--data", shared_tree)
    assert sanet_here("export", run / "best.pt", "--output", tmp_path / "a.toy", *options) == 0
    metadata = deploy.load(tmp_path / "a.toy").metadata
    assert (metadata["num_classes"], len(metadata["constant_gates"]["folded"])) == (4, 8)
    assert sanet_here("verify", tmp_path / "a.toy", run / "best.pt", "--data", shared_tree) == 0
    strict = ("--tolerance", "1e-9", "--data", shared_tree)
    assert sanet_here("verify", tmp_path / "a.toy", run / "best.pt", *strict) == 1


def write_toy(model: nn.Module, example: Tensor, path: Path, metadata: Mapping, dynamic_size: bool) -> None:
    torch.save((model, dict(metadata)), path)


def load_toy(path: Path) -> deploy.Artefact:
    model, metadata = torch.load(path, weights_only=False)
    return deploy.Artefact(path, model.forward, metadata=metadata)


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({"model": "sa_resnet18", "model_args": {"groups": 8, "channels": [8, 8, 8, 8]}}, "resnet18"),
        ({"model": "seresnet50"}, "resnet50"),
        ({"model": "attention_resnet34", "model_args": {"attention": "eca"}}, "resnet34"),
        ({"model": "mobilenetv3_small_050", "attach": {"name": "shuffle"}}, "mobilenetv3_small_050"),
    ],
)
def test_the_recipe_of_a_plain_checkpoint_names_the_plain_model(fields, model):
    recipe = constant_gates.plain_recipe(Recipe(**fields))
    assert (recipe.model, recipe.attach) == (model, {})
    assert not {"groups", "attention"} & set(recipe.model_args)
