"""The pointing game: whether the maximum of a class's map lies in a box of that class."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import InputError
from ..data.coco import CocoData
from ..data.image_files import ImageFile
from ..tasks.predictor import class_index

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Boxes:
    """The boxes of one class in one image.

    Attributes:
        image: The image.
        target: Index of the class in the model.
        name: Name of the class.
        boxes: x, y, width and height of each, in pixels of the file.
        size: Width and height of the file.
    """

    image: ImageFile
    target: int
    name: str
    boxes: list[Box]
    size: tuple[int, int]


def boxes_of(data: CocoData, images: Sequence[ImageFile], classes: Sequence[str] | None, count: int) -> list[Boxes]:
    """Return the boxes of each class in each image, for the categories that the model has as classes by name.

    Crowds are left out: they are regions, not boxes of one object.

    Raises:
        InputError: If the model has none of the categories, or no image has one of them.
    """
    targets: dict[int, int] = {}
    names = {category["id"]: category["name"] for category in data.categories}
    for number, name in names.items():
        with contextlib.suppress(InputError):
            targets[number] = class_index(name, classes, count, numbers=False)
    if not targets:
        raise InputError(
            f"none of the categories of {data.source} is a class of the model: {', '.join(list(names.values())[:5])}"
        )
    by_path = {image.path.resolve(): image for image in images}
    annotated = []
    for index, (record, path) in enumerate(zip(data.images, data.files, strict=True)):
        image = by_path.get(Path(path).resolve()) if isinstance(path, str) else None
        if image is None:
            continue
        by_category: dict[int, list[Box]] = {}
        for annotation in data.objects(index):
            if annotation["category_id"] in targets and not annotation["iscrowd"]:
                by_category.setdefault(annotation["category_id"], []).append(tuple(annotation["bbox"]))
        for number, boxes in by_category.items():
            size = record["width"], record["height"]
            annotated.append(Boxes(image, targets[number], names[number], boxes, size))
    if not annotated:
        raise InputError(f"{data.source} has no box of {', '.join(names[n] for n in targets)} in these images")
    return annotated


def hits(heat: Tensor, boxes: Sequence[Box], tolerance: float = 0.0) -> bool:
    """Return whether the maximum of a map (height, width) lies in one of the boxes.

    Args:
        heat: The map.
        boxes: x, y, width and height, in pixels of the map.
        tolerance: Number of pixels by which it may lie outside.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, arXiv:1608.00507, section 4.1; they
    allow 15 pixels.
    """
    if heat.max() <= heat.min():  # a flat map has no maximum
        return False
    y, x = divmod(int(heat.flatten().argmax()), heat.shape[1])
    x, y = x + 0.5, y + 0.5  # the centre of the pixel
    return any(
        left - tolerance <= x <= left + width + tolerance and top - tolerance <= y <= top + height + tolerance
        for left, top, width, height in boxes
    )
