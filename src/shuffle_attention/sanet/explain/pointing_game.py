"""The pointing game: whether the maximum of a class's map lies in a box of that class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import InputError
from ..data.coco import CocoData
from ..data.find import ImageFile
from .classes import class_index

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Boxes:
    """The boxes of one class in one image.

    Attributes:
        picture: The image.
        target: Index of the class in the model.
        name: Name of the class.
        boxes: x, y, width and height of each, in pixels of the file.
        size: Width and height of the file.
    """

    picture: ImageFile
    target: int
    name: str
    boxes: list[Box]
    size: tuple[int, int]


def boxes_of(data: CocoData, pictures: Sequence[ImageFile], classes: Sequence[str] | None, count: int) -> list[Boxes]:
    """Return the boxes of each class in each image, for the categories that the model has as classes by name.

    Crowds are left out: they are regions, not boxes of one object.

    Raises:
        InputError: If the model has none of the categories, or no image has one of them.
    """
    targets: dict[int, int] = {}
    names = {category["id"]: category["name"] for category in data.categories}
    for number, name in names.items():
        try:
            targets[number] = class_index(name, classes, count, numbers=False)
        except InputError:
            continue
    if not targets:
        raise InputError(
            f"none of the categories of {data.source} is a class of the model: {', '.join(list(names.values())[:5])}"
        )
    there: dict[tuple[int, int], list[Box]] = {}
    for annotation in data.annotations:
        if annotation["category_id"] in targets and not annotation["iscrowd"]:
            there.setdefault((annotation["image_id"], annotation["category_id"]), []).append(tuple(annotation["bbox"]))
    records = {record["id"]: (record, path) for record, path in zip(data.images, data.pictures, strict=True)}
    by_path = {picture.path.resolve(): picture for picture in pictures}
    found = []
    for (image, number), boxes in there.items():
        record, path = records[image]
        picture = by_path.get(Path(path).resolve()) if isinstance(path, str) else None
        if picture is not None:
            found.append(Boxes(picture, targets[number], names[number], boxes, (record["width"], record["height"])))
    if not found:
        raise InputError(f"{data.source} has no box of {', '.join(names[n] for n in targets)} in these images")
    return found


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
