"""Read COCO annotations; everything that cannot be used is counted and named before training starts."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError, listed
from .coco import CocoData
from .images import in_threads, inspect_image
from .masks import decode_mask, is_finite, is_int, mask_fault

__all__ = ["read_coco"]
logger = logging.getLogger(__name__)
_SHOWN = 3


class _Faults(dict[str, list[str]]):
    """Names of unusable records by kind of fault."""

    def add(self, kind: str, record: str) -> None:
        self.setdefault(kind, []).append(record)

    def __str__(self) -> str:
        return "; ".join(f"{len(records)} {kind} ({listed(records, _SHOWN)})" for kind, records in self.items())


def read_coco(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    masks: bool = False,
    categories: Sequence[dict[str, Any]] | None = None,
    skip_bad: bool = False,
    check_files: bool = True,
) -> CocoData:
    """Return the images of a folder with the objects of an annotation file.

    Args:
        annotations: JSON file in COCO's format for instances.
        images: Folder that the file names are relative to.
        masks: Whether every object must have a mask.
        categories: Categories that a detector knows; the file must not have others.
        skip_bad: Whether to leave out unusable records with a warning, an image together with its objects.
        check_files: Whether to open every image, which finds files that are cut off or have another size.

    Raises:
        DataError: If the file is not in COCO's format, or has unusable records and ``skip_bad`` is not set.
    """
    content = _read_json(Path(annotations))
    known = _categories(content, str(annotations), categories)
    faults = _Faults()
    records, files, bad_images = _images(content["images"], Path(images), faults, check_files)
    sizes = {record["id"]: (record["height"], record["width"]) for record in records}
    ids = {category["id"] for category in known}
    kept = _annotations(content["annotations"], sizes, bad_images, ids, masks, faults)
    if faults and not skip_bad:
        raise DataError(
            f"{annotations} cannot be used as it is: {faults}; repair or remove them, or leave them out with "
            f"--skip-bad-images"
        )
    if not records:
        raise DataError(f"{annotations} has no images that can be used{f': {faults}' if faults else ''}")
    if faults:
        logger.warning("%s: left out are %s", annotations, faults)
    return CocoData(records, files, kept, known, str(annotations))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        keys = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not in COCO's format: expected the lists {', '.join(parts)}; found {keys}")
    return content


def _categories(content: dict[str, Any], path: str, known: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the categories by id; the known ones if the file has no others."""
    names: dict[int, str] = {}
    for category in content["categories"]:
        if not isinstance(category, dict) or not is_int(category.get("id")) or not category.get("name"):
            raise DataError(f"{path} has a category without an id and a name: {category!r}")
        if category["id"] in names:
            raise DataError(f"{path} has two categories of id {category['id']}")
        names[category["id"]] = str(category["name"])
    if not names:
        raise DataError(f"{path} has no categories")
    if known is None:
        return [{"id": number, "name": name} for number, name in sorted(names.items())]
    known_names = {category["id"]: category["name"] for category in known}
    others = [f"{name} (id {number})" for number, name in names.items() if known_names.get(number) != name]
    if others:
        there = listed([f"{name} (id {number})" for number, name in known_names.items()], _SHOWN)
        raise DataError(
            f"{path} has categories that the detector does not know: {listed(others, _SHOWN)}; known are {there}"
        )
    return list(known)


def _images(
    records: list[Any], folder: Path, faults: _Faults, check_files: bool
) -> tuple[list[dict[str, Any]], list[str | Image.Image], set[int]]:
    """Return the usable images, their paths, and the ids of the others."""
    candidates: dict[int, dict[str, Any]] = {}
    for record in records:
        if not isinstance(record, dict) or not is_int(record.get("id")) or not isinstance(record.get("file_name"), str):
            faults.add("images without an id and a file_name", f"{record!r:.60}")
        elif record["id"] in candidates:
            faults.add("images with the id of another", f"{record['file_name']}, id {record['id']}")
        else:
            candidates[record["id"]] = record
    paths = {number: os.path.join(folder, record["file_name"]) for number, record in candidates.items()}
    checks = in_threads(lambda number: _check_file(paths[number], candidates[number], check_files), candidates)
    kept, files, bad = [], [], set()
    for (number, record), (kind, detail, size) in zip(candidates.items(), checks, strict=True):
        if kind:
            faults.add(kind, f"{record['file_name']}{detail}")
            bad.add(number)
        else:
            kept.append({"id": number, "file_name": record["file_name"], "width": size[0], "height": size[1]})
            files.append(paths[number])
    return kept, files, bad


def _check_file(path: str, record: dict[str, Any], check_file: bool) -> tuple[str, str, tuple[int, int]]:
    """Return the kind of fault of an image, its detail, and the image's width and height."""
    annotated: tuple[Any, Any] = record.get("width"), record.get("height")
    has_size = all(is_int(side) and side > 0 for side in annotated)
    if not os.path.isfile(path):
        return "images without their file", "", (0, 0)
    if has_size and not check_file:
        return "", "", annotated
    finding = inspect_image(path, "RGB")
    if finding.fault:
        return "images that cannot be read", f": {finding.fault}", (0, 0)
    if has_size and annotated != finding.size:
        width, height = finding.size
        sizes = f": {annotated[0]} x {annotated[1]} for {width} x {height}"
        return "images annotated with a size that they do not have", sizes, finding.size
    return "", "", finding.size


def _annotations(
    records: list[Any],
    sizes: dict[int, tuple[int, int]],
    bad_images: set[int],
    categories: set[int],
    masks: bool,
    faults: _Faults,
) -> list[dict[str, Any]]:
    """Return the usable annotations, numbered from 1."""
    kept: list[dict[str, Any]] = []
    beyond: list[str] = []
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            faults.add("annotations that are not records", f"number {number}")
            continue
        name = f"annotation {record.get('id', f'number {number}')}"
        image = record.get("image_id")
        if is_int(image) and image in bad_images:  # the image is reported already
            continue
        if not is_int(image) or image not in sizes:
            faults.add("annotations of an unknown image", f"{name}, image {image}")
        elif not is_int(record.get("category_id")) or record["category_id"] not in categories:
            faults.add("annotations of an unknown category", f"{name}, category {record.get('category_id')}")
        else:
            kind, detail = _object_fault(record, *sizes[image], masks)
            if kind:
                faults.add(kind, name + detail)
                continue
            kept.append(_object(record, len(kept) + 1, *sizes[image]))
            if _reaches_beyond(kept[-1]["bbox"], *sizes[image]):
                beyond.append(name)
    if beyond:
        names = listed(beyond, _SHOWN)
        logger.warning("%d boxes reach beyond their image, and are cut at its edge in training: %s", len(beyond), names)
    return kept


def _object_fault(record: dict[str, Any], height: int, width: int, masks: bool) -> tuple[str, str]:
    """Return the kind of fault of an annotation and its detail; empty if it can be used."""
    box: Any = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)) or min(box[2:]) <= 0:
        return "boxes without area", f": {box}"
    if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return "boxes outside their image", f": {box} in {width} x {height}"
    if record.get("iscrowd", 0) not in (0, 1):
        return "annotations whose iscrowd is neither 0 nor 1", f": {record['iscrowd']!r}"
    segmentation = record.get("segmentation")
    if not segmentation:
        return ("annotations without a mask", "") if masks else ("", "")
    fault = mask_fault(segmentation, height, width)
    return ("broken masks", f": {fault}") if fault else ("", "")


def _object(record: dict[str, Any], number: int, height: int, width: int) -> dict[str, Any]:
    """Return an annotation with all fields that an evaluator needs."""
    box = [float(side) for side in record["bbox"]]
    segmentation = record.get("segmentation")
    area = record.get("area")
    if not isinstance(area, int | float) or not 0 <= area < math.inf:
        area = box[2] * box[3] if not segmentation else int(decode_mask(segmentation, height, width).sum())
    fields = {
        "id": number,
        "image_id": record["image_id"],
        "category_id": record["category_id"],
        "bbox": box,
        "area": float(area),
        "iscrowd": int(record.get("iscrowd", 0)),
    }
    return {**fields, "segmentation": segmentation} if segmentation else fields


def _reaches_beyond(box: list[float], height: int, width: int, tolerance: float = 1.0) -> bool:
    x, y, w, h = box
    return min(x, y) < -tolerance or x + w > width + tolerance or y + h > height + tolerance
