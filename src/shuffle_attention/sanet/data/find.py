"""Images that a command is given: found in files and folders, and looked over."""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, InputError
from .images import inspect_image

logger = logging.getLogger(__name__)
_SHOWN = 5
_LONGEST = 160  # bytes of a name; file systems allow 255, and endings are added


@dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
        path: Where it lies.
        name: What its results are called, unlike any other's of the same command.
    """

    path: Path
    name: str


def find_pictures(
    sources: Sequence[str | os.PathLike], limit: int | None = None, *, skip_bad: bool = False
) -> list[Picture]:
    """Returns the images that files and folders name, each of which can be read.

    Args:
        sources: Files, and folders that are searched with all that is inside them.
        limit: How many to take at most, at even distances.
        skip_bad: Whether to leave out files that cannot be read, and say so.

    Raises:
        InputError: If there is no such file, a folder without images, or a file that is no image or too large.
    """
    found: list[tuple[Path, str]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = _inside(source)
            if not inside:
                raise InputError(f"{source} has no images in it ({', '.join(IMG_EXTENSIONS)})")
            found += [(path, "-".join(path.relative_to(source).with_suffix("").parts)) for path in inside]
        elif source.is_file():
            found.append((source, source.stem))
        else:
            raise InputError(f"no file or folder {source}")
    if limit is not None and limit < len(found):
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        found = [found[index * len(found) // limit] for index in range(limit)]
    # Here and not in each thread: what a thread restores, another may have changed.
    with warnings.catch_warnings(), ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        faults = pool.map(_fault, [path for path, _ in found], chunksize=64)
    bad = [f"{path} ({fault})" for (path, _), fault in zip(found, faults, strict=True) if fault]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        said = f"{len(bad)} of {len(found)} images cannot be read: {', '.join(bad[:_SHOWN])}{more}"
        if not skip_bad or len(bad) == len(found):
            raise DataError(said if skip_bad else f"{said}; leave them out with --skip-bad-images")
        logger.warning("%s; left out", said)
        found = [each for each, fault in zip(found, faults, strict=True) if not fault]
    names: dict[str, int] = {}
    pictures = []
    for path, stem in found:
        name = _printable(stem)
        names[name] = names.get(name, 0) + 1
        unlike = name if names[name] == 1 else f"{name}-{names[name]}"
        while unlike != name and unlike in names:
            unlike += "-"
        names.setdefault(unlike, 1)
        pictures.append(Picture(path, unlike))
    return pictures


def require_apart(output: Path, images: Sequence[str | os.PathLike], folders: Sequence[Path]) -> None:
    """Raises InputError where results could take the place of images, or be taken for some the next time.

    Args:
        output: What the user called the folder of the results.
        images: Files and folders of images.
        folders: Where results are written.
    """
    written = {folder.resolve() for folder in (output, *folders)}
    for image in map(Path, images):
        of = image.resolve() if image.is_dir() else image.resolve().parent
        if of in written or (image.is_dir() and any(of in folder.parents for folder in written)):
            raise InputError(f"--output {output} lies among the images of {image}; name another folder")


def _inside(folder: Path) -> list[Path]:
    """The images in a folder and in those inside it, linked ones too, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        images = (Path(here, name) for name in files if not name.startswith("."))
        found += [path for path in images if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
    return sorted(found)


def _printable(name: str) -> str:
    """A name that can be written as text, and is short enough for those of files that are called after it."""
    text = os.fsencode(name).decode(errors="replace")
    return text if len(text.encode()) <= _LONGEST else text.encode()[-_LONGEST:].decode(errors="ignore")


def _fault(path: Path) -> str:
    """What is wrong with an image file; of a very large one its header is read and no more."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # decoders raise whatever stood in their way; the look below finds words for it
        if isinstance(error, Image.DecompressionBombError):
            return f"more than {2 * (limit or 0):,} pixels; make it smaller first"
        return inspect_image(path, "RGB").fault or str(error)
    if limit is not None and width * height > limit:
        return f"{width} x {height} pixels are more than {limit:,}; make it smaller first"
    return inspect_image(path, "RGB", whole=True).fault
