"""Accuracy of a classifier class by class, and the classes that it confuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ..task import Section
from .evaluation import Predictions

__all__ = ["ClassScores", "classes_section", "confused_pairs", "confusion_section", "scores_by_class"]
MATRIX = 20  # classes up to which a table of all pairs is readable
_PAIRS = 20
_OPEN = 20  # classes that are shown without unfolding


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
