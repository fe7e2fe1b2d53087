"""COCO data: what is read, what is refused and named, what a detector is given, and the digits that need no file."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as published_masks

from detections import ground_truth_results
from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.data.coco_reading import read_coco
from shuffle_attention.sanet.data.formats import read_data, require_data
from shuffle_attention.sanet.data.masks import decode_mask, encode_mask, read_mask
from shuffle_attention.sanet.tasks.detection.coco_scores import coco_scores
from shuffle_attention.sanet.tasks.detection.samples import UNREADABLE, CocoSamples, detection_transform, digits_coco

HEIGHT, WIDTH = 12, 16


def block(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of equal values down the columns, beginning with those outside."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return [0] * int(flat[0]) + np.diff([0, *edges, flat.size]).tolist()


# Two notations of masks, a crowd, an image with nothing on it, a gap between the categories, ids from 0 on.
CONTENT = {
    "info": {"year": 2026},
    "categories": [{"id": 90, "name": "toothbrush", "supercategory": "indoor"}, {"id": 7, "name": "train"}],
    "images": [
        {"id": 0, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 50, "file_name": "inside/b.png", "width": WIDTH, "height": HEIGHT},
        {"id": 9, "file_name": "empty.png"},
    ],
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 90,
            "bbox": [2, 1, 6, 4],
            "area": 24,
            "iscrowd": 0,
            "segmentation": [[2, 1, 5, 1, 5, 5, 2, 5], [5, 1, 8, 1, 8, 5, 5, 5]],
        },
        {
            "id": 3,
            "image_id": 0,
            "category_id": 7,
            "bbox": [0, 0, 16, 12],
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": run_lengths(block(0, 0, 16, 12) - block(2, 2, 8, 8))},
        },
        {
            "id": 4,
            "image_id": 50,
            "category_id": 7,
            "bbox": [3, 2, 5, 6],
            "segmentation": {
                "size": [HEIGHT, WIDTH],
                "counts": published_masks.encode(np.asfortranarray(block(3, 2, 5, 6)))["counts"].decode(),
            },
        },
    ],
}


def write(root: Path, content: dict) -> Path:
    for name in ("a.png", "inside/b.png", "empty.png"):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50)).save(path)
    (root / "boxes.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, CONTENT)


def read(folder: Path, **options) -> CocoData:
    return read_coco(folder / "boxes.json", folder / "images", **options)


@pytest.mark.parametrize("mask", [block(3, 2, 5, 6), block(0, 0, 16, 12), block(15, 11, 1, 1), block(0, 0, 1, 12)])
def test_all_notations_of_a_mask_stand_for_the_same(mask):
    """The strings are pycocotools' own; polygons are tested where their edges are those of pixels."""
    string = encode_mask(mask)
    assert string["counts"] == published_masks.encode(np.asfortranarray(mask))["counts"].decode()
    listed = {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask)}
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = (int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    polygon = [[left, top, right, top, right, bottom, left, bottom]]
    for segmentation in (string, listed, polygon):
        assert read_mask(segmentation, HEIGHT, WIDTH) == (segmentation, "")
        np.testing.assert_array_equal(decode_mask(segmentation, HEIGHT, WIDTH), mask)


def test_long_run_lengths_are_read_from_a_string():
    """Differences of both signs and of several characters."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((300, 200), np.uint8)
        for _ in range(rng.integers(1, 6)):
            y, x = rng.integers(0, 300), rng.integers(0, 200)
            mask[y : y + rng.integers(1, 250), x : x + rng.integers(1, 150)] ^= 1
        if mask.any():
            assert read_mask(encode_mask(mask), 300, 200) == (encode_mask(mask), "")


BROKEN = {
    "no-points": [[1, 1, 2, 2]],
    "odd": [[1, 1, 2, 2, 3, 3, 4]],
    "not-a-number": [[1, 1, 2, float("nan"), 3, 3]],
    "text": [["1", 1, 2, 2, 3, 3]],
    "a-number": 5,
    "size": {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
    "too-long": {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT * WIDTH]},
    "too-short": {"size": [HEIGHT, WIDTH], "counts": [10, 5]},
    "negative": {"size": [HEIGHT, WIDTH], "counts": [-10, HEIGHT * WIDTH + 10]},
    "fractions": {"size": [HEIGHT, WIDTH], "counts": [0.5, HEIGHT * WIDTH - 0.5]},
    "no-counts": {"size": [HEIGHT, WIDTH]},
    "characters": {"size": [HEIGHT, WIDTH], "counts": "äöü"},
    "breaks-off": {"size": [HEIGHT, WIDTH], "counts": encode_mask(block(3, 2, 5, 6))["counts"] + "Z"},
    "cut": {"size": [HEIGHT, WIDTH], "counts": encode_mask(block(3, 2, 5, 6))["counts"][:-2]},
    "empty": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_mask_is_found_before_a_decoder_sees_it(case):
    with pytest.raises(ValueError, match="polygon|run length|mask"):
        read_mask(BROKEN[case], HEIGHT, WIDTH)


def test_everything_that_coco_has_is_read(folder):
    data = read(folder, masks=True)
    assert [image["id"] for image in data.images] == [0, 50, 9]
    assert data.names == ["train", "toothbrush"]
    assert data.labels == {7: 1, 90: 2}
    assert data.num_classes == 3
    assert [found["id"] for found in data.annotations] == [1, 2, 3]
    assert [found["area"] for found in data.annotations] == [24, 16 * 12 - 64, 30]
    assert [found["iscrowd"] for found in data.annotations] == [0, 1, 0]
    assert data.images[2] == {"id": 9, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT}
    assert (len(data.objects(0)), data.objects(2)) == (2, [])


def test_ground_truth_as_detections_is_perfect_with_crowds_and_an_object_of_id_0(folder):
    data = read(folder)
    scores = coco_scores(data, ground_truth_results(data))
    assert {scores["box_AP"], scores["mask_AP"]} == {1.0}
    results = ground_truth_results(data)
    assert {record["category_id"] for record in results} == {7, 90}


def test_what_is_read_can_be_written_and_read_again(tmp_path):
    data = digits_coco("val", 3, size=64)
    data.write(tmp_path, "val")
    again = read_data(require_data(tmp_path, "val"), masks=True)
    assert again.to_dict() == data.to_dict()
    for path, picture in zip(again.files, data.files, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(picture))


def spoil(**changes) -> dict:
    """CONTENT with an annotation, number 8, that differs from a good one as said."""
    content = copy.deepcopy(CONTENT)
    good = {"id": 8, "image_id": 50, "category_id": 7, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
    content["annotations"].append({**good, **changes})
    return content


def spoil_image(**changes) -> dict:
    content = copy.deepcopy(CONTENT)
    content["images"][1].update(changes)
    return content


# What is wrong, how it is named, and how many images and annotations are left without it.
FAULTS = {
    "flat": (spoil(bbox=[1, 1, 3, 0]), "boxes without area (1: annotation 8: [1, 1, 3, 0])", 3, 3),
    "negative": (spoil(bbox=[5, 5, -3, 3]), "boxes without area", 3, 3),
    "nan": (spoil(bbox=[1, 1, float("nan"), 3]), "boxes without area", 3, 3),
    "no-box": (spoil(bbox=None), "boxes without area", 3, 3),
    "outside": (
        spoil(bbox=[16, 2, 3, 3]),
        "boxes outside their image (1: annotation 8: [16, 2, 3, 3] in 16 x 12)",
        3,
        3,
    ),
    "before": (spoil(bbox=[-4, 2, 4, 3]), "boxes outside their image", 3, 3),
    "image": (spoil(image_id=51), "annotations of an unknown image (1: annotation 8, image 51)", 3, 3),
    "category": (spoil(category_id=8), "annotations of an unknown category (1: annotation 8, category 8)", 3, 3),
    "mask": (spoil(segmentation=BROKEN["cut"]), "broken masks (1: annotation 8: run lengths", 3, 3),
    "no-mask": (spoil(segmentation=[]), "annotations without a mask (1: annotation 8)", 3, 3),
    "crowd": (spoil(iscrowd="yes"), "iscrowd is neither 0 nor 1 (1: annotation 8: 'yes')", 3, 3),
    "no-file": (spoil_image(file_name="c.png"), "images without their file (1: c.png)", 2, 2),
    "size": (spoil_image(width=20), "with a size that they do not have (1: inside/b.png: 20 x 12 for 16 x 12)", 2, 2),
    "twice": (spoil_image(id=0), "images with the id of another (1: inside/b.png, id 0)", 2, 2),
    "no-id": (spoil_image(id=None), "images without an id and a file_name", 2, 2),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_is_counted_and_named_or_left_out(case, tmp_path, caplog):
    content, message, images, annotations = FAULTS[case]
    folder = write(tmp_path, content)
    with pytest.raises(DataError) as refused:
        read(folder, masks=True)
    assert message in str(refused.value)
    assert "--skip-bad-images" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        data = read(folder, masks=True, skip_bad=True)
    assert message in caplog.text
    assert (len(data), len(data.annotations)) == (images, annotations)
    samples = CocoSamples(data, masks=True)
    samples.transform = detection_transform(training=True)
    assert all(samples[0, index][0].shape[0] == 3 for index in range(len(samples)))


def test_an_unreadable_picture_is_found_with_its_reason(folder):
    (folder / "images/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images that cannot be read \(1: a.png: empty file\)"):
        read(folder)
    assert len(read(folder, skip_bad=True)) == 2
    assert len(read(folder, check_files=False)) == 3


def test_many_faults_are_counted_by_kind_and_the_first_named(tmp_path):
    content = copy.deepcopy(CONTENT)
    bad = {"image_id": 50, "category_id": 7, "bbox": [0, 0, 0, 0]}
    content["annotations"] += [{**bad, "id": 100 + number} for number in range(5)] + [{**bad, "id": 9, "image_id": 1}]
    with pytest.raises(
        DataError, match=r"boxes without area \(5: .*annotation 102: .* and 2 more\); annotations of an"
    ):
        read(write(tmp_path, content))


def test_an_area_that_is_none_is_counted_from_the_mask_or_the_box(tmp_path):
    for area, segmentation, expected in ((float("nan"), [[1, 1, 4, 1, 4, 3, 1, 3]], 6), ("big", [], 9)):
        data = read(write(tmp_path, spoil(area=area, segmentation=segmentation)))
        assert data.annotations[-1]["area"] == expected


def test_a_box_that_reaches_out_of_its_image_is_said_and_cut(tmp_path, caplog):
    folder = write(tmp_path, spoil(bbox=[12, 8, 10, 10], segmentation=[[12, 8, 16, 8, 16, 12, 12, 12]]))
    data = read(folder)
    assert "boxes reach beyond their image, and are cut at its edge in training (1: " in caplog.text
    samples = CocoSamples(data, masks=False)
    samples.transform = detection_transform(training=False)
    assert samples[1][1]["boxes"].tolist() == [[3, 2, 8, 8], [12, 8, 16, 12]]


NOT_COCO = {
    "no-json": ("{", "cannot be read as JSON"),
    "list": ("[]", "not in COCO's format.*found list"),
    "captions": ('{"images": [], "annotations": []}', "not in COCO's format.*images, annotations, categories"),
    "no-categories": ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
    "no-images": ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "has no images"),
    "nameless": ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "without an id and a name"),
    "same-id": (
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        "two categories of id 1",
    ),
}


@pytest.mark.parametrize("case", NOT_COCO)
def test_other_files_are_refused(case, tmp_path):
    text, message = NOT_COCO[case]
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_validation_has_the_categories_of_training(folder):
    known = [{"id": 7, "name": "train"}, {"id": 80, "name": "toaster"}, {"id": 90, "name": "toothbrush"}]
    assert read(folder, categories=known).labels == {7: 1, 80: 2, 90: 3}
    with pytest.raises(DataError, match=r"does not know: toothbrush \(id 90\); known are train \(id 7\)"):
        read(folder, categories=known[:2])
    with pytest.raises(DataError, match=r"does not know: train \(id 7\)"):
        read(folder, categories=[{"id": 7, "name": "tram"}, known[2]])


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("train2017", "annotations/instances_train2017.json"),
        ("images/train2017", "annotations/instances_train2017.json"),
        ("train2017", "instances_train2017.json"),
        ("train", "train.json"),
        ("train", "annotations/train.json"),
        ("train", "train/_annotations.coco.json"),
        ("training", "annotations/instances_training.json"),
    ],
)
def test_images_and_annotations_are_found(tmp_path, images, annotations):
    for path in (tmp_path / images, (tmp_path / annotations).parent, tmp_path / "train-old", tmp_path / "val"):
        path.mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations).write_text("{}")
    location = require_data(tmp_path, "train")
    assert (location.annotations, location.images) == (tmp_path / annotations, tmp_path / images)
    with pytest.raises(DataError, match="no val images with annotations.*--val-fraction.*it holds"):
        require_data(tmp_path, "val")


def test_two_years_are_not_chosen_between(tmp_path):
    for year in (2014, 2017):
        (tmp_path / f"val{year}").mkdir()
        (tmp_path / f"instances_val{year}.json").write_text("{}")
    with pytest.raises(DataError, match="several folders of val images"):
        require_data(tmp_path, "val")
    with pytest.raises(DataError, match="no folder"):
        require_data(tmp_path / "nothing", "val")


def test_a_target_has_objects_but_no_crowds(folder):
    samples = CocoSamples(read(folder), masks=True)
    samples.transform = detection_transform(training=False)
    image, target = samples[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image.dtype == torch.float32
    assert image[:, 0, 0].tolist() == pytest.approx([200 / 255, 100 / 255, 50 / 255])
    assert {type(value) for value in (image, *target.values())} == {torch.Tensor}
    assert target["boxes"].tolist() == [[2, 1, 8, 5]]
    assert target["labels"].tolist() == [2]
    assert int(target["image_id"]) == 0
    np.testing.assert_array_equal(target["masks"].numpy(), block(2, 1, 6, 4)[None])
    _, nothing = samples[2]
    assert (nothing["boxes"].shape, nothing["labels"].shape) == ((0, 4), (0,))
    assert nothing["masks"].shape == (0, HEIGHT, WIDTH)
    assert len(CocoSamples(read(folder), masks=True, empty=False)) == 2


def test_boxes_and_masks_are_flipped_with_the_image(folder):
    samples = CocoSamples(read(folder), masks=True)
    samples.transform = detection_transform(training=True, hflip=1.0, vflip=1.0)
    _, target = samples[0, 0]
    assert target["boxes"].tolist() == [[8, 7, 14, 11]]
    np.testing.assert_array_equal(target["masks"].numpy(), block(2, 1, 6, 4)[None, ::-1, ::-1])


def test_the_augmentation_is_that_of_epoch_and_image(folder):
    samples = CocoSamples(read(folder), masks=False, seed=5)
    samples.transform = detection_transform(training=True)
    flipped = [samples[epoch, 0][1]["boxes"][0, 0].item() for epoch in range(12)]
    assert set(flipped) == {2, 8}
    torch.manual_seed(1)
    assert flipped == [samples[epoch, 0][1]["boxes"][0, 0].item() for epoch in range(12)]


def test_an_image_that_breaks_later_is_replaced_in_training_and_marked_in_evaluation(folder):
    samples = CocoSamples(read(folder), masks=True)
    samples.transform = detection_transform(training=True, hflip=0)
    (folder / "images/a.png").write_bytes(b"gone")
    image, target = samples[0, 0]
    assert int(target["image_id"]) == 50
    image, target = samples[0]
    assert (int(target["image_id"]), image.abs().sum()) == (UNREADABLE, 0)
    assert samples.failures() == ["a.png"]


def test_masks_are_asked_for_where_they_are(tmp_path):
    content = copy.deepcopy(CONTENT)
    del content["annotations"][0]["segmentation"]
    data = read(write(tmp_path, content))
    assert not data.has_masks
    with pytest.raises(DataError, match="without masks"):
        CocoSamples(data, masks=True)


def test_other_objects_have_another_fingerprint(folder):
    data = read(folder)
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["bbox"][0] = 3
    other = read(write(folder, content))
    prints = [CocoSamples(found, masks=True).fingerprint() for found in (data, read(folder), other)]
    assert prints[0] != prints[1]
    assert prints[1] == prints[2]


def test_the_digits_are_the_same_every_time_and_others_for_another_seed():
    first, again, other = (digits_coco("train", 3, size=96, seed=seed) for seed in (0, 0, 1))
    assert first.to_dict() == again.to_dict()
    assert all(np.array_equal(a, b) for a, b in zip(first.files, again.files, strict=True))
    assert first.annotations != other.annotations


def test_the_digits_have_the_boxes_and_masks_of_their_ink():
    data = digits_coco("val", 12, size=96)
    assert data.names == [str(digit) for digit in range(10)]
    covered = np.zeros((12, 96, 96), int)
    for found in data.annotations:
        mask = decode_mask(found["segmentation"], 96, 96)
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert found["bbox"] == box
        assert found["area"] == mask.sum() >= 20
        covered[found["image_id"] - 1] += mask
    assert covered.max() == 1  # every pixel is of the digit that is seen
    assert 12 <= len(data.annotations) <= 72
    assert all(picture.size == (96, 96) for picture in data.files)
