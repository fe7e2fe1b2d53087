"""Open image files safely, check them without decoding them, and read them in the mode that a model takes."""

import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import IO, Any, TypeVar

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image, ImageCms

from ...errors import DataError, listed

logger = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")

# What cameras, browsers and data sets write. Pillow recognises a file by its content, whatever its name, and some of
# its other formats start programs: an EPS file called .png would start Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Data sets of timm and torchvision open their files themselves, and let Pillow choose.
EpsImagePlugin.gs_binary = False
# A network's input has a fixed shorter side, and the longer one grows with it: a line of pixels would fill the memory.
MAX_RATIO = 200
# A silent conversion from one of these modes would hide a fault of the data.
_DESCRIPTIONS = {"L": "greyscale", "1": "bilevel", "LA": "greyscale with transparency"}
_DESCRIPTIONS |= {mode: mode for mode in ("CMYK", "YCbCr", "LAB", "HSV")}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEPTHS = (8, 10, 12, 14)  # bits that sensors have, and that files store in 16
_LOOKED_AT = 200  # images whose pixels tell the bit depth of a data set


def open_image(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Open an image of one of the ``FORMATS``; only its header is read.

    Raises:
        OSError: If the file cannot be read, is of another format, or is not a regular file.
    """
    # A pipe with the name of an image would be waited for without end.
    if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    Image.init()
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    if image.format == "TIFF":
        image.filename = (
            ""  # Pillow would map a greyscale file into memory with the width and height of the turned image
        )
    return image


def turned(image: Image.Image) -> Image.Image:
    """Turn a decoded image by the orientation in its EXIF data, as viewers display it."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def to_mode(image: Image.Image, mode: str, *, as_stored: bool = False, bit_depth: int | None = None) -> Image.Image:
    """Convert an image to RGB or L (8 bits).

    Pixels of more than 8 bits are scaled, where Pillow alone would clip them to white.

    Args:
        image: Decoded image.
        mode: "RGB" or "L".
        as_stored: Whether transparent pixels keep the colour stored under them; otherwise they are laid on white.
        bit_depth: Bits that pixels of more than 8 bits fill; 16 by default.

    Raises:
        ValueError: If the range of the pixels is unknown, or they exceed the bit depth.
    """
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _scaled(image, bit_depth)
    elif image.mode == "LAB":
        profiles: Any = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    elif image.has_transparency_data and not as_stored:
        # Premultiplied modes have no direct conversion.
        rgba = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image, bit_depth: int | None) -> Image.Image:
    """Return integer pixels of 16 or 32 bits as greyscale of 8 bits."""
    pixels, depth = np.asarray(image), bit_depth or 16
    if pixels.min() < 0 or pixels.max() >= 1 << depth:
        if bit_depth is None:
            raise ValueError(
                "32-bit integer pixels have no agreed range; save the image with 8 or 16 bits, or give --bit-depth"
            )
        raise ValueError(f"pixels from {pixels.min():,} to {pixels.max():,} exceed the {depth} bits of --bit-depth")
    return Image.fromarray((pixels >> (depth - 8)).astype(np.uint8))


def read_image(
    file: str | os.PathLike | IO[bytes], mode: str, *, as_stored: bool = False, bit_depth: int | None = None
) -> Image.Image:
    """Decode an image as RGB or L; of several frames, the first.

    Args:
        file: Image file.
        mode: "RGB" or "L".
        as_stored: Whether to ignore the orientation in EXIF data, and transparency.
        bit_depth: Bits that pixels of more than 8 bits fill; 16 by default.

    Raises:
        OSError: If the file cannot be read or decoded.
        ValueError: If the range of the pixels is unknown, or one side is more than ``MAX_RATIO`` times the other.
    """
    with open_image(file) as image:
        _check_shape(image, bit_depth)
        image.load()
        return to_mode(image if as_stored else turned(image), mode, as_stored=as_stored, bit_depth=bit_depth)


def _orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 where there is none or it cannot be read."""
    # Pillow would decode a PNG file to look for EXIF data behind the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raise all kinds of errors, and the pixels can still be read
        return 1
    return orientation if orientation in _TURNS else 1


def _is_deep_colour(image: Image.Image) -> bool:
    """Return whether an image, before it is decoded, has colours of 16 bits, of which Pillow reads the upper 8."""
    return image.mode not in ("I", "F") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _check_shape(image: Image.Image, bit_depth: int | None) -> None:
    """Raise ValueError if an image, by its header, would take too much memory or cannot be scaled as asked for."""
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels; one side may be at most {MAX_RATIO} times the other: crop it"
        )
    if bit_depth not in (None, 16) and not image.mode.startswith("I") and _is_deep_colour(image):
        raise ValueError("colours of 16 bits cannot be read with --bit-depth; save the image with 8 bits")


@dataclass(frozen=True)
class Finding:
    """Result of checking an image file.

    Attributes:
        fault: Why the file cannot be used; empty if it can.
        converted: What kind of image it is converted from, if that is worth a warning.
        deep: Whether its pixels have more than 8 bits.
        size: Width and height, as the image is read.
        orientation: Orientation in its EXIF data, 1 to 8; the width and height stored are exchanged if it is above 4.
    """

    fault: str = ""
    converted: str = ""
    deep: bool = field(default=False, compare=False)
    size: tuple[int, int] = field(default=(0, 0), compare=False)
    orientation: int = field(default=1, compare=False)


def inspect_image(
    path: str | os.PathLike,
    mode: str | None,
    *,
    whole: bool = False,
    as_stored: bool = False,
    bit_depth: int | None = None,
) -> Finding:
    """Check an image file by its header and its end, and decode it only if these are unusual.

    Args:
        path: Image file.
        mode: "RGB" or "L", the mode it will be converted to, or None.
        whole: Whether to decode every file, and refuse those with more pixels than Pillow's limit.
        as_stored: As for :func:`read_image`.
        bit_depth: As for :func:`read_image`.
    """
    try:
        with open_image(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if whole and limit is not None and image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {limit:,}; make it smaller first"
                )
            _check_shape(image, bit_depth)
            deep = image.mode.startswith("I") or _is_deep_colour(image)
            kinds = [] if mode is None else _kinds(image, mode, deep, as_stored)
            if whole or image.mode in ("F", "I") or not _ends_well(path, image.format):
                image.load()
                to_mode(image, mode or "RGB", as_stored=as_stored, bit_depth=bit_depth)
            orientation = _orientation(image)
            width, height = image.size
        if not as_stored and orientation > 1:
            kinds += ["turned upright by EXIF data"] if mode is not None else []
            width, height = (height, width) if orientation > 4 else (width, height)
        return Finding(converted=", ".join(kinds), deep=deep, size=(width, height), orientation=orientation)
    # Decoders raise all kinds of errors: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        return Finding(fault=_reason(path, error))


def _kinds(image: Image.Image, mode: str, deep: bool, as_stored: bool) -> list[str]:
    """Return what is worth a warning of an image that is read in a mode."""
    kinds = [_DESCRIPTIONS[image.mode]] if image.mode in _DESCRIPTIONS and image.mode != mode else []
    if deep:
        kinds = ["16-bit"]
    elif image.has_transparency_data and not as_stored:
        kinds = ["transparent in parts, which are laid on white"]
    # Cameras write MPO files: a photograph, and further ones that no viewer shows.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        kinds.append("of several frames, of which the first is used")
    return kinds


def check_images(
    paths: Sequence[str | os.PathLike],
    mode: str | None,
    *,
    skip_bad: bool = False,
    whole: bool = False,
    as_stored: bool = False,
    bit_depth: int | None = None,
) -> list[int]:
    """Return the indices of the readable image files; log those that are left out and those that are converted.

    Args:
        paths: Image files.
        mode: "RGB" or "L", the mode they will be converted to; None if it is not known, and no conversion is logged.
        skip_bad: Whether to leave out unreadable files.
        whole: Whether to decode every file. Otherwise a flipped bit in the middle of a file is not found.
        as_stored: As for :func:`read_image`.
        bit_depth: As for :func:`read_image`.

    Raises:
        DataError: If some cannot be read and ``skip_bad`` is not set, or none can; if pixels of 16 bits fill fewer.
    """
    # The filter is set here: catch_warnings is not thread-safe.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        options: Any = {"whole": whole, "as_stored": as_stored, "bit_depth": bit_depth}
        findings = in_threads(lambda path: inspect_image(path, mode, **options), paths)
    converted: dict[str, list[str]] = {}
    for path, finding in zip(paths, findings, strict=True):
        if finding.converted:
            converted.setdefault(finding.converted, []).append(str(path))
    for kind, files in sorted(converted.items()):
        verb, first = ("is", "it") if len(files) == 1 else ("are", "the first")
        counts = f"{len(files)} of {len(paths)}"
        logger.warning("%s images %s %s, read as %s; %s is %s", counts, verb, kind, mode, first, files[0])
    bad = [f"{path} ({finding.fault})" for path, finding in zip(paths, findings, strict=True) if finding.fault]
    kept = [index for index, finding in enumerate(findings) if not finding.fault]
    message = f"{len(bad)} of {len(paths)} images cannot be read"
    if bad and not (skip_bad and kept):
        hint = "" if skip_bad else "; repair or remove them, or leave them out with --skip-bad-images"
        raise DataError(f"{message}: {listed(bad)}{hint}")
    if bad:
        logger.warning("%s and are left out: %s", message, listed(bad))
    if bit_depth is None:
        _check_depth([paths[index] for index in kept if findings[index].deep], refuse=mode is not None)
    return kept


def _check_depth(paths: Sequence[str | os.PathLike], *, refuse: bool) -> None:
    """Raise DataError, or log a warning, if images of 16 bits all fill so few of them that they would be read as black.

    Args:
        paths: Images of 16 bits, of which some at even distances are decoded.
        refuse: Whether to raise rather than to log.
    """
    chosen = (
        [paths[index * len(paths) // _LOOKED_AT] for index in range(_LOOKED_AT)] if len(paths) > _LOOKED_AT else paths
    )
    largest, colours = 0, False
    for path in chosen:
        with open_image(path) as image:
            coloured = _is_deep_colour(image) and not image.mode.startswith("I")
            largest = max(largest, int(np.asarray(image).max()) << (8 if coloured else 0))
            colours |= coloured
        if largest >= 1 << max(_DEPTHS):
            return
    if largest:
        depth = next(depth for depth in _DEPTHS if largest < 1 << depth)
        message = f"no pixel of the {len(chosen)} images of 16 bits that were looked at, such as {chosen[0]}, is above "
        message += f"{largest:,}: they would be almost black"
        if refuse:
            fill = f"save them with 8 bits, since colours have no --bit-depth {depth}" if colours else ""
            raise DataError(
                f"{message}. If the values fill {depth} bits, {fill or f'give --bit-depth {depth}'}; if they are meant "
                f"to be this dark, give --bit-depth 16"
            )
        logger.warning("%s", message)


def in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Apply a function that mostly waits for files to all items, in several threads."""
    with ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return pool.map(function, items, chunksize=64)


def _reason(path: str | os.PathLike, error: Exception) -> str:
    """Return what is wrong with an image file, in a few words."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller first"
    if isinstance(error, OSError) and error.strerror:  # without the path, which the message has already
        return error.strerror
    return str(error) or type(error).__name__


def _ends_well(path: str | os.PathLike, kind: str | None) -> bool:
    """Return whether the file ends as its format must; False for formats without an end mark.

    EXIF data at the end of a PNG file are unusual too: Pillow finds them only when it has decoded the image.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        tail = file.read()
    if kind in ("JPEG", "MPO"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    return kind == "PNG" and b"IEND" in tail[-64:] and b"eXIf" not in tail
