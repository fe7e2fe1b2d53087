"""``sanet inspect``: which model a file of weights belongs to, and how to load it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torchvision.models import detection

import shuffle_attention.models  # noqa: F401 - registers the models with timm
from conftest import sanet_here
from shuffle_attention import attach, attention_names, load_checkpoint
from shuffle_attention.checkpoints import architecture, read_checkpoint, write_checkpoint
from shuffle_attention.checkpoints.architecture import recognise
from shuffle_attention.models import resnet_with
from shuffle_attention.models.detectors import create_detector
from shuffle_attention.sanet.commands.inspect import examine


def entries(name: str, **options) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return timm.create_model(name, **options).state_dict()


@pytest.mark.parametrize("attention", attention_names())
def test_a_resnet_is_known_from_its_entries(attention):
    name, options = resnet_with(attention, 18)
    known = recognise(entries(name, num_classes=7, in_chans=1, **options))
    assert (known.model, known.attention, known.differing, known.attached) == (name, attention, 0, False)
    assert (known.num_classes, known.in_chans, known.start) == (7, 1, "" if attention == "none" else "published")


@pytest.mark.parametrize("attention", ["se", "shuffle"])
def test_a_resnet_that_plain_weights_completed_is_known(tmp_path, attention):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "plain.pth")
    model = timm.create_model(resnet_with(attention, 18)[0])
    load_checkpoint(model, tmp_path / "plain.pth")
    known = recognise(model.state_dict())
    assert (known.attention, known.start, known.differing, known.attached) == (attention, "identity", 0, False)


@pytest.mark.parametrize("name", ["sa_resnet34", "sa_resnet101", "resnet50", "resnet152", "shufflenet_v2_x1_5"])
def test_depths_and_families_are_told_apart(name):
    known = recognise({f"net.{key}": value for key, value in entries(name).items()} | {"loss.weight": torch.ones(1)})
    assert (known.model, known.differing, known.prefixes, known.unused) == (name, 0, ("net.",), ("loss.weight",))


@pytest.mark.parametrize("attention", ["se", "gc", "shuffle"])
def test_attached_attention_is_known(attention):
    model = timm.create_model("resnet18")
    attach(model, attention)
    known = recognise(model.state_dict())
    assert (known.attention, known.attached, known.differing) == (attention, attention != "shuffle", 0)
    assert known.start == ("published" if attention == "gc" else "identity")


@pytest.mark.parametrize("kind", ["maskrcnn", "fasterrcnn", "retinanet", "fcos"])
def test_torchvisions_detectors_are_known_and_load(kind):
    with torch.device("meta"):
        weights = getattr(detection, f"{kind}_resnet50_fpn")(
            weights=None, weights_backbone=None, num_classes=5
        ).state_dict()
    known = recognise(weights)
    assert (known.detector.replace("_", ""), known.model, known.num_classes, known.differing) == (
        kind,
        "resnet50",
        5,
        0,
    )
    with torch.device("meta"):
        assert weights.keys() <= create_detector(known.detector, known.model, 5).state_dict().keys()


def test_other_models_are_not_guessed():
    assert recognise(entries("resnet10t")) is None
    assert recognise(entries("wide_resnet50_2")) is None
    assert recognise({}) is None
    nearly = entries("sa_resnet18")
    del nearly["layer1.0.sa.cweight"]
    assert recognise(nearly).missing == ("layer1.0.sa.cweight",)


def test_the_code_that_it_prints_loads_the_file(tmp_path, capsys):
    path = tmp_path / "plain.pth"
    model = timm.create_model("resnet18", num_classes=3)
    torch.save({"net": {f"module.{key}": value for key, value in model.state_dict().items()}, "acc": 93.1}, path)
    assert sanet_here("inspect", path, "--json", tmp_path / "answer.json") == 0
    printed, answer = capsys.readouterr().out, json.loads((tmp_path / "answer.json").read_text())
    assert "acc: 93.1" in printed
    assert "under 'net': 122 entries, 11.2 M values of float32" in printed
    assert (answer["model"], answer["attention"], answer["classes"]) == ("resnet18; input of 3 channels", "none", "3")
    assert answer["load it"][0] == f"sanet eval {path} --data DIR"
    assert answer["load it"][1].startswith(f"sanet train --model sa_resnet18 --initial {path}")
    scope = {}
    exec("\n".join(answer["load it"][2:]), scope)
    assert torch.equal(scope["model"].fc.weight, model.fc.weight)


RUN = Path(__file__).parents[1] / "data/version_0_1/published.pt"  # best.pt of a small run


def test_a_run_is_described(tmp_path):
    answer = examine(str(RUN))
    assert answer["model"] == "resnet18 + shuffle attention, trained by sanet train for 3 epochs on digits"
    assert answer["load it"] == [f"sanet eval {RUN}"]


@pytest.mark.parametrize("command", ["eval", "export --output model.onnx", "explain photo.png --checkpoint"])
def test_weights_that_are_not_finite_are_named_and_used_by_no_command(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("photo.png")
    content, path = read_checkpoint(RUN), tmp_path / "nan.pt"
    content["state_dict"]["fc.bias"][1] = torch.nan
    torch.save(content, path)
    assert examine(str(path))["NaN or infinity"].startswith("fc.bias (1 of ")
    assert sanet_here(*command.split(), path) == 2
    assert "has NaN or infinity in 1 tensor: fc.bias (1 of " in capsys.readouterr().err


@pytest.mark.parametrize(
    "hint", [{"arch": "vit_tiny_patch16_224"}, {"args": Namespace(model="vit_tiny_patch16_224")}, {}]
)
def test_models_of_timm_are_known_by_their_entries(hint, tmp_path, monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=12)
    torch.save(
        {"state_dict": {f"net.{key}": value for key, value in model.state_dict().items()}, **hint}, tmp_path / "a"
    )
    monkeypatch.setattr(architecture, "_PATIENCE", 600.0)
    monkeypatch.setattr(timm, "list_models", lambda: ["resnet18", "vit_small_patch16_224", "deit_tiny_patch16_224"])
    answer = examine(str(tmp_path / "a"))
    names = ["vit_tiny_patch16_224"] * bool(hint) + ["deit_tiny_patch16_224"]
    assert (answer["model"], answer["classes"]) == (f"{' or '.join(names)} of timm, by its entries", "7")
    scope = {}
    exec("\n".join(answer["load it"][1:]), scope)
    assert torch.equal(scope["model"].head.weight, model.head.weight)


def test_what_loading_would_refuse_is_named(tmp_path):
    weights = timm.create_model("resnet18", num_classes=3).state_dict()
    torch.save({**weights, "fc.weight": weights["fc.weight"].to(torch.complex64)}, tmp_path / "odd.pth")
    assert examine(str(tmp_path / "odd.pth"))["cannot load"] == "fc.weight (complex)"


def test_a_damaged_run_is_not_continued(tmp_path, capsys):
    write_checkpoint(read_checkpoint(RUN), tmp_path / "last.pt")
    data = bytearray((tmp_path / "last.pt").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "last.pt").write_bytes(data)
    assert sanet_here("train", "--resume", tmp_path) == 2
    assert "is damaged: its checksum is another one" in capsys.readouterr().err
