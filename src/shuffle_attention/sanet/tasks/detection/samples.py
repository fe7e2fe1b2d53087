"""Images and targets for a detector in the form of torchvision's detectors, and a data set of digits."""

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

from ....errors import DataError, InputError
from ...data.coco import CocoData
from ...data.datasets import Samples, load_digits, seeded
from ...data.masks import decode_mask, encode_mask
from .recipe import DetectionRecipe

UNREADABLE = -1  # image_id of an image that could not be decoded in evaluation
_TYPES = {tv_tensors.Image: torch.float32, "others": None}
_GREY: dict[Any, Any] = {tv_tensors.Image: 114, "others": 0}  # around images; masks are 0 there
_OVERLAP = 0.3  # of a digit's ink that a later one may cover
_MIN_INK = 20  # pixels of a digit that must be visible


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
        reading: How images are read: arguments of ``read_image``.

    Raises:
        DataError: If masks are asked for and missing, or no images are left.
    """

    def __init__(
        self,
        data: CocoData,
        *,
        masks: bool,
        seed: int = 0,
        empty: bool = True,
        reading: dict[str, Any] | None = None,
    ):
        if masks and not data.has_masks:
            raise DataError(f"{data.source} has objects without masks, so that no masks can be learnt from it")
        kept = [index for index in range(len(data)) if empty or self._singles(data, index)]
        if not kept:
            raise DataError(f"{data.source} has no images with objects")
        source = [(image, index) for index, image in enumerate(data.files)]
        names = [image["file_name"] for image in data.images]
        super().__init__(source, names, data.names, reading=reading, seed=seed, kept=kept)
        self.data = data
        self.masks = masks

    @staticmethod
    def _singles(data: CocoData, index: int) -> list[dict[str, Any]]:
        return [each for each in data.objects(index) if not each["iscrowd"]]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, Any]:
        if isinstance(key, tuple):
            epoch, index = key
            with seeded(self.seed, epoch, index):
                image, number = self.readable(index)
                return self.transform(image, self._target(number, image))
        sample = self.decode(key)
        if sample is None:
            record = self.data.images[self.kept[key]]
            black = Image.new("RGB", (record["width"], record["height"]))
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


def training_transform(recipe: DetectionRecipe) -> v2.Transform:
    """Return the transform of training images of a recipe: :func:`detection_transform` with its augmentation."""
    augmentation: list[v2.Transform] = []
    if recipe.photometric:
        augmentation.append(v2.RandomPhotometricDistort(p=recipe.photometric))
    if recipe.zoom_out:
        augmentation.append(v2.RandomZoomOut(fill=_GREY, p=recipe.zoom_out))
    if recipe.iou_crop:
        augmentation.append(v2.RandomApply([v2.RandomIoUCrop()], recipe.iou_crop))
    if recipe.scale_jitter:
        side = (max(recipe.min_size), max(recipe.min_size))
        low, high = recipe.scale_jitter
        augmentation += [v2.ScaleJitter(side, (low, high)), v2.RandomCrop(side, pad_if_needed=True, fill=_GREY)]
    return detection_transform(training=True, hflip=recipe.hflip, vflip=recipe.vflip, first=augmentation)


def detection_transform(
    *, training: bool, hflip: float = 0.5, vflip: float = 0.0, first: Sequence[v2.Transform] = ()
) -> v2.Transform:
    """Return the transform of a PIL image and its target to a detector's input: an image (3, H, W) in [0, 1].

    The detector itself resizes and normalises. Boxes are cut at the edge of the image; in training, those of less
    than a pixel are left out with their masks.
    """
    flips = [v2.RandomHorizontalFlip(hflip), v2.RandomVerticalFlip(vflip)] if training else []
    boxes = [v2.ClampBoundingBoxes(), *([v2.SanitizeBoundingBoxes()] if training else [])]
    return v2.Compose([v2.ToImage(), *first, *flips, *boxes, v2.ToDtype(_TYPES, scale=True), v2.ToPureTensor()])


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return a batch of images of different sizes: a list of images and a list of targets."""
    return [image for image, _ in samples], [target for _, target in samples]


def digits_coco(
    split: str, count: int | None = None, *, size: int = 192, digits: tuple[int, int] = (1, 6), seed: int = 0
) -> CocoData:
    """Return images with handwritten digits to detect and segment, in memory, from scikit-learn and without a download.

    The 1,797 digits (UCI "Optical Recognition of Handwritten Digits", 8 x 8 pixels) lie at random sizes, positions and
    colours on pieces of its two photographs ("China" and "Flower"). Boxes and masks are those of the visible ink. The
    same arguments give the same pixels; the splits have different digits and different parts of the photographs.

    Args:
        split: "train" or "val".
        count: Number of images; 400 for training and 100 for validation by default.
        size: Side of an image in pixels; a digit is from a tenth to half of it high.
        digits: The least and the most digits of an image.
        seed: Seed of the whole data set.

    Raises:
        InputError: If there is no such split, or the size is out of range.
    """
    if split not in ("train", "val"):
        raise InputError(f"split must be 'train' or 'val', got {split!r}")
    if not 64 <= size <= 320:
        raise InputError(f"size must be from 64 to 320 pixels, got {size}")
    rng = np.random.default_rng([seed, split == "val"])
    grounds = _grounds(split)
    ink = load_digits(split, size=8)[0]
    images: list[dict[str, Any]] = []
    files: list[str | Image.Image] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, (count or {"train": 400, "val": 100}[split]) + 1):
        pixels = _piece(rng, grounds, size)
        objects = _paste(rng, pixels, ink, int(rng.integers(digits[0], digits[1] + 1)))
        for label, mask in objects:
            annotations.append(_annotation(len(annotations) + 1, number, label, mask))
        images.append({"id": number, "file_name": f"{number:05}.png", "width": size, "height": size})
        files.append(Image.fromarray(pixels))
    # Ids from 1, as 0 is no category to many readers.
    categories = [{"id": label + 1, "name": str(label)} for label in range(10)]
    return CocoData(images, files, annotations, categories, f"digits ({split})")


def _grounds(split: str) -> list[np.ndarray]:
    """Return a split's part of each photograph: the left 60 % for training, the rest for validation."""
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(image) for image in load_sample_images().images]
    edges = [int(0.6 * image.shape[1]) for image in photographs]
    halves = zip(photographs, edges, strict=True)
    return [image[:, :edge] if split == "train" else image[:, edge:] for image, edge in halves]


def _piece(rng: np.random.Generator, grounds: list[np.ndarray], size: int) -> np.ndarray:
    """Return a square of a photograph as (size, size, 3), of random scale, mirrored at random."""
    ground = grounds[int(rng.integers(len(grounds)))]
    side = int(rng.integers(96, min(ground.shape[:2]) + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in ground.shape[:2])
    square = Image.fromarray(ground[top : top + side, left : left + side])
    pixels = np.array(square.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _paste(
    rng: np.random.Generator, pixels: np.ndarray, ink: list[tuple[Image.Image, int]], count: int
) -> list[tuple[int, np.ndarray]]:
    """Draw up to ``count`` digits into an image, in place; return labels and masks (H, W) of the visible ink."""
    size = len(pixels)
    drawn: list[tuple[int, np.ndarray]] = []
    for _ in range(count):
        for _ in range(10):  # attempts to find a position
            image, label = ink[int(rng.integers(len(ink)))]
            side = round(size * 0.1 * 5 ** rng.random())
            alpha = np.zeros((size, size), np.float32)
            top, left = (int(rng.integers(size - side + 1)) for _ in range(2))
            glyph = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
            alpha[top : top + side, left : left + side] = glyph
            mask = alpha > 0.4
            covered = [(mask & other).sum() / other.sum() for _, other in drawn]
            if mask.sum() >= _MIN_INK and all(share <= _OVERLAP for share in covered):
                break
        else:
            continue
        # Dark ink on bright ground, bright ink on dark.
        dark = pixels[mask].mean() > 128
        colour = rng.integers(0, 60, 3) if dark else rng.integers(195, 256, 3)
        pixels[:] = np.round(pixels * (1 - alpha[..., None]) + colour * alpha[..., None]).astype(np.uint8)
        drawn = [(other, seen & ~mask) for other, seen in drawn] + [(label, mask)]
    return [(label, seen) for label, seen in drawn if seen.sum() >= _MIN_INK]


def _annotation(number: int, image: int, label: int, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)],
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(mask),
    }
