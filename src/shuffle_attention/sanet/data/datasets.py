"""Data sets of labelled images: folders in ImageNet's layout, timm's data sets by name, and the embedded digits."""

import hashlib
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IterableImageDataset, create_dataset
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ...errors import DataError, listed
from ..recipes.recipe import Recipe
from .images import check_images, read_image, to_mode

logger = logging.getLogger(__name__)
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
NAMED = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")


class Samples(Dataset):
    """Labelled images that are decoded and transformed on access.

    The key of a training sample is ``(epoch, index)``. Its augmentation depends only on the key and the seed, not on
    the loader process or on earlier samples: a run can stop anywhere and use any number of workers, and still sees the
    same pixels. The key of an evaluation sample is its index.

    An image that cannot be decoded is marked in ``failed``. In training the next readable one replaces it; in
    evaluation its label is -1, which the evaluation skips.

    Args:
        source: Sequence of (path, open file or PIL image, label).
        names: Name of each sample, for messages.
        classes: Class name of each label.
        reading: How images are read: arguments of ``read_image``; RGB by default.
        seed: Seed of the augmentation.
        kept: Indices of ``source`` to use; all by default.
    """

    def __init__(
        self,
        source: Any,
        names: Sequence[object],
        classes: list[str] | None,
        *,
        reading: Mapping[str, Any] | None = None,
        seed: int = 0,
        kept: Sequence[int] | None = None,
    ):
        self.source = source
        self.names = names
        self.classes = classes
        self.reading = dict(reading or {"mode": "RGB"})
        self.seed = seed
        self.kept = range(len(names)) if kept is None else kept
        self.transform: Any = None
        # In shared memory, because loader processes write to it.
        self.failed = torch.zeros(len(self.kept), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        return str(self.names[self.kept[index]])

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, int]:
        if isinstance(key, tuple):
            epoch, index = key
            with seeded(self.seed, epoch, index):
                image, label = self._readable(index)
                return self.transform(image), label
        image = self._decode(key)
        if image is None:
            return self.transform(Image.new(self.reading["mode"], (64, 64))), -1
        return self.transform(image[0]), image[1]

    def _readable(self, index: int, tries: int = 50) -> tuple[Image.Image, int]:
        for step in range(min(tries, len(self))):
            sample = self._decode((index + step) % len(self))
            if sample is not None:
                return sample
        raise DataError(f"{tries} images in a row cannot be decoded, starting at {self.name(index)}")

    def _decode(self, index: int) -> tuple[Image.Image, int] | None:
        try:
            image, label = self.source[self.kept[index]]
            if isinstance(image, Image.Image):
                return to_mode(image, **self.reading), int(label)
            with nullcontext(image) if isinstance(image, str) else image as file:
                return read_image(file, **self.reading), int(label)
        # Decoders raise all kinds of errors: OSError, ValueError, SyntaxError, struct.error ...
        except Exception:
            self.failed[index] = True
            return None

    @property
    def left_out(self) -> int:
        """Number of images of the source that are not used."""
        return len(self.names) - len(self.kept)

    def fingerprint(self) -> str:
        """Return a hash of the samples' names, labels and order."""
        digest = hashlib.sha256()
        for index in self.kept:
            label = self.source[index][1] if isinstance(self.source, list) else ""
            digest.update(f"{os.path.basename(str(self.names[index]))} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def failures(self) -> list[str]:
        """Return the names of the images that could not be decoded so far."""
        return [self.name(int(index)) for index in self.failed.nonzero()]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed every generator that transforms draw from by a key, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def open_split(recipe: Recipe, split: str, classes: list[str] | None = None) -> Samples | IterableImageDataset:
    """Open the training or validation data of a recipe.

    Args:
        recipe: Recipe that names the data and how to read them.
        split: "train" or "val".
        classes: Class names in the order of their labels, if the training data or a checkpoint tell them.

    Raises:
        DataError: If the data do not exist, or have other classes.
    """
    reading = recipe.reading
    if recipe.data == "digits":
        images, names = load_digits(split)
        return Samples(images, names, [str(digit) for digit in range(10)], reading=reading, seed=recipe.seed)
    if recipe.data.startswith(NAMED):
        return _open_named(recipe, split, classes)
    tree = scan_tree(recipe.data, split, classes)
    paths = [path for path, _ in tree.images]
    kept = check_images(paths, skip_bad=recipe.skip_bad_images, **reading) if recipe.check_images else None
    left = {label for _, label in tree.images} - {tree.images[index][1] for index in kept or range(len(paths))}
    if left and split == "train":
        names = listed([tree.classes[label] for label in sorted(left)])
        raise DataError(f"no image of {len(left)} classes can be read: {names}")
    return Samples(tree.images, paths, tree.classes, reading=reading, seed=recipe.seed, kept=kept)


def load_digits(split: str, size: int = 32) -> tuple[list[tuple[Image.Image, int]], list[str]]:
    """Return scikit-learn's handwritten digits as greyscale images with labels, and their names.

    These are 1,797 real digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits"), enlarged. A fifth
    of each class is for validation.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = map(np.asarray, load(return_X_y=True))
    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    chosen = parts[0] if split == "train" else parts[1]
    grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = [(Image.fromarray(grey[i]).resize((size, size), Image.Resampling.BICUBIC), int(labels[i])) for i in chosen]
    return images, [f"digit {i}" for i in chosen]


def _open_named(recipe: Recipe, split: str, known: list[str] | None) -> Samples | IterableImageDataset:
    """Open a data set of timm by name: as samples if it can be indexed, else as a stream."""
    name = recipe.train_split if split == "train" else recipe.val_split
    streams = recipe.data.startswith(("hfids/", "tfds/", "wds/"))
    options: dict[str, Any] = {"is_training": split == "train", "seed": recipe.seed} if streams else {}
    if streams:
        options |= {"batch_size": recipe.batch_size, "input_img_mode": recipe.reading["mode"]}
    try:
        dataset = create_dataset(recipe.data, root=recipe.data_dir, split=name, **options)
    # Each kind of data set is read by another library, with its own errors.
    except Exception as error:
        where = f"in {recipe.data_dir}" if recipe.data_dir else "(data_dir is not given)"
        raise DataError(f"{recipe.data}, split {name!r}, cannot be opened {where}: {error}") from error
    if isinstance(dataset, IterableImageDataset):
        if not len(dataset):
            raise DataError(
                f"{recipe.data}, split {name!r}, does not say how many images it has; "
                f"for wds/ write the split as 'shard-{{000..009}}.tar|IMAGES'"
            )
        return dataset
    source = getattr(dataset, "reader", dataset)
    labels = getattr(source, "class_to_idx", None) or {}
    classes = [str(name) for name, _ in sorted(labels.items(), key=lambda item: item[1])] or None
    if known and classes and known != classes:
        raise DataError(
            f"{recipe.data}, split {name!r}, has {len(classes)} classes, {listed(classes)}, and known are "
            f"{len(known)}, {listed(known)}; they must be the same in the same order"
        )
    return Samples(source, range(len(source)), classes, reading=recipe.reading, seed=recipe.seed)


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
