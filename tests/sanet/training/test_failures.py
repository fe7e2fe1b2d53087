"""Runs that fail: losses and weights that are not numbers, full disks, restarts, and what they leave behind."""

import errno
import math
import os
import threading
from unittest.mock import Mock

import pytest
import timm
import torch

from brightness import Brightness
from conftest import CPU, sanet_here
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training import loop, run_folder, state
from shuffle_attention.sanet.training.loop import train

pytestmark = pytest.mark.usefixtures("registered", "undrawn")


@pytest.fixture
def undrawn(monkeypatch):
    """Runs whose curves are not drawn, which takes longer than to train them."""
    monkeypatch.setattr(run_folder, "curves_figure", lambda *_: Mock())
    monkeypatch.setattr(run_folder, "save", lambda figure, path: path.touch())
    monkeypatch.setattr(run_folder, "environment", dict)


def recipe(**fields):
    settings = {"batch_size": 8, "lr": 0.3, "workers": 0, "device": "cpu", "sched": "constant", "report": False}
    return Brightness.Recipe(**{**settings, "epochs": 2, **fields})


def finite(path) -> bool:
    return all(value.isfinite().all() for value in read_checkpoint(path)["state_dict"].values())


@pytest.mark.parametrize("saved_every", [0, 1, 3])
def test_a_run_that_diverges_goes_back_to_the_last_epoch_that_worked(tmp_path, saved_every):
    folder = tmp_path / "run"
    train(recipe(), folder, CPU, task=Brightness)
    best = (folder / "best.pt").read_bytes()
    with pytest.raises(InputError, match="the loss became .* in epoch 3.*last.pt, of the end of epoch 2.*--lr 1e.29"):
        train(recipe(epochs=4, lr=1e30, checkpoint_steps=saved_every), folder, CPU, task=Brightness, resume=True)
    assert (read_checkpoint(folder / "last.pt")["epoch"], finite(folder / "last.pt")) == (2, True)
    assert (folder / "best.pt").read_bytes() == best
    assert not (folder / "good.pt").exists()
    assert math.isfinite(train(recipe(epochs=4), folder, CPU, task=Brightness, resume=True).history[-1]["train_loss"])


@pytest.mark.parametrize("saved_every", [0, 1])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_diverges_at_once_can_be_started_again_or_continued(tmp_path, saved_every, resume):
    with pytest.raises(InputError, match="of the start of the run"):
        train(recipe(lr=1e30, checkpoint_steps=saved_every), tmp_path, CPU, task=Brightness)
    assert finite(tmp_path / "last.pt")
    assert not (tmp_path / "best.pt").exists()
    again = train(recipe(), tmp_path, CPU, task=Brightness, resume=resume)
    train(recipe(), tmp_path / "other", CPU, task=Brightness)
    assert again.history[-1]["val_error"] == pytest.approx(
        train(recipe(epochs=3), tmp_path / "other", CPU, task=Brightness, resume=True).history[1]["val_error"]
    )


def test_a_checkpoint_in_mid_epoch_leaves_the_one_of_the_epoch_beside_it_until_the_next(tmp_path, monkeypatch):
    save, kept = state.RunState.save, []

    def watched(self):
        save(self)
        kept.append((self.epoch, self.step, sorted(path.name for path in tmp_path.glob("*.pt"))))

    monkeypatch.setattr(state.RunState, "save", watched)
    train(recipe(checkpoint_steps=6), tmp_path, CPU, task=Brightness)
    assert kept == [
        (0, 6, ["good.pt", "last.pt"]),
        (1, 0, ["best.pt", "last.pt"]),
        (1, 6, ["best.pt", "good.pt", "last.pt"]),
        (2, 0, ["best.pt", "last.pt"]),
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_a_continued_run_that_diverges_in_the_first_epoch_says_what_it_goes_back_to(tmp_path, monkeypatch, kept):
    save, start = state.RunState.save, None

    def stops(self):
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(state.RunState, "save", stops)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(checkpoint_steps=3), tmp_path, CPU, task=Brightness)
    monkeypatch.setattr(state.RunState, "save", save)
    start = read_checkpoint(tmp_path / "good.pt")["state_dict"]
    if not kept:
        (tmp_path / "good.pt").unlink()
    told = "good state is .*, of the start of the run" if kept else "saved state is .*, of step 3 .* may be bad already"
    with pytest.raises(InputError, match=f"in epoch 1, .*The last {told}"):
        train(recipe(lr=1e30), tmp_path, CPU, task=Brightness, resume=True)
    last = read_checkpoint(tmp_path / "last.pt")
    assert last["step"] == (0 if kept else 3)
    assert all(torch.equal(start[key], value) for key, value in last["state_dict"].items()) is kept


def test_nan_in_the_validation_alone_stops_the_run(tmp_path, monkeypatch):
    evaluate = Brightness.evaluate

    def broken(self, *arguments, **options):
        scores = evaluate(self, *arguments, **options)
        return scores if self.recipe.seed == 0 else type(scores)({"error": math.nan}, 1, 0, 1.0)

    monkeypatch.setattr(Brightness, "evaluate", broken)
    with pytest.raises(InputError, match="the error became nan in epoch 1, step 8 of 8"):
        train(recipe(seed=1), tmp_path, CPU, task=Brightness)
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers_stop_the_run_though_the_loss_is_one(tmp_path, monkeypatch, value):
    loss = Brightness.loss

    def poisoned(self, trainer, batch, process):
        result = loss(self, trainer, batch, process)
        next(trainer.parameters()).data.flatten()[0] = value
        return result[0] * 0, torch.nan_to_num(result[1], 1.0, 1.0)

    monkeypatch.setattr(Brightness, "loss", poisoned)
    with pytest.raises(InputError, match=r"weights became NaN or infinite \(0.weight.* in epoch 1, step 8"):
        train(recipe(), tmp_path, CPU, task=Brightness)


def test_nan_is_never_the_best():
    task = Brightness(recipe(), [], [])
    rows = [{"val_error": math.nan}, {"val_error": 2.0}, {"val_error": 1.0}, {"val_error": math.nan}]
    assert task.best_of(rows) is rows[2]


@pytest.mark.parametrize(
    ("values", "first", "failed"),
    [
        ((76.0, 3e12), 2.4, True),
        ((76.0, 8.0), 2.4, False),  # the validation works
        ((2.0, 3e3), 2.4, False),  # statistics of BatchNorm lag behind in the first epoch
        ((37.0, 40.0), 37.0, False),  # it started like that
    ],
)
def test_a_classifier_far_worse_than_guessing_has_failed(values, first, failed):
    task = Classification(Recipe(), None, None, None, 10)
    assert task.failed(dict(zip(("train_loss", "val_loss"), values, strict=True)), first) is failed


def test_a_failed_epoch_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Brightness, "failed", lambda self, row, first: row["val_error"] < 1e9)
    with pytest.raises(InputError, match="the loss .* and error .* are far worse than guessing in epoch 1"):
        train(recipe(), tmp_path, CPU, task=Brightness)
    assert not (tmp_path / "best.pt").exists()


def test_a_step_skipped_in_half_precision_is_no_failure(tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *_, enabled: scaler("cpu", init_scale=2.0**127, enabled=enabled)
    )
    run = train(recipe(precision="fp16", epochs=1), tmp_path, CPU, task=Brightness)
    assert run.scaler.get_scale() < 2.0**127
    assert math.isfinite(run.history[0]["train_loss"])


def test_a_loss_that_is_never_a_number_in_half_precision_stops_the_run(tmp_path, monkeypatch):
    loss = Brightness.loss

    def overflowing(self, *arguments):
        result = loss(self, *arguments)
        return result[0] * math.nan, result[1] * math.nan

    monkeypatch.setattr(Brightness, "loss", overflowing)
    with pytest.raises(InputError, match="the loss became nan in epoch 1"):
        train(recipe(precision="fp16"), tmp_path, CPU, task=Brightness)


def test_a_continued_run_takes_rate_and_decay_from_its_recipe(tmp_path):
    train(recipe(momentum=0.5), tmp_path, CPU, task=Brightness)
    run = train(recipe(epochs=3, lr=0.01, weight_decay=0.1), tmp_path, CPU, task=Brightness, resume=True)
    assert run.history[-1]["lr"] == 0.01
    groups = run.optimizer.param_groups
    assert (groups[0]["momentum"], max(group["weight_decay"] for group in groups)) == (0.9, 0.1)


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=train, args=(recipe(workers=1), tmp_path, CPU), kwargs={"task": Brightness})
    thread.start()
    thread.join()
    assert (tmp_path / "summary.json").exists()


COMMAND = "brightness train --batch-size 8 --workers 0 --device cpu --no-report --warmup-epochs 0".split()


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A folder with a recipe of the task."""
    (tmp_path / "own.yaml").write_text("epochs: 2\ndata: generated\n")
    monkeypatch.chdir(tmp_path)
    return [*COMMAND, "--recipe", "own.yaml", "--output", "run"]


def test_a_full_disk_names_the_file_and_the_way_on(named, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert sanet_here(*named) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No space left on device: run/")
    assert "saved nothing; when that is solved, the same command starts it again" in error
    assert sanet_here(*named) == 0
    monkeypatch.setattr(os, "fsync", full)
    assert sanet_here("brightness", "train", "--resume", "run", "--epochs", 3) == 2
    assert "continue the run with: sanet brightness train --resume run" in capsys.readouterr().err


def test_an_error_before_the_processes_join_is_printed_by_the_first_of_a_machine(monkeypatch, capsys):
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert sanet_here("brightness", "train", "--resume", "nowhere") == 2
        assert ("no run to continue in nowhere" in capsys.readouterr().err) == (rank == "0")


def test_a_machine_that_returns_to_a_run_continues_it(named, monkeypatch, capsys):
    assert sanet_here(*named) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert sanet_here(*named, "--epochs", 3) == 0
    assert "continuing brightness" in capsys.readouterr().out
    # Its own process has not been restarted, but another has.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr(loop.Process, "gather", lambda self, value: [value, value is False or value])
    monkeypatch.setattr(loop.Process, "all_or_none", lambda self: threading.Lock())
    assert sanet_here(*named, "--epochs", 4) == 0
    assert "continuing brightness" in capsys.readouterr().out


def test_synchronised_batchnorm_keeps_activations():
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(state.convert_sync_batchnorm(model)(images), logits)
