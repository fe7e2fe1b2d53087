"""Images and their objects in COCO's format, after they have been read and checked."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError, listed
from ...files import atomic_write, write_json
from .datasets import SPLITS

__all__ = ["CocoData", "find_split"]


@dataclass(frozen=True)
class CocoData:
    """Checked images and objects.

    Label 1 is the first category by id, 2 the second and so on, without gaps; 0 is the background.

    Attributes:
        images: Records with ``id``, ``file_name``, ``width`` and ``height``.
        files: Path of each image, or the image itself.
        annotations: Records with ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels),
            ``area``, ``iscrowd`` and, if the object has a mask, ``segmentation``. Their ids count from 1, because COCO
            evaluators take an object of id 0 for one that was not matched.
        categories: Records with ``id`` and ``name``, in the order of their ids.
        source: File that they were read from, for messages.
    """

    images: list[dict[str, Any]]
    files: list[str | Image.Image]
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
        """Number of classes of a detector for these data, including the background."""
        return len(self.categories) + 1

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all("segmentation" in annotation for annotation in self.annotations)

    @property
    def pictures(self) -> list[str | Image.Image]:
        """The old name of ``files``, until version 0.3."""
        return self.files

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return the objects of an image, including crowds."""
        return self._objects[self.images[index]["id"]]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of an annotation file."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def write(self, folder: str | os.PathLike, split: str) -> None:
        """Write images in memory to ``folder/split/`` and ``folder/annotations/instances_split.json``.

        Raises:
            DataError: If an image is not in memory.
        """
        images, annotations = Path(folder) / split, Path(folder) / "annotations"
        images.mkdir(parents=True, exist_ok=True)
        annotations.mkdir(exist_ok=True)
        for record, image in zip(self.images, self.files, strict=True):
            if not isinstance(image, Image.Image):
                raise DataError(f"{record['file_name']} is a file already: {image}")
            with atomic_write(images / record["file_name"]) as file:
                image.save(file, "PNG")
        write_json(annotations / f"instances_{split}.json", self.to_dict(), indent=None)


def find_split(data: str | os.PathLike, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of one split of a data folder.

    The images are in ``NAME/`` or ``images/NAME/``, where NAME is train or val, with or without a year, training,
    validation, valid or test. The annotations are the first existing file of ``annotations/instances_NAME.json``,
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
    for name in SPLITS[split]:
        named = [path for path in folders if path.is_dir() and _is_name_or_year(path.name, name)]
        pairs = [(annotations, path) for path in named if (annotations := _annotations_of(root, path))]
        if len(pairs) > 1:
            names = ", ".join(str(folder) for _, folder in pairs)
            raise DataError(f"{root} has several folders of {split} images: {names}; name the one to use")
        if pairs:
            return pairs[0]
    there = listed(sorted(path.name for path in root.iterdir()), 8) or "nothing"
    raise DataError(
        f"{root} has no {split} images with annotations: expected {split}2017/ with "
        f"annotations/instances_{split}2017.json, or {split}/ with {split}.json; it holds {there}"
    )


def _is_name_or_year(folder: str, name: str) -> bool:
    year = folder.removeprefix(name)
    return folder == name or (len(year) == 4 and year.isdecimal())


def _annotations_of(root: Path, folder: Path) -> Path | None:
    names = [f"instances_{folder.name}.json", f"{folder.name}.json"]
    paths = [parent / name for name in names for parent in (root / "annotations", root)]
    return next((path for path in [*paths, folder / "_annotations.coco.json"] if path.is_file()), None)
