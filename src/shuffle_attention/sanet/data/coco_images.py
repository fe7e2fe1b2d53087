"""The images that an annotation file names: where they are, and whether they are what it says."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from .images import in_threads, inspect_image
from .records import LARGEST, Tally, key_of, numbered, text_of

__all__ = ["Paths", "read_images"]
_TURNED = "images turned upright by EXIF data, whose boxes are taken for those of the upright image"
_BEFORE_EXIF = "images annotated with their size before EXIF data turn them, which --as-stored leaves as they are"
_MOVED = ("file names with another folder, found by the end of their path", "file names without their folder")


def read_images(
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
        key = key_of(record.get("id")) if isinstance(record, dict) else None
        if key is None or not isinstance(record.get("file_name"), str) or not record["file_name"]:
            faults.add("images without an id and a file_name", text_of(record))
        elif key in candidates:
            faults.add("images with the id of another", f"{text_of(record['file_name'])}, id {text_of(key)}")
        else:
            candidates[key] = record
    numbers: dict[int | str, int | None] = {**numbered(list(candidates), "images", corrections)}
    paths = Paths(folder)
    found = in_threads(lambda record: paths.find(record["file_name"]), candidates.values())
    readable = [path if fault == "" or fault in _MOVED else "" for path, fault in found]
    pairs = zip(readable, candidates.values(), strict=True)
    checks = in_threads(lambda pair: _check_file(*pair, check_files, reading), pairs)
    kept, files, first_of = [], [], {}
    for (key, record), (path, where), check in zip(candidates.items(), found, checks, strict=True):
        kind, detail, size, note = check
        name, number = text_of(record["file_name"]), numbers[key]
        if where and where not in _MOVED:
            kind, detail = where, ""
        elif not kind and path in first_of and (where or first_of[path][1]):
            kind, detail = "images that name the same file as another", f", as {first_of[path][0]}"
        if kind:
            faults.add(kind, name + detail)
            numbers[key] = None
            continue
        if note:
            corrections.add(note, name)
        if where or path in first_of:
            corrections.add(where or "images that are listed twice", name)
        first_of.setdefault(path, (name, where))
        kept.append({"id": number, "file_name": record["file_name"], "width": size[0], "height": size[1]})
        files.append(path)
    return kept, files, numbers


_BEYOND = "boxes reach beyond their image, and are cut at its edge in training"


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
) -> tuple[str, str, tuple[int, int], str]:
    """Return the kind of fault of an image, its detail, the image's width and height, and what is worth a warning."""
    if not path:
        return "", "", (0, 0), ""
    annotated: tuple[Any, Any] = key_of(record.get("width")), key_of(record.get("height"))
    has_size = all(isinstance(side, int) and side > 0 for side in annotated)
    if has_size and not check_file and annotated[0] * annotated[1] <= 2 * (Image.MAX_IMAGE_PIXELS or LARGEST):
        return "", "", annotated, ""
    options: Any = reading or {"mode": "RGB"}
    finding = inspect_image(path, **options)
    if finding.fault:
        return "images that cannot be read", f": {finding.fault}", (0, 0), ""
    turned = finding.orientation > 1 and not options.get("as_stored")
    width, height = finding.size
    if has_size and annotated != finding.size:
        detail = f": {annotated[0]} x {annotated[1]} for {width} x {height}"
        if turned and annotated == (height, width):
            return _BEFORE_EXIF, detail, finding.size, ""
        return "images annotated with a size that they do not have", detail, finding.size, ""
    by_size = finding.orientation > 4 and width != height and has_size
    return "", "", finding.size, _TURNED if turned and not by_size else ""
