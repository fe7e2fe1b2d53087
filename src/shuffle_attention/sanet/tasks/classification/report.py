"""Report of a classifier: classes, confusions, and the worst mistakes."""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

from ....errors import InputError
from ....explain.maps import Explanation, explain
from ....explain.stages import last_readable_stage
from ...console import console
from ...data.datasets import Samples
from ...data.loading import evaluation_batches
from ...device import Process
from ...explain.overlays import Overlay, blended
from ...recipes.recipe import Recipe
from ...report.html import embedded, embedded_pixels
from ..predictor import readable
from ..task import Section
from .classes import classes_section, confusion_section
from .evaluation import Mistake, predict
from .predictor import View

__all__ = ["classifier_sections"]
# The size of ImageNet's validation set; a report over more images would keep people and processes waiting.
MOST_IMAGES = 50_000
_MOST_AT_A_TIME = 256


def classifier_sections(
    model: nn.Module, validation: Any, recipe: Recipe, process: Process, classes: Sequence[str] | None, num_classes: int
) -> list[Section]:
    """Return the sections of a model over the validation images of its run; this process computes alone.

    Args:
        model: The model.
        validation: The images.
        recipe: Settings of the run.
        process: This process.
        classes: Class names, or None if unknown.
        num_classes: Number of classes.
    """
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
        Section("Over the validation images", "classification/summary", summary),
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
