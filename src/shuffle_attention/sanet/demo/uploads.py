"""Read uploaded images, whose size is checked before a pixel is decoded."""

import os
from pathlib import Path

from PIL import Image

from ...errors import DataError
from ..data.images import FORMATS, open_image, to_mode, turned

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
# A network resizes the shorter side to its own, and the longer one with it: a line of pixels would fill the memory.
MAX_RATIO = 20
KEPT_SIDE = 2048  # pixels of the longer side that are kept


def read_upload(path: str | os.PathLike) -> Image.Image:
    """Return an uploaded image: upright, RGB, its longer side at most ``KEPT_SIDE``.

    Raises:
        DataError: If the file has too many bytes or, by its header, too many pixels, one side is too much longer than
            the other, or it cannot be decoded.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path.name} has {_mega(size)}, and {_mega(MAX_BYTES)} are allowed: make it smaller first")
    if not size:
        raise DataError(f"{path.name} is an empty file")
    try:
        with open_image(path) as image:
            _check_size(path.name, image.width, image.height)
            image.load()
            whole = to_mode(turned(image), "RGB")
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        known = ", ".join(name for name in FORMATS if name != "MPO")
        raise DataError(f"{path.name} is not an image that can be read; {known} would do") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is above ours
        raise DataError(f"{path.name} has far more than {MAX_PIXELS:,} pixels: make it smaller first") from error
    except MemoryError as error:
        raise DataError(f"{path.name} does not fit into memory: make it smaller first") from error
    # Decoders raise whatever stood in their way: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        raise DataError(f"{path.name} cannot be read: {str(error) or type(error).__name__}") from error
    whole.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BICUBIC)
    return whole


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels, {width * height / 1e6:,.0f} million, and "
            f"{MAX_PIXELS / 1e6:,.0f} million are allowed: make it smaller first"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels; one side may be at most {MAX_RATIO} times the other: crop it"
        )


def _mega(size: int) -> str:
    return f"{size / 2**20:,.1f} MB"
