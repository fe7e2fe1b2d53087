"""Class activation maps: right by implementations that share nothing with them, and without a trace in the network."""

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import shuffle_attention.models
from shuffle_attention import attach
from shuffle_attention.errors import InputError
from shuffle_attention.explain import METHODS, explain, faithfulness

pytest.importorskip("torchcam", reason="torchcam, which needs Python 3.11")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


@functools.cache
def lively(name: str) -> nn.Module:
    """A network in float64 whose norms and gates are no longer alike; no test changes it."""
    torch.manual_seed(0)
    narrow = {} if name == "test_resnet" else {"channels": (16, 16, 32, 32)}
    model = timm.create_model(name, num_classes=7, **narrow).double().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1 or ".sa." in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return lively("sa_resnet18")


def activations_and_gradients(model: nn.Module, layer: str, images: torch.Tensor, classes: list[int]):
    """By a hook that puts a leaf in the place of the layer's output: nothing of it is shared with the code tested."""
    kept = {}

    def replace(_, __, output):
        kept["a"] = output.detach().clone().requires_grad_(True)
        return kept["a"] * 1

    handle = model.get_submodule(layer).register_forward_hook(replace)
    model(images)[range(len(images)), classes].sum().backward(inputs=[kept["a"]])
    handle.remove()
    return kept["a"].detach(), kept["a"].grad


@pytest.mark.parametrize("layer", ["layer4", "layer3.1.sa", "layer3.1.bn2", "layer4.1.sa", "layer4.1.bn2", "layer2.0"])
@pytest.mark.parametrize("name", ["sa_resnet18", "resnet18"])
def test_gradcam_is_captums(images, name, layer):
    """Where the block goes on in place too, as timm's does after its last norm."""
    from captum.attr import LayerGradCam

    if name == "resnet18":
        layer = layer.replace(".sa", ".conv2")
    model = lively(name)
    found = explain(model, images, target=[0, 3, 6], layer=layer)
    captums = LayerGradCam(model, model.get_submodule(layer)).attribute(
        images.clone().requires_grad_(True), torch.tensor([0, 3, 6]), relu_attributions=True
    )[:, 0]
    captums = captums.detach()
    enlarged = functional.interpolate(captums[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    for mine, theirs in ((found.raw, captums), (found.maps, enlarged)):
        assert theirs.max() > 0
        assert (mine - theirs).abs().max() < 1e-5 * theirs.max()


def test_the_other_gradients_methods_are_their_papers(network, images):
    classes = [1, 1, 5]
    for layer in ("layer3", "layer4.0"):
        a, g = activations_and_gradients(network, layer, images, classes)
        layercam = (g.relu() * a).sum(1).relu()
        torch.testing.assert_close(explain(network, images, "layercam", classes, layer).raw, layercam.float())
        # Equations 10 and 19 of Grad-CAM++, unsimplified.
        denominators = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3
        alpha = torch.where(denominators != 0, g**2 / denominators.where(denominators != 0, torch.ones_like(g)), 0)
        weights = (alpha * g.relu()).sum((2, 3), keepdim=True)
        plus = (weights * a).sum(1).relu()
        torch.testing.assert_close(explain(network, images, "gradcam++", classes, layer).raw, plus.float())


def test_scorecam_is_a_plain_loop(images):
    torch.manual_seed(0)
    model = lively("test_resnet")
    found = explain(model, images[:2], "scorecam", [2, 4], "layer2")
    kept = []
    handle = model.layer2.register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        base = model(images[:2])
    handle.remove()
    for image, maps, target, before, raw in zip(images, kept[0], [2, 4], base, found.raw, strict=False):
        gains = []
        for plane in maps:
            mask = (plane - plane.min()) / (plane.max() - plane.min() + 1e-8)
            mask = functional.interpolate(mask[None, None], (64, 64), mode="bilinear", align_corners=False)[0]
            with torch.no_grad():
                gains.append(model((image * mask)[None])[0, target] - before[target])
        expected = (torch.stack(gains).softmax(0)[:, None, None] * maps).sum(0).relu()
        torch.testing.assert_close(raw, expected.float())


def test_group_is_scorecam_over_the_means_of_the_groups(network, images):
    """The groups are those before the shuffle, which the layer's output has undergone."""
    layer = network.layer2[1].sa
    found = explain(network, images[:1], "group", 3, "stage2")
    assert found.layer == "layer2.1.sa"
    straight = copy.deepcopy(network)
    straight.layer2[1].sa.shuffle = False
    kept = {}
    handle = straight.layer2[1].sa.register_forward_hook(lambda _, __, output: kept.update(y=output))
    with torch.no_grad():
        straight(images[:1])
        before = network(images[:1])[0, 3]
    handle.remove()
    means = torch.stack([part.mean(1)[0] for part in kept["y"].chunk(layer.groups, dim=1)])
    gains = []
    for mean in means:
        mask = (mean - mean.min()) / (mean.max() - mean.min() + 1e-8)
        mask = functional.interpolate(mask[None, None], (64, 64), mode="bilinear", align_corners=False)
        with torch.no_grad():
            gains.append(network(images[:1] * mask)[0, 3] - before)
    expected = (torch.stack(gains).softmax(0)[:, None, None] * means).sum(0).relu()
    torch.testing.assert_close(found.raw[0], expected.float())


def test_what_is_reported(network, images):
    found = explain(network, images, target=2, layer="stage3")
    with torch.no_grad():
        logits = network(images)
    torch.testing.assert_close(found.probabilities, logits.float().softmax(1)[:, 2])
    assert found.classes.tolist() == [2, 2, 2]
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    assert explain(network, images).classes.tolist() == found.predicted.tolist()
    assert (found.layer, explain(network, images).layer) == ("layer3", "layer4")
    shares = found.shares()
    assert shares.shape == (3, 64, 64)
    for share, raw in zip(shares, found.raw, strict=True):
        assert (share.min(), share.max()) == ((0, 1) if raw.max() > raw.min() else (0, 0))


def test_a_map_without_evidence_has_no_shares(network, images):
    found = explain(network, images)
    flat = type(found)(
        *(torch.zeros_like(m) for m in (found.maps, found.raw)), found.classes, *[found.probabilities] * 2, "", ""
    )
    assert not flat.shares().any()
    # A map of one place, which enlarging must not make one of rounding errors.
    small = explain(network, images[:, :, :32, :32], "layercam")
    assert small.raw.shape[1:] == (1, 1)
    assert small.raw.any()
    assert not small.shares().any()


def traces(model: nn.Module) -> dict:
    """All that explaining must leave as it was."""
    hooks = [name for name in vars(model) if name.endswith("hooks")] + ["_forward_hooks_with_kwargs"]
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "wanted": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            (name, kind): list(getattr(module, kind).items())
            for name, module in model.named_modules()
            for kind in hooks
            if hasattr(module, kind)
        },
    }


def same(one: dict, other: dict) -> bool:
    def equal(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b

    return all(
        one[part].keys() == other[part].keys() and all(equal(one[part][key], other[part][key]) for key in one[part])
        for part in one
    )


class Mishap(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was(images, method):
    """Half frozen, half trained, with hooks of its owner, in another mode in each part; also when a method raises."""
    model = timm.create_model("sa_resnet18", num_classes=7, channels=(16, 16, 32, 32)).train()
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    seen = []
    model.layer3.register_forward_hook(lambda *_: seen.append(1))
    images = images.float()
    model(images).sum().backward()
    before = traces(model)
    small = {"layer": "layer1.0.sa"} if method in ("group", "scorecam") else {}

    explain(model, images, method, **small)
    assert same(traces(model), before)
    assert len(seen) > 1

    for wrong in ({"layer": "fc"}, {"layer": "nowhere"}, {"target": 7}, {"target": [1, 2]}):
        with pytest.raises(InputError):
            explain(model, images, method, **{**small, **wrong})
        assert same(traces(model), before)

    calls = []

    def fails(*_):
        calls.append(1)
        if len(calls) == (2 if method in ("group", "scorecam") else 1):
            raise Mishap

    handle = model.fc.register_forward_pre_hook(fails)
    before = traces(model)
    with pytest.raises(Mishap):
        explain(model, images, method, **small)
    assert same(traces(model), before)
    handle.remove()


def test_works_where_gradients_are_off(network, images):
    expected = explain(network, images)
    with torch.no_grad():
        torch.testing.assert_close(explain(network, images).raw, expected.raw)
    with torch.inference_mode():
        inside = explain(network, images.clone())
    torch.testing.assert_close(inside.raw, expected.raw)
    frozen = copy.deepcopy(network).requires_grad_(False)
    torch.testing.assert_close(explain(frozen, images).raw, expected.raw)


@pytest.mark.parametrize("layer", ["layer4.1.sa", "layer4.1.bn2", "layer4.1.act2"])
def test_the_fused_block_steps_aside_for_what_is_looked_at(images, monkeypatch, layer):
    """One block by its modules while it is hooked, all by the op afterwards; the maps are those of the modules."""
    model = copy.deepcopy(lively("sa_resnet18")).float()
    images = images.float()
    fused = []
    tail = shuffle_attention.models.fused_block.block_tail

    def counted(u, shortcut, *arguments, **options):
        if shortcut is not None:
            fused.append(True)
        return tail(u, shortcut, *arguments, **options)

    monkeypatch.setattr(shuffle_attention.models.fused_block, "block_tail", counted)
    with torch.no_grad():
        model(images)
    as_ever = len(fused)
    if not as_ever:
        pytest.skip("the CPU kernels, without which no block is fused")
    fused.clear()
    found = explain(model, images, layer=layer)
    assert len(fused) == as_ever - 1
    fused.clear()
    with torch.no_grad():
        model(images)
    assert len(fused) == as_ever
    monkeypatch.setattr(shuffle_attention.models.fused_block, "can_fuse", lambda *_: False)
    torch.testing.assert_close(explain(model, images, layer=layer).raw, found.raw, atol=1e-5, rtol=1e-4)


def swin() -> nn.Module:
    options = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "img_size": 64}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **options)


def vit(**options) -> nn.Module:
    small = {"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 2, "reg_tokens": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=7, **small, **options)


def cait() -> nn.Module:
    small = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("cait_xxs24_224", num_classes=7, **small)


@pytest.mark.parametrize(
    ("build", "layer", "shape"),
    [
        (swin, "layers.1", (8, 8)),
        (cait, "blocks.1.norm1", (4, 4)),
        (vit, "blocks.2.norm1", (4, 4)),
        (lambda: vit(global_pool="avg"), "blocks.2", (4, 4)),
        (lambda: timm.create_model("test_convnext", num_classes=7), "stages.3", (2, 2)),
        (lambda: timm.create_model("test_efficientnet", num_classes=7), "blocks.4", (2, 2)),
    ],
    ids=["swin", "cait", "vit", "vit-avg", "convnext", "efficientnet"],
)
@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_layouts_of_other_networks(images, build, layer, shape, method):
    torch.manual_seed(0)
    model = build().double()
    found = explain(model, images, method)
    assert (found.layer, tuple(found.raw.shape[1:])) == (layer, shape)


def test_tokens_and_last_channels_are_laid_out_as_they_stand(images):
    """The maps of a ViT and a Swin by hand, from tokens and from (B, H, W, C)."""
    torch.manual_seed(0)
    model = vit().double().eval()
    a, g = activations_and_gradients(model, "blocks.1", images, [0, 1, 2])
    expected = (g[:, 3:].mean(1, keepdim=True) * a[:, 3:]).sum(2).relu().unflatten(1, (4, 4))
    torch.testing.assert_close(explain(model, images, target=[0, 1, 2], layer="stage2").raw, expected.float())
    model = swin().double().eval()
    a, g = activations_and_gradients(model, "layers.0", images, [0, 1, 2])
    expected = (g.mean((1, 2), keepdim=True) * a).sum(3).relu()
    torch.testing.assert_close(explain(model, images, target=[0, 1, 2], layer="layers.0").raw, expected.float())


def test_networks_of_others_end_with_their_last_map(images):
    from torchvision.models import squeezenet1_0

    torch.manual_seed(0)
    assert explain(squeezenet1_0(num_classes=7).double().eval(), images).layer == "classifier.2"
    model = timm.create_model("resnet10t", num_classes=7)
    attach(model, "shuffle", where="stage", groups=4)
    assert explain(model, images.float(), "group").layer.startswith("layer4")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "gradcan"}, "there are gradcam, gradcam\\+\\+, layercam, scorecam, group"),
        ({"layer": "stage5"}, r"no layer of SAResNet 'stage5'; did you mean stage.* stage1 \(layer1\)"),
        ({"layer": "layer4.1.sb"}, "did you mean layer4.1.sa"),
        ({"layer": "fc"}, r"returns \(3, 7\) for 3 images.*stage4 \(layer4\) would do"),
        ({"layer": "layer4.1.sa.gn"}, "is not called when the model runs"),
        ({"layer": "conv1", "method": "group"}, "there are layer1.0.sa, layer1.1.sa"),
        ({"target": 7}, "from 0 to 6, the 7 classes"),
        ({"target": -1}, "from 0 to 6"),
        ({"target": [1, 2]}, r"one per image \(3\)"),
        ({"target": "tench"}, "a class index or one per image, got 'tench'"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_explained_is_refused(network, images, asked, message):
    with pytest.raises(InputError, match=message):
        explain(network, images, **asked)


def test_networks_that_cannot_be_explained_are_refused(images):
    with pytest.raises(InputError, match="has none; gradcam, gradcam"):
        explain(timm.create_model("resnet10t").eval(), images.float(), "group")
    with pytest.raises(InputError, match="blocks.2.norm1' would do"):
        explain(vit().double(), images, layer="stage3")
    with pytest.raises(InputError, match="must return logits"):
        explain(timm.create_model("resnet10t", features_only=True).eval(), images.float(), layer="layer4")
    with pytest.raises(InputError, match="images must be floating point"):
        explain(timm.create_model("resnet10t").eval(), images[0])
    diverged = timm.create_model("resnet10t").eval()
    nn.init.constant_(diverged.fc.bias, math.nan)
    with pytest.raises(InputError, match="scores of ResNet are not all finite"):
        explain(diverged, images.float())


def test_torchcam_is_asked_for_by_name(network, images, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchcam", None)
    with pytest.raises(InputError, match=r"pip install 'shuffle-attention\[explain\]'"):
        explain(network, images)


def test_an_output_with_logits_is_explained_and_scored_like_its_logits():
    class WithLogits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return SimpleNamespace(logits=self.model(x))

    model = timm.create_model("resnet18", num_classes=4).eval()
    wrapped, images = WithLogits(model), torch.randn(2, 3, 64, 64)
    for method in METHODS[:4]:
        expected = explain(model, images, method, layer="layer3")
        explanation = explain(wrapped, images, method, layer="model.layer3")
        torch.testing.assert_close(explanation.maps, expected.maps)
    shares, classes = expected.shares(), expected.classes
    assert faithfulness(wrapped, images, shares, classes) == faithfulness(model, images, shares, classes)
    assert isinstance(wrapped(images), SimpleNamespace)
