"""``sanet predict``: rows for images, from files, folders, globs and lists."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import sanet_here
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.data.image_files import expand_sources
from shuffle_attention.sanet.tasks.classification.predictor import restore_network


@pytest.fixture
def photos(shared_tree, tmp_path, monkeypatch) -> Path:
    """A folder with five images, one of them turned by EXIF, and a note, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    source = shared_tree / "val/digit0/000.png"
    for name in ("b.png", "a [1].png", "more/Zürich.png", "more/new\nline.png"):
        shutil.copy(source, folder / name)
    with Image.open(source) as image:
        exif = Image.Exif()
        exif[0x112] = 6
        image.resize((40, 30)).save(folder / "more/turned.jpg", exif=exif)
    (folder / "more/note.txt").write_text("not an image")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_predictions_are_those_of_eval_and_of_the_demo(run, shared_tree, tmp_path):
    assert sanet_here("eval", run / "best.pt", "--workers", 0, "--predictions", tmp_path / "eval.csv") == 0
    output = tmp_path / "rows.csv"
    assert sanet_here("predict", run / "best.pt", shared_tree / "val", "--output", output, "--batch-size", 7) == 0
    expected, predicted = rows((tmp_path / "eval.csv").read_text()), rows(output.read_text())
    assert [row["file"] for row in predicted] == [row["file"] for row in expected]
    assert [row["predicted"] for row in predicted] == [row["predicted"] for row in expected]
    classifier = restore_network(run / "best.pt")
    classifier.model.eval()
    for row, of_eval in zip(predicted[::5], expected[::5], strict=True):
        best = classifier.predict(Image.open(row["file"]).convert("RGB")).best
        assert float(row["probability"]) == pytest.approx(float(of_eval["probability"]), rel=1e-4)
        ranks = [""] + [f"_{rank}" for rank in range(2, 5)]
        assert [row[f"predicted{rank}"] for rank in ranks] == [name for name, _ in best]
        shares = [float(row[f"probability{rank}"]) for rank in ranks]
        assert shares == pytest.approx([share for _, share in best], rel=1e-4, abs=1e-6)


ALL = ["a [1].png", "b.png", "more/Zürich.png", "more/new\nline.png", "more/turned.jpg"]


@pytest.mark.parametrize(
    ("sources", "stdin", "expected"),
    [
        (["photos/b.png", "photos/a [1].png", "./photos/b.png"], b"", ["b.png", "a [1].png", "b.png"]),
        (["photos"], b"", ALL),
        (["photos/*.png"], b"", ALL[:2]),
        (["photos/**"], b"", ALL),
        (["photos/**/*.jpg"], b"", ["more/turned.jpg"]),
        (["-"], "photos/b.png\r\n\nphotos/more/Zürich.png".encode(), ["b.png", "more/Zürich.png"]),
        (["photos/b.png", "-"], b"photos/more/new\nline.png\0photos/b.png\0", ["b.png", "more/new\nline.png", "b.png"]),
        (["-"], b"photos/a [1].png\nphotos/more", ["a [1].png", *ALL[2:]]),
    ],
)
def test_sources_are_expanded_in_order(photos, monkeypatch, sources, stdin, expected):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert [str(path.relative_to("photos")) for path, _ in expand_sources(sources)] == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", "no file or folder missing.png"),
        ("photos/*.gif", "no image matches photos/"),
        ("photos/**/*.txt", "no image matches photos/"),
        ("empty", "empty has no images in it"),
        ("", "no file or folder ''"),
        ("-", "standard input has no paths"),
        ("pipe.png", "neither a file nor a folder"),
    ],
)
def test_sources_without_images_are_refused(photos, monkeypatch, source, message):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    Path("empty").mkdir()
    os.mkfifo("pipe.png")
    with pytest.raises(InputError, match=message.replace("*", ".*")):
        expand_sources([source])


def test_formats_follow_the_suffix_and_files_are_complete(run, photos, capfd):
    assert sanet_here("predict", run / "best.pt", "photos", "--top", 2) == 0
    printed = capfd.readouterr()
    assert [row["file"] for row in rows(printed.out)] == [f"photos/{name}" for name in ALL]
    assert "turned upright by EXIF" in printed.err
    assert "skipped 1 file" in printed.err
    assert sanet_here("predict", run / "best.pt", "photos", "--top", 2, "--output", "rows.jsonl") == 0
    assert sanet_here("predict", run / "best.pt", "photos", "--top", 9, "--output", "rows.txt") == 0
    assert not capfd.readouterr().out
    for line, row in zip(Path("rows.jsonl").read_text().splitlines(), rows(printed.out), strict=True):
        record = json.loads(line)
        assert (record["file"], len(record["predictions"])) == (row["file"], 2)
        best = record["predictions"][0]
        assert best["class"] == best["name"] == row["predicted"] == f"digit{best['index']}"
        assert f"{best['probability']:.6g}" == row["probability"]
    table = Path("rows.txt").read_text()
    assert len(table.splitlines()) <= 11
    assert max(map(len, table.splitlines())) <= 80
    assert "photos/more/new\\nline.png " in table


def test_a_table_shows_long_names_in_full_and_control_characters_escaped(run, photos):
    name = "photos/" + "x" * 90 + "\x1b[31m.png"
    shutil.copy("photos/b.png", name)
    assert sanet_here("predict", run / "best.pt", "photos", "--format", "table", "--output", "rows") == 0
    lines = Path("rows").read_text().splitlines()
    assert name.replace("\x1b", "\\x1b") in lines
    assert "\x1b" not in Path("rows").read_text()


@pytest.mark.parametrize("fault", ["cut off", "bit flipped"])
def test_images_that_cannot_be_read_are_named(run, photos, capfd, fault):
    good = Path("photos/b.png").read_bytes()
    middle = len(good) // 2
    spoilt = good[:middle] if fault == "cut off" else good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]
    Path("photos/b.png").write_bytes(spoilt)
    Path("rows.csv").write_text("before")
    command = ["predict", run / "best.pt", "photos", "--features", "features.npy"]
    assert sanet_here(*command) == 2
    printed = capfd.readouterr()
    assert not printed.out
    assert "photos/b.png (" in printed.err
    assert "--skip-bad-images" in printed.err
    assert sanet_here(*command, "--output", "rows.csv") == 2
    assert Path("rows.csv").read_text() == "before"
    assert not Path("features.npy").exists()
    assert sanet_here(*command, "--output", "rows.csv", "--skip-bad-images") == 0
    assert "left out" in (errors := capfd.readouterr().err)
    assert "photos/b.png (" in errors
    kept = [f"photos/{name}" for name in ALL if name != "b.png"]
    assert [row["file"] for row in rows(Path("rows.csv").read_text())] == kept
    assert np.load("features.npy").shape == (4, 16)
    assert sanet_here("predict", run / "best.pt", "photos/b.png", "--skip-bad-images") == 2


def test_features_are_the_input_of_the_classifier_in_the_order_of_the_rows(run, photos):
    assert sanet_here("predict", run / "best.pt", "photos", "--features", "f.npy", "--batch-size", 2) == 0
    classifier = restore_network(run / "best.pt")
    model = classifier.model.eval()
    expected = []
    with torch.no_grad():
        for path, _ in expand_sources(["photos"]):
            image = classifier.view.transform(Image.open(path).convert("RGB"))[None]
            expected.append(model.forward_head(model.forward_features(image), pre_logits=True)[0])
    vectors = torch.from_numpy(np.load("f.npy"))
    for number in (0, 1, 2, 3):  # the last one has to be turned
        torch.testing.assert_close(vectors[number], expected[number])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "rows.parquet"], "does not end in one of .csv"),
        (["--output", "missing/rows.csv"], "no folder missing"),
        (["--output", "photos", "--format", "csv"], "photos is a folder"),
        (["--output", "photos/b.png", "--format", "csv"], "would overwrite photos/b.png"),
        (["--output", "x.npy", "--format", "csv", "--features", "x.npy"], "the same file"),
        (["--features", "features.pt"], "must end in .npy"),
        (["--top", "0"], "--top must be"),
        (["--img-size", "0"], "img_size must be"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(run, photos, capfd, options, message):
    assert sanet_here("predict", run / "best.pt", "photos", *options) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert not printed.out
    assert Path("photos/b.png").stat().st_size


def test_a_reader_that_stops_ends_the_command(run, photos, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert sanet_here("predict", run / "best.pt", "photos") == 141
