"""A task from outside the package trains, continues, reports and predicts through the commands."""

import csv
import json

import pytest
import yaml
from PIL import Image

from brightness import Brightness
from shuffle_attention.errors import InputError
from shuffle_attention.sanet import tasks
from shuffle_attention.sanet.cli import main


def test_a_task_from_outside_trains_continues_reports_and_predicts(registered, tmp_path, capsys):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    fields = {"epochs": 2, "batch_size": 8, "lr": 0.3, "workers": 0, "device": "cpu", "sched": "cosine"}
    recipe.write_text(yaml.safe_dump(fields))
    assert main(["brightness", "train", "--recipe", str(recipe), "--channels", "6", "--output", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "epoch   2/2  loss " in printed
    assert "│ error" in printed
    assert main(["brightness", "train", "--resume", str(run), "--epochs", "6"]) == 0
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "val_error", "images_per_second"]
    errors = [float(row["val_error"]) for row in rows]
    assert len(errors) == 6
    assert min(errors) < 0.5 * errors[0]
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["val_error"] == pytest.approx(min(errors))
    (run / "report.html").unlink()
    assert main(["report", str(run), "--device", "cpu"]) == 0
    assert "absolute error" in (run / "report.html").read_text()
    predictor = tasks.restore(run / "best.pt")
    ((name, dark),) = predictor.predict(Image.new("L", (8, 8), 20)).best
    ((_, light),) = predictor.predict(Image.new("L", (8, 8), 230)).best
    assert name == "brightness"
    assert dark < light


def test_an_unknown_task_is_named_with_the_known_ones(registered):
    assert tasks.task_named("brightness") is Brightness
    with pytest.raises(InputError, match="no task 'depth'; there are brightness, classifier, detector"):
        tasks.task_of({"kind": "depth"})
