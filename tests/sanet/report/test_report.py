"""Reports: a page that needs nothing beside it, shows what the network did, and never costs a run that is finished."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from torch import nn
from torch.nn import functional

from conftest import CPU, QUICK, sanet_here, write_tree
from shuffle_attention.errors import DataError
from shuffle_attention.sanet.compare.comparison import read_comparison
from shuffle_attention.sanet.compare.findings import findings
from shuffle_attention.sanet.compare.table import findings_table
from shuffle_attention.sanet.report.html import embedded
from shuffle_attention.sanet.tasks.classification.report import (
    Predictions,
    confused_pairs,
    confusion_section,
    predict,
    scores_by_class,
)
from shuffle_attention.sanet.tasks.detection.samples import digits_coco

NAMES = ("<b>x&y", "'quoted\"", "{{ 7 * 7 }}", "d")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What is on a page, which must close what it opens and ask nothing of anyone."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.images: list[Image.Image] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.table: str | None = None
        self.tables: dict[str | None, list[list[str]]] = {}
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = given.get("id") or given.get("class")
        if tag == "tr":
            self.tables.setdefault(self.table, []).append([])
        if tag in ("td", "th"):
            self.tables[self.table][-1].append("")
        for name in ("src", "href", "srcset", "data", "action"):
            if name not in given:
                continue
            if tag == "a":
                self.links.append(given[name])
                continue
            kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", given[name]).groups()
            with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
                image.load()
                assert image.format == kind.upper()
                self.images.append(image)
        assert not re.search(r"https?:|//", given.get("style", ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert not re.search(r"url\(|@import|https?:", data)
            return
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.table][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def options(data: Path, *more: object) -> tuple[object, ...]:
    return (*(word for word in QUICK if word != "--no-report"), "--epochs", 1, "--data", data, *more)


@pytest.fixture(scope="module")
def oddly_named(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("odd") / "<i>data", 16, NAMES)


@pytest.fixture(scope="module")
def reported(oddly_named, tmp_path_factory) -> Path:
    """The folder of a run whose network has a class more than the data."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    assert sanet_here("train", *options(oddly_named, "--num-classes", 5), "--output", folder) == 0
    return folder


def test_the_report_of_a_run(reported):
    page = Page(reported / "report.html")
    # Names are shown literally: they are neither tags nor templates.
    assert not {"b", "i", "script", "link", "iframe"} & page.tags
    assert all(name in page.text for name in NAMES)
    assert "resnet10t on <i>data" in page.text
    best = json.loads((reported / "summary.json").read_text())["best"]
    assert f"top-1 {best['val_top1']:.2f} %" in page.text
    right = round(32 * best["val_top1"] / 100)
    assert f"The best checkpoint on 32 validation images: {right} right, {32 - right} wrong" in page.text
    assert "weight_decay 0.0005 weight decay" in page.text
    assert torch.__version__ in page.text
    header, *rows = page.tables["matrix"]
    assert header[1:] == [row[0] for row in rows] == [*sorted(NAMES), "class 4"]
    counts = torch.tensor([[int(cell.replace("·", "0")) for cell in row[1:]] for row in rows])
    assert counts.sum(1).tolist() == [8, 8, 8, 8, 0]
    assert 100 * int(counts.diagonal().sum()) / 32 == pytest.approx(best["val_top1"])
    charts, seen = page.images[:2], page.images[2:]
    assert [image.width > 700 for image in charts] == [True, True]
    wrong = 32 - int(counts.diagonal().sum())
    assert wrong > 0
    assert len(seen) == min(12, wrong) * (2 if "the Grad-CAM map" in page.text else 1)
    assert {image.size for image in seen} == {(32, 32)}
    if "the Grad-CAM map" in page.text:  # where its maps have places, which that of the last stage has not
        assert "the Grad-CAM map of the predicted class at layer2" in page.text


def test_written_again_it_is_the_same(reported, oddly_named, tmp_path, capsys):
    before = (reported / "report.html").read_bytes()
    assert len(before) < 1_000_000
    (reported / "report.html").unlink()
    moved = shutil.copytree(oddly_named, tmp_path / "elsewhere")
    assert sanet_here("report", reported, "--device", "cpu", "--data", moved, "--workers", 1) == 0
    assert f"wrote {reported / 'report.html'}" in capsys.readouterr().out
    assert (reported / "report.html").read_bytes() == before


def test_without_torchcam_there_are_the_images_and_how_to_get_overlays(reported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcam", None)
    run = shutil.copytree(reported, tmp_path / "run")
    assert sanet_here("report", run, "--device", "cpu") == 0
    page = Page(run / "report.html")
    assert "pip install 'shuffle-attention[explain]'" in page.text
    assert "There are no Grad-CAM maps: " in page.text
    assert len(page.images) == 2 + page.text.count("· 0")


def test_a_report_that_fails_costs_a_warning_and_nothing_else(oddly_named, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left on the device")

    monkeypatch.setattr("shuffle_attention.sanet.report.run.write_page", full)
    assert sanet_here("train", *options(oddly_named), "--output", tmp_path / "run") == 0
    said = capsys.readouterr()
    assert "(no space left on the device); sanet report" in said.err
    assert "best epoch" in said.out
    assert (tmp_path / "run/summary.json").exists()
    assert not list((tmp_path / "run").glob("*report*"))
    assert sanet_here("report", tmp_path / "run", "--device", "cpu") == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "no JSON", "summary.json cannot be read"),
        ("summary.json", "null", "summary.json holds no summary"),
        ("metrics.csv", "epoch,lr\n", "metrics.csv has no val_top1"),
        ("metrics.csv", "epoch,lr\n1,0.1\n", "metrics.csv has no val_top1"),
    ],
)
def test_figures_that_are_damaged_are_named(reported, tmp_path, capsys, name, content, message):
    run = shutil.copytree(reported, tmp_path / "run")
    (run / name).write_text(content)
    before = (run / "report.html").read_bytes()
    assert sanet_here("report", run, "--device", "cpu") == 2
    assert message in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == before


def test_a_run_without_its_recipe_is_named(reported, tmp_path, capsys):
    run = shutil.copytree(reported, tmp_path / "run")
    (run / "config.yaml").unlink()
    assert sanet_here("report", run, "--device", "cpu") == 2
    assert f"there is no {run / 'config.yaml'}, which has the recipe" in capsys.readouterr().err


def test_there_is_none_where_none_is_wanted(run):
    assert not (run / "report.html").exists()


def random_predictions(classes: int, images: int = 300) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    # The last class has no images, and is still what some are taken for.
    labels = torch.randint(classes - 1, (images,), generator=generator)
    predicted = torch.randint(classes, (images,), generator=generator)
    return Predictions(labels, predicted, classes, [], 0.0, 0)


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_the_figures_of_the_classes_are_those_of_sklearn(classes):
    found = random_predictions(classes)
    truth, taken, every = found.labels, found.predicted, list(range(classes))
    matrix = confusion_matrix(truth, taken, labels=every)
    figures = {figure.name: figure for figure in scores_by_class(found, [str(n) for n in every])}
    scores = {"labels": every, "average": None, "zero_division": 0}
    recall, precision = recall_score(truth, taken, **scores), precision_score(truth, taken, **scores)
    assert [(figures[str(n)].recall or 0) / 100 for n in every] == pytest.approx(list(recall))
    assert [(figures[str(n)].precision or 0) / 100 for n in every] == pytest.approx(list(precision))
    assert figures[str(classes - 1)].recall is None
    for row, column, count in confused_pairs(found):
        assert row != column
        assert matrix[row, column] == count
    assert sum(count for *_, count in confused_pairs(found)) == int(found.wrong.sum())
    section = confusion_section(found, [str(n) for n in every])
    assert section.template == ("classification/pairs" if classes == 40 else "classification/matrix")


def test_the_worst_mistakes_are_those_of_highest_loss():
    generator = torch.Generator().manual_seed(1)
    network = nn.Flatten()  # the images are the logits
    batches = [(torch.randn(9, 5, 1, 1, generator=generator), torch.arange(9) % 6 - 1) for _ in range(5)]
    found = predict(network, batches, CPU, 5, worst=7)
    logits = torch.cat([images for images, _ in batches]).flatten(1)
    labels = torch.cat([labels for _, labels in batches])
    losses = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    mistaken = (logits.argmax(1) != labels) & (labels >= 0)
    expected = losses.masked_fill(~mistaken, -1).argsort(descending=True)[:7]
    assert [mistake.index for mistake in found.mistakes] == expected.tolist()
    for mistake in found.mistakes:
        assert torch.equal(mistake.image, logits[mistake.index][:, None, None])
        assert mistake.loss == pytest.approx(float(losses[mistake.index]))
        assert mistake.predicted == int(logits[mistake.index].argmax()) != mistake.label == int(labels[mistake.index])
        shares = logits[mistake.index].softmax(0)
        assert (mistake.probability, mistake.probability_of_label) == pytest.approx(
            (float(shares.max()), float(shares[mistake.label]))
        )
    assert found.unreadable == int((labels == -1).sum())
    assert found.loss == pytest.approx(float(losses[labels >= 0].mean()))
    with pytest.raises(DataError, match="no image could be evaluated"):
        predict(network, [(torch.randn(2, 5, 1, 1), torch.tensor([-1, -1]))], CPU, 5)


def test_embedded_images_are_bounded():
    for size, expected in (((640, 320), (160, 80)), ((20, 40), (20, 40))):
        content = embedded(Image.new("RGB", size)).split(",")[1]
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == expected


def test_the_report_of_a_comparison_has_its_table_and_leads_to_its_runs(oddly_named, tmp_path, capsys):
    folder = tmp_path / "compared"
    small = ("--no-small-stem", "--model-args", "{channels: [8, 8, 16, 16]}")
    own = [word for word in options(oddly_named, *small) if word not in ("--model", "resnet10t")]
    attentions = ("--attention", "none,shuffle", "--seeds", 1)
    assert sanet_here("compare", *own, *attentions, "--no-report", "--output", folder) == 0
    assert not list(folder.rglob("report.html"))
    assert sanet_here("report", folder, "--runs", "--device", "cpu") == 0
    page = Page(folder / "report.html")
    comparison = read_comparison(folder)
    found = findings(comparison)
    table = findings_table(comparison, found)
    assert table.columns[-1] == "over\nnone"  # one seed has no interval
    assert "Student" not in " ".join(table.notes)
    assert page.tables["findings"] == [[column.replace("\n", "") for column in table.columns], *table.rows]
    assert all(note in page.text for note in table.notes)
    assert page.links == ["none/seed-0/report.html", "shuffle/seed-0/report.html"]
    assert "One seed gives no interval" in page.text
    assert "probability of a horizontal flip" in page.text  # among all settings
    assert len(page.images) == 1
    for link in page.links:
        Page(folder / link)
    # The command that trains asks for it by itself, and changing one's mind is no other comparison.
    (folder / "report.html").unlink()
    assert sanet_here("compare", *own, *attentions, "--output", folder) == 0
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").exists()


def test_the_report_of_a_detector(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        digits_coco(split, count, size=64, digits=(1, 3)).write(tmp_path / "data", split)
    small = [
        *"--recipe digits --backbone resnet10t --min-size 64 --max-size 64 --anchor-sizes 8 16 24 32 48".split(),
        *"--workers 0 --batch-size 2 --epochs 1 --warmup-epochs 0 --device cpu".split(),
    ]
    assert sanet_here("detect", "train", *small, "--data", tmp_path / "data", "--output", tmp_path / "run") == 0
    page = Page(tmp_path / "run/report.html")
    best = json.loads((tmp_path / "run/summary.json").read_text())["best"]
    for kind in ("box", "mask"):
        figures = [best[f"val_{kind}_{name}"] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert [kind, *("-" if value < 0 else f"{value:.3f}" for value in figures)] in page.tables[None]
    # Charts of loss, precision and curves, and of each image the objects and what was detected.
    assert [max(image.size) for image in page.images[3:]] == [512] * 4
    assert "00001.png" in page.text
    for heading in ("Scores by class", "Precision and recall", "Confusion matrix"):
        assert heading in page.text
    matrix = page.tables["matrix"]
    assert (matrix[0][-1], matrix[-1][0]) == ("missed", "background")


def test_what_has_no_report_is_told(reported, shared_tree, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty",), "holds no comparison and no finished run"),
        ((reported, "--runs"), "--runs is for comparisons"),
        ((reported, "--data", shared_tree), "that are not, in the same order, the 5 of"),
    ):
        assert sanet_here("report", *arguments) == 2
        assert message in capsys.readouterr().err
