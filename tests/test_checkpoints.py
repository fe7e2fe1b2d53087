"""Reading weights: all of a file or nothing, and never its code."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from shuffle_attention import attach, load_checkpoint
from shuffle_attention.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from shuffle_attention.sanet.tasks.classification.predictor import identify, restore_network


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """The state dict of a network whose every entry differs from a fresh one's."""
    torch.manual_seed(1)
    model = timm.create_model("sa_resnet50")
    return {
        key: value + 1 if not value.is_floating_point() else torch.randn_like(value)
        for key, value in model.state_dict().items()
    }


def published(state: dict[str, torch.Tensor], prefix: str) -> dict:
    """Return a checkpoint as the published training script saves it."""
    return {
        "epoch": 100,
        "arch": "sa_resnet50",
        "state_dict": {prefix + key: value for key, value in state.items()},
        "best_acc": torch.tensor(77.7),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


def holds(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_published_files_load_whole(tmp_path, trained, prefix, legacy):
    path = tmp_path / "model.pth.tar"
    torch.save(published(trained, prefix), path, _use_new_zipfile_serialization=not legacy)
    model = timm.create_model("sa_resnet50")
    report = load_checkpoint(model, path)
    assert (report.loaded, report.weights, report.kept, report.unused) == (416, "state_dict", (), ())
    assert holds(model, trained)


def test_bare_and_safetensors_load_whole(tmp_path, trained):
    torch.save(trained, tmp_path / "bare.pth")
    safetensors.torch.save_file(trained, tmp_path / "bare.safetensors")
    for name in ("bare.pth", "bare.safetensors"):
        model = timm.create_model("sa_resnet50")
        assert load_checkpoint(model, tmp_path / name).loaded == 416
        assert holds(model, trained)


def test_metrics_as_numpy_scalars_do_not_hinder(tmp_path, trained):
    content = {"state_dict": trained, "best_acc": np.float64(77.7), "epoch": np.int64(3), "top5": np.float32(93)}
    torch.save(content, tmp_path / "numpy.pt")
    assert load_checkpoint(timm.create_model("sa_resnet50"), tmp_path / "numpy.pt").loaded == 416


def test_averaged_weights_are_preferred_and_can_be_declined(tmp_path, trained):
    averaged = {key: value * 2 for key, value in trained.items()}
    torch.save({"state_dict": trained, "state_dict_ema": averaged}, tmp_path / "ema.pt")
    model = timm.create_model("sa_resnet50")
    assert load_checkpoint(model, tmp_path / "ema.pt").weights == "state_dict_ema"
    assert holds(model, averaged)
    load_checkpoint(model, tmp_path / "ema.pt", ema=False)
    assert holds(model, trained)
    torch.save({"state_dict": trained}, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        load_checkpoint(model, tmp_path / "plain.pt", ema=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer1.0.sa.cweight"), r"415 of its 416 .* 1 missing: layer1.0.sa.cweight"),
        (lambda s: s.update(extra=torch.ones(1)), r"416 of its 416 .* 1 unexpected: extra"),
        (
            lambda s: s.update({"fc.bias": torch.ones(10)}),
            r"415 of its 416 .* 1 wrongly shaped: fc.bias \(10,\) for \(1000,\)",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if ".sa." in key and not key.startswith("layer1.0")],
            r"326 of its 416 .* 90 missing: .* and 86 more",
        ),
    ],
    ids=["missing", "unexpected", "reshaped", "attention-in-one-block"],
)
def test_whatever_does_not_fit_is_counted_and_named_and_nothing_loads(tmp_path, trained, spoil, message):
    state = dict(trained)
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / "spoilt.pt")
    model = timm.create_model("sa_resnet50")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "spoilt.pt")
    assert holds(model, before)


def test_what_may_differ_is_named_by_the_caller_and_reported(tmp_path, trained):
    torch.save(published(trained, "module."), tmp_path / "model.pth.tar")
    model = timm.create_model("sa_resnet50", num_classes=10)
    head = model.fc.weight.clone()
    report = load_checkpoint(model, tmp_path / "model.pth.tar", may_differ=["fc.*"])
    assert (report.loaded, report.kept) == (414, ("fc.bias", "fc.weight"))
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer4[2].sa.sbias, trained["layer4.2.sa.sbias"])
    # A head that fits is loaded all the same.
    assert (
        load_checkpoint(timm.create_model("sa_resnet50"), tmp_path / "model.pth.tar", may_differ=["fc.*"]).loaded == 416
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.update({"fc.bias": s["fc.bias"].to_sparse()}), r"not tensors by name: fc.bias \(sparse tensor\)"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].to("meta")}), "fc.bias float without values for float"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].to(torch.complex64)}), "fc.bias complex for float"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].long()}), "fc.bias integer for float"),
        (lambda s: s.update({"module.fc.bias": s["fc.bias"] + 1}), "1 names stand for two entries: fc.bias"),
        (lambda s: s.update({"fc.bias": None}), r"not tensors by name: fc.bias \(None\)"),
        (lambda s: s.update({3: torch.ones(1)}), r"not tensors by name: 3 \(Tensor\)"),
    ],
    ids=["sparse", "meta", "complex", "integer", "twice", "none", "number-as-name"],
)
def test_what_cannot_be_copied_is_refused_before_anything_is(tmp_path, trained, spoil, message):
    state = dict(trained)
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / "odd.pt")
    model = timm.create_model("sa_resnet50")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "odd.pt")
    assert holds(model, before)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, trained, writer):
    content = {"state_dict": trained, "epoch": Payload(tmp_path / "ran")}
    path = tmp_path / "evil.pth.tar"
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="posix.mkdir|written by pickle and not by torch.save"):
        load_checkpoint(timm.create_model("sa_resnet50"), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cut.pt", "empty.pt", "text.pt", "text.safetensors"])
def test_damaged_files_are_refused(tmp_path, trained, name):
    torch.save(trained, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1_000_000])
    (tmp_path / "empty.pt").touch()
    for text in ("text.pt", "text.safetensors"):
        (tmp_path / text).write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=f"{name} was not loaded: it is (damaged|empty)"):
        read_checkpoint(tmp_path / name)


def test_other_contents_are_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "no-weights.pt")
    with pytest.raises(CheckpointError, match="holds no weights: .* it has 1 keys: epoch"):
        load_checkpoint(timm.create_model("sa_resnet18"), tmp_path / "no-weights.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    write_checkpoint({"epoch": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_checkpoint({"epoch": lambda: None}, path)
    assert read_checkpoint(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_network_is_known_from_its_weights(tmp_path):
    for name in ("sa_resnet18", "sa_resnet34"):
        model = timm.create_model(name, num_classes=7, in_chans=1)
        assert identify(model.state_dict()).model == name
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in timm.create_model("sa_resnet18").state_dict().items()}},
        tmp_path / "a.pth.tar",
    )
    restored = restore_network(tmp_path / "a.pth.tar")
    assert (restored.recipe.model, restored.num_classes, restored.recipe.img_size) == ("sa_resnet18", 1000, 224)
    assert restored.classes[0] == "n01440764"
    with pytest.raises(CheckpointError, match="not those of an SA-ResNet.*--model"):
        identify(timm.create_model("resnet10t").state_dict())


VERSION_0_1 = Path(__file__).parent / "data/version_0_1"


@pytest.mark.parametrize("name", ["preserved", "published", "se"])
def test_runs_of_version_0_1_with_attached_attention_compute_what_they_did(name):
    """best.pt of `sanet train --attach` with its gates and last norms drawn at random, and the logits there."""
    path = VERSION_0_1 / f"{name}.pt"
    model = restore_network(path).model.eval()
    images = torch.linspace(-40, 40, 4 * 3 * 32 * 32).sin().reshape(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), read_checkpoint(path)["expected"])
    assert "layer1.0.sa.gain" not in model.state_dict()


def test_every_kind_of_layer_that_version_0_1_attached_loads(tmp_path):
    """With its weights folded, without shuffle, and without shuffle and with its output multiplied by a constant."""
    images = torch.linspace(-40, 40, 4 * 3 * 32 * 32).sin().reshape(4, 3, 32, 32)[:1]
    path = VERSION_0_1 / "layers.pt"
    expected = read_checkpoint(path)["expected"]
    for _ in range(2):
        modules = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)]
        model = nn.Sequential(*modules).eval()
        attach(model, where="[124]", groups=2)
        assert load_checkpoint(model, path).started == ()
        with torch.no_grad():
            torch.testing.assert_close(model(images)[:, :, ::7, ::7], expected)
        # Saved under the names of today it loads again.
        path = tmp_path / "today.pt"
        torch.save(model.state_dict(), path)


def test_an_output_that_only_version_0_1_multiplied_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    attach(model, "se", where="1", start="published")
    torch.save({**model.state_dict(), "1.attention.start_scale": torch.tensor(2.0)}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="1.attention multiplies its output by 2.000, as only version 0.1"):
        load_checkpoint(model, tmp_path / "old.pt")
