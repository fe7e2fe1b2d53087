"""The contract of a task: data, model, loss, metrics, evaluation and report."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from PIL import Image
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn

from ...attach.insert import CHILD
from ...checkpoints import load_checkpoint
from ...errors import InputError, brief, listed
from ..data.loading import TrainingBatches
from ..device import Process
from ..recipes.recipe import RunRecipe, recipe_names
from .evaluation import Scores, held_out_batches
from .predictor import Predictor

if TYPE_CHECKING:
    from ..profile.costs import AnySize

R = TypeVar("R", bound=RunRecipe)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A column of a run's history, declared once for the CSV, the progress line, the curves and the outcome.

    Attributes:
        name: Column; names of the training data begin with ``train_``, of the validation data with ``val_``.
        label: Name for people.
        format: Format of a value, with its unit.
        panel: Title of the panel of curves that shows it; empty for none.
        better: Which values are better; the outcome of a run lists the metrics that say so.
        line: Whether the progress line shows it.
    """

    name: str
    label: str
    format: str = "{:.4f}"
    panel: str = ""
    better: Literal["higher", "lower", ""] = ""
    line: bool = True

    @property
    def is_loss(self) -> bool:
        """Whether NaN in it means that the model is broken; a score may be undefined for some data."""
        return self.better == "lower" or self.name.endswith("loss")


@dataclass(frozen=True)
class Score:
    """A metric that a comparison of models compares, in percent.

    Attributes:
        name: Name in the files.
        label: Name in texts.
        column: Column of a run's history.
        factor: Percent per unit of the column.
    """

    name: str
    label: str
    column: str
    factor: float = 1.0


def progress_text(metrics: Sequence[Metric], row: Mapping[str, float]) -> str:
    """Return the metrics of a row for the progress line, without those that are missing or NaN."""
    shown = [m for m in metrics if m.line and not math.isnan(row.get(m.name, math.nan))]
    return "  ".join(f"{metric.label} {metric.format.format(row[metric.name])}" for metric in shown)


def outcome(metrics: Sequence[Metric], row: Mapping[str, float]) -> dict[str, str]:
    """Return label and value of the metrics that tell how good a model is."""
    return {m.label: m.format.format(row[m.name]) for m in metrics if m.better and m.name in row}


def panels(metrics: Sequence[Metric]) -> dict[str, list[Metric]]:
    """Return the panels of curves: title and metrics."""
    titles = dict.fromkeys(metric.panel for metric in metrics if metric.panel)
    return {title: [metric for metric in metrics if metric.panel == title] for title in titles}


@dataclass(frozen=True)
class Section:
    """A part of a run's report.

    Attributes:
        title: Heading.
        template: File and macro of ``report/templates`` that lay it out, such as ``classification/matrix``.
        values: Values for the template.
    """

    title: str
    template: str
    values: Mapping[str, Any]


class Trainer(TrainingTask):
    """timm's wrapper of a model in training (checkpoints, averaged weights, processes), without a loss."""

    def __init__(self, model: nn.Module, device: torch.device | None = None):
        super().__init__(device=device, verbose=False)
        self.trainable_module = model

    # DistributedDataParallel wraps every model in the same way.
    prepare_distributed = ClassificationTask.prepare_distributed  # pyright: ignore[reportAssignmentType]

    def forward(self, *inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what the model returns."""
        return self.trainable_module(*inputs)


class Task(ABC, Generic[R]):
    """Data, model, loss and metrics of a training run.

    A task implements :meth:`open`, :meth:`restore`, :meth:`create_model`, :meth:`loss` and :meth:`evaluate`;
    everything else has a default. :func:`train` calls, in this order, ``check_recipe``, ``open``, ``create_model``,
    ``try_once`` (before anything is written), ``batches``, ``held_out`` and ``create_trainer``, then ``loss`` for
    each batch and ``evaluate`` after each epoch.

    Args:
        recipe: Settings of the run.
        training: Data to train on; ``len`` is the number of images.
        validation: Data to evaluate on.

    Attributes:
        Recipe: Class of the settings; its ``kind`` is the name of the task in checkpoints.
        metric: Column of the history that chooses the best epoch.
        compared: What a comparison of models compares, the metric that decides first. The others are compared if the
            runs have them.
        compiles: Whether the model is compiled.
        averages: Columns whose sums :meth:`loss` returns, with the factor of each mean: 100 for percent, NaN for
            a column without a value.
        metrics: All columns that the task adds to the history, in order.
        classes: Class names, or None if unknown.
        num_classes: Number of classes of the model.
    """

    Recipe: ClassVar[type[RunRecipe]]
    metric: ClassVar[str]
    compared: ClassVar[Sequence[Score]] = ()
    compiles: bool = False
    averages: Mapping[str, float]
    metrics: Sequence[Metric]
    classes: list[str] | None = None
    num_classes: int = 0

    def __init__(self, recipe: R, training: Any, validation: Any):
        self.recipe, self.training, self.validation = recipe, training, validation

    @classmethod
    def choose_recipe(cls, given: dict[str, Any], *, pretrained: bool = True) -> tuple[RunRecipe, str]:
        """Return a recipe for the data where none is named, and a line that says why.

        Args:
            given: Fields that are given, ``data`` among them.
            pretrained: Whether to start from pretrained weights if they can be had.

        Raises:
            InputError: If the task does not choose, or the data cannot be used.
        """
        raise InputError(f"name a recipe for these data: --recipe {', '.join(recipe_names(cls.Recipe))}")

    @classmethod
    def check_recipe(cls, recipe: Any) -> None:
        """Check what can be checked before the images are read, which may take minutes.

        Raises:
            InputError: If a file or a model that the recipe names does not exist.
        """
        if recipe.initial is not None and not Path(recipe.initial).is_file():
            raise InputError(f"no checkpoint at {recipe.initial}")

    @classmethod
    @abstractmethod
    def open(cls, recipe: Any, *, check: bool) -> "Task":
        """Return the task of a recipe with its data; check every image file if ``check`` is set.

        Raises:
            InputError: If the data cannot be used.
        """

    @classmethod
    def count_classes(cls, recipe: Any) -> int:
        """Return the number of classes of a recipe's data, whose images are not read.

        Raises:
            InputError: If the data cannot be used.
        """
        return cls.open(recipe.replaced(check_images=False), check=False).num_classes

    @classmethod
    @abstractmethod
    def restore(cls, path: str | os.PathLike, **options: Any) -> Predictor:
        """Return the model in a checkpoint of this task, ready to predict.

        Raises:
            CheckpointError: If the file cannot be read, or holds no model of this task.
        """

    @classmethod
    def open_validation(cls, predictor: Any) -> "Task":
        """Return the task of a restored model with the data to evaluate it on; its training data may be None.

        Raises:
            InputError: If the data cannot be used, or have other classes.
        """
        return cls.open(predictor.recipe, check=predictor.recipe.check_images)

    def keep_classes(self, classes: list[str] | None) -> None:
        """Give the classes the labels that a run has recorded, if they have the same names in another order."""

    def compare_classes(self, classes: Any, path: str, kept: Sequence[str]) -> None:
        """Warn if the classifier of a checkpoint was loaded and is for other classes.

        Args:
            classes: Class names in the checkpoint, if it has them.
            path: The checkpoint.
            kept: Entries of the model that were not loaded.
        """
        if isinstance(classes, list) and self.classes and classes != self.classes and not kept:
            logger.warning(
                "%s is for the classes %s, and the data have %s: its classifier starts with others",
                *(path, listed([brief(name, quoted=False) for name in classes]), listed(self.classes)),
            )

    @abstractmethod
    def create_model(self, *, restored: bool) -> nn.Module:
        """Return the model on the CPU, initialised or, if ``restored``, to be filled from a checkpoint.

        Fields of the recipe that depend on the model are filled in.
        """

    @abstractmethod
    def loss(self, trainer: TrainingTask, batch: Any, process: Process) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch, shape (), and sums over its images without gradient.

        The sums are those of :attr:`averages`, the loss first, then the number of images, shape (len + 1,).
        """

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Any, process: Process, *, watch: Callable[[int], None] | None = None
    ) -> Scores:
        """Return the metrics of a model over the batches of :meth:`held_out`, named without ``val_``."""

    @classmethod
    def untrained(cls, recipe: Any, num_classes: int) -> nn.Module:
        """Return the model of a recipe on the default device, to be measured or filled from a checkpoint."""
        raise NotImplementedError

    @classmethod
    def size(cls, recipe: Any, num_classes: int) -> "AnySize":
        """Return parameters and multiply-adds of the model of a recipe.

        Raises:
            InputError: If the model cannot be created.
        """
        raise NotImplementedError

    @classmethod
    def step_inputs(cls, recipe: Any, model: nn.Module, count: int) -> tuple[Any, ...]:
        """Return inputs of a training step on at most ``count`` random images, on the CPU, to time a model with."""
        raise NotImplementedError

    @classmethod
    def examples(cls, predictor: Any, most: int) -> list[tuple[str | Image.Image, str]]:
        """Return at most ``most`` validation images of a model's data, or their files, with names for the demo.

        Raises:
            InputError: If the data are not here.
        """
        return []

    def try_once(self, model: nn.Module, count: int) -> None:
        """Run ``count`` images of zeros through a copy of the model; raise InputError if that fails."""

    @property
    def may_differ(self) -> list[str]:
        """Patterns of entries that the checkpoint need not have that the recipe starts from.

        The weights of a plain model have no values for attention that does not start as the identity.
        """
        attach = self.recipe.attach
        published = attach.get("start") == "published" or not attach.get("preserve", True)
        return [*self.recipe.may_differ, *(f"*.{child}.*" for child in {*CHILD.values()} if published)]

    def load_initial(self, model: nn.Module) -> None:
        """Load the checkpoint that the recipe starts from, if it names one."""
        if self.recipe.initial is not None:
            load_checkpoint(model, self.recipe.initial, may_differ=self.may_differ)

    def batches(self, process: Process) -> TrainingBatches:
        """Return the batches to train on."""
        return TrainingBatches(self.training, self.recipe, process)

    def held_out(self, process: Process, batch_size: int) -> Any:
        """Return a loader of the data to evaluate on, split among the processes."""
        return held_out_batches(self.validation, self.recipe.workers, process, batch_size)

    def create_trainer(self, model: nn.Module, process: Process) -> TrainingTask:
        """Return timm's wrapper of the model in training."""
        return Trainer(model, device=process.device)

    def set_training_mode(self, model: nn.Module) -> None:
        """Set the mode in which the model is trained."""
        model.train()

    def sections(self, model: nn.Module, best: Mapping[str, float], process: Process) -> list[Section]:
        """Return what a report shows of the best model besides the metrics over the epochs, in one process alone."""
        return []

    def failed(self, row: Mapping[str, float], first: float) -> bool:
        """Return whether training failed though every number is finite; ``first`` is the loss of the first steps."""
        return False

    @property
    def sums(self) -> int:
        """Number of sums that :meth:`loss` returns."""
        return len(self.averages) + 1

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the training metrics for the sums of :meth:`loss` over some images."""
        images = max(1.0, sums[-1])
        factors = self.averages.items()
        return {name: factor * value / images for (name, factor), value in zip(factors, sums[:-1], strict=True)}

    def best_of(self, history: Sequence[dict[str, float]]) -> dict[str, float]:
        """Return the first row with the best value of :attr:`metric`; NaN is worse than any other value."""
        lower = next(metric.better for metric in self.metrics if metric.name == self.metric) == "lower"

        def score(row: dict[str, float]) -> float:
            value = row[self.metric]
            return -math.inf if math.isnan(value) else -value if lower else value

        return max(history, key=score)

    def fingerprint(self) -> str:
        """Return a digest of the training data, empty where there is none."""
        fingerprint = getattr(self.training, "fingerprint", None)
        return fingerprint() if fingerprint is not None else ""

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides weights, for evaluation."""
        return {
            "kind": self.recipe.kind,
            "recipe": self.recipe.to_dict(),
            "num_classes": self.num_classes,
            "classes": self.classes,
        }

    def failures(self) -> list[str]:
        """Return the names of images that could not be decoded since the last call."""
        names = []
        for data in (self.training, self.validation):
            if hasattr(data, "failures"):
                names += data.failures()
                data.failed.fill_(False)
        return names
