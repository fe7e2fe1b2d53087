"""How good a classifier is class by class, and which classes it takes for which."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..task import Section
from .predictions import Predictions

__all__ = ["ClassFigures", "classes_section", "confused_pairs", "confusion_section", "figures_by_class"]
MATRIX = 20  # classes of which a table of all pairs can be read
_PAIRS = 20
_OPEN = 20  # classes that are shown without being asked for


@dataclass(frozen=True)
class ClassFigures:
    """What was made of one class.

    Attributes:
        name: The class.
        images: How many images there are of it.
        recall: Of its images those that were taken for it, in percent; None without images.
        precision: Of the images that were taken for it those of it, in percent; None where there are none.
        taken_for: The class that its images were most often taken for wrongly, and how often; None if never.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    taken_for: tuple[str, int] | None


def figures_by_class(found: Predictions, names: Sequence[str]) -> list[ClassFigures]:
    """Returns the figures of each class, the lowest recall first and classes without images last.

    Args:
        found: What the images were taken for.
        names: Names of the classes.
    """

    def counted(classes: Tensor) -> list[int]:
        return torch.bincount(classes, minlength=found.classes).tolist()

    right, of_class, taken = counted(found.labels[~found.wrong]), counted(found.labels), counted(found.predicted)
    most: dict[int, tuple[str, int]] = {}
    for label, other, count in confused_pairs(found):
        most.setdefault(label, (names[other], count))
    figures = [
        ClassFigures(name, all_of, _percent(hits, all_of), _percent(hits, taken_for), most.get(label))
        for label, (name, hits, all_of, taken_for) in enumerate(zip(names, right, of_class, taken, strict=True))
    ]
    return sorted(figures, key=lambda figure: (figure.recall is None, figure.recall))


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def confused_pairs(found: Predictions) -> list[tuple[int, int, int]]:
    """Returns class, what it was taken for wrongly, and how often, the most frequent first."""
    pairs = found.labels[found.wrong] * found.classes + found.predicted[found.wrong]
    kinds, counts = pairs.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [(*divmod(int(kinds[place]), found.classes), int(counts[place])) for place in order]


def classes_section(found: Predictions, names: Sequence[str]) -> Section:
    """Returns the table of the classes."""
    figures = figures_by_class(found, names)
    return Section("Accuracy by class", "classes.html", {"shown": figures[:_OPEN], "more": figures[_OPEN:]})


def confusion_section(found: Predictions, names: Sequence[str]) -> Section:
    """Returns the confusion matrix, and for more than ``MATRIX`` classes the pairs most often confused."""
    totals = torch.bincount(found.labels, minlength=found.classes).tolist()
    if len(names) > MATRIX:
        pairs = [(names[a], names[b], count, 100 * count / totals[a]) for a, b, count in confused_pairs(found)[:_PAIRS]]
        return Section("Most often confused", "pairs.html", {"pairs": pairs, "classes": len(names)})
    rows = [
        (name, [(count, count / max(1, total), column == number) for column, count in enumerate(row)])
        for number, (name, row, total) in enumerate(zip(names, found.matrix().tolist(), totals, strict=True))
    ]
    return Section("Confusion matrix", "matrix.html", {"names": list(names), "rows": rows})
