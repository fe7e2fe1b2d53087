"""Trackers: what they receive, how a record goes on, and that none of them can end a training."""

import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from brightness import Brightness, BrightnessRecipe
from conftest import CPU
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.training import trackers
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.progress import Progress
from shuffle_attention.sanet.training.run_folder import read_rows
from shuffle_attention.sanet.training.signals import Interrupted

SETTINGS = {"epochs": 2, "batch_size": 8, "workers": 0, "device": "cpu", "lr": 0.01, "report": False, "log_steps": 3}
STEPS = [3, 6, 8, 11, 14, 16]  # of two epochs of eight steps


def train_brightness(folder: Path, *, resume: bool = False, **fields):
    recipe = BrightnessRecipe(**{**SETTINGS, **fields})
    return train(recipe, folder, CPU, task=Brightness, resume=resume)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The calls of a tracker named recorder, which is registered."""
    made = []
    monkeypatch.setattr(trackers, "_registered", {"tensorboard": trackers.TensorBoard})

    @trackers.register_tracker
    class Recorder(trackers.Tracker):
        name, module = "recorder", "json"
        fails = ""

        def start(self, folder, settings, id):
            made.append(("start", settings["lr"], id))
            if self.fails == "start":
                raise OSError("no server at localhost")
            return id or "record-1"

        def log(self, values, step, epoch):
            if self.fails == "log" and step > 3:
                raise ConnectionError("the server has gone")
            made.append(("log", dict(values), step, epoch))

        def finish(self, status):
            made.append(("finish", status))

    return made


def test_a_tracker_receives_every_step_and_every_epoch(calls, tmp_path):
    train_brightness(tmp_path / "run", tracker=["recorder"], eval_steps=8)
    assert calls[0] == ("start", 0.01, None)
    assert calls[-1] == ("finish", "finished")
    of_steps = [call for call in calls if call[0] == "log" and call[3] is None and "step/lr" in call[1]]
    of_epochs = [call for call in calls if call[0] == "log" and call[3] is not None]
    assert [step for _, _, step, _ in of_steps] == STEPS
    rows = read_rows(tmp_path / "run/metrics.csv")
    for (_, values, step, epoch), row in zip(of_epochs, rows, strict=True):
        assert (step, epoch) == (8 * row["epoch"], row["epoch"])
        assert {"epoch": epoch, **values} == pytest.approx(row)
    for row, (first, second, last) in zip(rows, (of_steps[:3], of_steps[3:]), strict=True):
        # Each is the mean over the images since the one before.
        means = [each[1]["step/train_loss"] for each in (first, second, last)]
        assert (3 * means[0] + 3 * means[1] + 2 * means[2]) / 8 == pytest.approx(row["train_loss"])
        assert last[1]["step/lr"] == row["lr"]
    curve = [(values["step/val_error"], step) for _, values, step, _ in calls[1:-1] if "step/val_error" in values]
    assert curve == [(pytest.approx(row["val_error"]), row["step"]) for row in read_rows(tmp_path / "run/curve.csv")]


def test_a_resumed_run_goes_on_with_its_record(calls, tmp_path, monkeypatch):
    step = Progress.step

    def stop(self, number, sums):
        if self._epoch == 1 and number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, number, sums)

    monkeypatch.setattr(Progress, "step", stop)
    with pytest.raises(Interrupted):
        train_brightness(tmp_path / "run", tracker=["recorder"])
    assert calls[-1] == ("finish", "stopped")
    assert json.loads((tmp_path / "run/trackers.json").read_text()) == {"recorder": "record-1"}
    monkeypatch.undo()
    monkeypatch.setitem(trackers._registered, "recorder", type("Again", (Recording,), {"made": calls}))
    train_brightness(tmp_path / "run", tracker=["recorder"], resume=True)
    assert calls[calls.index(("finish", "stopped")) + 1] == ("start", 0.01, "record-1")
    assert [call[2] for call in calls if call[0] == "log" and call[3] is None] == STEPS
    (tmp_path / "run/trackers.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold the ids of a run's records"):
        train_brightness(tmp_path / "run", tracker=["recorder"], resume=True, epochs=3)


class Recording(trackers.Tracker):
    name, module = "recorder", "json"
    made: list

    def start(self, folder, settings, id):
        self.made.append(("start", settings["lr"], id))
        return id

    def log(self, values, step, epoch):
        self.made.append(("log", dict(values), step, epoch))

    def finish(self, status):
        pass


def test_a_tracker_that_fails_later_does_not_end_the_training(calls, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers._registered["recorder"], "fails", "log")
    train_brightness(tmp_path / "run", tracker=["recorder"])
    assert (tmp_path / "run/summary.json").exists()
    assert caplog.text.count("tracker recorder failed, and records no more of this run: the server has gone") == 1
    assert [call[0] for call in calls] == ["start", "log"]


def test_a_tracker_that_cannot_start_stops_the_run_before_it_trains(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers._registered["recorder"], "fails", "start")
    with pytest.raises(InputError, match="tracker recorder cannot be started: no server at localhost"):
        train_brightness(tmp_path / "run", tracker=["recorder"])
    assert not (tmp_path / "run/last.pt").exists()
    monkeypatch.setattr(trackers._registered["recorder"], "module", "not_installed")
    for name, message in (("recordr", "did you mean recorder"), ("recorder", r"shuffle-attention\[recorder\]")):
        with pytest.raises(InputError, match=message):
            train_brightness(tmp_path / "other", tracker=[name])
    assert not (tmp_path / "other").exists()


def test_tensorboard_has_steps_and_epochs_of_a_run_that_was_resumed(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_brightness(tmp_path / "run", epochs=1)
    train_brightness(tmp_path / "run", resume=True)
    board = accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in board.Scalars("step/train_loss")] == STEPS
    assert [event.step for event in board.Scalars("train_loss")] == [1, 2]
    assert not (tmp_path / "run/trackers.json").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_the_packages_record_a_run_and_go_on_with_it(name, tmp_path, monkeypatch):
    """With files alone: nothing is sent. A package that is not installed is left out."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read when it is imported
    pytest.importorskip(name)
    folder = tmp_path / "run"
    for epochs in (1, 2):
        train_brightness(folder, tracker=[name], epochs=epochs, resume=epochs > 1)
    (id,) = json.loads((folder / "trackers.json").read_text()).values()
    rows = read_rows(folder / "metrics.csv")
    losses = [pytest.approx(row["train_loss"]) for row in rows]
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient()
        assert [(each.step, each.value) for each in client.get_metric_history(id, "train_loss")] == list(
            zip((1, 2), losses, strict=True)
        )
        assert sorted(each.step for each in client.get_metric_history(id, "step/train_loss")) == STEPS
        assert client.get_run(id).info.status == "FINISHED"
        assert client.get_run(id).data.params["lr"] == "0.01"
    elif name == "trackio":
        with sqlite3.connect(tmp_path / "store/shuffle-attention.db") as store:
            found = store.execute("select step, metrics from metrics where run_name = ? order by id", [id]).fetchall()
        store.close()
        read = [(step, json.loads(metrics)) for step, metrics in found]
        assert [step for step, values in read if "step/lr" in values] == STEPS
        assert [values["train_loss"] for _, values in read if "epoch" in values] == losses
    else:
        written = b"".join(path.read_bytes() for path in sorted(folder.glob(f"wandb/*/run-{id}.wandb")))
        for row in rows:
            assert repr(row["train_loss"])[:8].encode() in written
