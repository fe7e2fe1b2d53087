"""Comparisons of detectors: the runs, the metrics and the table of ``sanet detect compare``."""

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

import shuffle_attention.sanet.compare.comparison as comparing
from conftest import sanet_here
from shuffle_attention import ShuffleAttention
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.compare.comparison import Comparison, read_comparison
from shuffle_attention.sanet.compare.control import step_times
from shuffle_attention.sanet.compare.variants import attached_variants, null_of, variants_of
from shuffle_attention.sanet.recipes.recipe import load_recipe
from shuffle_attention.sanet.tasks.detection.coco_scores import evaluate_detector
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe
from shuffle_attention.sanet.tasks.detection.samples import digits_coco
from shuffle_attention.sanet.tasks.detection.task import Detection
from shuffle_attention.sanet.training.run_folder import RunFolder

SMALL = (
    *"--recipe digits --min-size 64 --max-size 64 --anchor-sizes 8 16 24 32 48 --pyramid-channels 32".split(),
    *"--workers 0 --batch-size 2 --epochs 1 --warmup-epochs 0 --device cpu --no-report".split(),
    *("--backbone-args", "{channels: [8, 8, 16, 16]}"),
)
TWO = ("--attention", "none,shuffle")
NARROW = {"min_size": [64], "max_size": 64, "pyramid_channels": 32, "backbone_args": {"channels": [8, 8, 16, 16]}}
SCORES = ("box_AP", "box_AP50", "mask_AP")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect") / "data"
    for split, count in (("train", 4), ("val", 2)):
        digits_coco(split, count, size=64, digits=(1, 3)).write(folder, split)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def narrow(**fields) -> DetectionRecipe:
    return load_recipe("digits", DetectionRecipe).replaced(**NARROW, **fields)


def test_variants_are_detectors_that_differ_in_their_backbone_alone(tmp_path):
    base = narrow()
    variants = variants_of(["none", "shuffle"], 18, [])
    null = null_of(variants, base)
    assert (null.name, null.twin) == ("shuffle-null", "shuffle")
    recipes = [variant.recipe(base, 3) for variant in (*variants, null)]
    assert [recipe.backbone for recipe in recipes] == ["resnet18", "sa_resnet18", "sa_resnet18"]
    assert recipes[0] == recipes[1].replaced(backbone="resnet18")
    assert recipes[0].backbone_args == {"zero_init_last": False, "channels": [8, 8, 16, 16]}
    assert {recipe.seed for recipe in recipes} == {3}
    comparison = Comparison(variants, base, [0], tmp_path, num_classes=11)
    none, shuffle = comparison.sizes().values()
    assert shuffle.parameters > none.parameters > 0
    assert shuffle.multiply_adds == none.multiply_adds > 0
    layers = [m.shuffle for m in Detection.untrained(recipes[2], 11).modules() if isinstance(m, ShuffleAttention)]
    assert layers
    assert not any(layers)
    kept, (_, attached, _) = base.as_trained, attached_variants(["none", "shuffle"], base, "residual", "both")
    assert (kept["pyramid_channels"], kept["frozen_norm"], kept["trainable_layers"]) == (32, False, None)
    assert attached.recipe(base, 0).attach["preserve"]
    assert base.replaced(pretrained=True).as_trained["trainable_layers"] == 3
    for trained in ({"initial": "start.pt"}, {"weights": "plain"}, {"pretrained": True}):
        with pytest.raises(InputError, match="random weights"):
            null_of(variants, base.replaced(**trained))


def test_training_steps_of_detectors_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("shuffle_attention.sanet.compare.control._REPETITIONS", 1)
    base = narrow(batch_size=1)
    comparison = Comparison(variants_of(["none", "shuffle"], 18, []), base, [0], tmp_path, 11)
    times = step_times({"shuffle": comparison.variants[1].recipe(base, 0)}, comparison, torch.device("cpu"))
    assert times["shuffle"].median > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TWO, "--backbone", "resnet18"), "sanet detect compare chooses the backbone"),
        (TWO, "sanet detect compare needs images: --data DIR"),
        ((*TWO, "--recipe", "digits", "--patience", 3), "sanet detect compare trains every model"),
        ((*TWO, "--recipe", "digits", "--weights", "plain", "--null"), "--null needs models that start from random"),
        ((*SMALL, "--models", "resnet17,resnet18"), "no backbone 'resnet17'"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(data, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--models" in arguments:
        arguments = (*arguments, "--data", data)  # without the time that the embedded data take
    assert sanet_here("detect", "compare", "--output", "out", "--device", "cpu", *arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_stopped_in_the_middle_it_goes_on_as_a_run_that_was_not(data, tmp_path, monkeypatch, capsys):
    folder, calls = tmp_path / "out", []
    arguments = ("detect", "compare", *SMALL, *TWO, "--data", data, "--seeds", 1, "--output", folder)

    def stopping(*given, **options):
        calls.append(given)
        if len(calls) == 2:  # the validation of the second run
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_detector(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr("shuffle_attention.sanet.tasks.detection.task.evaluate_detector", stopping)
        assert sanet_here(*arguments) == 143
    assert [run.parent.parent.name for run in folder.glob("*/seed-*/summary.json")] == ["none"]
    assert sanet_here(*arguments) == 0
    assert "continuing shuffle, seed 0" in capsys.readouterr().out
    stopped, alone = folder / "shuffle/seed-0", tmp_path / "alone"
    assert rows(stopped / "gates.csv")  # the attention of a detector is watched as well
    assert sanet_here("detect", "train", "--recipe", stopped / "config.yaml", "--output", alone) == 0
    both = [torch.load(each / "last.pt", weights_only=True)["state_dict"] for each in (stopped, alone)]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    for row in rows(folder / "comparison.csv"):
        (epoch,) = rows(folder / row["variant"] / "seed-0/metrics.csv")
        for name in SCORES:
            assert float(row[name]) == pytest.approx(100 * float(epoch[f"val_{name}"]))
    assert sanet_here(*arguments, "--lr", 0.5) == 2
    assert "holds another comparison: lr was 0.001 and is 0.5" in capsys.readouterr().err
    assert sanet_here("compare", "--recipe", "digits", *TWO, "--output", folder) == 2
    assert "kind was 'detector' and is 'classifier'" in capsys.readouterr().err


def test_every_metric_is_compared_seed_by_seed_and_the_first_decides(data, tmp_path, monkeypatch, capsys):
    scores = {
        "none": {"box_AP": [0.40, 0.42, 0.41], "box_AP50": [0.7, 0.72, 0.71], "mask_AP": [0.38, 0.39, 0.40]},
        "shuffle": {"box_AP": [0.41, 0.44, 0.41], "box_AP50": [0.7, 0.71, 0.73], "mask_AP": [0.38, 0.41, 0.43]},
        "shuffle-null": {"box_AP": [0.4, 0.45, 0.4], "box_AP50": [0.7, 0.7, 0.7], "mask_AP": [0.4, 0.4, 0.4]},
    }
    trained = []

    def train(recipe, folder, process, *, task, **options):
        trained.append((recipe.backbone, recipe.seed, task))
        files, own = RunFolder(Path(folder)), scores[Path(folder).parent.name]
        files.begin(recipe, [{"epoch": 1, **{f"val_{name}": own[name][recipe.seed] for name in own}}], [])
        files.summary.write_text("{}")
        return SimpleNamespace(stop=None)

    monkeypatch.setattr(comparing, "train", train)
    folder = tmp_path / "out"
    arguments = ("detect", "compare", *SMALL, *TWO, "--null", "--data", data, "--output", folder, "--seeds", 3)
    assert sanet_here(*arguments, "--report", "--plan", 1) == 0
    assert len(trained) == 9
    assert trained[:2] == [("resnet18", 0, Detection), ("sa_resnet18", 0, Detection)]
    content, printed = json.loads((folder / "comparison.json").read_text()), capsys.readouterr().out
    assert (content["score"], [each["score"] for each in content["others"]]) == (SCORES[0], [*SCORES[1:]])
    page = (folder / "report.html").read_text()
    for each in (content, *content["others"]):
        name = each["score"]
        _, shuffle, _ = each["variants"]
        pairs = [[100 * value for value in scores[variant][name]] for variant in ("shuffle", "none")]
        low, high = stats.ttest_rel(*pairs).confidence_interval()
        assert [shuffle["difference"][key] for key in ("low", "high")] == pytest.approx([low, high])
        assert each["chance"]["twin"] == "shuffle"
        for text in (printed, page):
            assert f"[{low:+.2f}, {high:+.2f}]" in text
            assert name.replace("_", " ") in text
    assert content["plan"]["rows"][0]["deviation"]["value"] == pytest.approx(1.0)  # of the box AP: 1, 2 and 0
    assert "comparison by sanet detect compare" in page
    assert read_comparison(folder).task is Detection
    # Without masks there is no mask AP.
    for path in folder.glob("*/seed-*/metrics.csv"):
        kept = [{k: v for k, v in row.items() if "mask" not in k} for row in rows(path)]
        path.write_text("\n".join([",".join(kept[0]), *(",".join(row.values()) for row in kept)]))
    assert sanet_here("detect", "compare", "--output", folder, "--report-only") == 0
    assert [each["score"] for each in json.loads((folder / "comparison.json").read_text())["others"]] == ["box_AP50"]
    # The first metric is required.
    path.write_text("epoch,val_box_AP50\n1,0.5\n")
    assert sanet_here("detect", "compare", "--output", folder, "--report-only") == 2
    assert "has no val_box_AP; this run is not one of the comparison" in capsys.readouterr().err
