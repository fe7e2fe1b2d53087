"""HTML from templates, with every value escaped, and images embedded as data URIs."""

import base64
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from ...errors import counted
from ...files import write_text

logger = logging.getLogger(__name__)
LONGEST = 160  # pixels of the longer side of a small image
_LOSSLESS = 64  # at most so many pixels: a PNG is small enough, and every pixel counts


@cache
def templates() -> Environment:
    """Return the templates. Names of classes and files are user input: all values are escaped, missing ones raise."""
    environment = Environment(
        loader=PackageLoader("shuffle_attention.sanet.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"counted": counted, "data_uri": data_uri, "embedded": embedded}
    return environment


def write_page(template: str, values: dict[str, Any], path: Path) -> None:
    """Write a page from a file of ``report/templates``, completely or not at all."""
    # File names may hold bytes that are not text, which UTF-8 cannot encode.
    page = templates().get_template(template).render(values)
    write_text(path, page.encode(errors="replace").decode())


def render_part(template: str, macro: str, *values: object) -> str:
    """Return the HTML of one macro of a file of ``report/templates``."""
    part = str(getattr(templates().get_template(template).module, macro)(*values)).strip()
    return part.encode(errors="replace").decode()  # as above


@contextmanager
def log_failures(folder: Path) -> Iterator[None]:
    """Turn a failure of a finished run's report into a warning: the results are on disk and valid without it."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("%s is finished, and its report was interrupted; sanet report %s writes it", folder, folder)
        raise
    except Exception as error:  # of any kind: hours of training must not end as a failure because of it
        reason = str(error) or type(error).__name__
        logger.warning("no report of %s could be written (%s); sanet report %s tries again", folder, reason, folder)


def data_uri(image: Image.Image, *, lossless: int = _LOSSLESS) -> str:
    """Return an image as a data URI: PNG if its longer side has at most ``lossless`` pixels, else JPEG."""
    file = io.BytesIO()
    if max(image.size) <= lossless:
        image.save(file, "PNG", optimize=True)
        return _uri("png", file.getvalue())
    image.save(file, "JPEG", quality=85, subsampling=0)
    return _uri("jpeg", file.getvalue())


def embedded(image: Image.Image, longest: int = LONGEST) -> str:
    """Return an image as a data URI, its longer side reduced to at most ``longest`` pixels."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return data_uri(image)


def embedded_pixels(pixels: Tensor) -> str:
    """Return colours (height, width, 3) in [0, 1] as a data URI."""
    return embedded(Image.fromarray(np.round(255 * pixels.numpy()).astype(np.uint8)))


def embedded_figure(figure: Any) -> str:
    """Return a figure of matplotlib as a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return _uri("png", file.getvalue())


def embedded_file(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return _uri("png", path.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
