"""The command as it is met: help, figures, and errors that say what would work."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch

import shuffle_attention.models
from conftest import QUICK, sanet, sanet_here, write_tree


def test_help_names_the_commands_and_the_fields(capsys):
    with pytest.raises(SystemExit) as ended:
        sanet_here("--help")
    assert ended.value.code == 0
    assert {"train", "eval"} <= set(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        sanet_here("train", "--help")
    assert "--weight-decay X" in capsys.readouterr().out


def test_help_comes_without_loading_timm():
    code = """
import contextlib, sys
from shuffle_attention.sanet.cli import main
for command in ("train", "explain"):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
print([name for name in ("timm", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: sanet train")
    assert "usage: sanet explain" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "imagnet"], "no recipe 'imagnet': there are cifar10"),
        (["--model", "sa_resnet5"], "no model 'sa_resnet5'; did you mean sa_resnet50"),
        (["--data", "nowhere"], "name a recipe for these data"),
        (["--recipe", "cifar10", "--data", "nowhere"], "no folder nowhere"),
        (["--lr", "fast"], "lr must be a finite number, got fast"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--epochs", "1.5"], "epochs must be of type int, got 1.5"),
        (["--model-args", "{groups: 0}"], "groups must be at least 1, got 0"),
        (["--model-args", "{nonsense: 1}"], "nonsense=1 cannot be used"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--precision", "fp8"], "precision must be one of fp32, bf16, fp16, got fp8"),
        (["--opt", "sdg"], "opt='sdg' cannot be used: Optimizer sdg not found"),
        (["--sched", "stairs"], "sched='stairs' cannot be used"),
        (["--auto-augment", "nonsense"], "auto_augment='nonsense', color_jitter=0.0 cannot be used"),
        (["--interpolation", "nonsense"], "interpolation must be one of bilinear, bicubic"),
        (["--batch-size", "1"], "Expected more than 1 value per channel"),
        (["--model", "vit_tiny_patch16_224"], "model='vit_tiny_patch16_224', img_size=32"),
        (["--grad-checkpointing", "--model", "vgg11"], "grad_checkpointing=True cannot be used"),
        (["--resume", "auto"], "--output DIR --resume auto"),
        (["--resume"], "--resume needs the folder of a run"),
        (["--resume", "a", "--output", "b"], "name two folders"),
        (["--batch-size", "5000"], "batch_size 5000 exceeds the 1437 training images"),
        (["--num-classes", "3"], "num_classes is 3 and digits has 10 classes"),
        (["--initial", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--model", "vit_tiny_patch16_224", "--small-stem"], "does not have both"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sanet_here("train", "--workers", 0, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert os.listdir(tmp_path) == []


def test_eval_prints_and_writes_the_figures(run, tmp_path, capsys):
    assert sanet_here("eval", run / "best.pt", "--workers", 0, "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    reported = json.loads((run / "summary.json").read_text())["best"]
    assert figures["top1"] == pytest.approx(reported["val_top1"])
    assert (figures["classes"], figures["img_size"], figures["images"]) == (4, 32, 32)
    assert {"top5", "loss", "images_per_second", "torch", "machine", "weights"} <= figures.keys()
    printed = capsys.readouterr().out
    assert f"{figures['top1']:.3f}" in printed
    assert "images/s" in printed


def test_eval_finds_classes_by_name_not_by_place(run, tmp_path, capsys):
    """A folder with some of the classes is scored with the labels that the network has for them."""
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "val/digit0")
    arguments = ("--workers", 0, "--json", tmp_path / "figures.json")
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path, *arguments) == 0
    some = json.loads((tmp_path / "figures.json").read_text())
    assert some["images"] == 24
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path / "val", *arguments) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["top1"] == some["top1"]
    (tmp_path / "val/digit3").rename(tmp_path / "val/letterX")
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path) == 2
    assert "not trained on: letterX; known are 4: digit0" in capsys.readouterr().err


def test_eval_counts_what_it_cannot_read(run, tmp_path, capsys):
    write_tree(tmp_path)
    broken = tmp_path / "val/digit1/003.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    arguments = ("eval", run / "best.pt", "--data", tmp_path, "--workers", 0, "--json", tmp_path / "figures.json")
    assert sanet_here(*arguments) == 2
    assert not (tmp_path / "figures.json").exists()
    assert sanet_here(*arguments, "--no-check-images") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["unreadable"]) == (31, 1)
    assert "1 images could not be read and are not counted" in capsys.readouterr().out


def test_eval_reads_published_files_alone(tmp_path, capsys):
    """Network, classes and image size are known from the weights; ImageNet's classes by their names."""
    torch.manual_seed(0)
    model = timm.create_model("sa_resnet18")
    model.fc.bias.data[482] = 100.0  # n02979186 is ImageNet's class 482
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 100, "best_acc": 70.0}, tmp_path / "published.pth.tar")
    write_tree(tmp_path, 2, ("n01440764", "n02979186", "n03888257"))
    arguments = ("--workers", 0, "--json", tmp_path / "figures.json")
    assert sanet_here("eval", tmp_path / "published.pth.tar", "--data", tmp_path, *arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["model"], figures["classes"], figures["img_size"]) == ("sa_resnet18", 1000, 224)
    assert figures["top1"] == pytest.approx(100 / 3)


def test_eval_reads_safetensors_and_what_stands_under_other_names(run, tmp_path, shared_tree):
    """Neither the order of the entries nor a prefix hides how many classes there are, and the stem tells its input."""
    model = timm.create_model("sa_resnet18", num_classes=4, in_chans=1)
    shuffle_attention.models.small_input_stem(model)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "sorted.safetensors")
    safetensors.torch.save_file(state, tmp_path / "misnamed.pt")
    torch.save({f"module._orig_mod.{key}": value for key, value in state.items()}, tmp_path / "prefixed.pt")
    for name in ("sorted.safetensors", "misnamed.pt", "prefixed.pt"):
        arguments = ("--data", shared_tree, "--img-size", 32, "--workers", 0, "--json", tmp_path / "figures.json")
        assert sanet_here("eval", tmp_path / name, *arguments) == 0
        assert json.loads((tmp_path / "figures.json").read_text())["classes"] == 4
    other = timm.create_model("sa_resnet18", num_classes=4, groups=8)
    torch.save(other.state_dict(), tmp_path / "groups.pt")
    special = ("--model", "sa_resnet18", "--model-args", "{groups: 8}", "--img-size", 32, "--workers", 0)
    assert sanet_here("eval", tmp_path / "groups.pt", "--data", shared_tree, *special) == 0


def test_places_that_cannot_be_written_are_one_line(run, tmp_path, shared_tree, capsys):
    (tmp_path / "file").touch()
    quick = (*QUICK, "--data", shared_tree, "--output", tmp_path / "file" / "run")
    assert sanet_here("train", *quick) == 2
    assert "file" in capsys.readouterr().err
    assert sanet_here("eval", run / "best.pt", "--json", tmp_path / "nowhere/figures.json") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert sanet_here("eval", run) == 2
    assert f"did you mean {run / 'best.pt'}?" in capsys.readouterr().err


def test_eval_refuses_data_of_other_classes(tmp_path, shared_tree, capsys):
    torch.save(timm.create_model("sa_resnet18", num_classes=7).state_dict(), tmp_path / "bare.pt")
    assert sanet_here("eval", tmp_path / "bare.pt", "--data", shared_tree) == 2
    assert "tells 7 classes apart" in capsys.readouterr().err


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_bad_checkpoints_end_with_one_line_and_a_code(run, tmp_path):
    """In a process of its own: the exit code that a shell sees, no traceback, no file, no code run."""
    (tmp_path / "cut.pt").write_bytes((run / "best.pt").read_bytes()[:100_000])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "ran")}))
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pt")
    for name, message in (("cut", "is damaged"), ("evil", "more than tensors"), ("other", "name it with --model")):
        done = sanet("eval", tmp_path / f"{name}.pt", "--json", tmp_path / "figures.json", check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "figures.json").exists()
