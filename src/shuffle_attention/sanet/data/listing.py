"""List the images of a split with their labels: from class folders, and what tables share with them."""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError, counted, listed
from .image_files import SUFFIXES, is_image_name, is_litter, subfolders, walk_images
from .split import held_out

logger = logging.getLogger(__name__)
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class Tree:
    """Paths of one split's images with their labels, and the class name of each label.

    Attributes:
        images: Path and label of each image.
        classes: Class name of each label.
        digest: Digest of the validation images, if they were drawn; empty if data have a split.
    """

    images: list[tuple[str, int]]
    classes: list[str]
    digest: str = ""


def scan_tree(
    data: str | os.PathLike,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> Tree:
    """Return the images of one split of a folder of class folders.

    Args:
        data: Folder with ``train/`` and ``val/``, or a folder of class folders, which is divided by ``val_fraction``
            or, for validation, taken whole.
        split: "train" or "val".
        classes: Class names in the order of their labels, if known; the folder must not have others.
        val_fraction: Share of each class to draw for validation, if the folder has no split.
        split_seed: Seed of the draw.

    Raises:
        DataError: If the folder does not exist, has no classes or no images, or has other classes.
    """
    folder, divided = _split_folder(Path(data).expanduser(), split, val_fraction)
    present = subfolders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders: expected {folder}/CLASS/image.jpg")
    contents = {name: walk_images(os.path.join(folder, name)) for name in present}
    files = [(path, name) for name, content in contents.items() for path in content.images]
    names = [path[len(str(folder)) + 1 :].replace(os.sep, "/") for path, _ in files]
    if split == "train" and classes is None:
        _check_depth(folder, present, names)
    stray = [entry.name for entry in os.scandir(folder) if entry.is_file() and is_image_name(entry.name)]
    stray = [name for name in stray if not is_litter(name)]
    if stray:
        logger.warning(
            "%s: skipped %s outside of the class folders: %s", folder, counted(len(stray), "image"), listed(stray)
        )
    if not files:
        raise DataError(f"{folder} has {len(present)} class folders and no images ({', '.join(SUFFIXES)})")
    others = [path for content in contents.values() for path in content.others]
    if others:
        logger.warning("%s: skipped %s of other kinds: %s", folder, counted(len(others), "file"), listed(others))
    skipped = [str(folder / name) for name in os.listdir(folder) if is_litter(name) and (folder / name).is_dir()]
    skipped += [path for content in contents.values() for path in content.skipped]
    if skipped:
        number = counted(len(skipped), "hidden or system file or folder", "hidden or system files and folders")
        logger.warning("%s: skipped %s: %s", folder, number, listed(skipped))
    drawn_by = names if divided else None
    return labelled(files, present, split, str(folder), classes, drawn_by, val_fraction or 0, split_seed)


def labelled(
    files: Sequence[tuple[str, str]],
    present: Sequence[str],
    split: str,
    source: str,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    val_fraction: float = 0,
    split_seed: int = 0,
) -> Tree:
    """Return the images of one split with a label for each class.

    Args:
        files: Path and class name of each image.
        present: Class names of the data, including those of classes without images.
        split: "train" or "val".
        source: Folder or table, for messages.
        classes: Class names in the order of their labels, if known.
        names: Name of each image that its draw depends on; None if ``files`` are those of the split.
        val_fraction: Share of each class to draw for validation.
        split_seed: Seed of the draw.

    Raises:
        DataError: If there are other classes than the known ones, or classes without images to train on.
    """
    order = class_order(present) if classes is None else list(classes)
    foreign = sorted({*present} - {*order})
    if foreign:
        raise DataError(
            f"{source} has classes that the model was not trained on: {listed(foreign)}; "
            f"known are {len(order)}: {listed(order)}"
        )
    broken = [ascii(name) for name in order if name != name.encode(errors="replace").decode()]
    if broken:
        raise DataError(f"{source} has classes whose names are not valid text: {listed(broken)}; rename them")
    digest = ""
    if names is not None:
        held = held_out([name for _, name in files], val_fraction, split_seed, names)
        drawn = sorted(f"{name}\t{label}" for name, (_, label), out in zip(names, files, held, strict=True) if out)
        digest = hashlib.sha256("\n".join(drawn).encode(errors="surrogateescape")).hexdigest()[:16]
        files = [file for file, out in zip(files, held, strict=True) if out == (split == "val")]
        source = f"the {'validation' if split == 'val' else 'training'} images drawn from {source}"
    labels = {name: label for label, name in enumerate(order)}
    seen = {name for _, name in files}
    empty = [name for name in order if name not in seen]
    if empty and split == "train":
        classes = f"{len(empty)} of the {len(order)} classes of {source} have no images"
        raise DataError(f"{classes}: {listed(empty)}; add some or remove these classes")
    if not files:
        raise DataError(f"{source}: there are none, since no class has two images")
    if empty:
        logger.warning("%d of the %d classes have no images in %s: %s", len(empty), len(order), source, listed(empty))
    return Tree([(path, labels[name]) for path, name in files], order, digest)


def class_order(names: Iterable[str]) -> list[str]:
    """Return class names in the order of their labels: by number if all are numbers, otherwise as text."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_depth(folder: Path, present: Sequence[str], names: Sequence[str]) -> None:
    """Raise DataError if there is a single class folder; warn if the classes seem to lie a level deeper.

    Args:
        folder: Folder of the class folders.
        present: Class folders.
        names: Paths of the images below ``folder``.
    """
    below: dict[str, set[str]] = {name: set() for name in present}
    for name in names:
        parts = name.split("/")
        below[parts[0]].add(parts[1] if len(parts) > 2 else "")
    if len(present) == 1:
        inside = sorted(below[present[0]] - {""})
        hint = f"; it has the folders {listed(inside)}: if these are the classes, move them up to {folder}"
        raise DataError(
            f"{folder} has a single class folder, {present[0]}, and a classifier needs two or more"
            f"{hint if inside else ''}"
        )
    shared = sorted(set.intersection(*below.values()))
    if shared and not any("" in folders for folders in below.values()):
        classes = listed(list(present))
        logger.warning("the classes are %s, not %s, which are folders in each of them", classes, listed(shared))


def _split_of(root: Path, part: str) -> Path | None:
    """Return the folder of a split. With capitals it must have class folders: Train may also be a class."""
    folders = [root / name for name in subfolders(root)]
    present = {path.name.lower(): path for path in folders if path.name.islower() or subfolders(path)}
    return next((present[name] for name in SPLITS[part] if name in present), None)


def _split_folder(root: Path, split: str, val_fraction: float | None) -> tuple[Path, bool]:
    """Return the folder of a split's class folders, and whether it holds both splits."""
    if not root.is_dir():
        raise DataError(
            f"no folder {root}: data is 'digits', a folder with train/ and val/, a folder of class folders with "
            f"--val-fraction, a CSV file, or a name such as wds/NAME"
        )
    inside = subfolders(root)
    train, val = (_split_of(root, part) for part in SPLITS)
    if val_fraction:
        if train and val and split == "train":
            raise DataError(f"{root} has {val.name}/ already, and --val-fraction is for data without; give one of them")
        if not val:
            return train or root, True
    folder, wanted = (train if split == "train" else val), " or ".join(f"{name}/" for name in SPLITS[split])
    if folder is not None:
        return folder, False
    hint = ""
    if len(inside) == 1 and not val and _split_of(root / inside[0], "train"):
        hint = f": --data {root / inside[0]} has them"
    elif split == "val" and inside and not train:
        return root, False
    elif inside and not val:
        hint = f"; --val-fraction 0.2 evaluates on a fifth of each class of {train or root}"
    raise DataError(f"{root} has no {wanted}; it holds {listed(inside) or 'no folders'}{hint}")
