"""Find image files in folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, InputError
from .images import check_images

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
            inside = [Path(path) for path in walk_images(source).images]
            if not inside:
                raise InputError(f"{source} has no images in it ({', '.join(SUFFIXES)})")
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
