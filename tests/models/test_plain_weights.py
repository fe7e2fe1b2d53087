"""Networks with attention that start from weights of plain ResNets, and compute what those compute."""

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from networks import difference
from shuffle_attention import ShuffleAttention, load_checkpoint
from shuffle_attention.attention import Blend
from shuffle_attention.checkpoints import CheckpointError
from shuffle_attention.errors import InputError
from shuffle_attention.models.attention_resnet import resnet_with

TINY = {"channels": [16, 16, 32, 32]}
FAMILY = ["shuffle", "se", "cbam", "eca", "sge", "gc"]


def randomised(model: nn.Module) -> nn.Module:
    """Return a model in evaluation mode whose norms are no longer alike."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def plain(depth: int = 18, **options) -> nn.Module:
    torch.manual_seed(1)
    return randomised(timm.create_model(f"resnet{depth}", **{**TINY, **options}))


def with_attention(attention: str, depth: int = 18, **options) -> nn.Module:
    name, own = resnet_with(attention, depth)
    return timm.create_model(name, **own, **{**TINY, **options}).eval()


def images() -> Tensor:
    return torch.linspace(-40, 40, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)


@pytest.mark.parametrize(("attention", "depth"), [*((name, 18) for name in FAMILY), ("shuffle", 50)])
def test_plain_weights_load_with_attention_that_starts_as_the_identity(attention, depth, tmp_path):
    model, other = with_attention(attention, depth), with_attention(attention, depth)
    source = plain(depth).double()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "plain.pth")
    report = load_checkpoint(model.double(), tmp_path / "plain.pth")
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert len(report.started) == len(blocks)
    assert report.loaded == len(source.state_dict())
    with torch.no_grad():
        expected = source(images().double())
        assert difference(model(images().double()), expected) < 1e-12
    # It learns, its state dict says how it starts, and so another model takes it.
    model.train()(images().double()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".sa." in name or ".se." in name:
                parameter.add_(0.1)
        model.eval()
        trained = model(images().double())
        assert difference(trained, expected) > 1e-4
        torch.save(model.state_dict(), tmp_path / "trained.pth")
        assert not load_checkpoint(other.double(), tmp_path / "trained.pth").started
        assert torch.equal(other(images().double()), trained)
        assert len(load_checkpoint(other, tmp_path / "plain.pth").started) == len(blocks)
        assert difference(other(images().double()), expected) < 1e-12


def test_published_weights_load_after_plain_ones(tmp_path):
    published, model = randomised(with_attention("shuffle")), with_attention("shuffle")
    torch.save(published.state_dict(), tmp_path / "sa.pth")
    torch.save(plain().state_dict(), tmp_path / "plain.pth")
    load_checkpoint(model, tmp_path / "plain.pth")
    assert {m.shuffle for m in model.modules() if isinstance(m, ShuffleAttention)} == {False}
    assert len(load_checkpoint(model, tmp_path / "sa.pth").switched) == 8
    with torch.no_grad():
        assert torch.equal(model(images()), published(images()))


def test_allowing_attention_to_differ_does_not_leave_its_published_start(tmp_path):
    source, model = plain(), with_attention("shuffle")
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    assert len(load_checkpoint(model, tmp_path / "plain.pth", may_differ=["*.sa.*"]).started) == 8
    with torch.no_grad():
        assert difference(model(images()), source(images())) < 1e-6


def test_plain_weights_that_do_not_fit_change_nothing(tmp_path):
    model = with_attention("se")
    torch.save(plain(num_classes=4).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="2 wrongly shaped: fc.weight"):
        load_checkpoint(model, tmp_path / "plain.pth")
    assert not any(isinstance(module, Blend) for module in model.modules())
    torch.save({"fc.weight": model.fc.weight + 1, "fc.bias": model.fc.bias}, tmp_path / "head.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_checkpoint(model, tmp_path / "head.pth", may_differ=["*"]).started == ()
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == {"fc.weight"}


@pytest.fixture
def hub(monkeypatch) -> list[object]:
    """Replace timm's download by the plain tiny network of the requested depth; yield what was requested."""
    requests: list[object] = []

    def download(location: object, *_, **__) -> dict[str, Tensor]:
        requests.append(location)
        depth = int(str(location).split("/")[-1].removeprefix("timm/").removeprefix("resnet").split(".")[0])
        return plain(depth).state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    return requests


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_tags_and_settings_are_those_of_timms_plain_network(depth):
    for name in (f"sa_resnet{depth}", f"gc_resnet{depth}", f"attention_resnet{depth}"):
        tags = [each.split(".")[1] for each in timm.list_pretrained(f"{name}.*")]
        assert tags == [each.split(".")[1] for each in timm.list_pretrained(f"resnet{depth}.*")]
        assert timm.is_model_pretrained(name)
        for tag in tags:
            ours, theirs = (timm.get_pretrained_cfg(f"{each}.{tag}") for each in (name, f"resnet{depth}"))
            assert {**ours.to_dict(), "architecture": ""} == {**theirs.to_dict(), "architecture": ""}
        assert not timm.get_pretrained_cfg(
            name
        ).has_weights  # images of a model without weights are prepared as published


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sa_resnet18", "timm/resnet18.a1_in1k"),
        ("sa_resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
        ("sa_resnet50.b1k_in1k", "timm/resnet50.b1k_in1k"),
        ("eca_resnet34.a2_in1k", "timm/resnet34.a2_in1k"),
        ("gc_resnet50", "timm/resnet50.a1_in1k"),
    ],
)
def test_pretrained_computes_what_the_plain_network_does(name, source, hub):
    model = timm.create_model(name, pretrained=True, **TINY).eval()
    expected = plain(int(source.split("resnet")[1].split(".")[0]))
    with torch.no_grad():
        assert difference(model(images()), expected(images())) < 1e-6
    assert hub == [source]
    cfg = timm.get_pretrained_cfg(source.removeprefix("timm/"))
    assert (model.pretrained_cfg["tag"], model.pretrained_cfg["crop_pct"]) == (cfg.tag, cfg.crop_pct)


def test_pretrained_adapts_as_timm_does(hub):
    source = plain()
    features = timm.create_model("sa_resnet18", pretrained=True, features_only=True, **TINY).eval()
    other = timm.create_model("resnet18", features_only=True, **TINY).eval()
    other.load_state_dict(source.state_dict(), strict=False)
    with torch.no_grad():
        for map, expected in zip(features(images()), other(images()), strict=True):
            assert difference(map, expected) < 1e-6
    model = timm.create_model("sa_resnet18", pretrained=True, num_classes=4, in_chans=1, **TINY)
    assert model(images()[:, :1]).shape == (2, 4)
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    grey = timm.create_model("resnet18", pretrained=True, num_classes=4, in_chans=1, **TINY)
    assert torch.equal(model.conv1.weight, grey.conv1.weight)
    assert (
        timm.create_model("sa_resnet18.a1_in1k", **TINY).layer1[0].sa.shuffle
    )  # without pretrained=True, as published


def test_pretrained_saved_and_pushed_is_read_back(hub, tmp_path):
    model = timm.create_model("sa_resnet18", pretrained=True, num_classes=4, **TINY).eval()
    nn.init.normal_(model.layer1[0].sa.cweight)
    timm.models.save_for_hf(model, tmp_path, model_args=TINY, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize(("kind", "prefix"), [("plain", "module."), ("published", ""), ("identity", "model.")])
def test_a_local_file_is_taken_with_its_classifier(kind, prefix, tmp_path, caplog):
    source = plain(num_classes=4) if kind == "plain" else randomised(with_attention("shuffle", num_classes=4))
    if kind == "identity":
        torch.save(plain(num_classes=4).state_dict(), tmp_path / "plain.pth")
        load_checkpoint(source, tmp_path / "plain.pth")
        nn.init.normal_(source.layer1[0].sa.cweight)
    torch.save({"state_dict": {prefix + k: v for k, v in source.state_dict().items()}}, tmp_path / "own.pth.tar")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "own.pth.tar")}}
    for classes in ({}, {"num_classes": 4}):
        model = timm.create_model("sa_resnet18", pretrained=True, **overlay, **classes, **TINY).eval()
        with torch.no_grad():
            assert difference(model(images()), source(images())) < 1e-6
    timm.create_model("sa_resnet18", pretrained=True, features_only=True, **overlay, **TINY)
    timm.create_model("sa_resnet18", pretrained=True, num_classes=0, **overlay, **TINY)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert "state_dict" not in model.pretrained_cfg
    model = timm.create_model("sa_resnet18", pretrained=True, num_classes=7, **overlay, **TINY)
    assert "classifier of 4 classes; that of 7 is new" in caplog.text
    assert model.fc.out_features == 7


def test_a_local_file_without_all_of_the_body_is_refused(tmp_path):
    state = plain(num_classes=4).state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "cut.pth")
    overlay = {"file": str(tmp_path / "cut.pth")}
    for classes in (4, 7):
        with pytest.raises(CheckpointError, match=r"1 missing: layer4.1.conv2.weight"):
            timm.create_model(
                "sa_resnet18", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **TINY
            )
    (tmp_path / "cut.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="was not loaded"):
        timm.create_model("gc_resnet18", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)


def test_a_failed_download_names_the_alternative(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(
        InputError, match=r"sa_resnet18 could not be fetched \(FileNotFoundError: no connection\).*overlay"
    ):
        timm.create_model("sa_resnet18", pretrained=True, **TINY)
