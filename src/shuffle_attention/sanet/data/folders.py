"""Image folders in ImageNet's layout, ``train/CLASS/image.jpg`` and ``val/CLASS/image.jpg``, checked before use."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ...errors import DataError, listed

logger = logging.getLogger(__name__)

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class Tree:
    """Paths of one split's images with their labels, and the class name of each label."""

    images: list[tuple[str, int]]
    classes: list[str]


def scan_tree(data: str | os.PathLike, split: str, classes: list[str] | None = None) -> Tree:
    """Return the images of one split, labelled in the order of the class names.

    Args:
        data: Folder with ``train/`` and ``val/``; for validation also a folder of class folders.
        split: "train" or "val".
        classes: Class names in the order of their labels, if known; the folder must not have others.

    Raises:
        DataError: If the folder does not exist, has no classes or no images, or has other classes.
    """
    folder = _split_folder(Path(data).expanduser(), split)
    present = _subfolders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders: expected {folder}/CLASS/image.jpg")
    names = present if classes is None else classes
    foreign = [name for name in present if name not in names]
    if foreign:
        raise DataError(
            f"{folder} has classes that the model was not trained on: {listed(foreign)}; "
            f"known are {len(names)}: {listed(names)}"
        )
    others: list[str] = []

    def is_image(path: str) -> bool:
        by_name = path.lower().endswith(IMG_EXTENSIONS)
        if not by_name and not os.path.basename(path).startswith("."):
            others.append(path)
        return by_name

    stray = [
        entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name.lower().endswith(IMG_EXTENSIONS)
    ]
    if stray:
        logger.warning("%d images of %s are in no class folder and not used: %s", len(stray), folder, listed(stray))
    labels = {name: names.index(name) for name in present}
    images = make_dataset(str(folder), labels, is_valid_file=is_image, allow_empty=True)
    if not images:
        raise DataError(f"{folder} has {len(present)} class folders and no images ({', '.join(IMG_EXTENSIONS)})")
    if others:
        logger.warning("%d files of %s are not images by their names: %s", len(others), folder, listed(others))
    seen = {label for _, label in images}
    empty = [name for label, name in enumerate(names) if label not in seen]
    if empty and split == "train":
        raise DataError(f"{len(empty)} of the {len(names)} classes of {folder} have no images: {listed(empty)}")
    if empty:
        logger.warning("%d of the %d classes have no images in %s: %s", len(empty), len(names), folder, listed(empty))
    return Tree(images, names)


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise DataError(
            f"no folder {root}: data is 'digits', a folder with train/ and val/, or a name such as wds/NAME"
        )
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    any_split = any((root / name).is_dir() for names in SPLITS.values() for name in names)
    if split == "val" and _subfolders(root) and not any_split:
        return root
    wanted = " or ".join(f"{name}/" for name in SPLITS[split])
    raise DataError(f"{root} has no {wanted}; it holds {listed(_subfolders(root)) or 'no folders'}")


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
