"""Comparisons: statistics against those of SciPy, runs that stop and go on, and what is refused."""

import csv
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

import shuffle_attention.sanet.compare.comparison as comparing
from conftest import QUICK, sanet_here
from shuffle_attention import ShuffleAttention
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.compare.comparison import Comparison
from shuffle_attention.sanet.compare.control import step_times
from shuffle_attention.sanet.compare.variants import Variant, null_of, variants_of
from shuffle_attention.sanet.network import create_network
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.statistics import confidence_sequence, seeds_needed
from shuffle_attention.sanet.tasks.classification.task import evaluate
from shuffle_attention.sanet.timing import Times
from shuffle_attention.sanet.training.run_folder import RunFolder

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = (*QUICK[:2], *QUICK[4:], "--epochs", 1, "--no-small-stem")
TWO = ("--attention", "none,shuffle")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


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
        (("--attention", "none,shufle"), "no attention 'shufle'; did you mean shuffle?"),
        ((*TWO, "--depth", 20), "no ResNet of depth 20"),
        ((*TWO, "--model", "resnet18"), "sanet compare chooses the model"),
        ((*TWO, "--where", "stage", "--preserve", "no"), "--where and --preserve would have no effect without --from"),
        (("--models", "resnet10t,resnet18", "--depth", 50), "--depth would have no effect with --from or --models"),
        ((*TWO, "--seeds", 0), "--seeds must be at least 1, got 0"),
        (TWO, "sanet compare needs images: --data DIR"),
        ((*TWO, "--data", "nowhere"), "no folder nowhere"),
        ((*TWO, "--recipe", "cifar10", "--data", "nowhere"), "no folder nowhere"),
        ((*TWO, "--recipe", "digits", "--model-args", "{nonsense: 1}"), "nonsense=1"),
        (("--models", "resnet10t,resnet17", "--recipe", "digits"), "no model 'resnet17'"),
        (("--report-only",), "no comparison in out"),
        (("--attention", "se,none", "--control", "width"), "--control width widens a plain ResNet"),
        ((*TWO, "--control", "depth"), "--control must be one of width, got depth"),
        ((*TWO, "--budget", 3), "--budget would have no effect without --until"),
        ((*TWO, "--until", 0.5, "--plan", 0.5), "fixed beforehand"),
        ((*TWO, "--null", "--recipe", "digits", "--initial", "x.pt"), "--null needs models that start from random"),
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
        patch.setattr("shuffle_attention.sanet.tasks.classification.task.evaluate", stopping)
        assert sanet_here(*arguments) == 143
    assert {run.parent.name for run in folder.glob("*/seed-*/summary.json")} == {"seed-0"}
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-0/last.pt")}
    assert len(kept) == 2
    assert sanet_here(*arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    return folder


def test_a_comparison_leaves_a_table_and_a_chart(compared):
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
    settings = compared / "comparison.yaml"  # of version 0.1
    settings.write_text(settings.read_text().replace("kind: classifier\n", "kind: classifiers\n"))
    assert sanet_here("compare", "--output", compared, "--report-only", "--attention", "shuffle,none") == 0
    assert "over" in capsys.readouterr().out
    assert sanet_here("compare", "--output", compared, "--report-only", "--epochs", 9, "--depth", 18, "--seeds", 3) == 2
    assert "--depth, --epochs, --seeds would have no effect with --report-only" in capsys.readouterr().err
    (compared / "report.html").unlink(missing_ok=True)
    assert sanet_here("compare", "--output", compared, "--report-only", "--no-report") == 0
    assert not (compared / "report.html").exists()
    capsys.readouterr()
    assert sanet_here("compare", "--output", compared, "--report-only", "--attention", "none,se") == 2
    assert "has no runs of se; it has none, shuffle" in capsys.readouterr().err


def test_it_says_what_the_runs_were_trained_on_and_not_who_reports(compared, monkeypatch):
    one, *_ = sorted(compared.glob("*/seed-*/summary.json"))
    before = one.read_text()
    try:
        one.write_text(json.dumps(json.loads(before) | {"cpu": "another", "torch": "2.11.0"}))
        assert sanet_here("compare", "--output", compared, "--report-only", "--no-report") == 0
    finally:
        one.write_text(before)
    records = json.loads((compared / "comparison.json").read_text())["trained_on"]
    assert len(records) == 2
    assert {("another", "2.11.0")} < {(record["cpu"], record["torch"]) for record in records}


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
        return SimpleNamespace(stop=None)

    monkeypatch.setattr(comparing, "train", failing)
    arguments = (
        "compare",
        *SMALL,
        *TWO,
        "--epochs",
        2,
        "--data",
        shared_tree,
        "--output",
        tmp_path / "out",
        "--seeds",
        2,
    )
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
    metrics = tmp_path / "metrics.json"
    best = tmp_path / "tuned/shuffle-preserved/seed-0/best.pt"
    assert sanet_here("eval", best, "--workers", 0, "--device", "cpu", "--json", metrics) == 0
    summary = json.loads((best.parent / "summary.json").read_text())
    assert json.loads(metrics.read_text())["top1"] == summary["best"]["val_top1"]


def test_the_network_to_start_from_is_a_plain_one(shared_tree, tmp_path, capsys):
    start = tmp_path / "start.pt"
    content = {"recipe": Recipe(model="resnet18", attach={"name": "se"}).to_dict(), "num_classes": 4}
    torch.save(content, start)
    arguments = ("compare", *QUICK[:2], "--data", shared_tree, "--output", tmp_path / "out", "--from", start)
    assert sanet_here(*arguments, *TWO) == 2
    assert "has attention attached already" in capsys.readouterr().err
    assert sanet_here(*arguments, *TWO, "--attach", "{name: se}") == 2
    assert "chooses what is attached" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def trained_nothing(recipe: Recipe, folder: Path, place, **options) -> SimpleNamespace:
    """Leaves what a run leaves that a comparison reads."""
    files = RunFolder(Path(folder))
    files.begin(recipe, [{"epoch": n + 1, "val_top1": 40.0 + recipe.seed} for n in range(recipe.epochs)], [])
    files.summary.write_text("{}")
    return SimpleNamespace(stop=None)


def results(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def test_the_null_of_shuffle_attention_is_the_same_network_without_the_shuffle():
    base = Recipe(model_args={"channels": [8, 16, 16, 32]})
    variants = variants_of(["none", "se", "shuffle"], 18, [])
    null = null_of(variants, base)
    assert (null.name, null.twin, null.redrawn) == ("shuffle-null", "shuffle", False)
    models = [create_network(each.recipe(base, 0), 4) for each in (variants[2], null)]
    layers = [[m for m in model.modules() if isinstance(m, ShuffleAttention)] for model in models]
    assert [{layer.shuffle for layer in each} for each in layers] == [{True}, {False}]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    # Where the recipe leaves the shuffle out, the null has it.
    without = base.replaced(model_args={"attention_options": {"shuffle": False}})
    assert null_of(variants[2:], without).recipe(without, 0).model_args["attention_options"] == {"shuffle": True}
    attached = base.replaced(attach={"name": "eca"})  # which reads the channels in their order
    assert null_of(variants, attached).twin == "none"


def test_the_null_of_other_networks_has_other_initial_weights():
    base = Recipe()
    null = null_of(variants_of([], 18, ["resnet10t", "resnet18"]), base)
    assert (null.name, null.model, null.twin) == ("resnet10t-null", "resnet10t", "resnet10t")
    assert [null.recipe(base, seed).init_seed for seed in (0, 5)] == [2**31, 2**31 + 5]
    assert null.recipe(base.replaced(init_seed=2**31 + 1), 5).init_seed == 1
    assert null.recipe(base, 5).seed == 5


@pytest.mark.parametrize(
    "changes", [{"initial": "start.pt"}, {"model_args": {"pretrained": True}}], ids=["initial", "pretrained"]
)
def test_a_null_of_trained_weights_is_refused(changes):
    with pytest.raises(InputError, match="random weights"):
        null_of(variants_of(["none", "shuffle"], 18, []), Recipe(**changes))


def scored(monkeypatch, scores: dict[str, list[float]]) -> list[Recipe]:
    """Replace training by these scores, by variant and seed, and return the list of recipes that are "trained"."""
    trained = []

    def train(recipe: Recipe, folder: Path, process, **options) -> SimpleNamespace:
        trained.append(recipe)
        files = RunFolder(Path(folder))
        values = scores[Path(folder).parent.name]
        files.begin(recipe, [{"epoch": n + 1, "val_top1": values[recipe.seed]} for n in range(recipe.epochs)], [])
        files.summary.write_text("{}")
        return SimpleNamespace(stop=None)

    monkeypatch.setattr(comparing, "train", train)
    return trained


def test_every_table_has_what_chance_does(shared_tree, tmp_path, monkeypatch, capsys):
    scores = {"none": [50, 52, 51], "shuffle": [51, 52.5, 53], "se": [50, 52, 50.5], "shuffle-null": [51.5, 52, 53.2]}
    trained = scored(monkeypatch, scores)
    folder = tmp_path / "out"
    arguments = ("compare", *SMALL, "--data", shared_tree, "--output", folder, "--seeds", 3)
    assert sanet_here(*arguments, "--attention", "none,shuffle,se", "--null", "--report") == 0
    options = [recipe.model_args.get("attention_options") for recipe in trained[:4]]
    assert options == [None, None, None, {"shuffle": False}]
    printed = capsys.readouterr().out
    chance = results(folder)["chance"]
    assert (chance["null"], chance["twin"]) == ("shuffle-null", "shuffle")
    assert chance["difference"]["by_seed"] == pytest.approx({"0": 0.5, "1": -0.5, "2": 0.2})
    reach = 3.182446 * math.sqrt((0.25 + 0.25 + 0.04) / 3 / 3)  # Student's with three degrees of freedom
    assert chance["reach"] == pytest.approx(reach)
    page = (folder / "report.html").read_text()
    for text in (printed, page):
        assert "chance: shuffle-null minus shuffle" in text
        assert "…" not in text  # on 80 columns too
        assert f"over 3 seeds by up to {reach:.2f} points in 95 % of comparisons" in text
        assert "with 80 % power" in text
    by_name = {variant["name"]: variant for variant in results(folder)["variants"]}
    low, high = by_name["shuffle"]["simultaneous"]
    assert (low + high) / 2 == pytest.approx(by_name["shuffle"]["difference"]["mean"])
    # Nulls and the baseline are not among what is compared.
    assert by_name["shuffle-null"]["simultaneous"] is by_name["none"]["simultaneous"] is None
    assert (folder / "differences.png").read_bytes().startswith(PNG)
    # The variant that the null belongs to is known without the option, and so is its recipe.
    assert sanet_here("compare", "--output", folder, "--report-only") == 0
    assert results(folder)["chance"] == chance
    assert sanet_here(*arguments, "--attention", "none,shuffle", "--null", "--no-report") == 0
    assert len(trained) == 12


def test_a_plan_says_how_many_seeds_and_hours(shared_tree, tmp_path, monkeypatch, capsys):
    """The deviation of four differences is exactly 0.8, of which 23 seeds detect 0.5."""
    differences = [0.8 * value / math.sqrt(4 / 3) for value in (1, -1, 1, -1)]
    scored(monkeypatch, {"none": [50.0] * 4, "shuffle": [50 + each for each in differences]})
    folder = tmp_path / "out"
    arguments = ("compare", *SMALL, *TWO, "--data", shared_tree, "--output", folder, "--seeds")
    assert sanet_here(*arguments, 1, "--plan", 0.5) == 2
    assert "--plan needs the deviation between seeds" in capsys.readouterr().err
    assert not folder.exists()
    assert sanet_here(*arguments, 4, "--plan", 0.5) == 0
    for path in folder.glob("*/seed-*/summary.json"):
        assert json.loads(path.read_text())["seconds"] > 0
        path.write_text(json.dumps({"seconds": {"none": 900, "shuffle": 2700}[path.parents[1].name]}))
    capsys.readouterr()
    assert sanet_here("compare", "--plan", 0.5, "--output", folder, "--report") == 0  # which trains nothing
    printed, page = capsys.readouterr().out, (folder / "report.html").read_text()
    assert "4 seeds of shuffle are finished, and 19 left to train: 19.0 hours" in printed
    assert "How many seeds" in page
    plan = results(folder)["plan"]
    (row,) = plan["rows"]
    assert (plan["effect"], plan["power"], row["hours_per_seed"]) == (0.5, 0.8, 1.0)
    low, high = (0.8 * math.sqrt(3 / stats.chi2.ppf(p, 3)) for p in (0.975, 0.025))
    assert row["deviation"] == pytest.approx({"value": 0.8, "low": low, "high": high, "freedom": 3})
    assert row["seeds"] == [23, seeds_needed(0.5, low), seeds_needed(0.5, high)]
    assert sanet_here("compare", "--plan", 0.5, "--output", folder, "--report-only", "--seeds", 3) == 2
    assert sanet_here("compare", "--plan", 0, "--output", folder) == 2
    assert "--plan must be above 0" in capsys.readouterr().err


def test_seeds_are_trained_until_a_confidence_sequence_decides(shared_tree, tmp_path, monkeypatch, capsys):
    """``se`` is better after few seeds, ``shuffle`` as good as none; a variant that is decided is left alone."""
    noise = [0.02, -0.01, 0.01, -0.02, 0.015, -0.005, 0.0, 0.01] * 3
    none = [50 + 5 * value for value in noise]  # what a seed does to all of them
    scores = {
        "none": none,
        "shuffle": [a + 10 * b for a, b in zip(none, noise, strict=True)],
        "se": [a + 3 + b for a, b in zip(none, noise, strict=True)],
        "shuffle-null": none,
    }
    trained, folder = scored(monkeypatch, scores), tmp_path / "out"
    arguments = ("compare", *SMALL, "--attention", "none,shuffle,se", "--null", "--data", shared_tree)
    arguments = (*arguments, "--output", folder, "--until", 0.5)
    assert sanet_here(*arguments, "--seeds", 3) == 0
    printed = capsys.readouterr().out
    assert "shuffle: not decided, and there are 3 seeds. The same command with more goes on" in printed
    assert "after 3 seeds" in printed
    assert len(trained) == 12
    assert sanet_here(*arguments, "--budget", 1e-9) == 0
    assert "another seed would exceed 1e-09 hours" in capsys.readouterr().out
    assert sanet_here(*arguments, "--report") == 0
    printed = capsys.readouterr().out
    by_name = {variant["name"]: variant for variant in results(folder)["variants"]}
    counts = {name: len(variant["top1"]) for name, variant in by_name.items()}
    assert counts["se"] < counts["none"] == counts["shuffle"] == counts["shuffle-null"] < 24
    assert [by_name[name]["verdict"] for name in scores] == [None, "small", "better", None]
    for name in ("shuffle", "se"):
        values = [*by_name[name]["difference"]["by_seed"].values()]
        low, high = confidence_sequence(values, 1 - 0.05 / 2)
        assert (by_name[name]["difference"]["low"], by_name[name]["difference"]["high"]) == (low, high)
        # One seed fewer would not have decided it.
        low, high = confidence_sequence(values[:-1], 1 - 0.05 / 2)
        assert low < -0.5 or high > 0.5 if name == "shuffle" else low < 0
    for text in (printed, (folder / "report.html").read_text()):
        assert "below 0.5" in text
        assert "they hold at any number of seeds" in text
        assert "Student" not in text
    before = len(trained)
    assert sanet_here(*arguments) == 0
    assert len(trained) == before
    # Seeds that were chosen by their scores are never given Student's intervals again.
    capsys.readouterr()
    assert sanet_here(*[each for each in arguments if each not in ("--until", 0.5)], "--seeds", 4) == 0
    assert "they hold at any number of seeds" in capsys.readouterr().out


def test_a_control_of_width_takes_as_long_as_the_costliest_attention(shared_tree, tmp_path, monkeypatch, capsys):
    """Time grows with the first channels of a plain network; se takes 1.1 times and cbam 1.5 times as long."""
    timed, factors = [], {"se_resnet18": 1.1, "cbam_resnet18": 1.5}

    def step_times(recipes, comparison, device):
        timed.append([*recipes])
        times = {}
        for name, recipe in recipes.items():
            plain = (sum(recipe.model_args["channels"]) / 48) ** 1.2
            factor = factors.get(recipe.model, 1.0)
            times[name] = Times([factor * plain, 2 * factor * plain])
        return times

    monkeypatch.setattr("shuffle_attention.sanet.compare.control.step_times", step_times)
    scores = {"none": [50, 52], "shuffle": [51, 52.5], "se": [51, 53], "cbam": [53, 54], "none-wide": [54, 57]}
    trained, folder = scored(monkeypatch, scores), tmp_path / "out"
    arguments = ("compare", *SMALL, "--data", shared_tree, "--output", folder, "--seeds", 2, "--control", "width")
    assert sanet_here(*arguments, "--attention", "none,se,cbam", "--report") == 0
    assert trained[3].model_args["channels"] == [11, 11, 22, 22]  # 1.4 times as many take 1.4 ^ 1.2 as long
    assert trained[3].model == "resnet18"
    content = results(folder)
    assert content["control"]["like"] == "cbam"
    by_name = {variant["name"]: variant for variant in content["variants"]}
    wide = 1.375**1.2
    assert [by_name[name]["step"] for name in ("none", "se", "cbam", "none-wide")] == pytest.approx([1, 1.1, 1.5, wide])
    share = 0.1 / (wide - 1)  # of the way from none to none-wide
    expected = {"0": 1 - 4 * share, "1": 1 - 5 * share}
    assert by_name["se"]["over_control"]["by_seed"] == pytest.approx(expected)
    assert by_name["cbam"]["over_control"]["by_seed"] == pytest.approx({"0": -1, "1": -3})
    assert by_name["none"]["over_control"] is by_name["none-wide"]["over_control"] is None
    assert "none-wide has the channels 11, 11, 22, 22" in (folder / "report.html").read_text()
    # The same control goes on, and what is added is timed beside the baseline.
    assert sanet_here(*arguments, "--attention", "none,se,cbam,shuffle") == 0
    assert timed[-1] == ["none", "shuffle"]
    by_name = {variant["name"]: variant for variant in results(folder)["variants"]}
    assert by_name["shuffle"]["over_control"]["by_seed"] == pytest.approx({"0": 1, "1": 0.5})
    assert by_name["none-wide"]["size"]["parameters"] > by_name["none"]["size"]["parameters"]
    # With faster kernels, or on a quieter machine, all are timed again.
    factors["cbam_resnet18"] = 1.2
    assert sanet_here("compare", "--output", folder, "--report-only", "--control", "width") == 0
    assert sorted(timed[-1]) == ["cbam", "none", "none-wide", "se", "shuffle"]
    assert sanet_here("compare", "--output", folder, "--report-only") == 0
    by_name = {variant["name"]: variant for variant in results(folder)["variants"]}
    assert [by_name[name]["step"] for name in ("cbam", "none-wide")] == pytest.approx([1.2, wide])
    assert sanet_here("compare", "--output", folder, "--report-only", "--attention", "none,shuffle") == 0
    capsys.readouterr()
    arguments = (*arguments[:-5], tmp_path / "cheap", *arguments[-4:])
    assert sanet_here(*arguments, "--attention", "none,shuffle") == 0
    assert "none, which is its own control of width" in capsys.readouterr().out
    assert "none-wide" not in [variant["name"] for variant in results(tmp_path / "cheap")["variants"]]


def test_training_steps_are_timed_on_the_models_of_the_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr("shuffle_attention.sanet.compare.control._REPETITIONS", 3)
    base = Recipe(model_args={"channels": [8, 8, 16, 16]}, img_size=16, batch_size=2, channels_last=True)
    comparison = Comparison(variants_of(["none", "shuffle"], 18, []), base, [0], tmp_path, 4)
    recipes = {variant.name: variant.recipe(base, 0) for variant in comparison.variants}
    times = step_times(recipes, comparison, torch.device("cpu"))
    assert all(len(times[name].seconds) == 3 and times[name].median > 0 for name in recipes)


@pytest.mark.parametrize(("given", "seed"), [((), 3), (("--init-seed", 7), 7)])
def test_initial_weights_have_a_seed_of_their_own(shared_tree, tmp_path, monkeypatch, capsys, given, seed):
    def create(*arguments, **options):
        raise InputError(f"created with {torch.initial_seed()}")

    monkeypatch.setattr("shuffle_attention.sanet.tasks.classification.task.create_network", create)
    arguments = ("train", *QUICK, "--seed", 3, "--data", shared_tree, "--output", tmp_path / "run", *given)
    assert sanet_here(*arguments) == 2
    assert f"created with {seed}" in capsys.readouterr().err


def test_a_stop_that_comes_when_a_run_has_ended_stops_the_comparison(shared_tree, tmp_path, monkeypatch, capsys):
    late = []

    def ended(*arguments, **options):
        late.append(arguments)
        trained_nothing(*arguments)
        return SimpleNamespace(stop=signal.SIGTERM)

    monkeypatch.setattr(comparing, "train", ended)
    arguments = ("compare", *SMALL, *TWO, "--data", shared_tree, "--output", tmp_path / "out", "--seeds", 1)
    assert sanet_here(*arguments) == 143
    assert len(late) == 1
    assert "Go on with the same command" in capsys.readouterr().out


def test_metrics_of_runs_that_cannot_be_used_are_named(shared_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparing, "train", trained_nothing)
    folder = tmp_path / "out"
    assert sanet_here("compare", *SMALL, *TWO, "--data", shared_tree, "--output", folder, "--seeds", 2) == 0
    (folder / "none/seed-1-copy").mkdir()
    report = ("compare", "--output", folder, "--report-only")
    assert sanet_here(*report) == 0
    metrics = folder / "none/seed-1/metrics.csv"
    for text, message in [
        ("epoch,val_top1\n1,40\n2,41\n", "has 2 epochs and the comparison 1"),
        ("epoch,val_top1\n1\n", f"{metrics} cannot be read"),
        ("", "has 0 epochs and the comparison 1"),
        (None, f"{metrics} cannot be read"),
    ]:
        metrics.unlink()
        if text is not None:
            metrics.write_text(text)
        assert sanet_here(*report) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert f"delete {metrics.parent}" in printed
    (folder / "comparison.yaml").write_text("recipe: {}\nvariants: {none: 3}\n")
    assert sanet_here(*report) == 2
    assert "does not name what is compared" in capsys.readouterr().err


def test_a_report_needs_no_images(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "train", trained_nothing)
    arguments = ("compare", *SMALL, *TWO, "--data", tree, "--output", tmp_path / "out", "--seeds", 1)
    assert sanet_here(*arguments) == 0
    tree.rename(tmp_path / "elsewhere")
    assert sanet_here("compare", "--output", tmp_path / "out", "--report-only") == 0


def test_what_has_not_begun_may_change_and_what_a_killed_process_left_is_no_hindrance(
    shared_tree, tmp_path, monkeypatch
):
    def failing(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".comparison.yaml.unfinished-x").touch()
    arguments = ("compare", *SMALL, *TWO, "--data", shared_tree, "--output", folder, "--seeds", 1)
    monkeypatch.setattr(comparing, "train", failing)
    assert sanet_here(*arguments, "--lr", 5) == 1
    monkeypatch.setattr(comparing, "train", trained_nothing)
    assert sanet_here(*arguments) == 0


def test_a_second_process_in_the_same_folder_is_refused(shared_tree, tmp_path, monkeypatch, capsys):
    arguments = ("compare", *SMALL, *TWO, "--data", shared_tree, "--output", tmp_path / "out", "--seeds", 1)
    codes = []

    def again(*given, **options):
        codes.append(sanet_here(*arguments))
        return trained_nothing(*given)

    monkeypatch.setattr(comparing, "train", again)
    assert sanet_here(*arguments) == 0
    assert codes == [2, 2]
    assert "another process is working in" in capsys.readouterr().err
