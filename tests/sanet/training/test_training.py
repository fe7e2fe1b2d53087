"""Training as a user runs it: what a run leaves, how it stops, and that it goes on exactly where it stopped."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from conftest import CPU, QUICK, sanet_here
from forked import start_sanet
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.sanet.data.datasets import open_split
from shuffle_attention.sanet.data.loading import evaluation_batches
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.tasks.classification.task import Classification, ClassificationTask, evaluate
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.progress import Progress
from shuffle_attention.sanet.training.run_lock import run_lock
from shuffle_attention.sanet.training.signals import Interrupted, StopRequest, stop_signals_raised

# Everything random that a run can have: augmentation in workers, mixing, stochastic depth, averaged weights.
EVENTFUL = [
    *QUICK,
    *"--model resnet10t --workers 1 --batch-size 8 --epochs 3 --checkpoint-steps 3 --warmup-epochs 1".split(),
    *"--mixup 0.2 --cutmix 0.5 --drop-rate 0.1 --drop-path-rate 0.1 --ema-decay 0.9 --random-erasing 0.3".split(),
    *"--auto-augment rand-m5-mstd0.5 --color-jitter 0.2 --opt adamw --lr 1e-3 --hflip 0.5".split(),
]


def metrics(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def same_run(one: Path, other: Path) -> None:
    """Asserts that two runs ended with the same weights, averaged weights and optimiser, to the bit."""
    a, b = read_checkpoint(one / "last.pt"), read_checkpoint(other / "last.pt")
    for part in ("state_dict", "state_dict_ema"):
        assert a[part].keys() == b[part].keys()
        different = [key for key, value in a[part].items() if not torch.equal(value, b[part][key])]
        assert not different
    for index, state in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][index][name]) for name, value in state.items())
    for row, other_row in zip(metrics(one), metrics(other), strict=True):
        for values in (row, other_row):
            values.pop("images_per_second")
        assert str(row) == str(other_row)


@pytest.fixture(scope="module")
def uninterrupted(shared_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert sanet_here("train", *EVENTFUL, "--data", shared_tree, "--output", folder) == 0
    return folder


def test_what_a_run_leaves(run, shared_tree):
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["lr"] > rows[1]["lr"]
    assert yaml.safe_load((run / "config.yaml").read_text())["model"] == "sa_resnet18"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["val_top1"] == pytest.approx(max(row["val_top1"] for row in rows))
    assert {"cpu", "commit", "torch", "date", "threads"} <= summary.keys()
    with Image.open(run / "curves.png") as picture:
        picture.load()
        assert picture.width > 800
    best, last = read_checkpoint(run / "best.pt"), read_checkpoint(run / "last.pt")
    assert best["classes"] == ["digit0", "digit1", "digit2", "digit3"]
    assert "optimizer" not in best
    assert {"optimizer", "scheduler", "scaler", "processes", "history", "step"} <= last.keys()
    assert not [name for name in os.listdir(run) if name.startswith(".")]


def test_the_best_checkpoint_scores_what_was_reported(run, shared_tree):
    restored = restore_network(run / "best.pt")
    data = open_split(restored.recipe, "val", restored.classes)
    scores = evaluate(restored.model, evaluation_batches(data, restored.recipe, CPU, 7), CPU)
    reported = json.loads((run / "summary.json").read_text())["best"]
    assert (scores.metrics["top1"], scores.images) == (pytest.approx(reported["val_top1"]), 32)
    assert scores.metrics["loss"] == pytest.approx(reported["val_loss"], rel=1e-5)


def test_the_same_seed_gives_the_same_run_with_other_workers(uninterrupted, shared_tree, tmp_path):
    sanet_here("train", *EVENTFUL, "--workers", 0, "--data", shared_tree, "--output", tmp_path / "run")
    same_run(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "after"),
    # The first checkpoint is written in the middle of the first epoch, the best one at its end.
    # To the whole process group, as terminals and schedulers do, so that the loader's process gets it too.
    [(signal.SIGKILL, "last.pt"), (signal.SIGTERM, "best.pt"), (signal.SIGINT, "last.pt")],
    ids=["SIGKILL", "SIGTERM-in-the-second-epoch", "SIGINT"],
)
def test_interrupted_in_mid_epoch_it_ends_as_if_it_had_not_been(uninterrupted, shared_tree, tmp_path, number, after):
    folder = tmp_path / "run"
    process = start_sanet("train", *EVENTFUL, "--data", shared_tree, "--output", folder, output=tmp_path / "printed")
    process.wait_for(folder / after)
    os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        assert process.wait() == -signal.SIGKILL
    else:
        assert process.wait() == 128 + number
        output = process.printed()
        assert f"stopped by {number.name} after step" in output
        assert f"Continue with: sanet train --resume {folder}" in output
    saved = read_checkpoint(folder / "last.pt")
    assert (saved["epoch"], len(saved["history"])) < (3, 3)
    assert sanet_here("train", "--resume", folder) == 0
    same_run(uninterrupted, folder)


def test_interrupted_in_the_evaluation_it_ends_as_if_it_had_not_been(
    uninterrupted, shared_tree, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    advance, seen = Progress.advance, []

    def interrupt(self, images):
        seen.append(images)
        if len(seen) == 6:  # in the second epoch: there are four batches in the validation data
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, images)

    monkeypatch.setattr(Progress, "advance", interrupt)
    assert sanet_here("train", *EVENTFUL, "--data", shared_tree, "--output", folder) == 143
    assert "after step 8 of 8 in epoch 2" in capsys.readouterr().out
    monkeypatch.undo()
    assert sanet_here("train", "--resume", folder) == 0
    same_run(uninterrupted, folder)


def test_a_signal_when_the_last_epoch_is_over_is_reported(shared_tree, tmp_path, monkeypatch):
    """Nothing is left to stop, but what comes after the run may have to."""

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "finish_epoch", signalled)
    options = {"data": str(shared_tree), "model": "resnet10t", "epochs": 1, "batch_size": 32, "img_size": 32}
    outcome = train(Recipe(**options, workers=0, device="cpu"), tmp_path / "run", CPU, task=Classification)
    assert outcome.stop == signal.SIGTERM
    assert outcome.files.summary.exists()
    assert not outcome.files.report.exists()


def test_a_second_signal_ends_it_at_once(shared_tree, tmp_path):
    """Sent by the process to itself in its first step: two from outside could fall together, or after the end."""
    folder = tmp_path / "run"
    code = f"""
import os, signal, sys
from shuffle_attention.sanet.cli import main
from shuffle_attention.sanet.training.signals import StopRequest

def agreed(self):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        print("asked to stop:", int(self.signal), flush=True)

StopRequest.agreed = agreed
main({[*map(str, [*"train --data".split(), shared_tree, *EVENTFUL, "--output", folder])]})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.count("asked to stop: 15") == 1
    assert (folder / "config.yaml").exists()
    assert not (folder / "last.pt").exists()


def test_the_end_of_the_terminal_is_told_twice_and_not_to_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        with StopRequest(CPU) as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agreed()
            assert stop.signal == signal.SIGHUP
        with stop_signals_raised(), pytest.raises(Interrupted, match="SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest(CPU) as stop, stop_signals_raised():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_saves(shared_tree, tmp_path):
    folder = tmp_path / "run"
    terminal, inside = os.openpty()
    there = Path(os.ttyname(inside))
    process = start_sanet("train", *EVENTFUL, "--epochs", 30, "--data", shared_tree, "--output", folder, output=there)
    os.read(terminal, 1)  # the process has opened it
    os.close(inside)
    while not (folder / "best.pt").exists():
        os.read(terminal, 4096)
    time.sleep(0.2)  # it has printed the line of the epoch
    os.killpg(process.pid, signal.SIGSTOP)  # the terminal is closed and the signal sent at once
    os.close(terminal)
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait() == 128 + signal.SIGHUP
    assert 0 < len(read_checkpoint(folder / "last.pt")["history"]) < 30


def test_an_error_that_nobody_foresaw_ends_it_though_images_are_loaded(shared_tree, tmp_path):
    code = f"""
import sys
from shuffle_attention.sanet.cli import main
from shuffle_attention.sanet.training.progress import Progress

def step(self, *_):
    raise RuntimeError("out of memory")

Progress.step = step
main({[*map(str, [*"train --data".split(), shared_tree, *EVENTFUL, "--output", tmp_path / "run"])]})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: out of memory\n")


def test_a_run_is_not_overwritten(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert sanet_here("train", *QUICK, "--output", run) == 2
    assert f"error: {run} holds a run already; continue it with --resume {run}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_one_process_at_a_time_writes_to_a_run(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with run_lock(run):
        assert sanet_here("train", "--resume", run, "--epochs", 3) == 2
    assert f"another process is working in {run}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_resume_without_a_run_and_resume_auto(tmp_path, shared_tree, capsys):
    folder = tmp_path / "run"
    assert sanet_here("train", *QUICK, "--data", shared_tree, "--resume", folder) == 2
    assert "no run to continue in" in capsys.readouterr().err
    assert not folder.exists()
    for _ in range(2):
        assert sanet_here("train", *QUICK, "--data", shared_tree, "--output", folder, "--resume", "auto") == 0
        assert "best epoch" in capsys.readouterr().out
    assert len(metrics(folder)) == 2
    assert sanet_here("train", "--resume", folder, "--epochs", 3) == 0
    assert "epoch   3/3" in capsys.readouterr().out
    assert len(metrics(folder)) == 3


def test_a_checkpoint_of_another_network_is_not_continued(run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.pt").write_bytes((run / "last.pt").read_bytes())
    assert sanet_here("train", "--resume", folder, "--model", "sa_resnet34") == 2
    assert "last.pt belongs to another model or optimiser" in capsys.readouterr().err
    assert (folder / "last.pt").read_bytes() == (run / "last.pt").read_bytes()
    assert os.listdir(folder) == ["last.pt"]


def test_a_run_is_not_continued_with_other_labels_or_in_mid_epoch_with_other_images(tree, tmp_path, capsys):
    folder = tmp_path / "run"
    assert sanet_here("train", *QUICK, "--data", tree, "--output", folder) == 0
    (folder / ".last.pt.unfinished-x").touch()
    for split in ("train", "val"):
        (tree / split / "digit3").rename(tree / split / "digitX")
    assert sanet_here("train", "--resume", folder, "--epochs", 3) == 2
    assert "was trained on the classes digit0, digit1, digit2, digit3, and the data now have" in capsys.readouterr().err
    for split in ("train", "val"):
        (tree / split / "digitX").rename(tree / split / "digit3")
    (tree / "train/digit3/000.png").rename(tree / "train/digit3/900.png")
    assert sanet_here("train", "--resume", folder, "--epochs", 3) == 0
    assert "warning: the training images are not those" in capsys.readouterr().err
    assert not (folder / ".last.pt.unfinished-x").exists()
    content = read_checkpoint(folder / "last.pt")
    torch.save({**content, "epoch": 2, "step": 1}, folder / "last.pt")
    (tree / "train/digit3/900.png").rename(tree / "train/digit3/000.png")
    assert sanet_here("train", "--resume", folder, "--epochs", 3) == 2
    assert "over other images than the present ones" in capsys.readouterr().err


def test_a_broken_image_stops_before_anything_is_written(tree, tmp_path, capsys):
    path = tree / "train/digit1/003.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert sanet_here("train", *QUICK, "--data", tree, "--output", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "1 of 64 images cannot be read" in said
    assert "003.png" in said
    assert not (tmp_path / "run").exists()
    assert sanet_here("train", *QUICK, "--data", tree, "--output", tmp_path / "run", "--skip-bad-images") == 0
    assert "warning: 1 of 64 images cannot be read and are left out" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state(shared_tree, tmp_path, capsys):
    diverging = ["--lr", "1e30", "--checkpoint-steps", "1", "--sched", "constant"]
    assert sanet_here("train", *QUICK, *diverging, "--data", shared_tree, "--output", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "the loss became" in said
    assert "last good state" in said
    assert math.isfinite(sum(read_checkpoint(tmp_path / "run/last.pt")["processes"][0]["totals"]))


def quick(data: Path, **fields) -> Recipe:
    settings = {"img_size": 32, "batch_size": 16, "workers": 0, "epochs": 1, "device": "cpu", "model": "resnet10t"}
    settings["model_args"] = {"channels": [8, 8, 16, 16]}
    settings["report"] = False
    return Recipe(**{"data": str(data), "num_classes": 4, "sched": "cosine", "lr": 0.01, **settings, **fields})


def test_accumulated_gradients_are_those_of_the_whole_batch(shared_tree, tmp_path):
    """With BatchNorm in evaluation mode there is nothing in which four quarters differ from a whole."""
    ends = {}
    for parts in (1, 4):
        recipe = quick(shared_tree, freeze_bn=True, grad_accum=parts, epochs=2)
        outcome = train(recipe, tmp_path / str(parts), CPU, task=Classification)
        assert outcome.best["val_top1"] >= 0
        ends[parts] = metrics(tmp_path / str(parts))
    for row, other in zip(ends[1], ends[4], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert row["val_loss"] == pytest.approx(other["val_loss"], abs=1e-5)


def test_frozen_batchnorm_keeps_its_statistics(shared_tree, tmp_path):
    train(quick(shared_tree, freeze_bn=True), tmp_path / "run", CPU, task=Classification)
    state = read_checkpoint(tmp_path / "run/last.pt")["state_dict"]
    assert all(value.eq(0).all() for key, value in state.items() if key.endswith("running_mean"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(shared_tree, tmp_path, precision):
    small: dict[str, Any] = {"img_size": 24, "clip_grad": 1.0}  # PyTorch 2.14 makes NaN of bfloat16 maps of 1 x 1
    recipe = quick(shared_tree, **small, precision=precision, channels_last=True, grad_checkpointing=True)
    best = train(recipe, tmp_path / "run", CPU, task=Classification).best
    exact = train(quick(shared_tree, **small), tmp_path / "exact", CPU, task=Classification).best
    assert best["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)
    scale = read_checkpoint(tmp_path / "run/last.pt")["scaler"]
    assert (scale.get("scale", 0) > 1) == (precision == "fp16")


def test_compiled_it_saves_the_same_names(shared_tree, tmp_path, monkeypatch):
    """The wiring is what is tested; inductor would take a minute for it."""
    compiled = ClassificationTask.compile
    monkeypatch.setattr(ClassificationTask, "compile", lambda task: compiled(task, backend="aot_eager"))
    train(quick(shared_tree, compile=True, model="sa_resnet18"), tmp_path / "run", CPU, task=Classification)
    assert restore_network(tmp_path / "run/best.pt").recipe.model == "sa_resnet18"


def test_starting_from_a_checkpoint_with_a_new_head(run, shared_tree, tmp_path):
    recipe = quick(shared_tree, model="sa_resnet18", num_classes=9, initial=str(run / "best.pt"), lr=0.0)
    with pytest.raises(ValueError, match="2 wrongly shaped: fc.weight"):
        train(recipe, tmp_path / "refused", CPU, task=Classification)
    assert not (tmp_path / "refused").exists()
    train(recipe.replaced(may_differ=["fc.*"]), tmp_path / "run", CPU, task=Classification)
    started, found = read_checkpoint(run / "best.pt"), read_checkpoint(tmp_path / "run/last.pt")
    assert torch.equal(found["state_dict"]["layer3.0.conv1.weight"], started["state_dict"]["layer3.0.conv1.weight"])
    assert found["state_dict"]["fc.weight"].shape == (9, 16)


def test_classes_in_another_order_keep_the_meaning_that_the_checkpoint_gives_them(run, shared_tree, tmp_path, caplog):
    content = read_checkpoint(run / "best.pt")
    weights, order = content["state_dict"], content["classes"][::-1]
    weights |= {key: weights[key].flip(0) for key in ("fc.weight", "fc.bias")}

    def start(path: Path) -> tuple[list[str], dict[str, float]]:
        opened = Classification.open(quick(shared_tree, model="sa_resnet18", initial=str(path)), check=False)
        model = opened.create_model(restored=False)
        opened.load_initial(model)
        assert opened.classes is not None
        return opened.classes, opened.evaluate(model.eval(), opened.held_out(CPU, 16), CPU).metrics

    _, expected = start(run / "best.pt")
    torch.save({"state_dict": weights, "classes": order}, tmp_path / "turned.pt")
    with caplog.at_level("INFO"):
        classes, scores = start(tmp_path / "turned.pt")
    assert "labels have the order of the checkpoint" in caplog.text
    assert (classes, scores) == (order, pytest.approx(expected, rel=1e-5))
    torch.save({"state_dict": weights, "classes": ["x", "y"]}, tmp_path / "others.pt")
    start(tmp_path / "others.pt")
    assert "others.pt is for the classes x, y, and the data have" in caplog.text


def test_the_step_schedule_divides_by_ten(shared_tree, tmp_path):
    recipe = quick(shared_tree, sched="step", decay_epochs=1, decay_rate=0.1, epochs=3, lr=0.1, batch_size=64)
    train(recipe, tmp_path / "run", CPU, task=Classification)
    assert [row["lr"] for row in metrics(tmp_path / "run")] == pytest.approx([0.1, 0.01, 0.001])
