"""Read COCO annotations; everything that cannot be used is counted and named before training starts."""

import gc
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from ...errors import DataError, brief, listed
from .coco import CocoData
from .images import in_threads, inspect_image
from .masks import mask_area, read_mask

__all__ = ["Paths", "Tally", "checked", "read_coco", "read_json"]
logger = logging.getLogger(__name__)
_SHOWN = 3
_LONGEST_NAME = 200
_LARGEST = 2**53  # up to it, floats are whole numbers without gaps
_PARTS = ("images", "annotations", "categories")
_OTHERS = {  # files of annotation tools that are taken for COCO's, by a key
    "_via_img_metadata": "a project of VIA; export it with Annotation > Export Annotations (COCO format)",
    "shapes": "a file of labelme; convert its folder with labelme2coco",
    "predictions": "an export of Label Studio; export it again as COCO or YOLO",
}


class Tally:
    """Counts of records by kind, with the names of the first ones of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        names = self.names.setdefault(kind, [])
        if len(names) < _SHOWN:
            names.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        more = {kind: f" and {count - _SHOWN} more" if count > _SHOWN else "" for kind, count in self.counts.items()}
        return "; ".join(f"{self.counts[k]} {k} ({', '.join(n)}{more[k]})" for k, n in self.names.items())


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
    kept_images, files, image_ids = _images(records["images"], folder, check_files, reading, faults, corrections)
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
    there = listed([_text(key) for key in keys], 8) if isinstance(content, dict) else type(content).__name__
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


def _key(value: object) -> int | str | None:
    """Return an id as a whole number if it is one, written as 1, 1.0 or "1", or else as text; None if it is neither."""
    if type(value) is float and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}(\.0*)?\s*", value):
        value = int(float(value))
    if type(value) is int:
        return value if abs(value) <= _LARGEST else None
    return value if isinstance(value, str) and value else None


def _numbered(keys: Sequence[int | str], what: str, corrections: Tally) -> dict[int | str, int]:
    """Return the number of each id: itself or, if some are text or negative, its position from 1 on."""
    if all(isinstance(key, int) and key >= 0 for key in keys):
        return {key: key for key in keys if isinstance(key, int)}
    corrections.add(f"ids of {what} that are text or negative, so that all are numbered from 1 on", _text(keys[0]))
    return {key: number for number, key in enumerate(keys, 1)}


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
        key = _key(category.get("id")) if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if key is None or not isinstance(name, str | int | float) or isinstance(name, bool) or name == "":
            raise DataError(f"{source} has a category without an id and a name: {_text(category)}")
        if len(str(name)) > _LONGEST_NAME:
            raise DataError(f"{source} has a category whose name has {len(str(name))} characters: {_text(name)}")
        if key in names:
            raise DataError(f"{source} has two categories of id {_text(key)}")
        names[key] = str(name)
        if key not in (0, "0") or category.get("supercategory") not in (None, "", "none"):
            parents.setdefault(str(category.get("supercategory")), names[key])
    # Roboflow lists the name of the project as a category 0 of which no object is, and which all others belong to.
    if len(names) > 1 and names.get(0) in parents and parents[names[0]] != names[0]:
        used = any(isinstance(each, dict) and _key(each.get("category_id")) == 0 for each in records["annotations"])
        if not used:
            corrections.add("categories that only group others, which are left out", names.pop(0))
    if not names and known is None:
        raise DataError(f"{source} has no categories{f': {faults}' if faults else ''}")
    numbers = _numbered(list(names), "categories", corrections)
    found = {numbers[key]: name for key, name in names.items()}
    if len({*found.values()}) < len(found):
        twice = listed([name for name, count in Counter(found.values()).items() if count > 1])
        logger.warning("%s has several categories of the same name, which stay apart: %s", source, twice)
    if known is None:
        return [{"id": number, "name": name} for number, name in sorted(found.items())], numbers
    known_names = {category["id"]: category["name"] for category in known}
    others = [f"{name} (id {number})" for number, name in found.items() if known_names.get(number) != name]
    if others:
        there = listed([f"{name} (id {number})" for number, name in known_names.items()], _SHOWN)
        raise DataError(
            f"{source} has categories that the detector does not know: {listed(others, _SHOWN)}; known are {there}"
        )
    return list(known), numbers


def _images(
    records: list[Any],
    folder: Path,
    check_files: bool,
    reading: Mapping[str, Any] | None,
    faults: Tally,
    corrections: Tally,
) -> tuple[list[dict[str, Any]], list[str | Image.Image], dict[int | str, int | None]]:
    """Return the usable images, their paths, and the number of each id, None of an image that cannot be used."""
    candidates: dict[int | str, dict[str, Any]] = {}
    for record in records:
        key = _key(record.get("id")) if isinstance(record, dict) else None
        if key is None or not isinstance(record.get("file_name"), str) or not record["file_name"]:
            faults.add("images without an id and a file_name", _text(record))
        elif key in candidates:
            faults.add("images with the id of another", f"{_text(record['file_name'])}, id {_text(key)}")
        else:
            candidates[key] = record
    numbers: dict[int | str, int | None] = {**_numbered(list(candidates), "images", corrections)}
    paths = Paths(folder)
    found = in_threads(lambda record: paths.find(record["file_name"]), candidates.values())
    readable = [path if fault == "" or fault in _MOVED else "" for path, fault in found]
    pairs = zip(readable, candidates.values(), strict=True)
    checks = in_threads(lambda pair: _check_file(*pair, check_files, reading), pairs)
    kept, files, first_of = [], [], {}
    for (key, record), (path, where), (kind, detail, size) in zip(candidates.items(), found, checks, strict=True):
        name, number = _text(record["file_name"]), numbers[key]
        if where and where not in _MOVED:
            kind, detail = where, ""
        elif not kind and path in first_of and (where or first_of[path][1]):
            kind, detail = "images that name the same file as another", f", as {first_of[path][0]}"
        if kind:
            faults.add(kind, name + detail)
            numbers[key] = None
            continue
        if where or path in first_of:
            corrections.add(where or "images that are listed twice", name)
        first_of.setdefault(path, (name, where))
        kept.append({"id": number, "file_name": record["file_name"], "width": size[0], "height": size[1]})
        files.append(path)
    return kept, files, numbers


_BEYOND = "boxes reach beyond their image, and are cut at its edge in training"
_MOVED = ("file names with another folder, found by the end of their path", "file names without their folder")


class Paths:
    """Files of a folder by the names in an annotation file, which may be paths of another machine, or addresses."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def find(self, name: str) -> tuple[str, str]:
        """Return the path of a file inside the folder, and the kind of correction or fault, empty if there is none."""
        plain = unquote(re.sub(r"^\w+://|[?#](?!d=).*$", "", name)) if "://" in name else name
        parts = [part for part in re.split(r"[/\\]|\?d=", plain) if part not in ("", ".")]
        leaves = os.path.isabs(name) or ".." in parts
        path = os.path.join(self.folder, name)
        if not leaves and os.path.isfile(path):
            return path, ""
        if ".." in parts:
            parts = parts[len(parts) - parts[::-1].index("..") :]
        for first in range(max(0, len(parts) - 32), len(parts)):
            path = os.path.join(self.folder, *parts[first:])
            if os.path.isfile(path):
                return path, "" if not leaves and first == 0 else _MOVED[0]
        inside = self.by_name().get(parts[-1], []) if parts else []
        if len(inside) == 1:
            return inside[0], _MOVED[1]
        if inside:
            return "", "images that could be one of several files"
        return "", "images outside their folder" if leaves else "images without their file"

    @cache  # noqa: B019 - lives as long as one reading
    def by_name(self) -> dict[str, list[str]]:
        """Return the paths of all files in the folder and its subfolders by their names."""
        paths: dict[str, list[str]] = {}
        for here, _, names in os.walk(self.folder):
            for name in names:
                paths.setdefault(name, []).append(os.path.join(here, name))
        return paths


def _check_file(
    path: str, record: dict[str, Any], check_file: bool, reading: Mapping[str, Any] | None
) -> tuple[str, str, tuple[int, int]]:
    """Return the kind of fault of an image, its detail, and the image's width and height."""
    if not path:
        return "", "", (0, 0)
    annotated: tuple[Any, Any] = _key(record.get("width")), _key(record.get("height"))
    has_size = all(isinstance(side, int) and side > 0 for side in annotated)
    if has_size and not check_file and annotated[0] * annotated[1] <= 2 * (Image.MAX_IMAGE_PIXELS or _LARGEST):
        return "", "", annotated
    options: Any = reading or {"mode": "RGB"}
    finding = inspect_image(path, **options)
    if finding.fault:
        return "images that cannot be read", f": {finding.fault}", (0, 0)
    if has_size and annotated != finding.size:
        width, height = finding.size
        sizes = f": {annotated[0]} x {annotated[1]} for {width} x {height}"
        return "images annotated with a size that they do not have", sizes, finding.size
    return "", "", finding.size


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
        image_key, category_key = _key(record.get("image_id")), _key(record.get("category_id"))
        notes: list[str] = []
        try:
            if image_key not in images:
                raise _Unusable("annotations of an unknown image", f", image {_text(record.get('image_id'))}")
            image = images[image_key]
            if image is None:  # the image is reported already
                continue
            if category_key not in categories:
                category = _text(record.get("category_id"))
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
    return f"annotation {_text(record.get('id', f'number {number}'))}"


def _object(record: dict[str, Any], width: int, height: int, masks: bool, notes: list[str]) -> dict[str, Any]:
    """Return box, area, crowd and mask of an annotation, and note corrections; raise _Unusable if it is none."""
    box = _box(record.get("bbox"), notes)
    if box is None or min(box[2:]) <= 0:
        raise _Unusable("boxes without area", f": {_text(record.get('bbox'))}")
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise _Unusable("boxes outside their image", f": {_text(record['bbox'])} in {width} x {height}")
    if min(x + width, y + height) < 0 or x + w > 2 * width or y + h > 2 * height:
        raise _Unusable("boxes that reach far beyond their image", f": {_text(record['bbox'])} in {width} x {height}")
    crowd = record.get("iscrowd")
    if isinstance(crowd, str) and crowd in ("0", "1"):
        crowd = int(crowd)
        notes.append("values of iscrowd written as text")
    if crowd is None or crowd != crowd:
        crowd = 0
    if crowd not in (0, 1):
        raise _Unusable("annotations whose iscrowd is neither 0 nor 1", f": {_text(crowd)!r}")
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
    area = _number(record.get("area"))
    if area is None or area < 0:
        area = w * h if mask is None else mask_area(mask, height, width)
    fields = {"bbox": box, "area": float(area), "iscrowd": int(crowd)}
    return fields if mask is None else {**fields, "segmentation": mask}


def _box(value: Any, notes: list[str]) -> list[float] | None:
    """Return a box as four floats, or None if it is none."""
    if isinstance(value, str):
        value = re.split(r"[\s,]+", value.strip(" \t[]()"))
        notes.append("boxes written as text")
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    sides = [_number(side) for side in value]
    if not notes and any(isinstance(side, str) for side in value):
        notes.append("boxes written as text")
    return None if None in sides else [float(side) for side in sides if side is not None]


def _number(value: object) -> float | None:
    """Return a finite number of moderate size, which may be written as text; None if it is none."""
    if isinstance(value, str) and len(value) < 100:
        try:
            value = float(value)
        except ValueError:
            return None
    # Comparisons of Python's integers with floats are exact and cannot overflow; NaN fails them.
    return value if type(value) in (int, float) and -_LARGEST <= value <= _LARGEST else None  # pyright: ignore


def _reaches_beyond(box: list[float], width: int, height: int, tolerance: float = 1.0) -> bool:
    x, y, w, h = box
    return min(x, y) < -tolerance or x + w > width + tolerance or y + h > height + tolerance


def _text(value: object) -> str:
    """Return a value for a message, text without quotes."""
    return brief(value, quoted=False)
