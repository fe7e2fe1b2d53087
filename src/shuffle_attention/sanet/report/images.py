"""Pictures inside of a page, as data URIs."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

LONGEST = 160  # pixels of what a network saw
_LOSSLESS = 64  # below it a PNG is small enough, and every pixel counts


def embedded(image: Image.Image, longest: int = LONGEST) -> str:
    """Returns an image as a data URI, its longer side at most ``longest`` pixels."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(image.size) <= _LOSSLESS:
        image.save(file, "PNG", optimize=True)
        return _uri("png", file.getvalue())
    image.save(file, "JPEG", quality=85, subsampling=0)
    return _uri("jpeg", file.getvalue())


def embedded_pixels(pixels: Tensor) -> str:
    """Returns colours (height, width, 3) in [0, 1] as a data URI."""
    return embedded(Image.fromarray(np.round(255 * pixels.numpy()).astype(np.uint8)))


def embedded_figure(figure: Any) -> str:
    """Returns a figure of matplotlib as a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return _uri("png", file.getvalue())


def embedded_file(path: Path) -> str:
    """Returns a PNG file as a data URI."""
    return _uri("png", path.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
