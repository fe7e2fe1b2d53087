"""Find image files, check them without decoding them, and read them in the mode that a model takes."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import EpsImagePlugin, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, InputError, listed

logger = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")

# What cameras, browsers and data sets write. Pillow recognises a file by its content, whatever its name, and some of
# its other formats start programs: an EPS file called .png would start Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Data sets of timm and torchvision open their files themselves, and let Pillow choose.
EpsImagePlugin.gs_binary = False
# A silent conversion from one of these modes would hide a fault of the data.
_DESCRIPTIONS = {"L": "greyscale", "1": "bilevel", "CMYK": "CMYK", "LA": "greyscale with transparency"}

_LONGEST = 160  # bytes of a name; file systems allow 255, and endings are added


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


def inspect_image(path: str | os.PathLike, mode: str | None, *, whole: bool = False) -> Finding:
    """Check an image file by its header and its end, and decode it only if these are unusual.

    Args:
        path: Image file.
        mode: "RGB" or "L", the mode it will be converted to, or None.
        whole: Whether to decode every file, and refuse those with more pixels than Pillow's limit.
    """
    try:
        with open_image(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if whole and limit is not None and image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {limit:,}; make it smaller first"
                )
            converted = _DESCRIPTIONS.get(image.mode, "") if mode not in (None, image.mode) else ""
            if image.mode.startswith("I") and mode is not None:
                converted = "16-bit"
            if whole or image.mode in ("F", "I") or not _ends_well(path, image.format):
                image.load()
                to_mode(image, mode or "RGB")
        return Finding(converted=converted, size=image.size)
    # Decoders raise all kinds of errors: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        return Finding(fault=_reason(path, error))


def check_images(
    paths: Sequence[str | os.PathLike], mode: str | None, *, skip_bad: bool = False, whole: bool = False
) -> list[int]:
    """Return the indices of the readable image files; log those that are left out and those that are converted.

    Args:
        paths: Image files.
        mode: "RGB" or "L", the mode they will be converted to; None if it is not known, and no conversion is logged.
        skip_bad: Whether to leave out unreadable files.
        whole: Whether to decode every file. Otherwise a flipped bit in the middle of a file is not found.

    Raises:
        DataError: If some cannot be read and ``skip_bad`` is not set, or none can.
    """
    # The filter is set here: catch_warnings is not thread-safe.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        findings = in_threads(lambda path: inspect_image(path, mode, whole=whole), paths)
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
    return kept


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


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        path: Path of the file.
        name: Name for its results, unique within a command.
    """

    path: Path
    name: str


def find_images(
    sources: Sequence[str | os.PathLike], limit: int | None = None, *, skip_bad: bool = False
) -> list[ImageFile]:
    """Return the readable images in files and folders.

    Args:
        sources: Files, and folders that are searched with their subfolders.
        limit: Largest number of images to take, at even distances.
        skip_bad: Whether to leave out unreadable files with a warning.

    Raises:
        InputError: If a source does not exist, a folder has no images, or a file is too large or not an image.
    """
    candidates: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = _images_in(source)
            if not inside:
                raise InputError(f"{source} has no images in it ({', '.join(IMG_EXTENSIONS)})")
            candidates += [(path, "-".join(path.relative_to(source).with_suffix("").parts)) for path in inside]
        elif source.is_file():
            candidates.append((source, source.stem))
        else:
            raise InputError(f"no file or folder {source}")
    if limit is not None and limit < len(candidates):
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        candidates = [candidates[index * len(candidates) // limit] for index in range(limit)]
    kept = check_images([path for path, _ in candidates], None, skip_bad=skip_bad, whole=True)
    return _named([candidates[index] for index in kept])


def require_apart(output: Path, images: Sequence[str | os.PathLike], folders: Sequence[Path]) -> None:
    """Raise InputError if results could overwrite images, or be read as images the next time.

    Args:
        output: Output folder as the user named it.
        images: Files and folders of images.
        folders: Folders that results are written to.
    """
    written = {folder.resolve() for folder in (output, *folders)}
    for image in map(Path, images):
        folder = image.resolve() if image.is_dir() else image.resolve().parent
        if folder in written or (image.is_dir() and any(folder in each.parents for each in written)):
            raise InputError(f"--output {output} lies among the images of {image}; name another folder")


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders; links are followed, and each folder is visited once."""
    images: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths = (Path(here, name) for name in files if not name.startswith("."))
        images += [path for path in paths if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
    return sorted(images)


def _named(candidates: list[tuple[Path, str]]) -> list[ImageFile]:
    """Give each file a unique name."""
    counts: dict[str, int] = {}
    images = []
    for path, stem in candidates:
        name = _printable(stem)
        counts[name] = counts.get(name, 0) + 1
        unique = name if counts[name] == 1 else f"{name}-{counts[name]}"
        while unique != name and unique in counts:
            unique += "-"
        counts.setdefault(unique, 1)
        images.append(ImageFile(path, unique))
    return images


def _printable(name: str) -> str:
    """Return a name that is valid text, and short enough to be part of a file name."""
    text = os.fsencode(name).decode(errors="replace")
    return text if len(text.encode()) <= _LONGEST else text.encode()[-_LONGEST:].decode(errors="ignore")
