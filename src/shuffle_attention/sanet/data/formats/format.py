"""The contract of a format of annotated images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import listing
from ..coco import CocoData
from ..records import Tally

# Names of the folders and files of each split; those of validation data in the order in which they are looked for.
SPLITS = {**listing.SPLITS, "test": ("test",)}
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif", ".jp2", ".mpo")


@dataclass(frozen=True)
class Location:
    """Where the annotations of one split are.

    Attributes:
        format: Name of their format.
        annotations: File or folder of annotations.
        images: Folder of images.
        split: Name of the split in its folder; empty if there is none.
    """

    format: str
    annotations: Path
    images: Path
    split: str = ""


@dataclass(frozen=True)
class Unchecked:
    """Annotations in COCO's layout, as they were read.

    Attributes:
        content: ``images``, ``annotations`` and ``categories``.
        folder: Folder of the images.
        source: What they were read from, for messages.
        corrections: What was corrected.
        faults: What cannot be used.
    """

    content: Mapping[str, Any]
    folder: Path
    source: str
    corrections: Tally = field(default_factory=Tally)
    faults: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotated images.

    Attributes:
        name: Name for the command line.
        layout: Files that it consists of, for messages.
        find: Returns where the annotations of a split of a folder are, or None; the split None is data without one.
        read: Reads them, given the categories that a detector knows, whose ids those of the same name get where a
            format has no ids, and whether images are read as stored.
        write: Writes the splits of a data set, with copies of the images, into an empty folder.
    """

    name: str
    layout: str
    find: Callable[[Path, str | None], Location | None]
    read: Callable[[Location, Sequence[Mapping[str, Any]] | None, bool], Unchecked]
    write: Callable[[Mapping[str, CocoData], Path], None]


def ids_by_name(names: Sequence[str], known: Sequence[Mapping[str, Any]] | None) -> dict[str, int]:
    """Return the ids of the categories that a detector knows by name, empty if it does not know all of these names."""
    ids = {str(category["name"]): int(category["id"]) for category in known or ()}
    return ids if set(names) <= ids.keys() else {}  # the check names those that are unknown


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders by name, without hidden files."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())
