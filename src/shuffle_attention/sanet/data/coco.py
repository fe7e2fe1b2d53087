"""Images and their objects in COCO's format, after they have been read and checked."""

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import compress, count
from pathlib import Path
from typing import Any

from PIL import Image

from ...files import atomic_write, write_json
from .split import held_out

__all__ = ["CocoData"]


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
        drawn: Digest of the images that were drawn for validation, if they were.
    """

    images: list[dict[str, Any]]
    files: list[str | Image.Image]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    source: str
    drawn: str = ""
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

    def parted(self, fraction: float, seed: int = 0) -> dict[str, "CocoData"]:
        """Return the images of "train" and "val", a share of those of each category drawn for validation.

        An image counts for the rarest category on it; images that are alone in this count as one category.
        """
        counts = Counter(each["category_id"] for each in self.annotations)
        present = [{each["category_id"] for each in self.objects(index)} for index in range(len(self))]
        rarest = [min(ids, key=lambda id: (counts[id], id), default=None) for ids in present]
        sizes = Counter(rarest)
        groups = [category if sizes[category] > 1 else None for category in rarest]
        held = held_out(groups, fraction, seed, [image["file_name"] for image in self.images])
        return {split: self._part(split, [out is (split == "val") for out in held]) for split in ("train", "val")}

    def _part(self, split: str, chosen: list[bool]) -> "CocoData":
        images = list(compress(self.images, chosen))
        ids = {image["id"] for image in images}
        annotations = [each for each in self.annotations if each["image_id"] in ids]
        names = sorted(image["file_name"] for image in images)
        drawn = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
        files, source = list(compress(self.files, chosen)), f"{self.source}, {split} by fraction"
        return CocoData(images, files, annotations, self.categories, source, drawn)

    def copy_images(self, folder: Path, taken: set[str] | None = None) -> list[str]:
        """Copy all images into one folder, those in memory as PNG, and return their file names.

        Args:
            folder: Folder to write to.
            taken: File names without their ending that other images have; those of these images are added.
        """
        folder.mkdir(parents=True, exist_ok=True)
        taken = set() if taken is None else taken
        names = []
        for record, image in zip(self.images, self.files, strict=True):
            path = Path(record["file_name"] if isinstance(image, Image.Image) else image)
            stem = next(name for number in count(1) if (name := path.stem + f"-{number}" * (number > 1)) not in taken)
            taken.add(stem)
            names.append(f"{stem}{path.suffix}")
            if isinstance(image, Image.Image):
                with atomic_write(folder / names[-1]) as file:
                    image.save(file, "PNG")
            else:
                shutil.copyfile(image, folder / names[-1])
        return names

    def write(self, folder: str | os.PathLike, split: str) -> None:
        """Write the images to ``folder/split/``, and ``folder/annotations/instances_split.json``."""
        names = self.copy_images(Path(folder) / split)
        images = [{**image, "file_name": name} for image, name in zip(self.images, names, strict=True)]
        (Path(folder) / "annotations").mkdir(exist_ok=True)
        content = {**self.to_dict(), "images": images}
        write_json(Path(folder) / "annotations" / f"instances_{split}.json", content, indent=None)
