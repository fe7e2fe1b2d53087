"""Read COCO annotations; everything that cannot be used is counted and named before training starts."""

import gc
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError, listed
from .coco import CocoData
from .coco_images import read_images
from .masks import mask_area, read_mask
from .records import SHOWN, Tally, key_of, number_of, numbered, text_of

__all__ = ["checked", "read_coco", "read_json"]
logger = logging.getLogger(__name__)
_LONGEST_NAME = 200
_BEYOND = "boxes reach beyond their image, and are cut at its edge in training"
_PARTS = ("images", "annotations", "categories")
_OTHERS = {  # files of annotation tools that are taken for COCO's, by a key
    "_via_img_metadata": "a project of VIA; export it with Annotation > Export Annotations (COCO format)",
    "shapes": "a file of labelme; convert its folder with labelme2coco",
    "predictions": "an export of Label Studio; export it again as COCO or YOLO",
}


class _Unusable(Exception):
    """An annotation that cannot be used: the kind of fault and its detail."""


def read_coco(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    masks: bool = False,
    categories: Sequence[dict[str, Any]] | None = None,
    skip_bad: bool = False,
    check_files: bool = True,
    reading: Mapping[str, Any] | None = None,
) -> CocoData:
    """Return the images of a folder with the objects of an annotation file.

    Args:
        annotations: JSON file in COCO's format for instances.
        images: Folder that the file names are relative to.
        masks: Whether every object must have a mask. Otherwise masks that cannot be used are left out.
        categories: Categories that a detector knows; the file must not have others.
        skip_bad: Whether to leave out unusable records with a warning, an image together with its objects.
        check_files: Whether to open every image, which finds files that are cut off or have another size.
        reading: How images are read: arguments of ``read_image``. Sizes and boxes relate to images so read.

    Raises:
        DataError: If the file is not in COCO's format, or has unusable records and ``skip_bad`` is not set.
    """
    content = read_json(Path(annotations))
    options: Any = {"masks": masks, "categories": categories, "skip_bad": skip_bad, "check_files": check_files}
    return checked(content, Path(images), str(annotations), reading=reading, **options)


def checked(
    content: Mapping[str, Any],
    folder: Path,
    source: str,
    *,
    masks: bool = False,
    categories: Sequence[dict[str, Any]] | None = None,
    skip_bad: bool = False,
    check_files: bool = True,
    reading: Mapping[str, Any] | None = None,
    corrections: Tally | None = None,
    faults: Tally | None = None,
) -> CocoData:
    """Return images and objects in COCO's layout after every record has been checked.

    Args:
        content: ``images``, ``annotations`` and ``categories`` as JSON has them.
        folder: Folder of the images; files outside it are not read.
        source: What the content was read from, for messages.
        masks: As in :func:`read_coco`, like the other options.
        categories: Categories that a detector knows.
        skip_bad: Whether to leave out unusable records.
        check_files: Whether to open every image.
        reading: How images are read.
        corrections: What was corrected so far.
        faults: What could not be used so far.

    Raises:
        DataError: If records cannot be used and ``skip_bad`` is not set.
    """
    faults, corrections = faults or Tally(), corrections or Tally()
    records = {part: _records(content, part, source, corrections) for part in _PARTS}
    known, category_ids = _categories(records, source, categories, faults, corrections)
    kept_images, files, image_ids = read_images(records["images"], folder, check_files, reading, faults, corrections)
    sizes = {image["id"]: (image["width"], image["height"]) for image in kept_images}
    kept = _annotations(records["annotations"], image_ids, sizes, category_ids, masks, faults, corrections)
    if faults and not skip_bad:
        hint = ""
        if "annotations without a mask" in faults.counts:
            hint = "; boxes without masks train --arch faster_rcnn, retinanet or fcos"
        raise DataError(
            f"{source} cannot be used as it is: {faults}; repair or remove them, or leave them out with "
            f"--skip-bad-images{hint}"
        )
    if not kept_images:
        raise DataError(f"{source} has no images that can be used{f': {faults}' if faults else ''}")
    if faults:
        logger.warning("%s: left out are %s", source, faults)
    if corrections:
        logger.warning("%s: corrected are %s", source, corrections)
    if kept and all(max(each["bbox"][0] + each["bbox"][2], each["bbox"][1] + each["bbox"][3]) <= 1 for each in kept):
        raise DataError(f"{source} has boxes between 0 and 1, as YOLO's; COCO's are x, y, width and height in pixels")
    return CocoData(kept_images, files, kept, known, source)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file in COCO's format, of which only the three parts are checked.

    Raises:
        DataError: If it is not in COCO's format.
    """
    gc.disable()  # its passes over millions of numbers would take a third of the time
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    finally:
        gc.enable()
    if isinstance(content, dict) and all(isinstance(content.get(part), list | dict) for part in _PARTS):
        return content
    first = content[0] if isinstance(content, list) and content else content
    keys = first.keys() if isinstance(first, dict) else set()
    there = listed([text_of(key) for key in keys], 8) if isinstance(content, dict) else type(content).__name__
    other = next((f"; it is {what}" for key, what in _OTHERS.items() if key in keys), "")
    expected = f"expected the lists {', '.join(_PARTS)}; found {there}"
    raise DataError(f"{path} is not in COCO's format: {expected}{other}")


def _records(content: Mapping[str, Any], part: str, source: str, corrections: Tally) -> list[Any]:
    """Return the records of a part, which may be indexed by their ids."""
    records = content[part]
    if isinstance(records, list):
        return records
    if records.keys() & {"id", "image_id", "file_name", "name"}:
        raise DataError(f"{source} has {part} as columns of a table; write records, in pandas orient='records'")
    corrections.add("lists indexed by the ids of their records", part)
    return [{"id": key, **each} if isinstance(each, dict) else each for key, each in records.items()]


def _categories(
    records: Mapping[str, list[Any]],
    source: str,
    known: Sequence[dict[str, Any]] | None,
    faults: Tally,
    corrections: Tally,
) -> tuple[list[dict[str, Any]], dict[int | str, int]]:
    """Return the categories by id, the known ones if there are no others, and the number of each id."""
    names: dict[int | str, str] = {}
    parents: dict[str, str] = {}
    for category in records["categories"]:
        key = key_of(category.get("id")) if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if key is None or not isinstance(name, str | int | float) or isinstance(name, bool) or name == "":
            raise DataError(f"{source} has a category without an id and a name: {text_of(category)}")
        if len(str(name)) > _LONGEST_NAME:
            raise DataError(f"{source} has a category whose name has {len(str(name))} characters: {text_of(name)}")
        if key in names:
            raise DataError(f"{source} has two categories of id {text_of(key)}")
        names[key] = str(name)
        if key not in (0, "0") or category.get("supercategory") not in (None, "", "none"):
            parents.setdefault(str(category.get("supercategory")), names[key])
    # Roboflow lists the name of the project as a category 0 of which no object is, and which all others belong to.
    if len(names) > 1 and names.get(0) in parents and parents[names[0]] != names[0]:
        used = any(isinstance(each, dict) and key_of(each.get("category_id")) == 0 for each in records["annotations"])
        if not used:
            corrections.add("categories that only group others, which are left out", names.pop(0))
    if not names and known is None:
        raise DataError(f"{source} has no categories{f': {faults}' if faults else ''}")
    numbers = numbered(list(names), "categories", corrections)
    found = {numbers[key]: name for key, name in names.items()}
    if len({*found.values()}) < len(found):
        twice = listed([name for name, count in Counter(found.values()).items() if count > 1])
        logger.warning("%s has several categories of the same name, which stay apart: %s", source, twice)
    if known is None:
        return [{"id": number, "name": name} for number, name in sorted(found.items())], numbers
    known_names = {category["id"]: category["name"] for category in known}
    others = [f"{name} (id {number})" for number, name in found.items() if known_names.get(number) != name]
    if others:
        there = listed([f"{name} (id {number})" for number, name in known_names.items()], SHOWN)
        raise DataError(
            f"{source} has categories that the detector does not know: {listed(others, SHOWN)}; known are {there}"
        )
    return list(known), numbers


def _annotations(
    records: list[Any],
    images: Mapping[Any, int | None],
    sizes: Mapping[int, tuple[int, int]],
    categories: Mapping[Any, int],
    masks: bool,
    faults: Tally,
    corrections: Tally,
) -> list[dict[str, Any]]:
    """Return the usable annotations, numbered from 1."""
    kept: list[dict[str, Any]] = []
    beyond = Tally()
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            faults.add("annotations that are not records", f"number {number}")
            continue
        image_key, category_key = key_of(record.get("image_id")), key_of(record.get("category_id"))
        notes: list[str] = []
        try:
            if image_key not in images:
                raise _Unusable("annotations of an unknown image", f", image {text_of(record.get('image_id'))}")
            image = images[image_key]
            if image is None:  # the image is reported already
                continue
            if category_key not in categories:
                category = text_of(record.get("category_id"))
                raise _Unusable("annotations of an unknown category", f", category {category}")
            fields = _object(record, *sizes[image], masks, notes)
        except _Unusable as fault:
            faults.add(fault.args[0], _named(record, number) + fault.args[1])
            continue
        for field, key in (("image_id", image_key), ("category_id", category_key)):
            if type(key) is not type(record[field]):
                notes.append("ids written as text or with a fraction")
        kept.append({"id": len(kept) + 1, "image_id": image, "category_id": categories[category_key], **fields})
        if _reaches_beyond(fields["bbox"], *sizes[image]):
            beyond.add(_BEYOND, _named(record, number))
        for kind in notes:
            corrections.add(kind, _named(record, number))
    if beyond:
        corners = beyond.counts[_BEYOND] > len(kept) / 2
        hint = "; are they x1, y1, x2, y2, where COCO's are x, y, width, height?" if corners else ""
        logger.warning("%s%s", beyond, hint)
    return kept


def _named(record: dict[str, Any], number: int) -> str:
    return f"annotation {text_of(record.get('id', f'number {number}'))}"


def _object(record: dict[str, Any], width: int, height: int, masks: bool, notes: list[str]) -> dict[str, Any]:
    """Return box, area, crowd and mask of an annotation, and note corrections; raise _Unusable if it is none."""
    box = _box(record.get("bbox"), notes)
    if box is None or min(box[2:]) <= 0:
        raise _Unusable("boxes without area", f": {text_of(record.get('bbox'))}")
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise _Unusable("boxes outside their image", f": {text_of(record['bbox'])} in {width} x {height}")
    if min(x + width, y + height) < 0 or x + w > 2 * width or y + h > 2 * height:
        raise _Unusable("boxes that reach far beyond their image", f": {text_of(record['bbox'])} in {width} x {height}")
    crowd = record.get("iscrowd")
    if isinstance(crowd, str) and crowd in ("0", "1"):
        crowd = int(crowd)
        notes.append("values of iscrowd written as text")
    if crowd is None or crowd != crowd:
        crowd = 0
    if crowd not in (0, 1):
        raise _Unusable("annotations whose iscrowd is neither 0 nor 1", f": {text_of(crowd)!r}")
    try:
        mask, correction = read_mask(record.get("segmentation"), height, width)
    except ValueError as error:
        if masks:
            raise _Unusable("broken masks", f": {error}") from error
        mask, correction = None, "broken masks, which boxes do not need"
    if masks and mask is None:
        raise _Unusable("annotations without a mask", "")
    if correction:
        notes.append(correction)
    if mask is None and (turned := _turned(box, record.get("attributes"))):
        box = turned
        notes.append("boxes that CVAT turned, in place of which are the upright boxes around them")
    area = number_of(record.get("area"))
    if area is None or area < 0:
        area = w * h if mask is None else mask_area(mask, height, width)
    fields = {"bbox": box, "area": float(area), "iscrowd": int(crowd)}
    return fields if mask is None else {**fields, "segmentation": mask}


def _turned(box: list[float], attributes: Any) -> list[float] | None:
    """Return the upright box around a box that CVAT turned about its centre, or None if it is upright."""
    degrees = number_of(attributes.get("rotation")) if isinstance(attributes, dict) else None
    if not degrees or degrees % 180 == 0:
        return None
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    x, y, w, h = box
    width, height = w * cos + h * sin, w * sin + h * cos
    return [x + (w - width) / 2, y + (h - height) / 2, width, height]


def _box(value: Any, notes: list[str]) -> list[float] | None:
    """Return a box as four floats, or None if it is none."""
    if isinstance(value, str):
        value = re.split(r"[\s,]+", value.strip(" \t[]()"))
        notes.append("boxes written as text")
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    sides = [number_of(side) for side in value]
    if not notes and any(isinstance(side, str) for side in value):
        notes.append("boxes written as text")
    return None if None in sides else [float(side) for side in sides if side is not None]


def _reaches_beyond(box: list[float], width: int, height: int, tolerance: float = 1.0) -> bool:
    x, y, w, h = box
    return min(x, y) < -tolerance or x + w > width + tolerance or y + h > height + tolerance
