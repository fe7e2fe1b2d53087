"""Images to explain: found in files and folders, looked over, and brought to what a network sees."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import CenterCrop, Resize, v2

from ..data.images import inspect_image, read_image
from ..errors import DataError, InputError
from ..recipes.recipe import Recipe


@dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
        path: Where it lies.
        name: What its results are called, unlike any other's of the same command.
    """

    path: Path
    name: str


def find_pictures(sources: Sequence[str | os.PathLike], limit: int | None = None) -> list[Picture]:
    """Returns the images that files and folders name, each of which can be read.

    Args:
        sources: Files, and folders that are searched with all that is inside them.
        limit: How many to take at most, at even distances.

    Raises:
        InputError: If there is no such file, a folder without images, or a file that is no image or too large.
    """
    found: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower() in IMG_EXTENSIONS and path.is_file() and not path.name.startswith(".")
            )
            if not inside:
                raise InputError(f"{source} has no images in it ({', '.join(IMG_EXTENSIONS)})")
            found += [(path, "-".join(path.relative_to(source).with_suffix("").parts)) for path in inside]
        elif source.is_file():
            found.append((source, source.stem))
        else:
            raise InputError(f"no file or folder {source}")
    if limit is not None and limit < len(found):
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        found = [found[index * len(found) // limit] for index in range(limit)]
    # Here and not in each thread: what a thread restores, another may have changed.
    with warnings.catch_warnings(), ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        faults = pool.map(_fault, [path for path, _ in found], chunksize=64)
    bad = [f"{path} ({fault})" for (path, _), fault in zip(found, faults, strict=True) if fault]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(f"{len(bad)} of {len(found)} images cannot be read: {', '.join(bad[:5])}{more}")
    names: dict[str, int] = {}
    pictures = []
    for path, name in found:
        names[name] = names.get(name, 0) + 1
        unlike = name if names[name] == 1 else f"{name}-{names[name]}"
        while unlike != name and unlike in names:
            unlike += "-"
        names.setdefault(unlike, 1)
        pictures.append(Picture(path, unlike))
    return pictures


def _fault(path: Path) -> str:
    """What is wrong with an image file; of a very large one its header is read and no more."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # decoders raise whatever stood in their way; the look below finds words for it
        if isinstance(error, Image.DecompressionBombError):
            return f"more than {2 * (limit or 0):,} pixels; make it smaller first"
        return inspect_image(path, "RGB").fault or str(error)
    if limit is not None and width * height > limit:
        return f"{width} x {height} pixels are more than {limit:,}; make it smaller first"
    return inspect_image(path, "RGB").fault


class View:
    """How a network sees an image: the resize, crop and normalisation that it is evaluated with.

    Args:
        recipe: Says them, with a mean and a deviation for each channel.
    """

    def __init__(self, recipe: Recipe):
        self.mode = "RGB" if recipe.in_chans == 3 else "L"
        self.mean, self.std = (torch.tensor(values or [0.0]).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
        self.transform: Any = create_transform(
            input_size=(recipe.in_chans, recipe.img_size, recipe.img_size),
            is_training=False,
            interpolation=recipe.interpolation,
            crop_pct=recipe.crop_pct,
            mean=tuple(recipe.mean or ()),
            std=tuple(recipe.std or ()),
        )

    def tensor(self, picture: Picture) -> Tensor:
        """Returns what the network gets, (channels, height, width).

        Raises:
            DataError: If the file cannot be decoded.
        """
        try:
            return self.transform(read_image(picture.path, self.mode))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{picture.path} cannot be read: {error}") from error

    def pixels(self, seen: Tensor) -> Tensor:
        """Returns what the network saw as colours, (height, width, 3) in [0, 1]."""
        colours = (seen.cpu() * self.std + self.mean).clamp(0, 1)
        return colours.expand(3, -1, -1).permute(1, 2, 0)

    def boxes(
        self, boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        """Returns boxes (x, y, width, height) of a file of the size (width, height) as they lie in what is seen.

        Those that lie outside are left out, and others end at the edge.
        """
        where: Any = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYWH", canvas_size=size[::-1])  # pyright: ignore
        for step in self.transform.transforms:
            if isinstance(step, Resize):
                where = v2.Resize(step.size)(where)
            elif isinstance(step, CenterCrop):
                where = v2.CenterCrop(step.size)(where)
        return [tuple(box) for box in where.tolist() if box[2] > 0 and box[3] > 0]
