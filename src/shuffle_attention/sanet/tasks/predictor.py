"""A trained model with how it sees images and what its classes are called."""

import contextlib
import difflib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from ...deploy import Artefact, RewriteReport, rewrite
from ...errors import InputError, counted, listed
from ..device import Process
from ..recipes.recipe import RunRecipe

P = TypeVar("P", bound="Predictor")


@dataclass(frozen=True)
class Prediction:
    """Prediction of a model for one image.

    Attributes:
        best: Name and probability of the most probable classes, or name and score of the objects, highest first.
        caption: Description of the image that :attr:`draw` returns.
        draw: Function that returns an image of the prediction.
    """

    best: list[tuple[str, float]]
    caption: str
    draw: Callable[[], Image.Image]


@dataclass(kw_only=True, eq=False)
class Predictor(ABC):
    """A trained model with how it sees images and what its classes are called.

    Attributes:
        model: The model, on the CPU until :meth:`to` moves it.
        recipe: Settings of its training; for a file without a recipe, the model's published settings.
        classes: Class names as the data spell them, or None if unknown.
        num_classes: Number of classes; a detector counts the background.
        source: Checkpoint, or name of the model in timm.
        label: Name of the model in tables and images.
        weights: Entry of the checkpoint that the weights were loaded from.
        process: Device that :meth:`predict` computes on.
        rewritten: Report of :meth:`rewrite`; None if the model is as it was trained.
        knows_data: Whether the file says where the data are that the model was trained on; otherwise the recipe has a
            default, or only their name.
        classifies: Whether a prediction is the classes of the whole image; otherwise it is objects.
    """

    classifies: ClassVar[bool] = False

    model: nn.Module
    recipe: Any
    classes: list[str] | None
    num_classes: int
    source: str
    label: str
    weights: str = ""
    process: Process = Process(torch.device("cpu"))
    rewritten: RewriteReport | None = None
    knows_data: bool = True

    @property
    def names(self) -> list[str]:
        """Readable name of each class."""
        return readable(self.classes, self.num_classes)

    @property
    def is_deployed(self) -> bool:
        """Whether the model is a deployed file, which has neither gradients nor layers to look into."""
        return isinstance(self.model, Artefact)

    @property
    def has_maps(self) -> bool:
        """Whether class activation maps exist."""
        return self.classifies and not self.is_deployed

    @property
    def about(self) -> str:
        """Short description: number of classes, and of parameters or the format of a deployed file."""
        size = f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M parameters"
        return f"{counted(len(self.names), 'class')}, {self.weights if self.is_deployed else size}"

    def to(self: P, process: Process) -> P:
        """Move the model to the device of a process, in evaluation mode, and return this predictor."""
        recipe: RunRecipe = self.recipe
        self.model = process.to_device(self.model, channels_last=recipe.channels_last).eval()
        self.process = process
        return self

    def target(self, name: str) -> int:
        """Return the index of a class given by name or number; raise InputError if there is no such class."""
        return class_index(name, self.classes, len(self.names))

    def rewrite(self) -> None:
        """Rewrite the model for inference, which computes the same; explanations need the model as it was.

        The model of a deployed file has been rewritten before it was written.
        """
        if not isinstance(self.model, Artefact):
            self.model, self.rewritten = rewrite(self.model)

    @abstractmethod
    def inputs(self, image: Image.Image) -> Any:
        """Return the model's input for one image, on the device: a batch of one."""

    @abstractmethod
    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        """Return the prediction for an RGB image, without classes or objects of a score below ``threshold``."""


def readable(classes: Sequence[str] | None, count: int) -> list[str]:
    """Return a name per class; WordNet numbers such as n01440764 become their first word."""
    names = [str(name) for name in classes or ()]
    words = [_word(name) for name in names]
    if all(words):
        # Some words have two meanings: "crane" is a bird and a machine.
        names = [word if words.count(word) == 1 else f"{word} ({n})" for word, n in zip(words, names, strict=True)]
    # A model may have more classes than its data have folders.
    return names + [f"class {number}" for number in range(len(names), count)]


def _word(name: str) -> str:
    for info in _wordnet():
        with contextlib.suppress(KeyError):
            return info.label_name_to_description(name).split(",")[0]
    return ""


@functools.cache
def _wordnet() -> tuple[ImageNetInfo, ...]:
    """Return the class names of ImageNet-1k, then those of ImageNet-22k, which lacks some of them."""
    return ImageNetInfo(), ImageNetInfo("imagenet-22k")


def class_index(asked: str, classes: Sequence[str] | None, count: int, *, numbers: bool = True) -> int:
    """Return the index of a class that is given by its index, its name or its readable name.

    Args:
        asked: User input.
        classes: Names of the classes, if known.
        count: Number of classes.
        numbers: Whether a number that is not a name means the class of that index.

    Raises:
        InputError: If there is no such class; the message lists close names.
    """
    names = readable(classes, count)
    wanted = asked.strip().casefold()
    for known in (list(classes or []), names):
        for number, name in enumerate(known):
            if name.casefold() == wanted:
                return number
    if numbers and wanted.isdecimal() and len(wanted) < 10 and int(wanted) < count:
        return int(wanted)
    folded = {name.casefold(): name for name in [*(classes or []), *names]}
    inside = [name for name in folded if wanted and wanted in name]
    close = [folded[n] for n in dict.fromkeys([*difflib.get_close_matches(wanted, folded, n=4), *inside[:4]])][:4]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    there = listed(names, 10)
    raise InputError(f"no class {asked!r}; {hint}there are the numbers 0 to {count - 1} and the names {there}")
