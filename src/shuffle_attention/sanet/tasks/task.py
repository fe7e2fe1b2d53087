"""What a training run is about: the network, its data, its loss and its scores."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image
from timm.task import TrainingTask
from torch import Tensor, nn

from ...checkpoints import load_checkpoint
from ..data.loading import TrainingBatches
from ..device import Process
from ..recipes.recipe import RunRecipe
from .predictor import Predictor

R = TypeVar("R", bound=RunRecipe)


@dataclass(frozen=True)
class Panel:
    """One of the pictures of a run's figures over its epochs.

    Attributes:
        title: What stands above it.
        unit: What its values are.
        curves: Label of each column of the history that it shows.
    """

    title: str
    unit: str
    curves: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """A part of a run's report.

    Attributes:
        title: Its heading.
        template: File and macro of ``report/templates`` that lay it out, such as ``classification/matrix``.
        values: What it lays out.
    """

    title: str
    template: str
    values: Mapping[str, Any]


class Task(ABC, Generic[R]):
    """A network to train with its data: all that differs between training a classifier and training a detector.

    The loop asks in this order: :meth:`open` the data, :meth:`create_network`, :meth:`try_once` before anything is
    written, :meth:`batches` and :meth:`held_out`, :meth:`create_trainer`, then :meth:`loss` for each batch and
    :meth:`evaluate` after each epoch.

    Args:
        recipe: Settings of the run.
        training: Data to train on, as long as there are images.
        validation: Data to evaluate on.

    Attributes:
        classes: Names of the classes, where they are known.
        num_classes: How many the network tells apart.
        sums: How many sums :meth:`loss` returns.
    """

    Recipe: ClassVar[type[RunRecipe]]
    metric: ClassVar[str]  # column of the history; the epoch in which it is highest is the best
    compiles: bool = False
    classes: list[str] | None
    num_classes: int
    sums: int

    def __init__(self, recipe: R, training: Any, validation: Any):
        self.recipe, self.training, self.validation = recipe, training, validation

    @classmethod
    @abstractmethod
    def open(cls, recipe: Any, *, check: bool) -> "Task":
        """Returns the task of a recipe with its data; they are looked over if ``check`` is set.

        Raises:
            InputError: If the data cannot be used.
        """

    @classmethod
    @abstractmethod
    def restore(cls, path: str | os.PathLike, **options: Any) -> Predictor:
        """Return the model in a checkpoint of this task, ready to predict.

        Raises:
            CheckpointError: If the file cannot be read, or holds no model of this task.
        """

    @classmethod
    def examples(cls) -> list[tuple[Image.Image, str]]:
        """Return validation images of the embedded data with their names, for the demo."""
        return []

    @abstractmethod
    def create_network(self, *, restored: bool) -> nn.Module:
        """Returns the network on the CPU, initialised afresh or to be filled from a checkpoint.

        Fields of the recipe that depend on the network are filled in.
        """

    @abstractmethod
    def try_once(self, model: nn.Module, count: int) -> None:
        """Sends ``count`` images of zeros through a copy of the network, and raises InputError if that fails."""

    def load_initial(self, model: nn.Module) -> None:
        """Loads the checkpoint that the recipe starts from, if it names one."""
        if self.recipe.initial is not None:
            load_checkpoint(model, self.recipe.initial, may_differ=self.recipe.may_differ)

    @abstractmethod
    def batches(self, process: Process) -> TrainingBatches:
        """Returns the batches to train on."""

    @abstractmethod
    def held_out(self, process: Process, batch_size: int) -> Any:
        """Returns a loader of the data to evaluate on, dealt out among the processes."""

    @abstractmethod
    def create_trainer(self, model: nn.Module, process: Process) -> TrainingTask:
        """Returns the network with its loss."""

    def set_training_mode(self, model: nn.Module) -> None:
        """Sets the mode in which the network is trained."""
        model.train()

    @abstractmethod
    def loss(self, trainer: TrainingTask, batch: Any, process: Process) -> tuple[Tensor, Tensor]:
        """Returns the mean loss () of a batch, and the sums (``sums``,) that are kept over an epoch.

        The first of the sums is that of the loss over images, the last the number of images; neither has a gradient.
        """

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Any, process: Process, *, watch: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Returns the figures of a network over the batches of :meth:`held_out`, for the history."""

    @abstractmethod
    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Returns the figures of training for the history, given the sums of an epoch."""

    @abstractmethod
    def running(self, sums: Sequence[float]) -> str:
        """Returns the same for people, in the middle of an epoch."""

    @abstractmethod
    def line(self, row: Mapping[str, float]) -> str:
        """Returns the figures of an epoch for people."""

    @abstractmethod
    def panels(self, history: Sequence[Mapping[str, float]]) -> list[Panel]:
        """Returns what to draw of the history."""

    @staticmethod
    @abstractmethod
    def best_figures(row: Mapping[str, float]) -> dict[str, str]:
        """Returns the figures of the best epoch for people, by name."""

    @abstractmethod
    def report_sections(self, model: nn.Module, best: Mapping[str, float], process: Process) -> list[Section]:
        """Returns what a report shows beside the figures over the epochs.

        One process alone calls it.

        Args:
            model: The best network, in evaluation mode.
            best: The figures of its epoch.
            process: Where the run trained.
        """

    def fingerprint(self) -> str:
        """Returns what tells the training data from others, where that can be told."""
        fingerprint = getattr(self.training, "fingerprint", None)
        return fingerprint() if fingerprint is not None else ""

    def content(self) -> dict[str, Any]:
        """Returns what a checkpoint holds beside weights: what an evaluation needs to know."""
        return {
            "kind": self.recipe.kind,
            "recipe": self.recipe.to_dict(),
            "num_classes": self.num_classes,
            "classes": self.classes,
        }

    def failures(self) -> list[str]:
        """Returns the names of images that could not be decoded since this was last asked, and forgets them."""
        found = []
        for data in (self.training, self.validation):
            if hasattr(data, "failures"):
                found += data.failures()
                data.failed.fill_(False)
        return found
