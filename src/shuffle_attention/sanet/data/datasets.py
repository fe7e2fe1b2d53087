"""Data sets of labelled images: folders, tables, timm's data sets by name, and the embedded digits."""

import copy
import functools
import hashlib
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IterableImageDataset, create_dataset
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder

from ...errors import DataError, listed
from ..recipes.recipe import NAMED, Recipe
from .images import check_images, read_image, to_mode
from .listing import Tree, scan_tree
from .tables import read_table

logger = logging.getLogger(__name__)


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
        self.drawn = ""  # digest of the validation images that were drawn with these, if any were
        self.kept = range(len(names)) if kept is None else kept
        self.transform: Any = None
        # In shared memory, because loader processes write to it.
        self.failed = torch.zeros(len(self.kept), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def paths(self) -> list[str]:
        """Path of each sample that is a file."""
        return [name for name in self.names if isinstance(name, str)]

    def name(self, index: int) -> str:
        """Return the name of a sample as valid text."""
        return os.fsencode(str(self.names[self.kept[index]])).decode(errors="replace")

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, int]:
        if isinstance(key, tuple):
            epoch, index = key
            with seeded(self.seed, epoch, index):
                image, label = self.readable(index)
                return self.transform(image), label
        image = self.decode(key)
        if image is None:
            return self.transform(Image.new(self.reading["mode"], (64, 64))), -1
        return self.transform(image[0]), image[1]

    def readable(self, index: int, tries: int = 50) -> tuple[Image.Image, int]:
        """Return the image and label of a sample, or of the next one that can be decoded.

        Raises:
            DataError: If none of ``tries`` samples can be decoded.
        """
        for step in range(min(tries, len(self))):
            sample = self.decode((index + step) % len(self))
            if sample is not None:
                return sample
        raise DataError(f"{tries} images in a row cannot be decoded, starting at {self.name(index)}")

    def decode(self, index: int) -> tuple[Image.Image, int] | None:
        """Return the image and label of a sample, or None if it cannot be decoded, which is recorded."""
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

    def some(self, count: int) -> "Samples":
        """Return at most ``count`` of these samples, at even distances."""
        few = copy.copy(self)
        few.kept = [self.kept[i * len(self) // count] for i in range(count)] if count < len(self) else self.kept
        few.failed = torch.zeros(len(few.kept), dtype=torch.bool)
        return few

    def relabel(self, classes: Sequence[str]) -> None:
        """Give the classes, whose names stay, another order of labels."""
        labels = [list(classes).index(name) for name in self.classes or ()]
        self.source = [(image, labels[label]) for image, label in self.source]
        self.classes = list(classes)

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
        _mention_folder(os.getcwd())
        images, names = load_digits(split)
        return Samples(images, names, [str(digit) for digit in range(10)], reading=reading, seed=recipe.seed)
    if recipe.data.startswith(NAMED):
        return _open_named(recipe, split, classes)
    tree = list_images(recipe, split, classes)
    paths = [path for path, _ in tree.images]
    kept = check_images(paths, skip_bad=recipe.skip_bad_images, **reading) if recipe.check_images else None
    left = {label for _, label in tree.images} - {tree.images[index][1] for index in kept or range(len(paths))}
    if left and split == "train":
        names = listed([tree.classes[label] for label in sorted(left)])
        raise DataError(f"no image of {len(left)} classes can be read: {names}")
    samples = Samples(tree.images, paths, tree.classes, reading=reading, seed=recipe.seed, kept=kept)
    samples.drawn = tree.digest
    return samples


def list_images(recipe: Recipe, split: str, classes: Sequence[str] | None = None) -> Tree:
    """Return the images of one split of a recipe's folder or table, with their labels.

    Args:
        recipe: Recipe that names the data, and how to draw the validation images if they have no split.
        split: "train" or "val".
        classes: Class names in the order of their labels, if known.

    Raises:
        DataError: If the data do not exist, have other classes, or are not those that the run has drawn from.
    """
    options: dict[str, Any] = {"val_fraction": recipe.val_fraction, "split_seed": recipe.split_seed}
    of_tables: dict[str, Any] = {"root": recipe.data_dir, "skip_bad": recipe.skip_bad_images}
    tree = read_table(recipe.data, split, classes, **options, **of_tables)
    if tree is None:
        tree = scan_tree(recipe.data, split, classes, **options)
    if recipe.drawn and tree.digest and recipe.drawn != tree.digest:
        raise DataError(
            f"the images of {recipe.data} are not those that the run divided, so that its validation images cannot be "
            f"told from those it was trained on; restore them, or evaluate on all images with --val-fraction 0"
        )
    return tree


@functools.cache
def _mention_folder(folder: str) -> None:
    """Log once that the embedded digits are used where there is a folder of this name."""
    if os.path.isdir(os.path.join(folder, "digits")):
        logger.warning("data 'digits' are the embedded digits, and not the folder of that name: that is ./digits")


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
        if not recipe.data.startswith("tfds/"):  # TensorFlow decodes; of others, the loader converts the images
            options["input_img_mode"] = ""
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
    source: Any = getattr(dataset, "reader", dataset)
    names: Sequence[object] = range(len(source))
    if isinstance(source, DatasetFolder):  # read here, where torchvision would clip 16 bits and ignore EXIF data
        source.loader, names = str, [path for path, _ in source.samples]
    labels = getattr(source, "class_to_idx", None) or {}
    classes = [str(name) for name, _ in sorted(labels.items(), key=lambda item: item[1])] or None
    if known and classes and known != classes:
        raise DataError(
            f"{recipe.data}, split {name!r}, has {len(classes)} classes, {listed(classes)}, and known are "
            f"{len(known)}, {listed(known)}; they must be the same in the same order"
        )
    return Samples(source, names, classes, reading=recipe.reading, seed=recipe.seed)
