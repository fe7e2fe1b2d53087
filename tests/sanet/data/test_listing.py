"""Class folders as people have them: which images are taken, with which labels, and how they are divided."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import QUICK, sanet_here
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.datasets import open_split
from shuffle_attention.sanet.data.image_files import find_images
from shuffle_attention.sanet.data.listing import class_order, scan_tree
from shuffle_attention.sanet.recipes.recipe import Recipe, load_recipe
from shuffle_attention.sanet.tasks.classification.predictor import Classifier
from shuffle_attention.sanet.tasks.classification.task import Classification


def write_classes(root: Path, **counts: int) -> Path:
    """Write ``root/CLASS/n.png`` for each class, grey images of different values."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for value in range(count):
            Image.new("L", (8, 8), 20 * number + value).save(root / name / f"{value}.png")
    return root


def recipe(data: object, **fields: object) -> Recipe:
    options = {"data": str(data), "img_size": 32, "batch_size": 4, "workers": 0, "model": "resnet10t"}
    return Recipe(**{**options, **fields})  # pyright: ignore[reportArgumentType]


def names(tree) -> set[str]:
    return {"/".join(Path(path).parts[-2:]) for path, _ in tree.images}


def test_a_folder_without_split_is_divided_by_class(tmp_path):
    root = write_classes(tmp_path, cat=10, dog=5, owl=2)
    train, val = (scan_tree(root, split, val_fraction=0.2) for split in ("train", "val"))
    assert Counter(label for _, label in val.images) == {0: 2, 1: 1, 2: 1}
    assert names(train).isdisjoint(names(val))
    assert len(names(train) | names(val)) == 17
    assert train.digest == val.digest
    assert names(scan_tree(root, "val", val_fraction=0.2, split_seed=1)) != names(val)


def test_the_draw_depends_on_names_alone(tmp_path):
    """The folder may move; and few images change part when others come."""
    root = write_classes(tmp_path / "a", cat=40, dog=40)
    drawn = scan_tree(root, "val", val_fraction=0.25)
    moved = shutil.copytree(root, tmp_path / "b")
    assert names(scan_tree(moved, "val", val_fraction=0.25)) == names(drawn)
    assert scan_tree(moved, "val", val_fraction=0.25).digest == drawn.digest
    for number in range(4):
        shutil.copy(moved / "cat/0.png", moved / f"cat/new{number}.png")
    more = scan_tree(moved, "val", val_fraction=0.25)
    assert 0 < len(names(more) ^ names(drawn)) <= 8
    assert more.digest != drawn.digest


def test_an_only_image_is_trained_on_and_reported(tmp_path, caplog):
    root = write_classes(tmp_path, cat=4, dog=1)
    assert names(scan_tree(root, "train", val_fraction=0.5)) >= {"dog/0.png"}
    scan_tree(root, "val", val_fraction=0.5)
    assert "1 of the 2 classes have no images in the validation images drawn from" in caplog.text


def test_classes_of_one_image_each_cannot_be_divided(tmp_path):
    root = write_classes(tmp_path, cat=1, dog=1)
    with pytest.raises(DataError, match="there are none, since no class has two images"):
        scan_tree(root, "val", val_fraction=0.5)


def test_splits_may_have_capitals_and_classes_the_names_of_splits(tmp_path):
    for split, count in (("Train", 3), ("Test", 2)):
        write_classes(tmp_path / "a" / split, cat=count, dog=count)
    assert [len(scan_tree(tmp_path / "a", split).images) for split in ("train", "val")] == [6, 4]
    root = write_classes(tmp_path / "b", Bus=4, Train=4)
    assert scan_tree(root, "val", val_fraction=0.25).classes == ["Bus", "Train"]


def test_a_folder_above_the_splits_is_not_a_class(tmp_path):
    for split in ("train", "val"):
        write_classes(tmp_path / "data" / split, cat=1, dog=1)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"it holds data: --data .*data has them"):
            scan_tree(tmp_path, split)


def test_a_train_folder_alone_can_be_divided(tmp_path):
    write_classes(tmp_path / "train", cat=4, dog=4)
    assert len(scan_tree(tmp_path, "val", val_fraction=0.25).images) == 2


@pytest.mark.parametrize(
    ("layout", "fraction", "message"),
    [
        ({"cat": 2, "dog": 2}, None, r"has no train/ .*holds cat, dog; --val-fraction 0.2 evaluates on a fifth"),
        ({"train/cat": 2, "train/dog": 2}, None, r"has no val/ .*--val-fraction 0.2 .*/train$"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 1}, 0.2, r"has val/ already"),
        ({"all/train/cat": 2, "all/val/cat": 2}, None, r"holds all: --data .*/all has them"),
        ({"cat": 3}, 0.2, r"single class folder, cat, and a classifier needs two or more$"),
        ({"images/cat": 3, "images/dog": 3}, 0.2, r"single class folder, images.* the folders cat, dog: if these"),
    ],
)
def test_folders_that_cannot_be_divided_say_what_would_work(tmp_path, layout, fraction, message):
    write_classes(tmp_path, **layout)
    if "has no val/" in message:
        scan_tree(tmp_path, "train", val_fraction=fraction)
    with pytest.raises(DataError, match=message):
        scan_tree(tmp_path, "val" if "has no val/" in message else "train", val_fraction=fraction)


def test_classes_a_level_deeper_are_mentioned(tmp_path, caplog):
    write_classes(tmp_path / "train", **{"site1/cat": 1, "site1/dog": 1, "site2/cat": 1, "site2/dog": 1})
    assert scan_tree(tmp_path, "train").classes == ["site1", "site2"]
    assert "the classes are site1, site2, not cat, dog, which are folders in each of them" in caplog.text


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"]),
        (["001", "010", "002"], ["001", "002", "010"]),
        (["10", "9", "other"], ["10", "9", "other"]),
        (["class10", "class9"], ["class10", "class9"]),
    ],
)
def test_numbers_are_ordered_by_value(given, order):
    assert class_order(given) == order


def test_runs_keep_the_order_of_classes_that_they_have_recorded(tmp_path):
    """Version 0.1 sorted the names of numeric classes as text: 0, 1, 10, 2."""
    for split in ("train", "val"):
        write_classes(tmp_path / split, **{str(number): 1 for number in (0, 1, 2, 10)})
    task = Classification.open(recipe(tmp_path), check=False)
    assert task.classes == ["0", "1", "2", "10"]
    recorded = ["0", "1", "10", "2"]
    task.keep_classes(recorded)
    assert task.classes == task.training.classes == recorded
    for samples in (task.training, task.validation):
        assert all(recorded[label] == Path(path).parent.name for path, label in samples.source)
    before = task.training.fingerprint()
    task.keep_classes(["0", "1"])  # other classes: the run refuses them itself
    assert (task.classes, task.training.fingerprint()) == (recorded, before)
    assert open_split(recipe(tmp_path), "val", recorded).classes == recorded


@pytest.mark.parametrize("named", [True, False])
def test_folders_that_number_the_classes_of_a_published_model(tmp_path, caplog, named):
    """ImageNetV2 has the folders 0 to 999, whose images had the labels of 0, 1, 10, 100 and so on."""
    write_classes(tmp_path, **{str(number): int(number in (2, 10, 999)) for number in range(1000)})
    classes = [f"n{number:08}" for number in range(1000)] if named else None
    parts = {"model": torch.nn.Identity(), "recipe": recipe(tmp_path), "source": "model.pt", "label": "model"}
    task = Classification.open_validation(Classifier(classes=classes, num_classes=1000, **parts))
    assert {Path(path).parent.name: label for path, label in task.validation.source} == {"2": 2, "10": 10, "999": 999}
    assert "model.pt does not name its classes, and those of" in caplog.text
    assert "in the order of text (0, 1, 10, 100 and 996 more)" in caplog.text


LITTER = {
    "macos": ["train/cat/._0.png", "train/__MACOSX/cat/._0.png", "train/cat/.DS_Store"],
    "jupyter": ["train/cat/.ipynb_checkpoints/0-checkpoint.png", "train/.ipynb_checkpoints/a.png"],
    "windows": ["train/cat/Thumbs.db", "train/desktop.ini", "train/$RECYCLE.BIN/a.png"],
    "others": ["train/lost+found/a.png", "train/cat/@eaDir/0.png", "train/.git/a.png"],
}


@pytest.mark.parametrize("system", LITTER)
def test_what_systems_leave_behind_is_skipped_and_counted_once(tmp_path, caplog, system):
    write_classes(tmp_path / "train", cat=3, dog=3)
    for name in LITTER[system]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7Mac OS X")
    tree = scan_tree(tmp_path, "train")
    assert (tree.classes, len(tree.images)) == (["cat", "dog"], 6)
    images = sum(name.endswith("png") for name in LITTER[system])
    assert f"skipped {images} hidden or system file" in caplog.text
    assert len(caplog.records) == 1
    assert len(find_images([tmp_path / "train"])) == 6


def test_links_are_followed_once_and_never_back(tmp_path, caplog):
    write_classes(tmp_path / "train", cat=2, dog=3)
    (tmp_path / "train/cat/back").symlink_to("..")
    (tmp_path / "train/cat/itself").symlink_to(".")
    (tmp_path / "train/owl").symlink_to(write_classes(tmp_path / "elsewhere", more=1))
    tree = scan_tree(tmp_path, "train")
    assert [tree.classes[label] for _, label in tree.images] == ["cat"] * 2 + ["dog"] * 3 + ["owl"]
    assert "skipped 2 hidden or system files and folders" in caplog.text


def test_pipes_and_dangling_links_stop_the_check_and_do_not_hang(tmp_path):
    write_classes(tmp_path / "train", cat=2, dog=2)
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    (tmp_path / "train/cat/gone.png").symlink_to("nowhere.png")
    message = r"2 of 6 .*cannot be read: .*gone.png \(No such file or directory\), .*pipe.png \(not a regular file\)"
    with pytest.raises(DataError, match=message):
        open_split(recipe(tmp_path), "train")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_classes(tmp_path / "train", cat=2, dog=2)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"the folder .*dog cannot be read: Permission denied"):
        scan_tree(tmp_path, "train")


def test_names_that_are_not_valid_text(tmp_path):
    write_classes(tmp_path / "train", cat=2, dog=2)
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "train/cat" / name)
    data = open_split(recipe(tmp_path), "train")
    assert len(data) == 5
    assert sum("caf\ufffd.png" in data.name(index) for index in range(5)) == 1
    (tmp_path / "train/dog").rename(tmp_path / "train" / os.fsdecode(b"\xe9"))
    with pytest.raises(DataError, match=r"names are not valid text: '\\udce9'; rename them"):
        scan_tree(tmp_path, "train")


def test_the_embedded_digits_are_not_taken_for_a_folder_of_that_name_silently(tmp_path, monkeypatch, caplog):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        open_split(Recipe(), split)
    assert caplog.text.count("the embedded digits, and not the folder of that name: that is ./digits") == 1


def test_a_run_on_a_divided_folder_evaluates_and_goes_on_with_its_own_images(tmp_path, capsys):
    root, run = write_classes(tmp_path / "data", cat=12, dog=12), tmp_path / "run"
    options = [*QUICK, "--batch-size", 8, "--epochs", 1]
    assert sanet_here("train", *options, "--data", root, "--val-fraction", 0.25, "--output", run) == 0
    content = read_checkpoint(run / "best.pt")
    assert content["recipe"]["val_fraction"] == 0.25
    assert content["recipe"]["drawn"] == scan_tree(root, "val", val_fraction=0.25).digest
    moved = root.rename(tmp_path / "moved")
    results = tmp_path / "results.json"
    assert sanet_here("eval", run / "best.pt", "--data", moved, "--workers", 0, "--json", results) == 0
    assert '"images": 6' in results.read_text()
    assert sanet_here("train", "--resume", run, "--data", moved, "--epochs", 2) == 0
    Path(scan_tree(moved, "val", val_fraction=0.25).images[0][0]).unlink()
    capsys.readouterr()
    for command in (["eval", run / "best.pt", "--data", moved], ["train", "--resume", run, "--epochs", 3]):
        assert sanet_here(*command, "--workers", 0) == 2
        assert "are not those that the run divided" in capsys.readouterr().err
    whole = ["--data", moved, "--val-fraction", 0, "--workers", 0, "--json", results]
    assert sanet_here("eval", run / "best.pt", *whole) == 0
    assert '"images": 23' in results.read_text()
    assert load_recipe(run / "config.yaml").drawn == ""  # another run divides what it finds
