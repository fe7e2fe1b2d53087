"""The preprocessing that turns an image into a model's input."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import CenterCrop, Resize, v2

from ...errors import DataError
from ..data.images import ImageFile, read_image
from ..recipes.recipe import Recipe


class View:
    """Preprocessing of a model: the resize, crop and normalisation of its evaluation.

    Args:
        recipe: Recipe with these settings, and a mean and a standard deviation per channel.
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

    def tensor(self, image: ImageFile) -> Tensor:
        """Return the model's input, (channels, height, width).

        Raises:
            DataError: If the file cannot be decoded.
        """
        try:
            return self.transform(read_image(image.path, self.mode))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{image.path} cannot be read: {error}") from error

    def pixels(self, seen: Tensor) -> Tensor:
        """Return the model's input as colours, (height, width, 3) in [0, 1]."""
        colours = (seen.cpu() * self.std + self.mean).clamp(0, 1)
        return colours.expand(3, -1, -1).permute(1, 2, 0)

    def boxes(
        self, boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        """Return boxes (x, y, width, height) of a file of the size (width, height), moved to the model's input.

        Boxes outside of it are left out, and others are cut at its edges.
        """
        where: Any = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYWH", canvas_size=size[::-1])  # pyright: ignore
        for step in self.transform.transforms:
            if isinstance(step, Resize):
                where = v2.Resize(step.size)(where)
            elif isinstance(step, CenterCrop):
                where = v2.CenterCrop(step.size)(where)
        return [tuple(box) for box in where.tolist() if box[2] > 0 and box[3] > 0]
