"""Small images, kept decoded in memory, and cropped, resized, mirrored and normalised in batches.

A crop that is resized is a product with one matrix per axis, so that a batch takes two products of matrices. The
matrices are those of Pillow's filters in Pillow's fixed-point numbers, and values are rounded to bytes after each axis
as Pillow does: for the same crop, the pixels are those of the transforms of single images, on every device.
"""

import logging
import math
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import counted
from .datasets import Samples

logger = logging.getLogger(__name__)
LARGEST_SIDE = 96  # pixels of the shorter side of a small image
_PEEKED = 16  # images that are decoded to see whether all are small
_UNIT = float(1 << 22)  # Pillow stores weights as multiples of its reciprocal
_TRIES = 10  # crops that are drawn, of which the first that fits is taken, as timm does
Decoded = list[tuple[NDArray[np.uint8], int] | None]


def expected_bytes(samples: Samples) -> float | None:
    """Return about how many bytes small images take decoded; None if the first that are looked at are not small."""
    peeked = [samples.decode(index) for index in range(0, len(samples), math.ceil(len(samples) / _PEEKED))]
    images = [_pixels(sample[0]) for sample in peeked if sample is not None]
    if not images or not all(map(_is_small, images)):
        return None
    return sum(image.nbytes for image in images) / len(images) * len(samples)


def decode_small(samples: Samples, megabytes: int) -> Decoded | None:
    """Return pixels (C, H, W) and label of each sample, None for one that cannot be decoded.

    Returns:
        None, in place of all, if the shorter side of an image is more than 96 pixels, or if all take more memory than
        ``megabytes``, which is logged.
    """
    needed, limit = expected_bytes(samples), megabytes * 10**6
    if needed is None:
        return None

    def decode(index: int) -> tuple[NDArray[np.uint8], int] | None:
        sample = samples.decode(index)
        return None if sample is None else (_pixels(sample[0]), sample[1])

    decoded: Decoded = []
    if needed <= limit:
        needed = 0
        with ThreadPool() as pool:
            for each in pool.imap(decode, range(len(samples)), chunksize=64):
                if each is not None and not _is_small(each[0]):
                    return None
                decoded.append(each)
                needed += 0 if each is None else each[0].nbytes
                if needed > limit:
                    break
    if needed > limit:
        logger.info(
            "%s of up to %d pixels need more than the %d MB of --cache-mb (%d MB or more): each epoch reads the files",
            *(counted(len(samples), "image"), LARGEST_SIDE, megabytes, math.ceil(needed / 10**6)),
        )
        return None
    return decoded


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _is_small(pixels: NDArray[np.uint8]) -> bool:
    return min(pixels.shape[1:]) <= LARGEST_SIDE


class InMemory(Dataset):
    """Images whose batches are computed as a whole and on a device, in the process that asks for them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.mean, self.std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
        self.device = device

    def __len__(self) -> int:
        raise NotImplementedError

    def loader(self, **options: Any) -> DataLoader:
        """Return a loader of batches, with options that say which."""
        return DataLoader(self, collate_fn=lambda batch: batch, **options)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.div_(255).sub_(self.mean).div_(self.std)


class TrainingImages(InMemory):
    """Small images that are cropped at random, resized, mirrored and normalised.

    The crop of an image depends only on seed, epoch and index.

    Args:
        samples: The images.
        decoded: Their pixels.
        size: Side of the output in pixels.
        scale: Range of the area of a crop, as a share of the image.
        ratio: Range of its aspect ratio.
        hflip: Probability of a horizontal flip.
        interpolation: Name of the filter.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        device: Device that computes.
    """

    def __init__(
        self,
        samples: Samples,
        decoded: Decoded,
        *,
        size: int,
        scale: Sequence[float],
        ratio: Sequence[float],
        hflip: float,
        interpolation: str,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ):
        super().__init__(mean, std, device)
        self.samples, self.decoded = samples, decoded
        self.size, self.scale, self.ratio, self.hflip = size, scale, ratio, hflip
        self.interpolation = interpolation
        self._epoch, self._draws = -1, np.empty(0)

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the images (B, C, size, size) and labels (B,) of keys (epoch, index) of one epoch."""
        (epoch, _), indices = keys[0], [index for _, index in keys]
        if epoch != self._epoch:
            random = np.random.default_rng([self.samples.seed, epoch])
            self._epoch, self._draws = epoch, random.random((len(self), 2 * _TRIES + 3), np.float32)
        pairs = [self.decoded[index] or self._another(index) for index in indices]
        sizes = np.array([pixels.shape[1:] for pixels, _ in pairs])
        draws = self._draws[indices].astype(np.float64)
        top, left, height, width = random_crops(sizes, draws[:, 1:], self.scale, self.ratio)
        rows = resize_matrices(top, height, sizes[:, 0].max(), self.size, self.interpolation)
        columns = resize_matrices(left, width, sizes[:, 1].max(), self.size, self.interpolation)
        mirrored = draws[:, 0] < self.hflip
        columns[mirrored] = columns[mirrored, ::-1]
        pixels = [pixels for pixels, _ in pairs]
        exact = self.device if self.device.type != "mps" else torch.device("cpu")  # MPS has no float64
        images = resized(*(torch.from_numpy(each).to(exact) for each in (_stacked(pixels), rows, columns)))
        return self._normalised(images.float().to(self.device)), torch.tensor([label for _, label in pairs])

    def _another(self, index: int) -> tuple[NDArray[np.uint8], int]:
        image, label = self.samples.readable(index)
        return _pixels(image), label


class EvaluationImages(InMemory):
    """Small images whose crops are kept in memory as bytes, to be evaluated again and again.

    Args:
        samples: The images.
        decoded: Their pixels.
        transform: Function from an image of Pillow to the bytes (C, size, size) of its crop.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        device: Device that the batches are on.
    """

    def __init__(
        self,
        samples: Samples,
        decoded: Decoded,
        transform: Callable[[Image.Image], Any],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ):
        super().__init__(mean, std, device)
        self.samples = samples
        blank = np.zeros((len(mean), 8, 8), np.uint8)
        self.labels = torch.tensor([-1 if each is None else each[1] for each in decoded])
        crops = [transform(_image(blank if each is None else each[0])) for each in decoded]
        self.images = torch.stack(crops)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (B, C, size, size) and labels (B,), -1 for an image that could not be decoded."""
        labels = self.labels[indices]
        for index in (index for index, label in zip(indices, labels.tolist(), strict=True) if label < 0):
            self.samples.failed[index] = True
        return self._normalised(self.images[indices].to(self.device).float()), labels


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return images as one array (B, C, H, W), those that are smaller padded below and on the right."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return np.stack(images)
    batch = np.zeros((len(images), len(images[0]), height, width), np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch


def random_crops(
    sizes: NDArray[Any], draws: NDArray[Any], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return top, left, height and width, (B,) each, of a random crop of each image, in the distribution of timm's.

    Args:
        sizes: Height and width of each image, (B, 2).
        draws: Independent random numbers in [0, 1), (B, 22).
        scale: Range of the area, as a share of the image.
        ratio: Range of the aspect ratio, of which the logarithm is uniform.

    Source: ``RandomResizedCropAndInterpolation.get_params`` of timm: ten tries, then the largest central crop of the
    nearest ratio.
    """
    heights, widths = sizes[:, :1], sizes[:, 1:]
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[:, :_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height <= heights) & (width <= widths)
    first = fits.argmax(1)[:, None]
    height, width, found = (np.take_along_axis(each, first, 1)[:, 0] for each in (height, width, fits))
    all_heights, all_widths = heights[:, 0], widths[:, 0]
    top = np.floor(draws[:, -2] * (all_heights - height + 1))
    left = np.floor(draws[:, -1] * (all_widths - width + 1))
    central_height = np.minimum(all_heights, np.rint(all_widths / ratio[0]))
    central_width = np.minimum(all_widths, np.rint(all_heights * ratio[1]))
    height, width = np.where(found, height, central_height), np.where(found, width, central_width)
    top = np.where(found, top, (all_heights - central_height) // 2)
    left = np.where(found, left, (all_widths - central_width) // 2)
    return top, left, np.maximum(height, 1), np.maximum(width, 1)


def _bicubic(x: NDArray[Any]) -> NDArray[Any]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Pillow's filters of the distance to a pixel.
_FILTERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)).astype(x.dtype),
    "bilinear": lambda x: np.maximum(1 - np.abs(x), 0),
    "hamming": lambda x: np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0),
    "bicubic": _bicubic,
    "lanczos": lambda x: np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0),
}


def resize_matrices(
    start: NDArray[Any], length: NDArray[Any], pixels: int, size: int, interpolation: str
) -> NDArray[np.float64]:
    """Return for each image the matrix (size, pixels) that crops and resizes one axis, in units of 2**-22.

    Pillow rounds the weights to these units, so that all sums are whole numbers and float64 has them exactly.

    Args:
        start: First pixel of each crop, (B,).
        length: Number of pixels of each crop, (B,).
        pixels: Number of pixels of the axis.
        size: Number of pixels after resizing.
        interpolation: Name of the filter.
    """
    scale = (length / size)[:, None, None]
    at = np.arange(pixels) - start[:, None, None]
    if interpolation == "nearest":
        nearest = np.cumsum(np.concatenate([scale * 0.5, np.repeat(scale, size - 1, 1)], 1), 1)
        return (at == np.floor(nearest)) * _UNIT
    centre = (np.arange(size) + 0.5)[:, None] * scale
    inside = (at >= 0) & (at < length[:, None, None])
    weights = _FILTERS[interpolation]((at - centre + 0.5) * (1 / np.maximum(scale, 1))) * inside
    weights *= _UNIT / weights.sum(2, keepdims=True)
    return np.trunc(weights + np.copysign(0.5, weights))


def resized(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return bytes (B, C, H, W) resized by matrices (B, size, H) and (B, size, W), as whole numbers in float64."""

    def rounded(sums: Tensor) -> Tensor:
        return sums.add_(_UNIT / 2).div_(_UNIT).floor_().clamp_(0, 255)

    batch, channels, height, _ = pixels.shape
    x = rounded(pixels.flatten(1, 2).double() @ columns.mT).view(batch, channels, height, -1)
    return rounded(rows[:, None] @ x)
