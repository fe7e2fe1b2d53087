"""Report of a classifier: its predictions, classes, confusions, and the worst mistakes."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional

from ....errors import DataError, InputError
from ....explain.maps import Explanation, explain
from ....explain.stages import last_readable_stage
from ...console import console
from ...data.datasets import Samples
from ...data.loading import evaluation_batches
from ...device import Process
from ...explain.overlays import Overlay, blended
from ...recipes.recipe import Recipe
from ...report.html import embedded, embedded_pixels
from ..evaluation import run_model
from ..predictor import readable
from ..task import Section
from .predictor import View

# The size of ImageNet's validation set; a report over more images would keep people and processes waiting.
MOST_IMAGES = 50_000
_MOST_AT_A_TIME = 256
MATRIX = 20  # classes up to which a table of all pairs is readable
_PAIRS = 20
_OPEN = 20  # classes that are shown without unfolding


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is wrong.

    Attributes:
        index: Number of the image in the order of the batches, from 0.
        image: Input of the model, (C, H, W), normalised, on the CPU.
        label: True class.
        predicted: Most probable class.
        probability: Probability of ``predicted``.
        probability_of_label: Probability of ``label``.
        loss: Cross-entropy.
    """

    index: int
    image: Tensor
    label: int
    predicted: int
    probability: float
    probability_of_label: float
    loss: float


@dataclass(frozen=True)
class Predictions:
    """Predictions for labelled images.

    Attributes:
        labels: True class of each readable image, (images,), int64.
        predicted: Most probable class of each, (images,).
        classes: Number of classes.
        mistakes: Wrong predictions of the highest loss, the highest first.
        loss: Mean cross-entropy.
        unreadable: Images that could not be decoded and are not counted.
    """

    labels: Tensor
    predicted: Tensor
    classes: int
    mistakes: list[Mistake]
    loss: float
    unreadable: int

    @property
    def wrong(self) -> Tensor:
        """Whether each prediction is wrong, (images,)."""
        return self.labels != self.predicted


def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    process: Process,
    classes: int,
    *,
    worst: int = 12,
    precision: str = "fp32",
    channels_last: bool = False,
) -> Predictions:
    """Return the predictions of a classifier for the images of this process, with its worst mistakes.

    Batches are images (B, C, H, W) and labels (B,), of which -1 marks an unreadable image.

    Raises:
        DataError: If no image can be read.
    """
    pairs: list[Tensor] = []
    mistakes: list[Mistake] = []
    total, first = 0.0, 0

    def keep(images: Tensor, logits: Tensor, labels: Tensor) -> None:
        nonlocal total, first, mistakes
        labels, logits = labels.cpu(), logits.float().cpu()
        numbers = (labels >= 0).nonzero().flatten()
        losses = functional.cross_entropy(logits[numbers], labels[numbers], reduction="none")
        predicted = logits[numbers].argmax(1)
        total += float(losses.double().sum())
        pairs.append(torch.stack([labels[numbers], predicted]))
        wrong = (predicted != labels[numbers]).nonzero().flatten()
        for at in wrong[losses[wrong].argsort(descending=True, stable=True)][:worst].tolist():
            loss, number, label, other = float(losses[at]), int(numbers[at]), *pairs[-1][:, at].tolist()
            if len(mistakes) == worst and loss <= mistakes[-1].loss:
                break
            share, image = logits[number].softmax(0), images[number].cpu().contiguous()
            mistake = Mistake(first + number, image, label, other, float(share[other]), float(share[label]), loss)
            mistakes = sorted([*mistakes, mistake], key=lambda mistake: -mistake.loss)[:worst]
        first += len(labels)

    run_model(model, batches, process, keep, precision=precision, channels_last=channels_last)
    labels, predicted = torch.cat(pairs, 1) if pairs else torch.empty(2, 0)
    if not len(labels):
        raise DataError(f"no image could be evaluated ({first} unreadable)")
    return Predictions(labels, predicted, classes, mistakes, total / len(labels), first - len(labels))


def classifier_sections(
    model: nn.Module, validation: Any, recipe: Recipe, process: Process, classes: Sequence[str] | None, num_classes: int
) -> list[Section]:
    """Return the sections of a model over the validation images of its run; this process computes alone."""
    share = recipe.batch_size // (process.world_size * recipe.grad_accum)
    batch_size = max(1, min(share, _MOST_AT_A_TIME))
    alone = Process(process.device)
    data = _bounded(validation)
    batches: Iterable[Any] = evaluation_batches(data, recipe, alone, batch_size)
    count = -(-min(len(data), MOST_IMAGES) // batch_size)
    shown = {"console": console, "transient": True, "disable": not console.is_terminal}
    watched = track(islice(batches, count), "report", total=count, **shown)
    options = {"precision": recipe.precision, "channels_last": recipe.channels_last}
    predictions = predict(model, watched, alone, num_classes, **options)
    names = readable(classes, num_classes)
    whole = len(validation)
    wrong = int(predictions.wrong.sum())
    summary = {
        "images": len(predictions.labels),
        "of": whole if whole > MOST_IMAGES else None,
        "how": "at even distances" if isinstance(data, Samples) else "the first",
        "top1": 100 - 100 * wrong / len(predictions.labels),
        "loss": predictions.loss,
        "unreadable": predictions.unreadable,
        "wrong": wrong,
    }
    return [
        Section("Validation", "classification/summary", summary),
        classes_section(predictions, names),
        confusion_section(predictions, names),
        _mistakes_section(model, predictions.mistakes, names, data, View(recipe), alone),
    ]


def _bounded(data: Any) -> Any:
    """Return the data or, of too many images, some at even distances, so that all classes are present."""
    if not isinstance(data, Samples) or len(data) <= MOST_IMAGES:
        return data
    chosen = copy(data)
    chosen.kept = [data.kept[index * len(data) // MOST_IMAGES] for index in range(MOST_IMAGES)]
    return chosen


def _mistakes_section(
    model: nn.Module, mistakes: Sequence[Mistake], names: Sequence[str], data: Any, view: View, process: Process
) -> Section:
    explanation, why_not = _explained(model, mistakes, process)
    shares = [None] * len(mistakes) if explanation is None else explanation.shares().cpu()
    cards = []
    for mistake, share in zip(mistakes, shares, strict=True):
        pixels = view.pixels(mistake.image)
        taken_for = names[mistake.predicted]
        overlay = None if share is None else Overlay(pixels, share, taken_for, mistake.probability)
        cards.append(
            {
                "file": Path(data.name(mistake.index)).name if isinstance(data, Samples) else "",
                "seen": embedded_pixels(pixels),
                "overlay": None if overlay is None else embedded(blended(overlay)),
                "empty": overlay is not None and overlay.empty,
                "label": names[mistake.label],
                "predicted": taken_for,
                "probability": 100 * mistake.probability,
                "probability_of_label": 100 * mistake.probability_of_label,
                "loss": mistake.loss,
            }
        )
    layer = explanation.layer if explanation else None
    return Section("Worst mistakes", "classification/mistakes", {"cards": cards, "layer": layer, "why_not": why_not})


def _explained(model: nn.Module, mistakes: Sequence[Mistake], process: Process) -> tuple[Explanation | None, str]:
    """Return Grad-CAM of each predicted class, or the reason why there is none."""
    if not mistakes:
        return None, ""
    images = torch.stack([mistake.image for mistake in mistakes]).to(process.device)
    try:
        layer = last_readable_stage(model, images)
        return explain(model, images, target=[mistake.predicted for mistake in mistakes], layer=layer), ""
    except (InputError, RuntimeError) as error:  # a model without maps still has mistakes to show
        return None, str(error)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes:
        name: The class.
        images: Number of its images.
        recall: Percentage of its images that are predicted as it; None without images.
        precision: Percentage of the images predicted as it that belong to it; None if there are none.
        taken_for: Wrong class that its images are most often predicted as, with their number; None if none is wrong.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    taken_for: tuple[str, int] | None


def scores_by_class(predictions: Predictions, names: Sequence[str]) -> list[ClassScores]:
    """Return the scores of each class, the lowest recall first and classes without images last."""
    most: dict[int, tuple[str, int]] = {}
    for label, other, count in confused_pairs(predictions):
        most.setdefault(label, (names[other], count))
    options: dict[str, Any] = {"labels": range(predictions.classes), "zero_division": np.nan}
    scores: Any = precision_recall_fscore_support(predictions.labels, predictions.predicted, **options)
    precision, recall, _, images = scores
    rows = [
        ClassScores(name, int(images[n]), _percent(recall[n]), _percent(precision[n]), most.get(n))
        for n, name in enumerate(names)
    ]
    return sorted(rows, key=lambda each: (each.recall is None, each.recall))


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100 * float(share)


def confused_pairs(predictions: Predictions) -> list[tuple[int, int, int]]:
    """Return class, wrong prediction and number of images, the most frequent first."""
    wrong = predictions.wrong
    codes = predictions.labels[wrong] * predictions.classes + predictions.predicted[wrong]
    pairs, counts = codes.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [(*divmod(int(pairs[n]), predictions.classes), int(counts[n])) for n in order]


def classes_section(predictions: Predictions, names: Sequence[str]) -> Section:
    """Return the table of the classes."""
    scores = scores_by_class(predictions, names)
    return Section("Accuracy by class", "classification/classes", {"shown": scores[:_OPEN], "more": scores[_OPEN:]})


def confusion_section(predictions: Predictions, names: Sequence[str]) -> Section:
    """Return the confusion matrix, or for more than ``MATRIX`` classes the pairs confused most often."""
    totals = torch.bincount(predictions.labels, minlength=predictions.classes).tolist()
    if len(names) > MATRIX:
        most = confused_pairs(predictions)[:_PAIRS]
        pairs = [(names[a], names[b], count, 100 * count / totals[a]) for a, b, count in most]
        return Section("Most often confused", "classification/pairs", {"pairs": pairs, "classes": len(names)})
    matrix = confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(names))).tolist()
    rows = [
        (name, [(count, count / max(1, total), column == number) for column, count in enumerate(row)])
        for number, (name, row, total) in enumerate(zip(names, matrix, totals, strict=True))
    ]
    return Section("Confusion matrix", "classification/matrix", {"names": list(names), "rows": rows})
