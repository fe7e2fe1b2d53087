"""Images and targets for a detector, decoded and flipped, in the form of torchvision's detectors."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ....errors import DataError
from ...data.coco import CocoData
from ...data.datasets import Samples, seeded
from ...data.masks import decode_mask

__all__ = ["UNREADABLE", "CocoSamples", "collate", "detection_transform"]
UNREADABLE = -1  # image_id of an image that could not be decoded in evaluation


class CocoSamples(Samples):
    """COCO images with targets; keys, randomness and unreadable files are those of :class:`Samples`.

    A target has ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``image_id`` () and, if asked for,
    ``masks`` (N, H, W) of 0 and 1 in uint8; all are empty for an image without objects. Crowds, which are regions
    rather than objects, are in no target: an evaluation takes them from the data. In evaluation an unreadable image
    is black and has the ``image_id`` UNREADABLE.

    Args:
        data: Images and objects.
        masks: Whether targets have masks.
        seed: Seed of the augmentation.
        empty: Whether to include images without objects.

    Raises:
        DataError: If masks are asked for and missing, or no images are left.
    """

    def __init__(self, data: CocoData, *, masks: bool, seed: int = 0, empty: bool = True):
        if masks and not data.has_masks:
            raise DataError(f"{data.source} has objects without masks, so that no masks can be learnt from it")
        kept = [index for index in range(len(data)) if empty or self._singles(data, index)]
        if not kept:
            raise DataError(f"{data.source} has no images with objects")
        source = [(picture, index) for index, picture in enumerate(data.files)]
        names = [image["file_name"] for image in data.images]
        super().__init__(source, names, data.names, seed=seed, kept=kept)
        self.data = data
        self.masks = masks

    @staticmethod
    def _singles(data: CocoData, index: int) -> list[dict[str, Any]]:
        return [each for each in data.objects(index) if not each["iscrowd"]]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, Any]:
        if isinstance(key, tuple):
            epoch, index = key
            with seeded(self.seed, epoch, index):
                image, number = self._readable(index)
                return self.transform(image, self._target(number, image))
        sample = self._decode(key)
        if sample is None:
            record = self.data.images[self.kept[key]]
            black = Image.new(self.mode, (record["width"], record["height"]))
            target = self._target(self.kept[key], black)
            return self.transform(black, {**target, "image_id": torch.tensor(UNREADABLE)})
        image, number = sample
        return self.transform(image, self._target(number, image))

    def _target(self, number: int, image: Image.Image) -> dict[str, Tensor]:
        singles = self._singles(self.data, number)
        width, height = image.size
        corners = np.array([each["bbox"] for each in singles], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = self.data.labels
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),  # pyright: ignore
            "labels": torch.tensor([labels[each["category_id"]] for each in singles], dtype=torch.int64),
            "image_id": torch.tensor(self.data.images[number]["id"]),
        }
        if self.masks:
            masks = np.zeros((len(singles), height, width), np.uint8)
            for mask, each in zip(masks, singles, strict=True):
                mask[:] = decode_mask(each["segmentation"], height, width)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return target

    def fingerprint(self) -> str:
        """Return a digest of the images, their objects and their order."""
        digest = hashlib.sha256(json.dumps(self.data.categories).encode())
        for index in self.kept:
            digest.update(json.dumps([self.data.images[index], self.data.objects(index)]).encode())
        return digest.hexdigest()


def detection_transform(*, training: bool, hflip: float = 0.5, vflip: float = 0.0) -> v2.Transform:
    """Return the transform of a PIL image and its target to a detector's input: an image (3, H, W) in [0, 1].

    The detector itself resizes and normalises. Boxes are cut at the edge of the image; in training, those of less
    than a pixel are left out with their masks.

    Args:
        training: Whether to flip at random.
        hflip: Probability of a flip from left to right.
        vflip: Probability of a flip upside down.
    """
    flips = [v2.RandomHorizontalFlip(hflip), v2.RandomVerticalFlip(vflip)] if training else []
    boxes = [v2.ClampBoundingBoxes(), *([v2.SanitizeBoundingBoxes()] if training else [])]
    return v2.Compose([v2.ToImage(), *flips, *boxes, v2.ToDtype(_TYPES, scale=True), v2.ToPureTensor()])


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return a batch of images of different sizes: a list of images and a list of targets."""
    return [image for image, _ in samples], [target for _, target in samples]


_TYPES = {tv_tensors.Image: torch.float32, "others": None}
