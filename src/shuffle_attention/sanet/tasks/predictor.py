"""A trained model with how it sees images and what its classes are called."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..device import Process
from ..explain.classes import class_index, readable
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
        has_maps: Whether the model returns logits, so that class activation maps exist.
    """

    has_maps: ClassVar[bool] = False

    model: nn.Module
    recipe: Any
    classes: list[str] | None
    num_classes: int
    source: str
    label: str
    weights: str = ""
    process: Process = Process(torch.device("cpu"))

    @property
    def names(self) -> list[str]:
        """Readable name of each class."""
        return readable(self.classes, self.num_classes)

    @property
    def about(self) -> str:
        """Short description: number of classes and of parameters."""
        count, parameters = len(self.names), sum(p.numel() for p in self.model.parameters())
        return f"{count} {'class' if count == 1 else 'classes'}, {parameters / 1e6:.1f} M parameters"

    def to(self: P, process: Process) -> P:
        """Move the model to the device of a process, in evaluation mode, and return this predictor."""
        recipe: RunRecipe = self.recipe
        self.model = process.to_device(self.model, channels_last=recipe.channels_last).eval()
        self.process = process
        return self

    def target(self, name: str) -> int:
        """Return the index of a class given by name or number; raise InputError if there is no such class."""
        return class_index(name, self.classes, len(self.names))

    @abstractmethod
    def inputs(self, image: Image.Image) -> Any:
        """Return the model's input for one image, on the device: a batch of one."""

    @abstractmethod
    def pixels(self, inputs: Any) -> Tensor:
        """Return what the model sees of :meth:`inputs` as colours, shape (H, W, 3), in [0, 1]."""

    @abstractmethod
    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        """Return the prediction for an RGB image, without classes or objects of a score below ``threshold``."""
