"""Image classification: data, loss, metrics and evaluation."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import IterableImageDataset, Mixup
from timm.task import ClassificationTask, TrainingTask
from timm.task.evaluator import ClassificationEvaluator
from torch import Tensor, nn

from ....checkpoints import find_state_dict, load_weights, read_checkpoint
from ....errors import DataError, asked_for, listed
from ...data.datasets import Samples, list_images, open_split
from ...data.loading import TrainingBatches, evaluation_batches, training_batches
from ...device import Process
from ...network import create_network, require_model, with_normalisation
from ...profile.costs import Size, size_of
from ...recipes.recipe import Recipe
from ..evaluation import Scores, run_model
from ..predictor import readable
from ..task import Metric, Score, Section, Task
from .distillation import distillation, open_teacher, require_teacher
from .predictor import Classifier, restore_network

logger = logging.getLogger(__name__)
_IMAGENET = 1000  # classes, whose names published weights leave out
_LOSS = "cross-entropy (training includes smoothing and augmentation)"
_ACCURACY = "accuracy, %"


class Classification(Task[Recipe]):
    """A classifier and its labelled images."""

    Recipe = Recipe
    metric = "val_top1"
    compared = (Score("top1", "top-1", "val_top1"),)
    metrics = (
        Metric("train_loss", "loss", panel=_LOSS),
        Metric("train_top1", "training top-1", "{:.1f} %", _ACCURACY),
        Metric("val_loss", "val loss", "{:.4f}", _LOSS, "lower"),
        Metric("val_top1", "top-1", "{:.2f} %", _ACCURACY, "higher"),
        Metric("val_top5", "top-5", "{:.2f} %", _ACCURACY, "higher"),
    )

    def __init__(self, recipe: Recipe, training: Any, validation: Any, classes: list[str] | None, num_classes: int):
        super().__init__(recipe, training, validation)
        self.classes, self.num_classes = classes, num_classes
        self.compiles = recipe.compile
        self.mixing = bool(recipe.mixup or recipe.cutmix)
        # Mixed images have no single right answer.
        self.averages = {"train_loss": 1.0, "train_top1": math.nan if self.mixing else 100.0}
        self.mixup = None
        if self.mixing:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)

    @classmethod
    def choose_recipe(cls, given: dict[str, Any], *, pretrained: bool = True) -> tuple[Recipe, str]:
        from .choice import choose_recipe

        return choose_recipe(given, pretrained=pretrained)

    @classmethod
    def check_recipe(cls, recipe: Recipe) -> None:
        super().check_recipe(recipe)
        require_model(recipe.model)
        if recipe.teacher is not None:
            require_teacher(recipe.teacher)

    @classmethod
    def open(cls, recipe: Recipe, *, check: bool) -> "Classification":
        # Every process must know which images are left out.
        checked = recipe.replaced(check_images=recipe.check_images and (check or recipe.skip_bad_images))
        training = open_split(checked, "train")
        classes = training.classes if isinstance(training, Samples) else None
        validation = open_split(checked, "val", classes)
        if isinstance(training, Samples) and isinstance(validation, Samples):
            recipe = recipe.replaced(drawn=validation.drawn)
            both = sorted({*training.paths} & {*validation.paths})
            if both:
                logger.warning("%d images are both trained on and evaluated on: %s", len(both), listed(both))
        num_classes = recipe.num_classes or len(classes or ())
        if not num_classes:
            raise DataError(f"{recipe.data} does not say how many classes it has; give --num-classes")
        if classes and num_classes < len(classes):
            raise DataError(f"num_classes is {num_classes} and {recipe.data} has {len(classes)} classes")
        return cls(recipe, training, validation, classes, num_classes)

    def keep_classes(self, classes: list[str] | None) -> None:
        # Version 0.1 sorted the names of classes that are numbers as text.
        if not isinstance(classes, list) or not self.classes or not all(isinstance(name, str) for name in classes):
            return
        if self.classes != classes and sorted(self.classes) == sorted(classes):
            logger.info("the labels have the order of the checkpoint: %s", listed(classes))
            for samples in (self.training, self.validation):
                samples.relabel(classes)
            self.classes = list(classes)

    @classmethod
    def restore(cls, path: str | os.PathLike, **options: Any) -> Classifier:
        return restore_network(path, **options)

    @classmethod
    def open_validation(cls, predictor: Classifier) -> "Classification":
        recipe, classes = predictor.recipe, _known_classes(predictor)
        data = open_split(recipe, "val", classes)
        known = getattr(data, "classes", None)
        if known is not None and len(known) != predictor.num_classes:
            raise DataError(
                f"{predictor.source} tells {predictor.num_classes} classes apart and {recipe.data} has {len(known)}, "
                "and the file does not name its classes"
            )
        return cls(recipe, None, data, classes, predictor.num_classes)

    @classmethod
    def untrained(cls, recipe: Recipe, num_classes: int) -> nn.Module:
        return create_network(recipe, num_classes, restored=True)

    @classmethod
    def size(cls, recipe: Recipe, num_classes: int) -> Size:
        with torch.device("meta"):  # no weights are allocated
            model = cls.untrained(recipe, num_classes)
        return size_of(model, recipe.in_chans, recipe.img_size)

    @classmethod
    def step_inputs(cls, recipe: Recipe, model: nn.Module, count: int) -> tuple[Tensor]:
        images = torch.randn(count, recipe.in_chans, recipe.img_size, recipe.img_size)
        return (images.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format),)

    @classmethod
    def examples(cls, predictor: Classifier, most: int) -> list[tuple[str | Image.Image, str]]:
        data = open_split(predictor.recipe.replaced(check_images=False), "val", predictor.classes)
        if not isinstance(data, Samples) or not isinstance(data.source, list):  # a stream
            return []
        first = {label: image for image, label in reversed(data.source)}
        labels, names = sorted(first), readable(data.classes, 1 + max(first, default=0))
        return [(first[label], names[label]) for label in labels[:: max(1, -(-len(labels) // most))]]

    def create_model(self, *, restored: bool) -> nn.Module:
        model = create_network(self.recipe, self.num_classes, restored=restored)
        self.recipe = with_normalisation(self.recipe, model)
        return model

    def try_once(self, model: nn.Module, count: int) -> None:
        recipe = self.recipe
        images = torch.zeros(count, recipe.in_chans, recipe.img_size, recipe.img_size)
        with asked_for(model=recipe.model, img_size=recipe.img_size, model_args=recipe.model_args), torch.no_grad():
            logits = deepcopy(model).train()(images)
            shape = tuple(getattr(logits, "shape", ()))
            if shape != (count, self.num_classes):
                raise ValueError(f"it returns {shape or type(logits).__name__}, not ({count}, {self.num_classes})")

    def load_initial(self, model: nn.Module) -> None:
        recipe = self.recipe
        if recipe.initial is not None:
            content = read_checkpoint(recipe.initial)
            self.keep_classes(content.get("classes"))
            weights, name = find_state_dict(content, path=recipe.initial)
            report = load_weights(model, weights, recipe.initial, name=name, may_differ=self.may_differ)
            self.compare_classes(content.get("classes"), recipe.initial, report.kept)

    def batches(self, process: Process) -> TrainingBatches:
        return training_batches(self.training, self.recipe, process)

    def held_out(self, process: Process, batch_size: int) -> Any:
        return evaluation_batches(self.validation, self.recipe, process, batch_size, repeated=self.training is not None)

    def create_trainer(self, model: nn.Module, process: Process) -> TrainingTask:
        recipe = self.recipe
        if recipe.grad_checkpointing:
            with asked_for(model=recipe.model, grad_checkpointing=True):
                model.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        options: dict[str, Any] = {"device": process.device, "verbose": False}
        if recipe.class_weights == "balanced":
            weights = self._class_weights().to(process.device)
            options["criterion"] = nn.CrossEntropyLoss(weights, label_smoothing=recipe.smoothing)
        else:
            settings = {"loss_type": recipe.loss, "smoothing": recipe.smoothing, "soft_targets": self.mixing}
            options["criterion_kwargs"] = settings
        if recipe.teacher is None:
            return ClassificationTask(model, **options)
        teacher = open_teacher(recipe, self.classes, self.num_classes)
        self.recipe = recipe.replaced(teacher_digest=teacher.digest)
        return distillation(model, teacher, self.recipe, process, **options)

    def _class_weights(self) -> Tensor:
        """Return a weight per class: the mean number of images of a class over the number of its images."""
        if not isinstance(self.training, Samples) or not isinstance(self.training.source, list):
            raise DataError(f"class_weights needs the labels of all images at once, which {self.recipe.data} lacks")
        labels = torch.tensor([self.training.source[index][1] for index in self.training.kept])
        counts = torch.bincount(labels, minlength=self.num_classes)
        return len(labels) / (self.num_classes * counts.clamp_min(1))

    def set_training_mode(self, model: nn.Module) -> None:
        model.train()
        if self.recipe.freeze_bn:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def loss(self, trainer: TrainingTask, batch: Any, process: Process) -> tuple[Tensor, Tensor]:
        images, labels = (part.to(process.device) for part in batch)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        result = trainer(images, targets)
        loss, count = result["loss"], len(labels)
        with torch.no_grad():
            right = (result["output"].argmax(1) == labels).sum()
            return loss, torch.stack([loss.float() * count, right.float(), torch.full_like(right, count).float()])

    def failed(self, row: Mapping[str, float], first: float) -> bool:
        """Return whether training and validation are far worse than guessing, and training got there by itself."""
        guessing = math.log(max(2, self.num_classes))
        in_training = math.log(2) if self.recipe.loss == "bce" else guessing
        return row["train_loss"] > max(10 * in_training, 2 * first) and row["val_loss"] > 10 * guessing

    def evaluate(
        self, model: nn.Module, batches: Any, process: Process, *, watch: Callable[[int], None] | None = None
    ) -> Scores:
        options = {"precision": self.recipe.precision, "channels_last": self.recipe.channels_last}
        return evaluate(model, batches, process, **options, watch=watch)

    def sections(self, model: nn.Module, best: Mapping[str, float], process: Process) -> list[Section]:
        from .report import classifier_sections

        return classifier_sections(model, self.validation, self.recipe, process, self.classes, self.num_classes)


def _known_classes(predictor: Classifier) -> list[str] | None:
    """Return the class names of the labels of a model, as the data to evaluate on spell them; None if unknown.

    Folders and tables may number the classes of a model instead of naming them.
    """
    recipe, classes, count = predictor.recipe, predictor.classes, predictor.num_classes
    folder = recipe.data != "digits" and Path(recipe.data).expanduser().exists()
    if not folder or (classes and len(classes) != _IMAGENET):
        return classes
    present = list_images(recipe, "val").classes
    if classes and not {*present}.isdisjoint(classes):
        return classes
    numbers = [str(number) for number in range(count)]
    if {*present} <= {*numbers}:
        if sorted(numbers) != numbers:
            logger.warning(
                "%s does not name its classes, and those of %s are numbers: they are taken as labels. A model that was "
                "trained with torchvision's ImageFolder has them in the order of text (%s)",
                predictor.source,
                recipe.data,
                listed(sorted(numbers), 4),
            )
        return numbers
    return None


def evaluate(
    model: nn.Module,
    batches: Any,
    process: Process,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """Return ``loss``, ``top1`` and ``top5`` of a classifier over the batches of all processes.

    Batches are images (B, C, H, W) and labels (B,), of which -1 marks an unreadable image; ``watch`` is called with the
    number of images after each. The results are, for each readable image, its index in the data, its label, and the
    most probable class with its probability.

    Raises:
        DataError: If a label exceeds the classes of the model, or no image can be read.
    """
    evaluator = ClassificationEvaluator(process.device)
    unreadable = 0
    rows: list[Tensor] = []

    def count(images: Tensor, logits: Tensor, labels: Tensor) -> None:
        nonlocal unreadable
        readable = labels >= 0
        unreadable += int((~readable).sum())
        if len(labels) and int(labels.max()) >= logits.shape[1]:
            raise DataError(f"label {int(labels.max())} exceeds the {logits.shape[1]} classes of the model")
        evaluator.update(logits[readable], labels[readable])
        probability, predicted = logits.float().softmax(1).max(1)
        rows.append(torch.stack([labels.float(), predicted.float(), probability], 1).cpu())

    options: dict[str, Any] = {"precision": precision, "channels_last": channels_last, "watch": watch}
    speed = run_model(model, batches, process, count, **options)
    gathered = process.gather((int(evaluator.counts[0]), unreadable, torch.cat(rows).tolist() if rows else []))
    *counts, parts = zip(*gathered, strict=True)
    images, unreadable = map(sum, counts)
    if isinstance(getattr(batches, "dataset", None), IterableImageDataset):
        # A stream skips unreadable images; how many there should have been is known.
        unreadable += max(0, len(batches.dataset) - images - unreadable)
    if images == 0:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    result = evaluator.compute(distributed=process.world_size > 1)
    metrics = {name: result[name] for name in ("top1", "top5", "loss")}
    # Process r has every world_size-th image, starting with the r-th.
    in_order = [row for group in zip_longest(*parts) for row in group if row is not None]
    results = [
        {"index": index, "label": int(label), "predicted": int(predicted), "probability": probability}
        for index, (label, predicted, probability) in enumerate(in_order)
        if label >= 0
    ]
    return Scores(metrics, images, unreadable, speed, results)


TASK = Classification
