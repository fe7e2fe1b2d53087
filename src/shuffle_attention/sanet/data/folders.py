"""Image folders: ``train/CLASS/image.jpg`` and ``val/CLASS/image.jpg``, looked over before anything is trained."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ...errors import DataError
from .images import inspect_image

logger = logging.getLogger(__name__)

_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class Tree:
    """Images of one split with their labels, and the names of the labels."""

    images: list[tuple[str, int]]
    classes: list[str]


def scan_tree(data: str | os.PathLike, split: str, classes: list[str] | None = None) -> Tree:
    """Returns the images of one split of a folder in ImageNet's layout, labelled in the order of the class names.

    Args:
        data: Folder with ``train/`` and ``val/``; for validation also a folder of class folders itself.
        split: "train" or "val".
        classes: Names of the labels, where they are known; the folder must then have no others.

    Raises:
        DataError: If there is no such folder, it has no classes or no images, or other classes.
    """
    folder = _split_folder(Path(data).expanduser(), split)
    present = _subfolders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders: expected {folder}/CLASS/image.jpg")
    strange = [name for name in present if classes is not None and name not in classes]
    if classes is not None and strange:
        raise DataError(
            f"{folder} has classes that the network was not trained on: {_listed(strange)}; "
            f"known are {len(classes)}: {_listed(classes)}"
        )
    names = present if classes is None else classes
    others: list[str] = []

    def is_image(path: str) -> bool:
        right = path.lower().endswith(IMG_EXTENSIONS)
        if not right and not os.path.basename(path).startswith("."):
            others.append(path)
        return right

    stray = [
        entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name.lower().endswith(IMG_EXTENSIONS)
    ]
    if stray:
        logger.warning("%d images of %s are in no class folder and not used: %s", len(stray), folder, _listed(stray))
    labels = {name: names.index(name) for name in present}
    images = make_dataset(str(folder), labels, is_valid_file=is_image, allow_empty=True)
    if not images:
        raise DataError(f"{folder} has {len(present)} class folders and no images ({', '.join(IMG_EXTENSIONS)})")
    if others:
        logger.warning("%d files of %s are not images by their names: %s", len(others), folder, _listed(others))
    seen = {label for _, label in images}
    empty = [name for label, name in enumerate(names) if label not in seen]
    if empty and split == "train":
        raise DataError(f"{len(empty)} of the {len(names)} classes of {folder} have no images: {_listed(empty)}")
    if empty:
        logger.warning("%d of the %d classes have no images in %s: %s", len(empty), len(names), folder, _listed(empty))
    return Tree(images, names)


def check_images(paths: Sequence[str], mode: str, *, skip_bad: bool = False) -> list[int]:
    """Returns the indices of the readable image files, having said what is to be said of the others.

    Every file is opened and its end looked at; it is decoded only where something is odd. That finds
    files that are empty, cut off or no images, not a flipped bit in the middle of a picture.

    Raises:
        DataError: If some cannot be read and ``skip_bad`` is not set, or none can.
    """
    with ThreadPool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        findings = pool.map(lambda path: inspect_image(path, mode), paths, chunksize=64)
    converted: dict[str, list[str]] = {}
    for path, finding in zip(paths, findings, strict=True):
        if finding.converted:
            converted.setdefault(finding.converted, []).append(path)
    for kind, files in sorted(converted.items()):
        verb = "is" if len(files) == 1 else "are"
        first = f"{'it' if len(files) == 1 else 'the first'} is {files[0]}"
        logger.warning("%d of %d images %s %s, read as %s; %s", len(files), len(paths), verb, kind, mode, first)
    bad = [f"{path} ({finding.fault})" for path, finding in zip(paths, findings, strict=True) if finding.fault]
    kept = [index for index, finding in enumerate(findings) if not finding.fault]
    if bad and not (skip_bad and kept):
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read: {_listed(bad)}; "
            f"mend or remove them, or leave them out with --skip-bad-images"
        )
    if bad:
        logger.warning("%d of %d images cannot be read and are left out: %s", len(bad), len(paths), _listed(bad))
    return kept


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise DataError(
            f"no folder {root}: data is 'digits', a folder with train/ and val/, or a name such as wds/NAME"
        )
    found = [root / name for name in _SPLITS[split] if (root / name).is_dir()]
    if found:
        return found[0]
    others = [name for other in _SPLITS.values() for name in other]
    if split == "val" and _subfolders(root) and not any((root / name).is_dir() for name in others):
        return root
    wanted = " or ".join(f"{name}/" for name in _SPLITS[split])
    raise DataError(f"{root} has no {wanted}; it holds {_listed(_subfolders(root)) or 'no folders'}")


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
