"""Formats of annotated images: one file each, with a ``FORMAT`` that finds, reads and writes them.

Every format is read into COCO's layout, and checked by :func:`..coco_reading.checked`.
"""

import os
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ....errors import DataError, listed, unknown
from ..coco import CocoData
from ..coco_reading import checked
from .format import AnnotationFormat, Location

__all__ = ["AnnotationFormat", "Location", "find_data", "format_named", "formats", "read_data", "require_data"]


def formats() -> dict[str, AnnotationFormat]:
    """Return all formats by name: the ``FORMAT`` of each file of this folder."""
    files = [import_module(file.name) for file in pkgutil.iter_modules(__path__, f"{__name__}.")]
    return {file.FORMAT.name: file.FORMAT for file in files if hasattr(file, "FORMAT")}


def format_named(name: str) -> AnnotationFormat:
    """Return a format by its name.

    Raises:
        InputError: If there is no such format.
    """
    known = formats()
    if name not in known:
        raise unknown("format", name, known)
    return known[name]


def find_data(data: str | os.PathLike, split: str | None) -> Location | None:
    """Return where the annotations of one split are, recognised by what is there; None if there are none.

    Args:
        data: Folder, or the file that describes the data: ``data.yaml`` of YOLO, or JSON of COCO.
        split: "train", "val" or "test"; None for data without a split.

    Raises:
        DataError: If there is no such folder, or it has annotations in several formats.
    """
    root = Path(data).expanduser()
    if not root.exists():
        raise DataError(f"no folder {root}: data is 'digits' or a folder with images and {layouts()}")
    found = [location for each in formats().values() if (location := each.find(root, split)) is not None]
    if len(found) > 1:
        there = " and ".join(f"{location.format}'s {location.annotations}" for location in found)
        raise DataError(f"{root} has annotations in {len(found)} formats, {there}; remove or move those not to use")
    return found[0] if found else None


def require_data(data: str | os.PathLike, split: str) -> Location:
    """Return where the annotations of a split are.

    Raises:
        DataError: If there are none.
    """
    found = find_data(data, split)
    if found is not None:
        return found
    root = Path(data).expanduser()
    undivided = find_data(data, None) or (split == "val" and find_data(data, "train"))
    advice = "; --val-fraction 0.2 draws them from all images" if undivided else ""
    there = listed(sorted(path.name for path in root.iterdir()), 8) if root.is_dir() else "no folder"
    raise DataError(
        f"{root} has no {split} images with annotations{advice}. Expected {layouts()}; it holds {there or 'nothing'}"
    )


def layouts() -> str:
    """Return the layouts of all formats for a message."""
    return ", or ".join(f"{each.name.upper()}: {each.layout}" for each in formats().values())


def read_data(location: Location, *, categories: Sequence[dict[str, Any]] | None = None, **options: Any) -> CocoData:
    """Return the checked images and objects of a split.

    Args:
        location: Where the annotations are.
        categories: Categories that a detector knows.
        options: Those of :func:`checked`.

    Raises:
        DataError: If they cannot be used.
    """
    as_stored = bool((options.get("reading") or {}).get("as_stored"))
    read = format_named(location.format).read(location, categories, as_stored)
    options |= {"categories": categories, "corrections": read.corrections, "faults": read.faults}
    return checked(read.content, read.folder, read.source, **options)
