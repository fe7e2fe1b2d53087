"""Images and their objects in COCO's format: what they are once they have been read and looked over."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError
from ...files import atomic_write, write_json

__all__ = ["CocoData", "find_split"]

_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class CocoData:
    """Images with their objects, without fault.

    A label is 1 for the first category by id, 2 for the second and so on, without gaps; 0 is the background.

    Attributes:
        images: Records with ``id``, ``file_name``, ``width`` and ``height``.
        pictures: Where each image lies, or the image itself.
        annotations: Records with ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels),
            ``area``, ``iscrowd`` and, where there is a mask, ``segmentation``. Their ids count from 1: a COCO
            evaluator takes an object of id 0 for one that was never found.
        categories: Records with ``id`` and ``name``, in the order of their ids.
        source: What they were read from, for messages.
    """

    images: list[dict[str, Any]]
    pictures: list[str | Image.Image]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    source: str
    _objects: dict[int, list[dict[str, Any]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            objects[annotation["image_id"]].append(annotation)
        object.__setattr__(self, "_objects", objects)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """Name of each label, from 1 on."""
        return [category["name"] for category in self.categories]

    @property
    def labels(self) -> dict[int, int]:
        """Label of each category id."""
        return {category["id"]: label for label, category in enumerate(self.categories, 1)}

    @property
    def num_classes(self) -> int:
        """Classes of a detector for these data, the background among them."""
        return len(self.categories) + 1

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all("segmentation" in annotation for annotation in self.annotations)

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Returns the objects of an image, crowds among them."""
        return self._objects[self.images[index]["id"]]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of an annotation file."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def write(self, folder: str | os.PathLike, split: str) -> None:
        """Writes ``folder/split/*.png`` and ``folder/annotations/instances_split.json`` from images in memory.

        Raises:
            DataError: If an image is not in memory.
        """
        images, annotations = Path(folder) / split, Path(folder) / "annotations"
        images.mkdir(parents=True, exist_ok=True)
        annotations.mkdir(exist_ok=True)
        for record, picture in zip(self.images, self.pictures, strict=True):
            if not isinstance(picture, Image.Image):
                raise DataError(f"{record['file_name']} lies in a file already: {picture}")
            with atomic_write(images / record["file_name"]) as file:
                picture.save(file, "PNG")
        write_json(annotations / f"instances_{split}.json", self.to_dict(), indent=None)


def find_split(data: str | os.PathLike, split: str) -> tuple[Path, Path]:
    """Returns the annotation file and the folder of images of one split of a data folder.

    The images are in ``NAME/`` or ``images/NAME/``, where NAME is train or val, with or without a year, training,
    validation, valid or test. The annotations are the first that is there of ``annotations/instances_NAME.json``,
    ``instances_NAME.json``, ``annotations/NAME.json``, ``NAME.json``, and ``_annotations.coco.json`` beside the images.

    Args:
        data: Data folder.
        split: "train" or "val".

    Raises:
        DataError: If there is no such pair, or several.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder {root}: data is 'digits' or a folder with images and COCO annotations")
    folders = sorted(path for base in (root, root / "images") if base.is_dir() for path in base.iterdir())
    found = []
    for name in _SPLITS[split]:
        for folder in folders:
            if folder.is_dir() and (folder.name == name or _is_year(folder.name.removeprefix(name))):
                annotations = _annotations_of(root, folder)
                found += [(annotations, folder)] if annotations else []
        if found:
            break
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{root} has no {split} images with annotations: expected {split}2017/ with "
            f"annotations/instances_{split}2017.json, or {split}/ with {split}.json; it holds {there}"
        )
    if len(found) > 1:
        names = ", ".join(str(folder) for _, folder in found)
        raise DataError(f"{root} has several folders of {split} images: {names}; name the one to use")
    return found[0]


def _is_year(text: str) -> bool:
    return len(text) == 4 and text.isdecimal()


def _annotations_of(root: Path, folder: Path) -> Path | None:
    names = [f"instances_{folder.name}.json", f"{folder.name}.json"]
    places = [place / name for name in names for place in (root / "annotations", root)]
    return next((path for path in [*places, folder / "_annotations.coco.json"] if path.is_file()), None)
