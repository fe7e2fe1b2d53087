"""Opening one image file: every mode into the one asked for, and what is wrong with a file that cannot be read."""

import os
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

# A mode that a network's input is converted from without a word would hide what the user ought to know.
_DESCRIPTIONS = {"L": "greyscale", "1": "bilevel", "CMYK": "CMYK", "LA": "greyscale with transparency"}


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Returns an image as RGB or L (8 bits). 16-bit pixels are scaled, where Pillow alone would clip them to white.

    Raises:
        ValueError: If the pixels have no agreed range (32-bit floats).
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
    """Returns a decoded image as RGB or L; raises OSError or ValueError where it cannot be one."""
    with Image.open(file) as image:
        image.load()
        return to_mode(image, mode)


@dataclass(frozen=True)
class Finding:
    """What a look at an image file found: why it cannot be used, or what it is converted from."""

    fault: str = ""
    converted: str = ""


def inspect_image(path: str | os.PathLike, mode: str, *, whole: bool = False) -> Finding:
    """Returns what is to be said of an image file, looking at its ends and decoding it only where they are odd.

    Args:
        path: The file.
        mode: RGB or L, which it is to become.
        whole: Whether to decode it in any case.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                converted = "16-bit"
            else:
                converted = _DESCRIPTIONS.get(image.mode, "") if image.mode != mode else ""
            if whole or image.mode in ("F", "I") or not _ends_well(path, image.format):
                image.load()
                to_mode(image, mode)
        return Finding(converted=converted)
    # Decoders raise whatever stood in their way: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        return Finding(fault=_reason(path, error))


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return str(error) or type(error).__name__


def _ends_well(path: str | os.PathLike, kind: str | None) -> bool:
    """Whether the file ends as its format must; a cut-off file does not. Formats without such a mark say False."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        tail = file.read()
    if kind == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    return kind == "PNG" and b"IEND" in tail
