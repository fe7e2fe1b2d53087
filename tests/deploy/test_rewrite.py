"""Rewriting: the same function, the model untouched, and a report of what was kept and why."""

import copy
import pickle
import types
from collections.abc import Callable
from itertools import product

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

import shuffle_attention.models  # noqa: F401 - registers the models
from networks import NETWORKS, network, output, photographs
from shuffle_attention import ShuffleAttention, attach
from shuffle_attention.deploy import rewrite
from shuffle_attention.deploy.channels import Channels
from shuffle_attention.deploy.rewrite import renumber
from shuffle_attention.errors import InputError
from shuffle_attention.models.detectors import create_detector
from shuffle_attention.models.sa_resnet import SABasicBlock, SABottleneck, SAResNet, small_input_stem

STARTS = ("plain", "identity")
IMAGES = torch.randn(3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def spread(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, with gates, BatchNorm statistics and BatchNorm parameters at random."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
        if isinstance(module, _BatchNorm | torchvision.ops.FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            for parameter, mean in ((module.weight, 1), (module.bias, 0)):
                nn.init.normal_(parameter, mean, 0.3)
    return model.eval()


def narrow(depth: int = 18, groups: int = 8, **options) -> nn.Module:
    """Return an SA-ResNet of an eighth of the usual width, or of a half if it needs that for its groups."""
    width = 32 if groups == 64 else 8
    layers, block = {18: ((2, 1, 1, 2), SABasicBlock), 50: ((2, 1, 2, 1), SABottleneck)}[depth]
    channels = tuple(width * 2**stage for stage in range(4))
    return SAResNet(block, layers, num_classes=5, channels=channels, block_args={"groups": groups}, **options)


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def distance(y: object, expected: object) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    pairs = zip(tree_leaves(y), tree_leaves(expected), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if isinstance(b, Tensor))


@torch.no_grad()
def same(model: nn.Module, images: Tensor = IMAGES, *, of: Callable = lambda y: y):
    """Rewrite a model, compare float64, and float32 in both layouts, and return the first report."""
    fast, report = rewrite(model)
    assert distance(of(fast(images)), of(model(images))) < 1e-12
    single = copy.deepcopy(model).float()
    expected = of(single(images.float()))
    for layout in (torch.contiguous_format, torch.channels_last):
        fast = rewrite(single)[0].to(memory_format=layout)
        assert distance(of(fast(images.float().contiguous(memory_format=layout))), expected) < 1e-5
    return report


@pytest.mark.parametrize(
    ("depth", "groups", "options"),
    [(18, 8, {}), (18, 16, {"stem_type": "deep"}), (18, 64, {}), (50, 8, {"avg_down": True}), (50, 64, {})],
)
def test_an_sa_resnet_computes_the_same(depth, groups, options):
    report = same(spread(narrow(depth, groups, **options).double()))
    assert not report.kept
    assert not report.reordered
    assert len(report.blocks) == len(report.unshuffled) == 6


def test_a_small_stem_computes_the_same():
    model = narrow()
    small_input_stem(model)
    report = same(spread(model.double()))
    assert (len(report.folded), report.kept) == (norms_of(model), {})


@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, "published") for name in NETWORKS), *product(("torchvision-resnet", "huggingface-resnet"), STARTS)],
)
def test_any_network_computes_the_same(name, start):
    if name.startswith("huggingface"):
        pytest.importorskip("transformers")
    model = network(name)
    if start != "plain":
        attach(model, start=start)
    spread(model)
    report = same(model, photographs()[:1], of=lambda y: output(lambda _: y))
    fixed = ("convnext", "yolo", "plain")  # permutations, concatenations and a convolution in groups
    assert bool(report.kept) == (start != "plain" and name.endswith(fixed))
    assert all("shuffle and groups" in reason for reason in report.kept.values())
    assert len(report.blocks) == {"timm-resnet": 4, "timm-resnext": 4, "huggingface-resnet": 3}.get(name, 0)


@pytest.mark.parametrize("name", ["se_resnet", "eca_resnet", "cbam_resnet", "sge_resnet"])
def test_other_attention_computes_the_same_with_folded_norms(name):
    model = timm.create_model(
        f"{name.split('_')[0]}_resnet18" if name == "sge_resnet" else "attention_resnet18",
        num_classes=5,
        channels=(8, 16, 32, 64),
        **({} if name == "sge_resnet" else {"attention": name.split("_")[0]}),
    )
    report = same(spread(model.double()))
    assert (len(report.folded), report.unshuffled) == (norms_of(model), [])


@pytest.mark.parametrize("arch", ["fcos", "mask_rcnn"])
def test_a_detector_computes_the_same_with_the_columns_of_its_pyramid_renumbered(arch):
    options = {"channels": (8, 16, 32, 64), "groups": 4}
    model = spread(create_detector(arch, "sa_resnet18", 3, min_size=64, backbone_options=options, pyramid_channels=64))
    fast, report = rewrite(model.double())
    assert not report.kept
    assert (len(report.unshuffled), report.reordered) == (8, 0)
    images = [torch.rand(3, 70, 90, dtype=torch.float64)]
    with torch.no_grad():
        for a, b in zip(tree_leaves(fast(images)), tree_leaves(model(images)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="for evaluation only"):
        fast.train()


@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 0}])
def test_outputs_that_are_renumbered_are_brought_into_their_own_order(options):
    model = timm.create_model("sa_resnet18", channels=(8, 16, 32, 64), groups=4, **options)
    report = same(spread(model.double()))
    assert not report.kept
    assert report.reordered == (4 if "features_only" in options else 1)
    assert "reordered at the end" in str(report)


def test_the_model_is_left_as_it_is():
    model = spread(narrow().double()).train()
    model.layer1.eval()
    calls = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()]
    classes = [type(module) for module in model.modules()]
    fast, _ = rewrite(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert hooks == [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()]
    assert classes == [type(module) for module in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    model.fc._forward_hooks.clear()
    fast, _ = rewrite(model)
    again = pickle.loads(pickle.dumps(copy.deepcopy(fast).float()))
    with torch.no_grad():
        assert distance(again(IMAGES.float()), model.eval()(IMAGES).float()) < 1e-5


def test_attention_without_shuffle_has_two_contiguous_halves():
    fast, report = rewrite(spread(narrow()))
    layers = [module for module in fast.modules() if isinstance(module, ShuffleAttention)]
    assert len(layers) == len(report.unshuffled)
    for layer in layers:
        assert (layer.groups, layer.shuffle) == (1, False)
        assert not layer.spatial_channels()[: layer.channels // 2].any()
        assert {p.numel() for p in layer.parameters()} == {layer.channels // 2}


class Net(nn.Module):
    """A convolution, a norm and attention, twice with an addition, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.ReLU()
        self.sa1, self.sa2 = ShuffleAttention(16, groups=2), ShuffleAttention(16, groups=2)
        self.head = nn.Linear(16, 5)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.sa1(self.norm1(self.conv1(x))) + x)
        x = self.between(x)
        x = self.relu(self.sa2(self.norm2(self.conv2(x))) + x)
        return self.head(x.mean((2, 3)))


def share_weights(model: Net) -> None:
    model.conv2.weight = model.conv1.weight


def parametrise(model: Net) -> None:
    nn.utils.parametrizations.weight_norm(model.conv1)


def other_groups(model: Net) -> None:
    model.sa2 = ShuffleAttention(16, groups=4)


def override(model: Net) -> None:
    model.conv1.forward = lambda x: nn.functional.conv2d(x, model.conv1.weight, model.conv1.bias).roll(1, 1)


def multiply(model: Net) -> None:
    model.between = types.MethodType(lambda self, x: x * self.norm1.weight[:, None, None], model)


KEPT = {
    "a hook": (lambda m: m.norm1.register_forward_hook(lambda *_: None), "in norm1 depends", {"norm1"}),
    "shared weights": (share_weights, "conv2d in conv1 depends", {"norm1", "norm2"}),
    "a parametrisation": (parametrise, "depends on the order", {"norm1"}),
    "other groups": (other_groups, "attention of other groups", set()),
    "a forward override": (override, "conv1 computes with something other", {"norm1"}),
    "a roll": (lambda m: setattr(m, "between", lambda x: x.roll(1, 1)), "roll in the model depends", set()),
    "a write": (lambda m: setattr(m, "between", first_channel_to_zero), "__setitem__ in the model depends", set()),
    "a vector": (multiply, "mul in the model depends", {"norm1"}),
    "a reshape": (
        lambda m: setattr(m, "between", lambda x: x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)),
        "unflatten in the model depends",
        set(),
    ),
    "a concatenation": (
        lambda m: setattr(m, "between", lambda x: torch.cat([x[:, 8:], x[:, :8]], 1)),
        "depends",
        set(),
    ),
    "no statistics": (
        lambda m: setattr(m, "norm1", nn.BatchNorm2d(16, track_running_stats=False).double()),
        "",
        {"norm1"},
    ),
    "NumPy": (lambda m: setattr(m, "between", lambda x: torch.from_numpy(x.numpy()[:, ::-1].copy())), "", set()),
}


def first_channel_to_zero(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


@pytest.mark.parametrize("case", KEPT)
def test_what_depends_on_the_numbering_keeps_it_and_is_reported(case):
    change, reason, norms = KEPT[case]
    model = spread(Net().double())
    change(model)
    model.eval()
    fast, report = rewrite(model)
    with torch.no_grad():
        assert distance(fast(IMAGES), model(IMAGES)) < 1e-12
    assert {name for name in report.kept if "norm" in name} == norms
    attention = {name: why for name, why in report.kept.items() if "sa" in name}
    assert reason == "" or any(reason in why for why in attention.values()), report
    assert set(attention) | set(report.unshuffled) == {"sa1", "sa2"}


def test_attention_added_to_its_own_input_keeps_its_shuffle():
    class Added(Net):
        def between(self, x: Tensor) -> Tensor:
            return x + self.sa1(x)

    report = same(spread(Added().double()))
    assert "added to its input" in report.kept["sa1"]


def test_half_precision_is_renumbered_and_not_folded():
    model = spread(Net()).bfloat16()
    fast, report = rewrite(model)
    assert report.unshuffled == ["sa1", "sa2"]
    assert not report.folded
    assert {"norm1", "norm2"} <= set(report.kept)
    images = IMAGES.bfloat16()
    with torch.no_grad():
        assert distance(fast(images).float(), model(images).float()) < 0.05


def test_a_model_that_does_not_run_is_copied_and_reported():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 38 * 38, 2)).double()
    fast, report = rewrite(model)
    assert "could not be rewritten" in report.kept[""]
    with torch.no_grad():
        assert torch.equal(fast(IMAGES), model(IMAGES))
    assert not rewrite(model, example=IMAGES)[1].kept


def test_a_model_that_returns_more_than_it_did_is_refused():
    class More(Net):
        def forward(self, x: Tensor, more: bool = False):
            y = super().forward(x)
            return (y, y) if more else y

    fast, _ = rewrite(spread(More()))
    with pytest.raises(InputError, match="the model returned 2 values, and 1 when it was rewritten"):
        fast(IMAGES.float(), more=True)


def test_new_weights_and_new_shapes_are_packed_again():
    fast, _ = rewrite(spread(narrow()))
    model, images = copy.deepcopy(fast).double(), IMAGES.float()
    with torch.no_grad():
        for x in (images, images[:1, :, :33], images.requires_grad_(), images.detach()):
            assert distance(fast(x).double(), model(x.double())) < 1e-5
        for each in (fast, model):
            each.model.layer2[0].branch[0].weight.mul_(2)
        assert distance(fast(images).double(), model(images.double())) < 1e-5


def without_shuffle(model: nn.Module) -> nn.Module:
    """Return a model that can be trained, with the same groups and parameters and without shuffle."""
    new, flow = copy.deepcopy(model), Channels(copy.deepcopy(model).eval(), (IMAGES[:1],), {})
    numberings: dict[int, Tensor] = {}
    for unit in flow.units.values():
        if unit.kind == "attention":
            assert not flow.numberings()[1]
            numberings |= flow._connected(unit.maps[0])[0] if unit.maps[0] not in numberings else {}
    renumber(dict(new.named_modules()), flow.units, numberings)
    for layer in new.modules():
        if isinstance(layer, ShuffleAttention):
            layer.shuffle = False
    return new


def train(model: nn.Module, optimizer: type[torch.optim.Optimizer], options: dict) -> list[float]:
    """Return the losses of 20 steps on noise."""
    generator = torch.Generator().manual_seed(1)
    steps, losses = optimizer(model.parameters(), **options), []
    for _ in range(20):
        images = torch.randn(8, 3, 48, 48, dtype=torch.float64, generator=generator)
        loss = nn.functional.cross_entropy(model(images), torch.randint(5, (8,), generator=generator))
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"lr": 2e-3, "momentum": 0.9, "weight_decay": 1e-4}), (torch.optim.Adam, {"lr": 1e-4})],
)
def test_a_model_without_its_shuffle_trains_as_the_model_does(optimizer, options):
    """The claim of docs/shuffle.md."""
    shuffled = spread(narrow().double()).train()
    renumbered = without_shuffle(shuffled)
    assert not any(layer.shuffle for layer in renumbered.modules() if isinstance(layer, ShuffleAttention))
    losses, others = train(shuffled, optimizer, options), train(renumbered, optimizer, options)
    assert losses[0] != losses[-1]
    assert losses == pytest.approx(others, rel=1e-12)
