"""Scores of a model's maps over many images, and differences between models."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError, counted
from ...explain.maps import explain
from ...explain.scores import faithfulness
from ...files import write_csv, write_json
from ..console import console, progress_bar, table
from ..data.coco import CocoData
from ..data.image_files import ImageFile
from ..environment import environment
from ..statistics import PairedDifference, Summary, paired_difference, summary
from ..tasks.classification.predictor import Classifier
from .models import batches, inputs_of, sources_of
from .pointing_game import Boxes, boxes_of, hits

# Name of each score, its number of digits, and whether higher is better; None if neither.
SCORES: dict[str, tuple[str, int, bool | None]] = {
    "probability": ("probability", 3, None),
    "deletion": ("deletion", 3, False),
    "insertion": ("insertion", 3, True),
    "drop": ("drop %", 1, False),
    "increase": ("increase %", 1, True),
    "pointing": ("pointing %", 1, True),
}


@dataclass(frozen=True)
class Scored:
    """Scores of one model over many images.

    Attributes:
        label: Name of the model.
        layer: Module that the maps are made for.
        rows: Per image its name, the class explained and the ``SCORES``; without ``pointing`` if the image has no box
            of a class of the model.
    """

    label: str
    layer: str
    rows: list[dict[str, Any]]

    def values(self, name: str) -> dict[int, float]:
        """Return one score of each image that has it, by the image's index."""
        return {number: row[name] for number, row in enumerate(self.rows) if name in row}

    def summary(self, name: str) -> Summary | None:
        return summary(self.values(name))

    def difference(self, name: str, baseline: "Scored") -> PairedDifference | None:
        """Return the mean difference to another model on the same images, with a 95 % interval."""
        return paired_difference(self.values(name), baseline.values(name))

    def to_dict(self, baseline: "Scored | None" = None) -> dict[str, Any]:
        content: dict[str, Any] = {"network": self.label, "layer": self.layer, "images": len(self.rows)}
        for name in SCORES:
            if whole := self.summary(name):
                content[name] = asdict(whole)
                if baseline is not None and (difference := self.difference(name, baseline)):
                    content[name]["to_the_first"] = {key: getattr(difference, key) for key in ("mean", "low", "high")}
        return {**content, "rows": self.rows}


def score(
    classifier: Classifier,
    images: Sequence[ImageFile],
    *,
    method: str = "gradcam",
    target: str | None = None,
    layer: str | None = None,
    coco: CocoData | None = None,
    tolerance: float = 0.0,
    steps: int = 32,
    batch_size: int = 16,
    watch: Callable[[int], None] = lambda images: None,
) -> Scored:
    """Return the scores of a model's maps over images.

    Args:
        classifier: The model, on the device.
        images: The images.
        method: One of ``METHODS``.
        target: The class explained; by default the predicted one.
        layer: Module or stage of the maps.
        coco: Boxes in the images, for the pointing game.
        tolerance: Pixels of the input by which the pointing game may miss.
        steps: Steps of deletion and insertion.
        batch_size: Images explained at a time.
        watch: Called with the number of images after each batch.

    Raises:
        InputError: If there is no such method, class or layer, or a file cannot be read.
    """
    if not images:
        raise InputError("there are no images to score")
    index = None if target is None else classifier.target(target)
    annotated: dict[str, list[Boxes]] = {}
    if coco is not None:
        for boxes in boxes_of(coco, images, classifier.classes, len(classifier.names)):
            annotated.setdefault(boxes.image.name, []).append(boxes)

    def points(x: torch.Tensor, boxes: Boxes) -> bool | None:
        """Return whether the map of a class points into one of its boxes; None if the crop shows no box."""
        visible = classifier.view.boxes(boxes.boxes, boxes.size)
        if not visible:
            return None
        return hits(explain(classifier.model, x, method, boxes.target, layer).maps[0], visible, tolerance)

    rows: list[dict[str, Any]] = []
    name = ""
    for batch in batches(images, batch_size):
        x = inputs_of(classifier, batch)
        explanation = explain(classifier.model, x, method, index, layer)
        name = explanation.layer
        scores = faithfulness(classifier.model, x, explanation.shares(), explanation.classes, steps=steps)
        for number, (image, faithful) in enumerate(zip(batch, scores, strict=True)):
            row = {
                "image": image.name,
                "class": classifier.names[int(explanation.classes[number])],
                "probability": explanation.probabilities[number].item(),
                **faithful.to_dict(),
            }
            pointed = [points(x[number : number + 1], boxes) for boxes in annotated.get(image.name, [])]
            pointed = [hit for hit in pointed if hit is not None]
            if pointed:
                row["pointing"] = 100 * statistics.fmean(pointed)
            rows.append(row)
        watch(len(batch))
    return Scored(classifier.label, name, rows)


def print_scores(scored: Sequence[Scored]) -> None:
    """Print means with standard deviations over images, and the differences to the first model."""
    baseline, several = scored[0], len(scored) > 1
    title = ", ".join(f"{each.label} ({each.layer}), {counted(len(each.rows), 'image')}" for each in scored)
    differences = [f"less {baseline.label} [95 %]"] if several else []
    shown = table(("", "network", "mean ± deviation", *differences), text=("", "network"), title=title)
    for name, (label, digits, rising) in SCORES.items():
        for each in scored:
            whole = each.summary(name)
            if whole is not None:
                # The name of the score is printed for the first model only.
                first = label + {True: " ↑", False: " ↓", None: ""}[rising] if each is baseline else ""
                deviation = "" if whole.deviation is None else f" ± {whole.deviation:.{digits}f}"
                over = [_difference(each, baseline, name, digits)] if several else []
                shown.add_row(first, each.label, f"{whole.mean:.{digits}f}{deviation}", *over)
    console.print(shown)
    console.print("↑ higher is better, ↓ lower. Deviations and intervals are over images, not over trainings")


def _difference(scored: Scored, baseline: Scored, name: str, digits: int) -> str:
    difference = scored.difference(name, baseline) if scored is not baseline else None
    if difference is None:
        return ""
    ends = "" if difference.low is None else f" [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return f"{difference.mean:+.{digits}f}{ends}"


def write_scores(
    classifiers: Sequence[Classifier],
    images: Sequence[ImageFile],
    batch_size: int,
    coco: CocoData | None,
    settings: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Print how faithful the maps of each model are, and write it as JSON and, image by image, as CSV.

    ``settings`` are further arguments of :func:`score`.

    Returns:
        Lines that name the files.
    """
    with progress_bar(len(classifiers) * len(images), "scoring") as advance:
        options: dict[str, Any] = {"coco": coco, "batch_size": batch_size, "watch": advance, **settings}
        scored = [score(classifier, images, **options) for classifier in classifiers]
    print_scores(scored)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": environment("torchcam"),
        "settings": {**settings, "boxes": None if coco is None else coco.source, **sources_of(classifiers)},
        "scores": [each.to_dict(None if each is scored[0] else scored[0]) for each in scored],
    }
    write_json(folder / "scores.json", content)
    rows = [{"network": each.label, "layer": each.layer, **row} for each in scored for row in each.rows]
    write_csv(folder / "scores.csv", rows, ["network", "layer", "image", "class", *SCORES])
    return [f"wrote {folder / 'scores.json'} and {folder / 'scores.csv'}"]
