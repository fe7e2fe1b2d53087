"""Find image files in folders."""

import glob
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, InputError, counted, listed
from .images import check_images

logger = logging.getLogger(__name__)
SUFFIXES = (*IMG_EXTENSIONS, ".jpe", ".jfif", ".mpo", ".gif", ".avif", ".jp2")
# What macOS, Windows, network drives and file systems leave in folders; hidden files and folders come on top.
_LITTER = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found", "Thumbs.db", "desktop.ini"}
_LONGEST = 160  # bytes of a name; file systems allow 255, and endings are added


@dataclass(frozen=True)
class FolderContent:
    """Paths of the files in a folder and its subfolders.

    Attributes:
        images: Files that are images by their names, by folder and name.
        others: Other files.
        skipped: Images and folders that are hidden, or that systems leave behind, and links that lead back.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def is_image_name(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return name.lower().endswith(SUFFIXES)


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system leaves behind."""
    return name.startswith(".") or name in _LITTER


def subfolders(folder: str | os.PathLike) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones and what systems leave behind."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_litter(entry.name))


def walk_images(folder: str | os.PathLike) -> FolderContent:
    """Return the files in a folder and its subfolders; links are followed, and each folder is visited once.

    Raises:
        DataError: If a folder cannot be read.
    """
    content = FolderContent()
    root = os.path.realpath(folder)
    seen = {str(parent) for parent in Path(root).parents}
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            content.skipped.append(here)
            continue
        seen.add(real)
        content.skipped.extend(os.path.join(here, name) for name in folders if is_litter(name))
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in files:
            if not is_litter(name):
                (content.images if is_image_name(name) else content.others).append(os.path.join(here, name))
            elif is_image_name(name):
                content.skipped.append(os.path.join(here, name))
    content.images.sort(key=os.path.split)
    return content


def _refuse(error: OSError) -> None:
    raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


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
    """Return the readable images of :func:`expand_sources`.

    Args:
        sources: Files, folders, globs, and ``-`` for a list on standard input.
        limit: Largest number of images to take, at even distances.
        skip_bad: Whether to leave out unreadable files with a warning.

    Raises:
        InputError: If a source does not exist, a folder has no images, or a file is too large or not an image.
    """
    candidates = expand_sources(sources)
    if limit is not None and limit < len(candidates):
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        candidates = [candidates[index * len(candidates) // limit] for index in range(limit)]
    kept = check_images([path for path, _ in candidates], None, skip_bad=skip_bad, whole=True)
    return _named([candidates[index] for index in kept])


def expand_sources(sources: Sequence[str | os.PathLike]) -> list[tuple[Path, str]]:
    """Return path and name of each image file that the sources stand for, in their order; no file is opened.

    A source is a file; a folder, whose subfolders are searched too; a glob that the shell did not expand; or ``-`` for
    a list of files and folders on standard input, one per line, or separated by NUL if there is one in it. In folders
    and globs, files without the name of an image are left out with a warning.

    Raises:
        InputError: If a source does not exist, or has no images.
    """
    candidates: list[tuple[Path, str]] = []
    others: list[str] = []
    for source in [os.fspath(source) for source in sources]:
        if source == "-":
            candidates += [each for path in _paths_on_stdin() for each in _images_of(path, others)]
        elif glob.has_magic(source) and not os.path.lexists(source):
            inside: dict[Path, str] = {}  # "**" matches folders, and again what is in them
            for path in sorted(glob.glob(source, recursive=True)):
                if os.path.isdir(path) or is_image_name(path):
                    for image, name in _images_of(path, others):
                        inside.setdefault(image, name)
                else:
                    others.append(path)
            if not inside:
                raise InputError(f"no image matches {source} ({', '.join(SUFFIXES)})")
            candidates += inside.items()
        else:
            images = _images_of(source, others)
            if not images:
                raise InputError(f"{source} has no images in it ({', '.join(SUFFIXES)})")
            candidates += images
    if others:
        others = [*dict.fromkeys(others)]
        logger.warning("skipped %s without the name of an image: %s", counted(len(others), "file"), listed(others))
    return candidates


def _images_of(source: str, others: list[str]) -> list[tuple[Path, str]]:
    """Return a file, or the images in a folder, with their names; add the other files in the folder to ``others``."""
    if source and os.path.isdir(source):
        content = walk_images(source)
        others += content.others
        paths = [Path(path) for path in content.images]
        return [(path, "-".join(path.relative_to(source).with_suffix("").parts)) for path in paths]
    if not os.path.exists(source):
        raise InputError(f"no file or folder {source or repr(source)}")
    if not os.path.isfile(source):
        raise InputError(f"{source} is neither a file nor a folder")
    return [(Path(source), Path(source).stem)]


def _paths_on_stdin() -> list[str]:
    """Return the paths on standard input: one per line, or if a NUL is in it, separated by NUL."""
    content = sys.stdin.buffer.read()
    separator = b"\0" if b"\0" in content else b"\n"
    paths = [os.fsdecode(path if separator == b"\0" else path.rstrip(b"\r")) for path in content.split(separator)]
    paths = [path for path in paths if path]
    if not paths:
        raise InputError("standard input has no paths; - takes one per line, or separated by NUL")
    return paths


def require_apart(output: Path, images: Sequence[str | os.PathLike], folders: Sequence[Path]) -> None:
    """Raise InputError if results could overwrite images, or be read as images the next time.

    Args:
        output: Output folder as the user named it.
        images: Files and folders of images.
        folders: Folders that results are written to.
    """
    written = {folder.resolve() for folder in (output, *folders)}
    for image in (Path(image) for image in images if image != "-"):
        folder = image.resolve() if image.is_dir() else image.resolve().parent
        if folder in written or (image.is_dir() and any(folder in each.parents for each in written)):
            raise InputError(f"--output {output} lies among the images of {image}; name another folder")


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
