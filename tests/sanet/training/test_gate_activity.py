"""The activity of gates in a run: what is recorded, that measuring changes nothing, and what is said about it."""

import csv
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from conftest import CPU, QUICK, sanet_here
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training import loop
from shuffle_attention.sanet.training.gate_activity import METRICS, by_layer, gates_figure, verdict
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.progress import Progress
from shuffle_attention.sanet.training.signals import Interrupted

LAYERS = [f"layer{stage}.{block}.sa" for stage in range(1, 5) for block in range(2)]
NAMES = [metric.name for metric in METRICS]


def rows(path: Path) -> list[dict[str, float]]:
    with open(path) as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def settings(data: Path, **fields) -> Recipe:
    given = {
        "data": str(data),
        "img_size": 32,
        "batch_size": 16,
        "workers": 0,
        "epochs": 2,
        "device": "cpu",
        "lr": 0.05,
    }
    given |= {"model": "sa_resnet18", "model_args": {"channels": [8, 8, 16, 16]}, "small_stem": True, "report": False}
    # Random numbers in every step, and averaged weights: what measuring must not change.
    return Recipe(**{**given, "drop_rate": 0.3, "hflip": 0.5, "ema_decay": 0.9, "sched": "cosine", **fields})


@pytest.fixture(scope="module")
def finished(shared_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gates") / "run"
    train(settings(shared_tree), folder, CPU, task=Classification)
    return folder


def same_end(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same weights, averaged weights and random state, to the bit."""
    a, b = read_checkpoint(one / "last.pt"), read_checkpoint(other / "last.pt")
    for part in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
    assert torch.equal(a["processes"][0]["random"]["torch"], b["processes"][0]["random"]["torch"])


def test_every_epoch_has_the_activity_of_every_layer(finished):
    layers, history = rows(finished / "gates.csv"), rows(finished / "metrics.csv")
    assert list(layers[0]) == ["epoch", *(f"{name}/{layer}" for name in NAMES for layer in LAYERS)]
    assert [row["epoch"] for row in layers] == [1, 2]
    for row, means in zip(layers, history, strict=True):
        for name in NAMES:
            each = [row[f"{name}/{layer}"] for layer in LAYERS]
            assert means[name] == pytest.approx(sum(each) / len(each))
    assert 0 < history[0]["gates_from_start"] < 0.1
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(finished)).Reload()
    tag = "gates_from_start/layer1.0.sa"
    assert [event.value for event in board.Scalars(tag)] == pytest.approx([row[tag] for row in layers])


def test_measuring_changes_nothing(finished, shared_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "measure_gates", lambda *_: {})
    train(settings(shared_tree), tmp_path / "run", CPU, task=Classification)
    assert not (tmp_path / "run/gates.csv").exists()
    assert not set(NAMES) & set(rows(tmp_path / "run/metrics.csv")[0])
    same_end(finished, tmp_path / "run")


def test_a_run_that_goes_on_has_the_same_record(finished, shared_tree, tmp_path, monkeypatch):
    folder, step = tmp_path / "run", Progress.step

    def stop_in_the_second_epoch(self, number, sums):
        if self._epoch == 1 and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, number, sums)

    monkeypatch.setattr(Progress, "step", stop_in_the_second_epoch)
    with pytest.raises(Interrupted):
        train(settings(shared_tree), folder, CPU, task=Classification)
    monkeypatch.undo()
    train(settings(shared_tree), folder, CPU, task=Classification, resume=True)
    same_end(finished, folder)
    assert (folder / "gates.csv").read_bytes() == (finished / "gates.csv").read_bytes()


def test_a_run_of_an_earlier_version_goes_on(finished, shared_tree, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    content = read_checkpoint(finished / "last.pt")
    content.pop("gates")
    content["history"] = [{k: v for k, v in row.items() if k not in NAMES} for row in content["history"]]
    torch.save(content, folder / "last.pt")
    shutil.copy(finished / "best.pt", folder)
    train(settings(shared_tree, epochs=3, report=True), folder, CPU, task=Classification, resume=True)
    history = rows(folder / "metrics.csv")
    assert [math.isnan(row["gates_over_images"]) for row in history] == [True, True, False]
    assert [row["epoch"] for row in rows(folder / "gates.csv")] == [3]
    assert (folder / "report.html").exists()


def test_constant_gates_are_reported(shared_tree, tmp_path, capsys):
    options = [word for word in QUICK if word != "--no-report"]
    attached = [*options, "--attach", "{name: shuffle, groups: auto}", "--epochs", 1]
    assert sanet_here("train", *attached, "--data", shared_tree, "--output", tmp_path / "run") == 0
    sentence = "The gates of all 4 attention layers are constant: over images and over positions they vary by less than"
    assert sentence in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "run/report.html").read_text()
    assert sentence in page
    assert "layer1.0.sa" in page
    assert sanet_here("train", *QUICK, "--epochs", 1, "--data", shared_tree, "--output", tmp_path / "plain") == 0
    assert "The gates" not in capsys.readouterr().out
    assert not (tmp_path / "plain/gates.csv").exists()


def test_a_verdict_counts_the_layers_that_vary():
    row = {"epoch": 1, **{f"{name}/{layer}": 0.001 for name in NAMES for layer in "abc"}}
    assert verdict(row).startswith("The gates of all 3 attention layers are constant")
    row["gates_over_positions/b"] = 0.01
    assert verdict(row).startswith("The gates of 2 of 3 attention layers are constant (a, c)")
    assert verdict(row | {"gates_over_images/a": 0.2, "gates_over_images/c": 0.2}).startswith("The gates of all 3 att")
    assert by_layer(row)["b"]["gates_over_positions"] == 0.01
    many = {"epoch": 1, **{f"{name}/{layer}": 0.1 for name in NAMES for layer in range(33)}}
    figure = gates_figure([many, many])
    assert [len(axes.lines) - (axes.get_title() != METRICS[2].label) for axes in figure.axes] == [33] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "32"]
