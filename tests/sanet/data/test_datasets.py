"""Folders and named data sets: what is right is read, what is wrong is said before anything is trained."""

import json
import logging
import shutil
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from conftest import CPU, write_tree
from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.datasets import load_digits, open_split, scan_tree
from shuffle_attention.sanet.data.loading import EpochSampler, evaluation_batches, training_batches
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.task import evaluate

NORMALISED = {"mean": [0.5] * 3, "std": [0.5] * 3}


def recipe(data, **fields) -> Recipe:
    return Recipe(**{"data": str(data), "img_size": 32, "batch_size": 16, "workers": 0, **NORMALISED, **fields})


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def test_a_tree_gives_its_classes_in_the_order_of_their_names(tree):
    data = open_split(recipe(tree), "train")
    assert (len(data), data.classes) == (64, ["digit0", "digit1", "digit2", "digit3"])
    assert [label for _, label in data.source] == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16


def test_folders_in_class_folders_belong_to_the_class(tree):
    (tree / "train/digit1/more").mkdir()
    shutil.move(tree / "train/digit1/000.png", tree / "train/digit1/more/000.png")
    assert [label for _, label in scan_tree(tree, "train").images].count(1) == 16


def test_the_digits_are_split_by_class_without_overlap():
    train, names = load_digits("train")
    held_out, other_names = load_digits("val")
    assert (len(train), len(held_out)) == (1437, 360)
    assert not set(names) & set(other_names)
    assert {label for _, label in held_out} == set(range(10))
    image, _ = train[0]
    assert (image.size, image.mode) == ((32, 32), "L")
    assert np.asarray(image).max() > 200


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"no folder .*/data: data is 'digits', a folder"),
        (lambda root: shutil.rmtree(root / "train"), r"has no train/ or training/; it holds val"),
        (lambda root: shutil.rmtree(root / "val"), r"has no val/ or validation/.*; it holds train"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], r"train has no class folders"),
        (lambda root: [p.unlink() for p in root.glob("train/*/*")], r"4 class folders and no images"),
        (lambda root: [p.unlink() for p in root.glob("train/digit2/*")], r"1 of the 4 classes .* digit2"),
        (lambda root: (root / "val/digit1").rename(root / "val/digitX"), r"not trained on: digitX; known are 4"),
    ],
    ids=["no-folder", "no-train", "no-val", "no-classes", "no-images", "empty-class", "other-class"],
)
def test_a_tree_that_cannot_serve_says_why(tree, spoil, message):
    spoil(tree)
    with pytest.raises(DataError, match=message):
        open_split(recipe(tree), "val", open_split(recipe(tree), "train").classes)


def test_classes_without_validation_images_are_counted_aloud(tree, caplog):
    shutil.rmtree(tree / "val/digit3")
    data = open_split(recipe(tree), "val", ["digit0", "digit1", "digit2", "digit3"])
    assert len(data) == 24
    assert "1 of the 4 classes have no images" in caplog.text


def test_broken_images_stop_before_the_first_step_or_are_left_out_aloud(tree, caplog):
    cut(tree / "train/digit1/003.png")
    (tree / "train/digit2/005.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 64 images cannot be read: .*003.png .*005.png \(empty file\).*--skip"):
        open_split(recipe(tree), "train")
    with caplog.at_level(logging.WARNING):
        data = open_split(recipe(tree, skip_bad_images=True), "train")
    assert len(data) == 62
    assert "2 of 64 images cannot be read and are left out" in caplog.text
    assert {data.name(i) for i in range(62)}.isdisjoint({str(tree / "train/digit1/003.png")})


def test_conversions_and_strange_files_are_counted_with_a_name(tree, caplog):
    Image.open(tree / "train/digit0/000.png").convert("L").save(tree / "train/digit0/000.png")
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tree / "train/digit0/001.png")
    Image.open(tree / "train/digit0/002.png").convert("CMYK").save(tree / "train/digit0/002.jpg")
    (tree / "train/digit0/notes.txt").write_text("not an image")
    (tree / "train/digit0/.DS_Store").write_text("not meant to be one")
    open_split(recipe(tree), "train")
    for said in ("1 of 65 images is 16-bit", "1 of 65 images is CMYK", "1 of 65 images is greyscale", "000.png"):
        assert said in caplog.text
    assert "skipped 1 file of other kinds: " in caplog.text
    assert "notes.txt" in caplog.text
    assert ".DS_Store" not in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_in_mid_epoch_is_replaced_and_named(tree, workers):
    settings = recipe(tree, check_images=False, workers=workers)
    data = open_split(settings, "train")
    cut(tree / "train/digit1/003.png")
    batches = training_batches(data, settings, CPU)
    images, labels = zip(*batches.epoch(0), strict=True)
    assert torch.cat(images).shape == (64, 3, 32, 32)
    assert sorted(torch.cat(labels).tolist()) == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16
    assert data.failures() == [str(tree / "train/digit1/003.png")]


def test_in_evaluation_it_is_marked(tree):
    settings = recipe(tree, check_images=False)
    cut(tree / "val/digit1/003.png")
    data = open_split(settings, "val")
    labels = torch.cat([labels for _, labels in evaluation_batches(data, settings, CPU, 5)])
    assert labels.tolist() == [0] * 8 + [1] * 3 + [-1] + [1] * 4 + [2] * 8 + [3] * 8


def all_batches(data, settings, process=CPU, epoch=1, start=0):
    return list(training_batches(data, settings, process).epoch(epoch, start))


def test_pixels_depend_on_seed_epoch_and_image_alone(shared_tree):
    """Any number of workers, a start in the middle of the epoch, and other draws in between change nothing."""
    augmented = {"auto_augment": "rand-m7-mstd0.5-inc1", "color_jitter": 0.3, "random_erasing": 0.5}
    data = open_split(recipe(shared_tree), "train")
    expected = all_batches(data, recipe(shared_tree, **augmented))
    for workers, start in ((0, 0), (2, 0), (2, 2), (0, 3)):
        torch.manual_seed(workers + start)
        found = all_batches(data, recipe(shared_tree, workers=workers, **augmented), start=start)
        assert len(found) == 4 - start
        for (images, labels), (wanted, wanted_labels) in zip(found, expected[start:], strict=True):
            assert torch.equal(images, wanted)
            assert torch.equal(labels, wanted_labels)
    other_epoch = all_batches(data, recipe(shared_tree, **augmented), epoch=2)
    assert not torch.equal(other_epoch[0][0], expected[0][0])
    data.seed = 1
    assert not torch.equal(all_batches(data, recipe(shared_tree, seed=1, **augmented))[0][0], expected[0][0])


def test_loading_leaves_the_generators_of_the_run_alone(shared_tree):
    data = open_split(recipe(shared_tree), "train")
    torch.manual_seed(0)
    all_batches(data, recipe(shared_tree, color_jitter=0.4))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


def test_processes_share_out_the_batches_of_one():
    whole = list(EpochSampler(103, 12, 8))
    parts = [list(EpochSampler(103, 12, 8, rank=rank, world=3)) for rank in range(3)]
    assert len(whole) == 8
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(index for share in shares for index in share)
        assert {len(share) for share in shares} == {4}
    flat = [index for batch in whole for _, index in batch]
    assert len(set(flat)) == 96


def test_batches_that_cannot_be_dealt_out_are_refused(shared_tree):
    data = open_split(recipe(shared_tree), "train")
    with pytest.raises(DataError, match="processes x grad_accum = 2 x 3, got 16"):
        training_batches(data, recipe(shared_tree, grad_accum=3), Process(torch.device("cpu"), 0, 2))
    with pytest.raises(DataError, match="batch_size 65 exceeds the 64 training images"):
        training_batches(data, recipe(shared_tree, batch_size=65), CPU)
    with pytest.raises(DataError, match="even batch on each process, got 1"):
        training_batches(data, recipe(shared_tree, batch_size=16, grad_accum=16, mixup=0.2), CPU)


def test_grey_input(shared_tree):
    settings = recipe(shared_tree, in_chans=1, mean=[0.5], std=[0.5])
    images, _ = next(iter(evaluation_batches(open_split(settings, "val"), settings, CPU, 4)))
    assert images.shape == (4, 1, 32, 32)


# webdataset leaves the shards it reads to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_shards(tmp_path):
    """timm's wds/ reader: real images in a tar, with the number of images said in the split."""
    images, _ = load_digits("train")
    with tarfile.open(tmp_path / "digits-0.tar", "w") as shard:
        for number, (image, label) in enumerate(images[:32]):
            exif = Image.Exif()
            exif[0x0112] = 6
            image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(
                tmp_path / "image.jpg", exif=exif, quality=95
            )
            (tmp_path / "label.cls").write_text(str(label))
            shard.add(tmp_path / "image.jpg", f"{number:04}.jpg")
            shard.add(tmp_path / "label.cls", f"{number:04}.cls")
    (tmp_path / "_info.json").write_text(json.dumps({}))
    split = "digits-0.tar|32"
    settings = recipe("wds/digits", data_dir=str(tmp_path), train_split=split, val_split=split, num_classes=10)
    batches = training_batches(open_split(settings, "train"), settings, CPU)
    assert batches.steps == 2
    assert [images.shape[0] for images, _ in batches.epoch(0)] == [16, 16]
    pixels, labels = map(
        torch.cat, zip(*evaluation_batches(open_split(settings, "val"), settings, CPU, 8), strict=True)
    )
    assert sorted(labels.tolist()) == sorted(label for _, label in images[:32])
    upright = np.asarray(images[0][0].resize((37, 37)), np.float32)[2:34, 2:34] / 127.5 - 1
    assert np.abs(pixels[0, 0].numpy() - upright).mean() < 0.1  # turned by its EXIF data
    stored = settings.replaced(as_stored=True)
    pixels, _ = next(iter(evaluation_batches(open_split(stored, "val"), stored, CPU, 8)))
    assert np.abs(pixels[0, 0].numpy() - upright).mean() > 0.3
    # An image that the reader passes over is missed, because the number of images is known.
    more = settings.replaced(val_split="digits-0.tar|33")
    model = timm.create_model("resnet10t", num_classes=10)
    scores = evaluate(model, evaluation_batches(open_split(more, "val"), more, CPU, 8), CPU)
    assert (scores.images, scores.unreadable) == (32, 1)


def test_hugging_face_by_name(tmp_path, shared_tree):
    """timm's hfds/ reader on a local data set: bytes decoded by us, classes by their names."""
    settings = recipe(f"hfds/{shared_tree}", data_dir=str(tmp_path))
    data = open_split(settings, "train")
    assert (len(data), data.classes) == (64, ["digit0", "digit1", "digit2", "digit3"])
    labels = torch.cat([labels for _, labels in evaluation_batches(open_split(settings, "val"), settings, CPU, 8)])
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8


def test_torchvision_by_name(tmp_path):
    write_tree(tmp_path, 4, ("digit0", "digit1"))
    data = open_split(recipe("torch/image_folder", data_dir=str(tmp_path), train_split="train"), "train")
    assert (len(data), data.classes) == (8, ["digit0", "digit1"])
    deep = np.full((32, 32), 40_000, np.uint16)  # torchvision clips it to 255
    Image.fromarray(deep).save(tmp_path / "train/digit0/000.png")
    data.transform = np.asarray
    assert data[0][0].max() == 40_000 >> 8
    assert data.name(0).endswith("digit0/000.png")
    with pytest.raises(DataError, match=r"torch/cifar10, split 'train', cannot be opened in .*not found"):
        open_split(recipe("torch/cifar10", data_dir=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"wds/x, split 'train', cannot be opened"):
        open_split(recipe("wds/x", data_dir=str(tmp_path)), "train")
