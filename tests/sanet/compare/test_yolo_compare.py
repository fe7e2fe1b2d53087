"""Comparisons of YOLOs, which ultralytics trains."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

import networks
from conftest import sanet_here

pytest.importorskip("ultralytics", reason="the extra yolo is not installed", exc_type=ImportError)

from ultralytics import YOLO
from ultralytics.utils import SETTINGS
from ultralytics.utils.callbacks.base import default_callbacks

from shuffle_attention.attach.insert import attached

SETTINGS_OF_ALL = (
    "epochs=2 imgsz=32 batch=3 workers=0 device=cpu plots=False amp=False verbose=False optimizer=SGD lr0=0.01 mosaic=0"
).split()


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """Return the words of a command that compares, in a folder with a model file and data."""
    monkeypatch.chdir(tmp_path)
    SETTINGS.update({"sync": False, "runs_dir": str(tmp_path / "runs"), "datasets_dir": str(tmp_path)})
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(networks.YOLO))
    data = networks.boxes(tmp_path / "squares")
    return ["yolo", "compare", "model=plain.yaml", f"data={data}", *SETTINGS_OF_ALL, "--output", "out"]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_it_is_stopped_continued_and_reported(words, monkeypatch, capsys):
    starts = []

    def stop(trainer) -> None:
        starts.append(trainer.model.state_dict()["model.0.conv.weight"].sum().item())
        if len(starts) == 4:  # the second epoch of the second run
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(default_callbacks, "on_train_epoch_start", [stop])
    words += ["--attention", "none,shuffle", "--seeds", "1"]
    assert sanet_here(*words) == 143
    assert starts[0] == starts[2]  # all variants start from the same weights
    stopped = Path("out/shuffle-preserved/seed-0")
    assert len(rows(stopped / "results.csv")) == 1
    assert sanet_here(*words) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 runs is finished already\nrun 2 of 2: continuing shuffle-preserved, seed 0" in printed
    assert "One seed gives no interval" in printed
    assert [layer.name for layer in attached(YOLO(stopped / "weights/last.pt").model)] == ["model.2.m.0.cv2.attention"]

    content = json.loads(Path("out/comparison.json").read_text())
    none, shuffle = content["variants"]
    assert (content["recipe"]["lr0"], content["figure"][:8]) == (0.01, "mAP50-95")
    assert shuffle["size"]["parameters"] - none["size"]["parameters"] == 6
    for row in rows(Path("out/comparison.csv")):
        history = rows(Path("out") / row["variant"] / "seed-0/results.csv")
        assert [float(epoch["epoch"]) for epoch in history] == [1, 2]
        assert float(row["map50_95"]) == pytest.approx(100 * float(history[-1]["metrics/mAP50-95(B)"]))
    page = Path("out/report.html").read_text()
    for text in ("<th>mAP50-95<br>%</th><th>over<br>none</th></tr>", "comparison by sanet yolo compare", "lr0"):
        assert text in page

    # The first epoch is there twice if a run was killed between writing its row and its checkpoint.
    (stopped / "results.csv").write_text("epoch,metrics/mAP50-95(B)\n1,0.5\n1,0.4\n2,0.3\n")
    assert sanet_here(*words[:2], "--output", "out", "--report-only", "--attention", "shuffle-preserved,none") == 0
    row, _ = rows(Path("out/comparison.csv"))
    assert (row["variant"], row["map50_95"], row["best_map50_95"]) == ("shuffle-preserved", "30", "40")
    other = [word.replace("lr0=0.01", "lr0=0.02") for word in words if word != "mosaic=0"]
    assert sanet_here(*other) == 2
    message = "out holds another comparison: lr0 was 0.01 and is 0.02; mosaic was 0 and is 1.0\n"
    assert message in capsys.readouterr().err
    assert sanet_here("compare", "--recipe", "digits", "--attention", "none,shuffle", "--output", "out") == 2
    assert "holds another comparison: kind was 'yolo' and is 'classifier'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--attention", "none,shuffle", "patience=3"], "patience cannot be given"),
        (["--attention", "none,shuffle", "lr=3"], "lr0"),
        (["--attention", "none,shuffle", "epochs"], "such as epochs=100; got 'epochs'"),
        (["--attention", "none,shuffle", "imgsz=big"], "imgsz"),
        (["--attention", "none,shuffle", "model=other.yaml"], "other.yaml"),
        (["--attention", "none,shuffle", "data=other.yaml"], "other.yaml"),
        (["--attention", "none"], "needs two or more"),
        ([], "give what to compare"),
        (
            ["--models", "a.yaml,b.yaml", "--where", "last"],
            "--where, model=plain.yaml would have no effect",
        ),
        (["--report-only", "--seed", "1"], "--seed, model=plain.yaml"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(words, capsys, given, message):
    assert sanet_here(*words, *given) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
