"""Detectors that start from torchvision's weights, from files of whole detectors and from plain classifiers."""

import pytest
import timm
import torch
from test_plain_weights import TINY, plain
from torch import Tensor, nn

from networks import difference
from shuffle_attention.checkpoints import CheckpointError
from shuffle_attention.errors import InputError
from shuffle_attention.models.detectors import create_detector

OPTIONS = {"min_size": 64, "max_size": 96, "backbone_options": TINY}


def published(arch: str, eps: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a detector as torchvision trains it on COCO, with frozen norms, and its state dict."""
    torch.manual_seed(0)
    model = create_detector(arch, "resnet50", frozen_norm=True, **OPTIONS)
    for module in model.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps or 1e-30  # which changes no variance; PyTorch 2.11 refuses 0
            with torch.no_grad():
                module.running_mean.normal_(std=0.1)
                module.running_var.copy_(10 ** torch.empty_like(module.running_var).uniform_(-6, 0))
                module.weight.uniform_(0.5, 1.5).mul_(module.running_var.sqrt())
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return model.eval(), state


def pyramid(model: nn.Module) -> Tensor:
    with torch.no_grad():
        maps = model.eval().backbone(torch.linspace(-9, 9, 2 * 3 * 64 * 64).sin().reshape(2, 3, 64, 64))
    return torch.cat([level.flatten() for level in maps.values()])


@pytest.mark.parametrize(("arch", "eps"), [("faster_rcnn", 0.0), ("fcos", 1e-5)])
def test_plain_takes_torchvisions_detector_with_its_epsilon(arch, eps, monkeypatch, caplog, tmp_path):
    source, state = published(arch, eps)
    urls = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: [urls.append(url), dict(state)][1]
    )
    model = create_detector(arch, "sa_resnet50", weights="plain", **OPTIONS)
    assert urls[0].endswith((".pth",))
    assert arch.replace("_", "") in urls[0]
    assert difference(pyramid(model), pyramid(source)) < 1e-5
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("backbone.body"))
    # Backbones with weights keep their norms and first stages.
    assert not model.backbone.body.layer1[0].bn1.weight.requires_grad
    # Its state dict says all of it.
    torch.save(own, tmp_path / "own.pt")
    again = create_detector(arch, "sa_resnet50", num_classes=3, weights=tmp_path / "own.pt", **OPTIONS)
    assert torch.equal(pyramid(again), pyramid(model))
    assert "has other classes; new and untrained are" in caplog.text


def test_a_file_of_torchvisions_detector_is_recognised(tmp_path):
    source, state = published("retinanet", 0.0)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "retinanet.pth")
    model = create_detector("retinanet", "gc_resnet50", weights=tmp_path / "retinanet.pth", **OPTIONS)
    assert difference(pyramid(model), pyramid(source)) < 1e-5
    with pytest.raises(CheckpointError, match="does not fit"):
        create_detector("fcos", "sa_resnet50", weights=tmp_path / "retinanet.pth", **OPTIONS)


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_the_epsilon_of_frozen_norms_is_guessed_with_a_warning_or_given(eps, tmp_path, caplog):
    source, state = published("retinanet", eps or 0.0)
    torch.save(state, tmp_path / "own.pth")
    model = create_detector("retinanet", "resnet50", weights=tmp_path / "own.pth", norm_eps=eps, **OPTIONS)
    assert difference(pyramid(model), pyramid(source)) < 1e-5
    assert ("give --norm-eps 1e-5" in caplog.text) is (eps is None)


def test_plain_backbones_of_other_depths_have_torchvisions_tag(monkeypatch):
    requests = []

    def download(location: object, *_, **__) -> dict[str, Tensor]:
        requests.append(location)
        return plain().state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    models = [create_detector("fcos", name, weights="plain", **OPTIONS) for name in ("resnet18", "sa_resnet18")]
    models[1].backbone.fpn.load_state_dict(models[0].backbone.fpn.state_dict())
    assert difference(pyramid(models[1]), pyramid(models[0])) < 1e-6
    assert requests == ["timm/resnet18.tv_in1k"] * 2
    for name in ("seresnet50", "mobilenetv3_small_050"):
        with pytest.raises(InputError, match="are those of a plain ResNet"):
            create_detector("fcos", name, weights="plain", **OPTIONS)


def test_plain_classifiers_load_into_backbones_with_attention(tmp_path):
    source = plain(num_classes=7)
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    model = create_detector("fcos", "sa_resnet18", weights=tmp_path / "plain.pth", **OPTIONS)
    expected = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4), **TINY).eval()
    expected.load_state_dict(source.state_dict(), strict=False)
    x = torch.linspace(-9, 9, 3 * 64 * 64).sin().reshape(1, 3, 64, 64)
    with torch.no_grad():
        for map, other in zip(model.eval().backbone.body(x), expected(x), strict=True):
            assert difference(map, other) < 1e-6


def test_attention_is_attached_to_a_backbone(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "plain.pth")
    models = [
        create_detector("fcos", "resnet18", weights=tmp_path / "plain.pth", attention=attention, **OPTIONS)
        for attention in (None, {"name": "shuffle"})
    ]
    models[1].backbone.fpn.load_state_dict(models[0].backbone.fpn.state_dict())
    assert difference(pyramid(models[1]), pyramid(models[0])) < 1e-6
    assert "backbone.body.layer1.0.sa.gain" in models[1].state_dict()
    # Frozen stages are frozen with their attention.
    trained = {name: p.requires_grad for name, p in models[1].named_parameters() if ".sa." in name}
    assert {name.split(".")[2] for name, trains in trained.items() if trains} == {"layer2", "layer3", "layer4"}
