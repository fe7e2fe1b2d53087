"""A data set to detect and segment that needs no download: handwritten digits on photographs, from scikit-learn.

Its 1,797 digits (UCI "Optical Recognition of Handwritten Digits", 8 x 8 pixels) lie at random sizes, places and
colours on pieces of its two photographs ("China" and "Flower"). Boxes and masks are those of the ink that is seen.
"""

from typing import Any

import numpy as np
from PIL import Image

from ....errors import InputError
from ...data.coco import CocoData
from ...data.datasets import load_digits
from ...data.masks import encode_mask

__all__ = ["digits_coco"]
_OVERLAP = 0.3  # of a digit's ink that a later one may cover
_MIN_INK = 20  # pixels of a digit that must be seen


def digits_coco(
    split: str, count: int | None = None, *, size: int = 192, digits: tuple[int, int] = (1, 6), seed: int = 0
) -> CocoData:
    """Returns images with digits, in memory; the same arguments give the same pixels.

    The digits of the two splits are different ones, and lie on different parts of the photographs.

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
    pictures: list[str | Image.Image] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, (count or {"train": 400, "val": 100}[split]) + 1):
        pixels = _piece(rng, grounds, size)
        objects = _paste(rng, pixels, ink, int(rng.integers(digits[0], digits[1] + 1)))
        for label, mask in objects:
            annotations.append(_annotation(len(annotations) + 1, number, label, mask))
        images.append({"id": number, "file_name": f"{number:05}.png", "width": size, "height": size})
        pictures.append(Image.fromarray(pixels))
    # Ids from 1, as 0 is no category to many readers.
    categories = [{"id": label + 1, "name": str(label)} for label in range(10)]
    return CocoData(images, pictures, annotations, categories, f"digits ({split})")


def _grounds(split: str) -> list[np.ndarray]:
    """The part of each photograph that is a split's: the left 60 % for training, the rest for validation."""
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(image) for image in load_sample_images().images]
    edges = [int(0.6 * image.shape[1]) for image in photographs]
    halves = zip(photographs, edges, strict=True)
    return [image[:, :edge] if split == "train" else image[:, edge:] for image, edge in halves]


def _piece(rng: np.random.Generator, grounds: list[np.ndarray], size: int) -> np.ndarray:
    """A square of a photograph as (size, size, 3), of random scale, mirrored at random."""
    ground = grounds[int(rng.integers(len(grounds)))]
    side = int(rng.integers(96, min(ground.shape[:2]) + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in ground.shape[:2])
    square = Image.fromarray(ground[top : top + side, left : left + side])
    pixels = np.array(square.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _paste(
    rng: np.random.Generator, pixels: np.ndarray, ink: list[tuple[Image.Image, int]], count: int
) -> list[tuple[int, np.ndarray]]:
    """Draws up to ``count`` digits into an image, in place; returns labels and the masks (H, W) of what is seen."""
    size = len(pixels)
    drawn: list[tuple[int, np.ndarray]] = []
    for _ in range(count):
        for _ in range(10):  # tries to find a place
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
        # The colour is as far from the ground's brightness as it can be seen.
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
