"""Scores of a classifier by class, and the classes that it confuses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import precision_recall_fscore_support

from ..task import Section
from .predictions import Predictions

__all__ = ["ClassFigures", "classes_section", "confused_pairs", "confusion_section", "figures_by_class"]
MATRIX = 20  # classes of which a table of all pairs can be read
_PAIRS = 20
_OPEN = 20  # classes that are shown without being asked for


@dataclass(frozen=True)
class ClassFigures:
    """Scores of one class.

    Attributes:
        name: The class.
        images: Number of its images.
        recall: Percentage of its images that were predicted as it; None without images.
        precision: Percentage of the images predicted as it that belong to it; None without such images.
        taken_for: The class that its images were most often wrongly predicted as, and how often; None if never.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    taken_for: tuple[str, int] | None


def figures_by_class(found: Predictions, names: Sequence[str]) -> list[ClassFigures]:
    """Return the scores of each class, the lowest recall first and classes without images last.

    Args:
        found: Predictions for labelled images.
        names: Names of the classes.
    """
    options: Any = {"labels": range(found.classes), "average": None, "zero_division": math.nan}
    scores: Any = precision_recall_fscore_support(found.labels, found.predicted, **options)
    precision, recall, _, images = scores
    most: dict[int, tuple[str, int]] = {}
    for label, other, count in confused_pairs(found):
        most.setdefault(label, (names[other], count))
    classes = [
        ClassFigures(name, int(images[label]), _percent(recall[label]), _percent(precision[label]), most.get(label))
        for label, name in enumerate(names)
    ]
    return sorted(classes, key=lambda each: (each.recall is None, each.recall))


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100 * float(share)


def confused_pairs(found: Predictions) -> list[tuple[int, int, int]]:
    """Return class, wrongly predicted class and number of images of each confusion, the most frequent first."""
    pairs = found.labels[found.wrong] * found.classes + found.predicted[found.wrong]
    kinds, counts = pairs.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [(*divmod(int(kinds[index]), found.classes), int(counts[index])) for index in order]


def classes_section(found: Predictions, names: Sequence[str]) -> Section:
    """Return the table of the classes."""
    figures = figures_by_class(found, names)
    return Section("Accuracy by class", "classification/classes", {"shown": figures[:_OPEN], "more": figures[_OPEN:]})


def confusion_section(found: Predictions, names: Sequence[str]) -> Section:
    """Return the confusion matrix, or for more than ``MATRIX`` classes the pairs most often confused."""
    totals = torch.bincount(found.labels, minlength=found.classes).tolist()
    if len(names) > MATRIX:
        pairs = [(names[a], names[b], count, 100 * count / totals[a]) for a, b, count in confused_pairs(found)[:_PAIRS]]
        return Section("Most often confused", "classification/pairs", {"pairs": pairs, "classes": len(names)})
    rows = [
        (name, [(count, count / max(1, total), column == number) for column, count in enumerate(row)])
        for number, (name, row, total) in enumerate(zip(names, found.matrix().tolist(), totals, strict=True))
    ]
    return Section("Confusion matrix", "classification/matrix", {"names": list(names), "rows": rows})
