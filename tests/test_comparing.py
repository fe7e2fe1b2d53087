"""Comparisons: statistics against those of SciPy, runs that stop and go on, and what is refused."""

import csv
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from scipy import stats

import shuffle_attention.comparing as comparing
from conftest import QUICK, sanet_here
from shuffle_attention.comparing import Variant, variants_of
from shuffle_attention.evaluation import evaluate
from shuffle_attention.paired import paired_difference, summary
from shuffle_attention.recipe import Recipe

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = (*QUICK[:2], *QUICK[4:], "--epochs", 1, "--no-small-stem", "--model-args", "{channels: [8, 8, 16, 16]}")
TWO = ("--attention", "none,shuffle")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_mean_and_deviation():
    found = summary({0: 1.0, 1: 2.0, 2: 6.0})
    assert (found.mean, found.count) == (3.0, 3)
    assert found.deviation == pytest.approx(math.sqrt(7))
    assert summary({5: 2.0}).deviation is None
    assert summary({}) is None


def test_the_interval_is_that_of_scipys_paired_test():
    figures, baseline = {0: 80.1, 1: 79.4, 2: 81.0, 7: 80.0}, {2: 80.2, 1: 79.1, 0: 79.9, 9: 1.0}
    found = paired_difference(figures, baseline)
    test = stats.ttest_rel([80.1, 79.4, 81.0], [79.9, 79.1, 80.2])
    interval = test.confidence_interval(0.95)
    assert found.by_seed == pytest.approx({0: 0.2, 1: 0.3, 2: 0.8})
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    # t(0.975, 2) = 4.3027; the deviation of 0.2, 0.3, 0.8 is 0.3215.
    assert found.high - found.mean == pytest.approx(4.3027 * 0.32146 / math.sqrt(3), rel=1e-4)


def test_one_seed_has_no_interval_and_none_no_difference():
    assert paired_difference({0: 1.0}, {0: 0.5}).low is None
    assert paired_difference({0: 1.0}, {1: 0.5}) is None


def test_variants_differ_in_their_attention_alone():
    none, shuffle = variants_of(["none", "shuffle"], 50, [])
    assert (none.model, shuffle.model) == ("resnet50", "sa_resnet50")
    assert none.model_args == shuffle.model_args == {"zero_init_last": False}
    recipe = none.recipe(Recipe(model_args={"zero_init_last": True, "act_layer": "silu"}), 3)
    assert (recipe.model, recipe.seed) == ("resnet50", 3)
    assert recipe.model_args == {"zero_init_last": True, "act_layer": "silu"}
    assert variants_of([], 18, ["a", "b"]) == [Variant("a", "a", {}), Variant("b", "b", {})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give what to compare"),
        ((*TWO, "--models", "resnet10t,resnet18"), "give what to compare"),
        (("--attention", "shuffle"), "two or more, the first as the baseline; got shuffle"),
        (("--attention", "none,none"), "each can be compared once"),
        (("--attention", "none,shufle"), "no attention 'shufle'; did you mean 'shuffle'?"),
        ((*TWO, "--depth", 20), "no ResNet of depth 20"),
        ((*TWO, "--model", "resnet18"), "sanet compare chooses the model"),
        ((*TWO, "--seeds", 0), "--seeds must be at least 1, got 0"),
        ((*TWO, "--data", "nowhere"), "name a recipe for these data"),
        ((*TWO, "--recipe", "cifar10", "--data", "nowhere"), "no folder nowhere"),
        ((*TWO, "--model-args", "{nonsense: 1}"), "nonsense=1"),
        (("--models", "resnet10t,resnet17"), "no model 'resnet17'"),
        (("--report-only",), "no comparison in out"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sanet_here("compare", "--output", "out", "--device", "cpu", *arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def compared(shared_tree, tmp_path_factory) -> Path:
    """The folder of a comparison of two networks with two seeds, stopped once on its way and continued."""
    folder = tmp_path_factory.mktemp("compared") / "one"
    arguments = ("compare", *SMALL, "--data", shared_tree, *TWO, "--seeds", 2, "--output", folder)
    seen = []

    def stopping(model, batches, place, **options):
        seen.append(batches)
        if len(seen) == 3:  # in the second seed's first run
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(model, batches, place, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shuffle_attention.training.evaluate", stopping)
        assert sanet_here(*arguments) == 143
    assert {run.parent.name for run in folder.glob("*/seed-*/summary.json")} == {"seed-0"}
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-0/last.pt")}
    assert len(kept) == 2
    assert sanet_here(*arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    return folder


def test_a_comparison_leaves_a_table_and_a_picture(compared):
    content = json.loads((compared / "comparison.json").read_text())
    none, shuffle = content["variants"]
    assert (content["baseline"], content["seeds"], content["failed"]) == ("none", [0, 1], {})
    assert shuffle["size"]["parameters"] > none["size"]["parameters"] > 0
    rows = table(compared / "comparison.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("none", "0"),
        ("none", "1"),
        ("shuffle", "0"),
        ("shuffle", "1"),
    ]
    accuracy = {(row["variant"], row["seed"]): float(row["top1"]) for row in rows}
    by_seed = [accuracy["shuffle", seed] - accuracy["none", seed] for seed in "01"]
    assert shuffle["difference"]["mean"] == pytest.approx(sum(by_seed) / 2)
    assert none["difference"] is None
    for row in rows:
        metrics = table(compared / row["variant"] / f"seed-{row['seed']}" / "metrics.csv")
        assert float(metrics[-1]["val_top1"]) == float(row["top1"])
    assert (compared / "comparison.png").read_bytes().startswith(PNG)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(compared, shared_tree, tmp_path):
    recipe = compared / "none/seed-1/config.yaml"
    assert sanet_here("train", "--recipe", recipe, "--data", shared_tree, "--output", tmp_path / "alone") == 0
    alone, stopped = (
        torch.load(folder / "last.pt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "alone", compared / "none/seed-1")
    )
    assert all(torch.equal(value, stopped[name]) for name, value in alone.items())


def test_a_report_needs_no_training(compared, capsys, monkeypatch):
    monkeypatch.setattr(comparing, "train", None)
    assert sanet_here("compare", "--output", compared, "--report-only", "--attention", "shuffle,none") == 0
    assert "over shuffle" in capsys.readouterr().out
    assert sanet_here("compare", "--output", compared, "--report-only", "--attention", "none,se") == 2
    assert "has no runs of se; it has none, shuffle" in capsys.readouterr().err


def test_another_recipe_is_refused_and_named(compared, shared_tree, capsys, tmp_path):
    arguments = ("compare", *SMALL, "--data", shared_tree, "--seeds", 2, "--output", compared)
    before = (compared / "comparison.yaml").read_text()
    assert sanet_here(*arguments, *TWO, "--lr", 0.5) == 2
    assert "holds another comparison: lr was 0.05 and is 0.5" in capsys.readouterr().err
    assert sanet_here(*arguments, "--attention", "none,shuffle", "--depth", 34) == 2
    assert "none was ['resnet18'" in capsys.readouterr().err
    assert (compared / "comparison.yaml").read_text() == before
    (tmp_path / "thesis.txt").touch()
    assert sanet_here(*arguments[:-1], tmp_path, *TWO) == 2
    assert "is not empty and holds no comparison" in capsys.readouterr().err


def test_a_run_that_fails_does_not_lose_the_others(shared_tree, tmp_path, monkeypatch, capsys):
    trained = []

    def failing(recipe, folder, place, **options):
        trained.append((recipe.model, recipe.seed))
        if recipe.model == "resnet18":
            raise torch.OutOfMemoryError("out of memory")
        Path(folder).mkdir(parents=True)
        (Path(folder) / "metrics.csv").write_text("epoch,val_top1\n1,40\n2,30\n")
        (Path(folder) / "summary.json").write_text("{}")

    monkeypatch.setattr(comparing, "train", failing)
    arguments = ("compare", *SMALL, "--data", shared_tree, *TWO, "--seeds", 2, "--output", tmp_path / "out")
    assert sanet_here(*arguments) == 1
    printed = capsys.readouterr().out
    assert trained == [("resnet18", 0), ("sa_resnet18", 0), ("resnet18", 1), ("sa_resnet18", 1)]
    assert f"failed: {tmp_path / 'out/none/seed-0'}: out of memory" in printed
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert content["variants"][0]["mean"] is None
    assert content["variants"][1]["top1"] == {"0": 30.0, "1": 30.0}
    assert content["variants"][1]["best"] == {"0": 40.0, "1": 40.0}
    assert content["variants"][1]["difference"] is None


def test_attention_attached_to_a_trained_network_starts_where_it_was(shared_tree, compared, tmp_path, capsys):
    """From the first step: preserved it has the accuracy of the plain network, and the curve begins there."""
    start = compared / "none/seed-0/last.pt"
    arguments = ("--from", start, "--attention", "none,shuffle", "--seeds", 1, "--eval-steps", 2, "--lr", 0.01)
    quick = (*QUICK[:2], *QUICK[6:], "--epochs", 1, "--data", shared_tree, "--output", tmp_path / "tuned")
    assert sanet_here("compare", *quick, *arguments) == 0
    curves = {
        name: table(tmp_path / "tuned" / name / "seed-0/curve.csv")
        for name in ("none", "shuffle-preserved", "shuffle-unpreserved")
    }
    assert {tuple(row["step"] for row in rows) for rows in curves.values()} == {("0", "2")}
    first = {name: rows[0] for name, rows in curves.items()}
    assert first["shuffle-preserved"]["val_top1"] == first["none"]["val_top1"]
    assert float(first["shuffle-preserved"]["val_loss"]) == pytest.approx(float(first["none"]["val_loss"]), rel=1e-4)
    assert first["shuffle-unpreserved"]["val_loss"] != first["none"]["val_loss"]
    assert (tmp_path / "tuned/curves.png").read_bytes().startswith(PNG)
    figures = tmp_path / "figures.json"
    best = tmp_path / "tuned/shuffle-preserved/seed-0/best.pt"
    assert sanet_here("eval", best, "--workers", 0, "--device", "cpu", "--json", figures) == 0
    summary = json.loads((best.parent / "summary.json").read_text())
    assert json.loads(figures.read_text())["top1"] == summary["best"]["val_top1"]
