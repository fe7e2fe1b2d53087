"""COCO files as annotation tools write them, and files that would take time, memory or files of others."""

import copy
import json
import logging
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from shuffle_attention.errors import DataError
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.data.coco_reading import read_coco

WIDTH, HEIGHT = 16, 12
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
PLAIN = {
    "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 6], "area": 30, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cell"}],
}


def changed(annotation: dict | None = None, image: dict | None = None, **parts) -> dict:
    """Return PLAIN with some fields of its first annotation and image, and some parts, replaced."""
    content = copy.deepcopy(PLAIN)
    content["annotations"][0] |= annotation or {}
    content["images"][0] |= image or {}
    return content | parts


def read(folder: Path, content: object, **options) -> CocoData:
    (folder / "images/inside").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "inside/b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / name)
    (folder / "boxes.json").write_text(json.dumps(content))
    return read_coco(folder / "boxes.json", folder / "images", **options)


# CVAT: boxes have an empty segmentation, attributes and ids from 1; the file of a task without splits is "default".
CVAT = changed(
    {"segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}},
    {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
    licenses=[{"name": "", "id": 0, "url": ""}],
    info={"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
    categories=[{"id": 1, "name": "cell", "supercategory": ""}],
)
# Label Studio: categories from 0, names with the folder of its media, and "ignore".
LABEL_STUDIO = changed({"category_id": 0, "segmentation": [], "ignore": 0}, {"file_name": "images\\a.png"})
LABEL_STUDIO["annotations"][1]["category_id"] = 0
LABEL_STUDIO["categories"] = [{"id": 0, "name": "cell"}]
LABEL_STUDIO_LOCAL = changed(image={"file_name": "../../label-studio/data/media/upload/1/a.png"})
LABEL_STUDIO_ADDRESS = changed(image={"file_name": "http://localhost:8080/data/local-files/?d=upload%2F1/a.png"})
# VIA: ids of images as text, polygons as one list of numbers.
VIA = changed({"image_id": "1", "segmentation": SQUARE}, {"id": "1", "license": 1, "coco_url": "", "flickr_url": ""})
# labelme2coco: paths of the machine where it ran, categories from 0.
LABELME = changed({"segmentation": [SQUARE]}, {"file_name": "/home/somebody/project/a.png"})
# LIVECell: annotations indexed by their ids, images in folders of their own.
LIVECELL = changed(
    image={"file_name": "b.png", "original_filename": "b_1.png", "url": "http://example.org/livecell/b.png"},
    annotations={str(each["id"]): each for each in changed({"segmentation": [SQUARE]})["annotations"]},
)
# Roboflow: a category 0 for the project, of which no object is.
ROBOFLOW = changed(
    {"segmentation": []},
    {"date_captured": "2026-01-01T00:00:00+00:00", "extra": {"name": "photo.png"}},
    categories=[
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cell", "supercategory": "cells"},
    ],
)
# pandas: whole numbers become floats where a column has a gap, lists become text, missing values NaN.
PANDAS = changed(
    {"id": 1.0, "image_id": 1.0, "category_id": 1.0, "bbox": "[1.0, 1, 3, 3]", "area": float("nan")},
    {"id": 1.0, "width": 16.0, "height": 12.0},
)
PANDAS["annotations"][0] |= {"iscrowd": float("nan"), "segmentation": float("nan")}
# Tables with text only, as from CSV.
TEXT = changed(
    {"image_id": "1", "category_id": "1", "bbox": ["1", "1", "3.0", "3"], "area": "9.0", "iscrowd": "0"},
    {"width": "16", "height": "12"},
)
UUID = changed({"image_id": "6b1c-a"}, {"id": "6b1c-a"})
UUID["annotations"][1]["image_id"] = "6b1c-a"
MISSING = changed()
for field in ("id", "area", "iscrowd"):
    del MISSING["annotations"][0][field]

EXPORTS = {
    "cvat": (CVAT, ""),
    "label-studio": (LABEL_STUDIO, "file names with another folder, found by the end of their path (1: "),
    "label-studio-local": (LABEL_STUDIO_LOCAL, "file names with another folder, found by the end of their path (1: "),
    "label-studio-address": (
        LABEL_STUDIO_ADDRESS,
        "file names with another folder, found by the end of their path (1: ",
    ),
    "via": (
        VIA,
        "polygons that were not in a list (1: annotation 1); ids written as text or with a fraction (1: annotation 1)",
    ),
    "labelme": (LABELME, "file names with another folder, found by the end of their path (1: "),
    "livecell": (LIVECELL, "lists indexed by the ids of their records (1: annotations); file names without their"),
    "roboflow": (ROBOFLOW, "categories that only group others, which are left out (1: cells)"),
    "pandas": (PANDAS, "boxes written as text (1: annotation 1.0)"),
    "text": (TEXT, "values of iscrowd written as text (1: "),
    "uuid": (UUID, "ids of images that are text or negative"),
    "missing": (MISSING, ""),
    "same-ids": (changed({"id": 2}), ""),
    "byte-order-mark": (PLAIN, ""),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_tools_export_is_read_and_corrections_are_counted(name, tmp_path, caplog):
    content, warning = EXPORTS[name]
    with caplog.at_level(logging.WARNING):
        data = read(tmp_path, content)
        if name == "byte-order-mark":
            (tmp_path / "boxes.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
            data = read_coco(tmp_path / "boxes.json", tmp_path / "images")
    assert [each["bbox"] for each in data.annotations] == [[1, 1, 3, 3], [2, 2, 5, 6]]
    assert [each["area"] for each in data.annotations] == [9, 30]
    assert [each["iscrowd"] for each in data.annotations] == [0, 0]
    assert data.names == ["cell"]
    assert [type(each["id"]) for each in (*data.images, *data.annotations, *data.categories)] == [int] * 4
    assert len(data.objects(0)) == 2
    assert os.path.isfile(str(data.files[0]))
    assert warning in caplog.text
    assert len(caplog.records) == bool(warning)


# Segmentations that are no mask for boxes, and what becomes of them where masks are wanted: a mask, or an error.
SEGMENTATIONS = {
    "none": (None, "without a mask"),
    "empty": ([], "without a mask"),
    "empty-part": ([[]], "without a mask"),
    "nan": (float("nan"), "without a mask"),
    "box": ([[1, 1, 3, 3]], "fewer than three points"),
    "flat": (SQUARE, [SQUARE]),
    "points": ([[[1, 1], [4, 1], [4, 4], [1, 4]]], [SQUARE]),
    "flat-points": ([[1, 1], [4, 1], [4, 4], [1, 4]], [SQUARE]),
    "indexed": ({"0": SQUARE}, [SQUARE]),
    "text": (str([SQUARE]), [SQUARE]),
    "with-a-line": ([SQUARE, [1, 1, 3, 3], []], [SQUARE]),
    "counts": ({"size": [12.0, 16.0], "counts": [13.0, 3.0, 176.0]}, {"size": [12, 16], "counts": [13, 3, 176]}),
    "word": ("masked", "broken masks"),
    "far": ([[1, 1, 1e8, 1, 4, 4]], "far outside the image"),
    "huge": ([[1, 1, 10**400, 1, 4, 4]], "far outside the image"),
    "huge-nan": ([[float("nan"), 1, 10**400, 1, 4, 4]], "far outside the image"),
    "huge-counts": ({"size": [12, 16], "counts": [10**400, 3, 176]}, "run lengths"),
    "long-counts": ({"size": [12, 16], "counts": "P" * 1_000_000}, "run lengths"),
    "long-number": ({"size": [12, 16], "counts": "o" * 1_000_000 + "0"}, "more than 7 characters"),
    "surrogate": ({"size": [12, 16], "counts": "\ud800"}, "run lengths"),
    "nested": ("[" * 100_000, "broken masks"),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_any_segmentation_does_for_boxes_and_a_certain_one_for_masks(name, tmp_path):
    segmentation, expected = SEGMENTATIONS[name]
    content = changed({"segmentation": segmentation})
    content["annotations"][1]["segmentation"] = [SQUARE]
    began = time.monotonic()
    data = read(tmp_path, content)
    assert [each["bbox"] for each in data.annotations] == [[1, 1, 3, 3], [2, 2, 5, 6]]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"{expected}.*annotation 1|annotation 1.*{expected}") as refused:
            read(tmp_path, content, masks=True)
        assert ("--arch faster_rcnn" in str(refused.value)) == (expected == "without a mask")
        assert len(str(refused.value)) < 2000
    else:
        assert read(tmp_path, content, masks=True).annotations[0]["segmentation"] == expected
    assert time.monotonic() - began < 5


HUGE = 10**400
REFUSED = {
    "box": (changed({"bbox": [1, 1, HUGE, 3]}), "boxes without area .1: annotation 1: "),
    "box-nan": (changed({"bbox": [1, 1, float("nan"), 3]}), "boxes without area"),
    "box-words": (changed({"bbox": "one two three four"}), "boxes without area"),
    "box-far": (changed({"bbox": [1, 1, 1e9, 3]}), "boxes that reach far beyond"),
    "image-id": (changed(image={"id": 10**300}), "images without an id"),
    "ids": (changed({"image_id": HUGE}), "of an unknown image"),
    "fraction": (changed({"image_id": 1.5}), "of an unknown image"),
    "true": (changed({"category_id": True}), "of an unknown category"),
    "list-id": (changed({"image_id": [1]}), "of an unknown image"),
    "size": (changed(image={"width": HUGE}), None),
    "area": (changed({"area": HUGE}), None),
    "category-id": (changed(categories=[{"id": HUGE, "name": "a"}]), "without an id and a name"),
    "long-name": (changed(categories=[{"id": 1, "name": "a" * 10**6}]), "a name of 1000000|1000000 characters"),
    "long-file": (changed(image={"file_name": "a" * 10**6}), "without their file"),
    "parent": (changed(image={"file_name": "../secret.png"}), "images outside their folder"),
    "deep-parent": (changed(image={"file_name": "inside/../../secret.png"}), "images outside their folder"),
    "absolute": (changed(image={"file_name": "/etc/secret.png"}), "images outside their folder"),
    "null-byte": (changed(image={"file_name": "a.png\0.jpg"}), "without their file"),
    "broken-address": (changed(image={"file_name": "http://[/b?"}), "without their file"),
    "columns": (changed(annotations={"id": {"0": 1}, "image_id": {"0": 1}}), "columns of a table"),
    "fractions-of-images": (
        changed(annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.1, 0.5, 0.5]}]),
        "boxes between 0 and 1",
    ),
    "tasks": ([{"id": 1, "data": {"image": "a.png"}, "annotations": [], "predictions": []}], "export of Label Studio"),
    "via-project": ({"_via_settings": {}, "_via_img_metadata": {}}, "project of VIA"),
    "labelme": ({"version": "5.0", "shapes": [], "imagePath": "a.png"}, "file of labelme"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_uncertain_is_refused_in_few_words(name, tmp_path):
    content, message = REFUSED[name]
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    if message is None:  # a value that is not needed is replaced
        assert [each["area"] for each in read(tmp_path, content).annotations] == [9, 30]
        return
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path, content)
    assert len(str(refused.value)) < 2000


def test_names_that_fit_several_files_are_refused(tmp_path):
    (tmp_path / "images/other").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/other/b.png")
    with pytest.raises(DataError, match=r"could be one of several files \(1: b.png\)"):
        read(tmp_path, changed(image={"file_name": "b.png"}))
    content = changed(image={"file_name": "/one/a.png"})
    content["images"].append({"id": 2, "file_name": "/two/a.png"})
    with pytest.raises(DataError, match=r"the same file as another \(1: /two/a.png, as /one/a.png\)"):
        read(tmp_path, content)


def test_boxes_and_pixels_agree_on_photographs_that_exif_data_turn(tmp_path, caplog):
    """Upright sizes are right, stored ones are refused; where sizes cannot tell, the photograph is turned and named."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("tall", (HEIGHT, WIDTH)), ("wide", (WIDTH, HEIGHT)), ("square", (WIDTH, WIDTH))):
        (tmp_path / name / "images").mkdir(parents=True)
        stored = WIDTH if name == "square" else HEIGHT
        Image.new("RGB", (WIDTH, stored)).save(tmp_path / name / "images/p.jpg", exif=exif)
        content = changed(image={"file_name": "p.jpg", "width": size[0], "height": size[1]})
        if name == "wide":
            with pytest.raises(
                DataError, match=r"EXIF data turn them, which --as-stored .* \(1: p.jpg: 16 x 12 for 12 x 16"
            ):
                read(tmp_path / name, content)
            as_stored = read(tmp_path / name, content, reading={"mode": "RGB", "as_stored": True})
            assert as_stored.images[0]["width"] == WIDTH
        else:
            assert read(tmp_path / name, content).images[0]["height"] == size[1]
            assert (
                "images turned upright by EXIF data, whose boxes are taken for those of the upright image (1: "
                in caplog.text
            ) == (name == "square")


def test_boxes_that_cvat_turned_are_read_as_the_boxes_around_them(tmp_path, caplog):
    data = read(tmp_path, changed({"bbox": [2, 4, 8, 4], "attributes": {"rotation": 90.0}, "segmentation": []}))
    assert data.annotations[0]["bbox"] == pytest.approx([4, 2, 4, 8])
    assert "boxes that CVAT turned, in place of which are the upright boxes around them (1: " in caplog.text


def test_boxes_that_are_corners_are_suspected(tmp_path, caplog):
    read(tmp_path, changed({"bbox": [6, 6, 15, 11]}, annotations=[{**PLAIN["annotations"][0], "bbox": [8, 6, 15, 11]}]))
    assert "are they x1, y1, x2, y2" in caplog.text
