"""``sanet explain`` as it is met: pictures, arrays, tables, and errors that list what would work."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from conftest import sanet_here, write_tree
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.data.image_files import find_images
from shuffle_attention.sanet.explain.models import open_models
from shuffle_attention.sanet.explain.overlays import Overlay, blended
from shuffle_attention.sanet.tasks.predictor import class_index, readable

pytest.importorskip("torchcam", reason="torchcam, which needs Python 3.11")


@pytest.fixture(scope="module")
def val(shared_tree) -> Path:
    return shared_tree / "val"


def explained(*arguments: object) -> int:
    return sanet_here("explain", *arguments, "--device", "cpu")


def test_one_network_gives_an_overlay_an_array_and_the_figures(run, val, tmp_path, capsys):
    out = tmp_path / "out"
    assert explained(val, "--limit", 3, "--checkpoint", run / "best.pt", "--batch-size", 2, "--output", out) == 0
    content = json.loads((out / "explanations.json").read_text())
    assert content["method"] == "gradcam"
    assert content["networks"] == [{"label": "sa_resnet18", "source": str(run / "best.pt")}]
    assert {"torch", "timm", "torchcam", "machine"} <= content.keys()
    assert [image["name"] for image in content["images"]] == ["digit0-000", "digit1-002", "digit2-005"]
    assert [image["labelled"] for image in content["images"]] == ["digit0", "digit1", "digit2"]
    (subject,) = open_models([run / "best.pt"])
    for image in content["images"]:
        (found,) = image["networks"]
        raw = np.load(out / found["map"])
        assert raw.dtype == np.float32
        assert list(raw.shape) == found["map_shape"] == [1, 1]
        picture = np.asarray(Image.open(out / found["overlay"]).convert("RGB"))
        assert picture.shape[1] > 600
        with torch.no_grad():
            seen = subject.view.tensor(find_images([image["file"]])[0])[None]
            probabilities = subject.model(seen).softmax(1)[0]
        assert found["class"] == found["predicted"] == int(probabilities.argmax())
        assert found["probability"] == pytest.approx(probabilities.max().item(), abs=1e-5)
    assert len(list(out.iterdir())) == 7
    assert "wrote 3 maps to" in capsys.readouterr().out


def test_several_networks_stand_side_by_side(run, val, tmp_path, capsys, monkeypatch):
    """A row for each image, on pages; folders for the networks; the named class is explained."""
    monkeypatch.setattr("shuffle_attention.sanet.explain.maps.PER_PAGE", 2)
    out = tmp_path / "out"
    sources = (run / "best.pt", run / "last.pt", "test_resnet")
    asked = ("--limit", 3, "--labels", "best,last,timm's", "--layer", "stage2", "--target", 3, "--method", "layercam")
    assert explained(val, "--compare", *sources, *asked, "--img-size", 64, "--output", out) == 0
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["best", "last", "timm's"]
    assert all(len(list((out / folder).glob("*.npy"))) == 3 for folder in folders)
    tall, short = (Image.open(io.BytesIO((out / f"comparison-{page}.png").read_bytes())).size for page in (1, 2))
    assert tall[0] == short[0]
    assert 1.5 * short[1] < tall[1] < 2 * short[1]
    first = json.loads((out / "explanations.json").read_text())["images"][0]["networks"]
    assert [(found["network"], found["class"], found["layer"], found["map_shape"]) for found in first] == [
        ("best", 3, "layer2", [8, 8]),
        ("last", 3, "layer2", [8, 8]),
        ("timm's", 3, "layer2", [8, 8]),
    ]
    assert first[0]["class_name"] == "digit3"
    said = capsys.readouterr().out
    assert "comparison-2.png" in said


def test_a_map_is_blended_over_the_image_where_there_is_evidence():
    """More evidence is redder and hides more; a map without evidence hides nothing."""
    pixels, share = torch.full((4, 6, 3), 0.5), torch.zeros(4, 6)
    assert (np.asarray(blended(Overlay(pixels, share, "a", 0.5))) == 128).all()
    share[0, 0], share[1, 1] = 1, 0.5
    over = Overlay(pixels, share, "a name of rather many letters", 0.123)
    colours = np.asarray(blended(over)).astype(int)
    assert colours.shape == (4, 6, 3)
    assert colours[0, 0, 0] > colours[0, 0, 1:].max() + 40
    assert abs(colours[3, 3] - 128).max() < abs(colours[0, 0] - 128).max()
    assert over.title() == "a name of rather many l…  12.3 %"
    empty = Overlay(pixels, torch.zeros(4, 6), "a", 0.5, "b")
    assert empty.title() == "a  50.0 %\npredicted: b; no evidence at any position"


def test_gates_are_drawn_and_written(run, val, tmp_path):
    out = tmp_path / "out"
    assert explained(val / "digit0/000.png", "--checkpoint", run / "best.pt", "--gates", "--output", out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"000-gates.png", "000-spatial.png", "000-groups.png", "000-gates.npz", "gates.json", "shuffle.png"}
    content = json.loads((out / "gates.json").read_text())
    layers = content["images"][0]["layers"]
    assert len(layers) == 8
    with np.load(out / "000-gates.npz") as arrays:
        values = arrays[layers[0]["layer"]]
    assert values[0::2].astype(float).mean() == pytest.approx(layers[0]["channel_gates"]["mean"], abs=1e-3)
    assert values[1::2].astype(float).mean() == pytest.approx(layers[0]["spatial_gates"]["mean"], abs=1e-3)
    sent = content["destinations"]["sa_resnet18"]["layer1.0.sa"]
    assert sorted(sent) == list(range(8))
    assert sent[:3] == [0, 2, 4]
    assert set(content["images"][0]["groups"]["classes"]) <= {"digit0", "digit1", "digit2", "digit3"}


def test_scores_are_a_table_and_files(run, val, tmp_path, capsys):
    out = tmp_path / "out"
    networks = ("--compare", run / "best.pt", run / "last.pt", "--labels", "best,last")
    assert explained(val, "--limit", 4, *networks, "--scores", "--steps", 4, "--output", out) == 0
    said = capsys.readouterr().out
    for word in ("deletion ↓", "insertion ↑", "drop % ↓", "increase % ↑", "less best [95 %]", "±"):
        assert word in said
    content = json.loads((out / "scores.json").read_text())
    assert {"cpu", "torch", "timm", "torchcam", "commit"} <= content["machine"].keys()
    assert content["settings"]["steps"] == 4
    best, last = content["scores"]
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert len(rows) == 8
    deletions = [float(row["deletion"]) for row in rows if row["network"] == "best"]
    assert best["deletion"]["mean"] == pytest.approx(np.mean(deletions))
    assert best["deletion"]["deviation"] == pytest.approx(np.std(deletions, ddof=1))
    differences = [float(row["deletion"]) for row in rows if row["network"] == "last"]
    gap = np.mean(differences) - np.mean(deletions)
    assert last["deletion"]["to_the_first"]["mean"] == pytest.approx(gap, abs=1e-9)
    assert "pointing" not in best


def test_the_pointing_game_is_played_where_there_are_boxes(run, val, tmp_path, capsys):
    out = tmp_path / "out"
    folder = tmp_path / "images"
    shutil.copytree(val, folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))[:3]
    annotations = {
        "images": [{"id": n, "file_name": str(file)} for n, file in enumerate(files)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 32, 32]} for n in range(2)],
        "categories": [{"id": 1, "name": "digit0"}, {"id": 2, "name": "letter"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(annotations))
    asked = ("--limit", 32, "--scores", "--steps", 2, "--boxes", tmp_path / "boxes.json", "--method", "layercam")
    stage = ("--layer", "stage2")  # the last one has a single place, which points nowhere
    assert explained(folder, "--checkpoint", run / "best.pt", *asked, *stage, "--output", out) == 0
    (found,) = json.loads((out / "scores.json").read_text())["scores"]
    assert (found["images"], found["pointing"]["count"]) == (32, 2)
    assert found["pointing"]["mean"] == 100  # the box is the whole image
    assert "pointing % ↑" in capsys.readouterr().out


@pytest.fixture
def odd(tmp_path, val) -> Path:
    """A folder of files that are no images, or not whole ones."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "note.txt").write_text("no image")
    (folder / "named.png").write_text("no image either")
    whole = (val / "digit0/000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-40])
    (folder / "empty").mkdir()
    (folder / "one.png").write_bytes(whole)
    return folder


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ("note.txt", [], "note.txt (not an image)"),
        ("named.png", [], "named.png (not an image)"),
        ("cut.png", [], "1 of 1 images cannot be read"),
        ("empty", [], "has no images in it (.jpg"),
        ("nowhere.png", [], "no file or folder"),
        ("one.png", ["--target", "digit7"], "no class 'digit7'; did you mean digit"),
        ("one.png", ["--target", "4"], "there are the numbers 0 to 3 and the names digit0, digit1"),
        ("one.png", ["--layer", "layer5"], "no layer of SAResNet 'layer5'; did you mean layer"),
        ("one.png", ["--layer", "fc"], "stage4 (layer4) would do"),
        ("one.png", ["--method", "group", "--layer", "stage9"], "there are layer1.0.sa"),
        ("one.png", ["--gates", "--layer", "layer1"], "no shuffle attention 'layer1'; there are layer1.0.sa"),
        (
            "one.png",
            ["--gates", "--layer", "layer1.0.sa", "--channels", "0"],
            "has no spatial gates for the channels 0",
        ),
        ("one.png", ["--channels", "1"], "--channels goes with --gates and --layer"),
        ("one.png", ["--boxes", "x.json"], "--boxes goes with --scores and one folder"),
        ("one.png", ["--limit", "0"], "--limit must be at least 1"),
        ("one.png", ["--tolerance", "-1"], "--tolerance must be at least 0, got -1"),
        ("one.png", ["--labels", "a,b"], "one for each of 1 networks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(run, odd, capsys, images, more, message):
    out = odd.parent / "out"
    assert explained(odd / images, "--checkpoint", run / "best.pt", "--output", out, *more) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not out.exists()


def test_a_layer_that_one_of_the_networks_lacks_leaves_nothing_behind(run, val, tmp_path, capsys):
    networks = ("--compare", run / "best.pt", "test_convnext")
    asked = ("--layer", "layer1.0.sa", "--img-size", 32, "--output", tmp_path / "out")
    assert explained(val / "digit0/000.png", *networks, *asked) == 2
    assert "no layer of ConvNeXt 'layer1.0.sa'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_are_named_and_outputs_are_folders(val, tmp_path, capsys):
    image = val / "digit0/000.png"
    assert explained(image, "--model", "sa_resnet", "--output", tmp_path / "out") == 2
    assert "no model 'sa_resnet'; a checkpoint is given with --checkpoint" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert explained(image, "--model", "test_resnet", "--output", tmp_path / "file") == 2
    assert "that is a file; name a folder" in capsys.readouterr().err
    assert explained(image, "--model", "test_resnet", "--output", tmp_path / "file" / "inside") == 2
    assert "file cannot be written to" in capsys.readouterr().err
    assert explained(image, "--model", "test_resnet", "--gates", "--output", tmp_path / "out") == 2
    assert "test_resnet has no shuffle attention" in capsys.readouterr().err


def test_bare_weights_are_of_the_model_that_is_named(run, val, tmp_path, capsys):
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    torch.save(weights, tmp_path / "bare.pt")
    arguments = (val / "digit0/000.png", "--checkpoint", tmp_path / "bare.pt", "--output", tmp_path / "out")
    assert explained(*arguments) == 2
    assert "name the model with --model" in capsys.readouterr().err
    assert explained(*arguments, "--model", "test_resnet") == 0
    assert explained(*arguments[:1]) == 2
    assert "name a model: --checkpoint FILE" in capsys.readouterr().err
    assert explained(*arguments[:1], "--compare", run / "best.pt", "--model", "test_resnet") == 2
    assert "--model cannot be given with it" in capsys.readouterr().err


def test_a_side_that_the_network_does_not_take_is_said(val, tmp_path, capsys):
    asked = ("--model", "vit_tiny_patch16_224", "--img-size", 48, "--output", tmp_path / "out")
    for job in ([], ["--scores"]):
        assert explained(val / "digit0/000.png", *asked, *job) == 2
        assert "vit_tiny_patch16_224 cannot be used with --img-size 48: Input" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_large_images_are_refused_before_they_are_decoded(run, val, tmp_path, monkeypatch, capsys):
    """By their header: between the limit of Pillow and twice it, where it only warns, and above, where it raises."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # more than the 292 x 292 of an overlay
    small, middle, huge = tmp_path / "small.png", tmp_path / "middle.png", tmp_path / "huge.png"
    for path, side in ((small, 300), (middle, 400), (huge, 500)):
        Image.new("RGB", (side, side)).save(path)
    arguments = ("--checkpoint", run / "best.pt", "--output", tmp_path / "out")
    assert explained(middle, *arguments) == 2
    assert "400 x 400 pixels are more than 100,000; make it smaller first" in capsys.readouterr().err
    assert explained(huge, *arguments) == 2
    assert "more than 200,000 pixels; make it smaller first" in capsys.readouterr().err
    assert explained(small, middle, *arguments) == 2
    assert "1 of 2 images" in capsys.readouterr().err
    assert explained(small, *arguments) == 0


def test_images_are_found_with_names_of_their_own(tmp_path):
    write_tree(tmp_path / "tree", 4, ("a", "b"))
    (tmp_path / "tree/val/a/.hidden.png").touch()
    (tmp_path / "tree/val/a/note.txt").touch()
    whole = find_images([tmp_path / "tree/val"])
    assert [picture.name for picture in whole] == ["a-000", "a-001", "b-000", "b-001"]
    files = [tmp_path / f"tree/{split}/a/000.png" for split in ("train", "val")]
    assert [picture.name for picture in find_images([*files, files[0]])] == ["000", "000-2", "000-3"]
    shutil.copy(files[0], tmp_path / "000-2.png")
    assert len({picture.name for picture in find_images([*files, tmp_path / "000-2.png"])}) == 3
    assert [picture.name for picture in find_images([tmp_path / "tree/val"], 2)] == ["a-000", "b-000"]


def test_what_cannot_be_read_is_left_out_if_that_is_asked_for(run, val, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(val / "digit0/000.png", images / "good.png")
    (images / "bad.png").write_text("no image")
    arguments = ("--checkpoint", run / "best.pt", "--output", tmp_path / "out")
    assert explained(images, *arguments) == 2
    assert "1 of 2 images cannot be read" in capsys.readouterr().err
    assert explained(images, *arguments, "--skip-bad-images") == 0
    assert f"and are left out: {images}/bad.png (not an image)" in capsys.readouterr().err
    written = json.loads((tmp_path / "out/explanations.json").read_text())
    assert [image["name"] for image in written["images"]] == ["good"]
    assert explained(images / "bad.png", *arguments, "--skip-bad-images") == 2
    assert capsys.readouterr().err.endswith("bad.png (not an image)\n")


def test_results_take_no_images_place(run, val, tmp_path, capsys, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(val / "digit0/000.png", images / "one.png")
    before = (images / "one.png").read_bytes()
    network = ("--checkpoint", run / "best.pt")
    for source, output in ((images, images), (images / "one.png", images), (images, images / "inside")):
        assert explained(source, *network, "--output", output) == 2
        assert f"--output {output} lies among the images of {source}" in capsys.readouterr().err
    two = ("--compare", run / "best.pt", run / "last.pt", "--labels", "images,other")
    assert explained(images / "one.png", *two, "--output", tmp_path) == 2
    assert [path.name for path in images.iterdir()] == ["one.png"]
    assert (images / "one.png").read_bytes() == before


def test_names_are_text_and_no_mathematics(run, val, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in (b"$\\frac$", b"\xff", b"x" * 230, "東".encode()):
        shutil.copy(val / "digit0/000.png", os.fsencode(images) + b"/" + name + b".png")
    out = tmp_path / "out"
    two = ("--compare", run / "best.pt", run / "last.pt", "--labels", "$x_$,..")
    assert explained(images, *two, "--output", out) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["$x_$", "network"]
    assert len(list((out / "network").glob("*.npy"))) == 4
    assert explained(images, *two, "--scores", "--steps", 2, "--output", out) == 0
    assert explained(images, *two, "--gates", "--layer", "layer1.0.sa", "--limit", 1, "--output", out) == 0
    assert "Glyph" not in capsys.readouterr().err
    same = ("--compare", run / "best.pt", run / "best.pt", "--limit", 1, "--output", tmp_path / "same")
    assert explained(images, *same) == 0
    assert len(list((tmp_path / "same").glob("*/*.npy"))) == 2


def test_images_that_break_in_the_middle_are_found_before_anything_is_written(run, val, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(val / "digit0/000.png", images / "a.png")
    content = bytearray((val / "digit0/000.png").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"\0" * 8
    (images / "b.png").write_bytes(content)
    network = ("--checkpoint", run / "best.pt", "--output", tmp_path / "out")
    assert explained(images, *network) == 2
    assert "1 of 2 images cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert explained(images, *network, "--skip-bad-images") == 0


def test_linked_folders_are_searched_once(val, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/linked").symlink_to(val / "digit0")
    (tmp_path / "tree/around").symlink_to(tmp_path / "tree")
    assert len(find_images([tmp_path / "tree"])) == len(list((val / "digit0").iterdir()))


def test_channels_are_asked_of_all_networks_before_anything_is_written(run, val, tmp_path, capsys):
    asked = ("--gates", "--layer", "layer1.0.sa", "--channels", 199, "--output", tmp_path / "out")
    assert explained(val / "digit0/000.png", "--compare", "sa_resnet50", run / "best.pt", *asked) == 2
    assert "no spatial gates for the channels 199 of 8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_are_known_by_number_name_and_word():
    synsets = ["n01440764", "n02102040", "n02979186"]
    assert readable(synsets, 3) == ["tench", "English springer", "cassette player"]
    assert [class_index(asked, synsets, 3) for asked in ("2", "n02102040", "Tench", "english springer")] == [2, 1, 0, 1]
    assert readable(None, 2) == ["class 0", "class 1"]
    assert readable(["cat", "dog"], 2) == ["cat", "dog"]
    assert readable(["cat"], 2) == ["cat", "class 1"]
    for asked in ("1" * 5000, "2"):
        with pytest.raises(InputError, match="numbers 0 to 1"):
            class_index(asked, ["cat", "dog"], 2)
    with pytest.raises(InputError, match="no class '1'"):
        class_index("1", ["cat", "dog"], 2, numbers=False)
    # Digits are classes called "3", whatever their number.
    assert class_index("3", ["3", "5", "7", "9"], 4) == 0
    with pytest.raises(InputError, match="no class 'springer'; did you mean English springer"):
        class_index("springer", synsets, 3)
    from timm.data import ImageNetInfo

    words = readable(ImageNetInfo().label_names(), 1000)
    assert len(set(words)) == 1000
    assert "crane (n02012849)" in words


def test_labels_tell_networks_apart(run):
    best, last = run / "best.pt", run / "last.pt"
    assert [s.label for s in open_models([best, "test_resnet"])] == ["sa_resnet18", "test_resnet"]
    assert [s.label for s in open_models([best, last])] == [str(best), str(last)]
