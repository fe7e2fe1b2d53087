"""Reading COCO annotations: everything that is wrong with them is counted and named before anything is trained."""

import json
import logging
import math
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError
from .coco import CocoData
from .images import inspect_image
from .masks import decode_mask, mask_fault

__all__ = ["read_coco"]
logger = logging.getLogger(__name__)
_SHOWN = 3


class _Faults:
    """What is wrong with which record, by kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, record: str) -> None:
        self.found.setdefault(kind, []).append(record)

    def __str__(self) -> str:
        return "; ".join(f"{len(records)} {kind} ({_listed(records)})" for kind, records in self.found.items())


def read_coco(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    masks: bool = False,
    categories: Sequence[dict[str, Any]] | None = None,
    skip_bad: bool = False,
    check_files: bool = True,
) -> CocoData:
    """Returns the images of a folder with the objects of an annotation file.

    Args:
        annotations: JSON file in COCO's format for instances.
        images: Folder that the file names are relative to.
        masks: Whether every object must have a mask.
        categories: Categories that a detector knows; the file must then have no others.
        skip_bad: Whether to leave out what cannot be used, an image with all its objects, and say so.
        check_files: Whether to open every image, which finds those that are cut off or of another size.

    Raises:
        DataError: If the file is none of COCO's, or holds anything that cannot be used and is not to be left out.
    """
    content = _read_json(Path(annotations))
    known = _categories(content, str(annotations), categories)
    faults = _Faults()
    records, pictures, strange = _images(content["images"], Path(images), faults, check_files)
    sizes = {record["id"]: (record["height"], record["width"]) for record in records}
    ids = {category["id"] for category in known}
    kept = _annotations(content["annotations"], sizes, strange, ids, masks, faults)
    if faults.found and not skip_bad:
        raise DataError(
            f"{annotations} cannot be used as it is: {faults}; mend or remove them, or leave them out with "
            f"--skip-bad-images"
        )
    if not records:
        raise DataError(f"{annotations} has no images that can be used{f': {faults}' if faults.found else ''}")
    if faults.found:
        logger.warning("%s: left out are %s", annotations, faults)
    return CocoData(records, pictures, kept, known, str(annotations))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        held = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not in COCO's format: expected the lists {', '.join(parts)}; found {held}")
    return content


def _categories(content: dict[str, Any], path: str, known: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The categories in the order of their ids; those that are known where the file has no others."""
    found: dict[int, str] = {}
    for category in content["categories"]:
        if not isinstance(category, dict) or not _is_id(category.get("id")) or not category.get("name"):
            raise DataError(f"{path} has a category without an id and a name: {category!r}")
        if category["id"] in found:
            raise DataError(f"{path} has two categories of id {category['id']}")
        found[category["id"]] = str(category["name"])
    if not found:
        raise DataError(f"{path} has no categories")
    if known is None:
        return [{"id": number, "name": name} for number, name in sorted(found.items())]
    names = {category["id"]: category["name"] for category in known}
    others = [f"{name} (id {number})" for number, name in found.items() if names.get(number) != name]
    if others:
        there = _listed([f"{name} (id {number})" for number, name in names.items()])
        raise DataError(f"{path} has categories that the detector does not know: {_listed(others)}; known are {there}")
    return list(known)


def _images(
    records: list[Any], folder: Path, faults: _Faults, check_files: bool
) -> tuple[list[dict[str, Any]], list[str | Image.Image], set[int]]:
    """Usable images with their paths, and the ids of the others."""
    candidates: dict[int, dict[str, Any]] = {}
    for record in records:
        if not isinstance(record, dict) or not _is_id(record.get("id")) or not isinstance(record.get("file_name"), str):
            faults.add("images without an id and a file_name", f"{record!r:.60}")
        elif record["id"] in candidates:
            faults.add("images with the id of another", f"{record['file_name']}, id {record['id']}")
        else:
            candidates[record["id"]] = record
    paths = [os.path.join(folder, record["file_name"]) for record in candidates.values()]
    with ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        looks = pool.starmap(
            _look, [(path, record, check_files) for path, record in zip(paths, candidates.values(), strict=True)], 64
        )
    kept, pictures, strange = [], [], set()
    for record, path, (kind, detail, size) in zip(candidates.values(), paths, looks, strict=True):
        if kind:
            faults.add(kind, f"{record['file_name']}{detail}")
            strange.add(record["id"])
        else:
            kept.append({"id": record["id"], "file_name": record["file_name"], "width": size[0], "height": size[1]})
            pictures.append(path)
    return kept, pictures, strange


def _look(path: str, record: dict[str, Any], check_file: bool) -> tuple[str, str, tuple[int, int]]:
    """What is wrong with an image, and its width and height."""
    annotated: tuple[Any, Any] = record.get("width"), record.get("height")
    has_size = all(_is_id(side) and side > 0 for side in annotated)
    if not os.path.isfile(path):
        return "images without their file", "", (0, 0)
    if has_size and not check_file:
        return "", "", annotated
    finding = inspect_image(path, "RGB")
    if finding.fault:
        return "images that cannot be read", f": {finding.fault}", (0, 0)
    with Image.open(path) as image:
        size = image.size
    if has_size and annotated != size:
        sizes = f": {annotated[0]} x {annotated[1]} for {size[0]} x {size[1]}"
        return "images annotated with a size that they do not have", sizes, size
    return "", "", size


def _annotations(
    records: list[Any],
    sizes: dict[int, tuple[int, int]],
    strange: set[int],
    categories: set[int],
    masks: bool,
    faults: _Faults,
) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    beyond: list[str] = []
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            faults.add("annotations that are no records", f"number {number}")
            continue
        name = f"annotation {record.get('id', f'number {number}')}"
        image = record.get("image_id")
        if _is_id(image) and image in strange:  # said once, of the image
            continue
        if not _is_id(image) or image not in sizes:
            faults.add("annotations of an unknown image", f"{name}, image {image}")
        elif not _is_id(record.get("category_id")) or record["category_id"] not in categories:
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
        logger.warning(
            "%d boxes reach beyond their image, and are cut at its edge in training: %s", len(beyond), _listed(beyond)
        )
    return kept


def _object_fault(record: dict[str, Any], height: int, width: int, masks: bool) -> tuple[str, str]:
    box: Any = record.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not numbers or not all(math.isfinite(side) for side in box) or box[2] <= 0 or box[3] <= 0:
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
    """An annotation with all that an evaluation asks for."""
    box = [float(side) for side in record["bbox"]]
    segmentation = record.get("segmentation")
    area = record.get("area")
    if not isinstance(area, int | float) or not 0 <= area < math.inf:
        area = box[2] * box[3] if not segmentation else int(decode_mask(segmentation, height, width).sum())
    found = {
        "id": number,
        "image_id": record["image_id"],
        "category_id": record["category_id"],
        "bbox": box,
        "area": float(area),
        "iscrowd": int(record.get("iscrowd", 0)),
    }
    return {**found, "segmentation": segmentation} if segmentation else found


def _reaches_beyond(box: list[float], height: int, width: int, tolerance: float = 1.0) -> bool:
    x, y, w, h = box
    return min(x, y) < -tolerance or x + w > width + tolerance or y + h > height + tolerance


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
