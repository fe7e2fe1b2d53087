"""Open one image file, check it without decoding it, and convert it to the mode that a model takes."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import IO, TypeVar

import numpy as np
from PIL import EpsImagePlugin, Image

A = TypeVar("A")
B = TypeVar("B")

# What cameras, browsers and data sets write. Pillow recognises a file by its content, whatever its name, and some of
# its other formats start programs: an EPS file called .png would start Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Data sets of timm and torchvision open their files themselves, and let Pillow choose.
EpsImagePlugin.gs_binary = False
# A silent conversion from one of these modes would hide a fault of the data.
_DESCRIPTIONS = {"L": "greyscale", "1": "bilevel", "CMYK": "CMYK", "LA": "greyscale with transparency"}


def open_image(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Open an image of one of the ``FORMATS``; only its header is read.

    Raises:
        OSError: If the file cannot be read, or is of another format.
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to RGB or L (8 bits). 16-bit pixels are scaled; Pillow alone would clip them to white.

    Raises:
        ValueError: If the range of the pixels is unknown (32 bits).
    """
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("32-bit integer pixels have no agreed range; save the image with 8 or 16 bits")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def read_image(file: str | os.PathLike | IO[bytes], mode: str) -> Image.Image:
    """Decode an image as RGB or L.

    Raises:
        OSError: If the file cannot be read or decoded.
        ValueError: If the range of the pixels is unknown.
    """
    with open_image(file) as image:
        image.load()
        return to_mode(image, mode)


@dataclass(frozen=True)
class Finding:
    """Result of checking an image file.

    Attributes:
        fault: Why the file cannot be used; empty if it can.
        converted: What kind of image it is converted from, if that is worth a warning.
        size: Width and height.
    """

    fault: str = ""
    converted: str = ""
    size: tuple[int, int] = field(default=(0, 0), compare=False)


def inspect_image(path: str | os.PathLike, mode: str, *, whole: bool = False) -> Finding:
    """Check an image file by its header and its end, and decode it only if these are unusual.

    Args:
        path: Image file.
        mode: "RGB" or "L", the mode it will be converted to.
        whole: Whether to decode every file, and refuse those with more pixels than Pillow's limit.
    """
    try:
        with open_image(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if whole and limit is not None and image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {limit:,}; make it smaller first"
                )
            converted = _DESCRIPTIONS.get(image.mode, "") if image.mode != mode else ""
            if image.mode.startswith("I"):
                converted = "16-bit"
            if whole or image.mode in ("F", "I") or not _ends_well(path, image.format):
                image.load()
                to_mode(image, mode)
        return Finding(converted=converted, size=image.size)
    # Decoders raise all kinds of errors: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        return Finding(fault=_reason(path, error))


def in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Apply a function that mostly waits for files to all items, in several threads."""
    with ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return pool.map(function, items, chunksize=64)


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller first"
    return str(error) or type(error).__name__


def _ends_well(path: str | os.PathLike, kind: str | None) -> bool:
    """Return whether the file ends as its format must; False for formats without an end mark."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        tail = file.read()
    if kind == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    return kind == "PNG" and b"IEND" in tail
