"""Scores of a model's maps over many images, and differences between models."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...explain.maps import explain
from ...explain.scores import faithfulness
from ...files import write_csv, write_json
from ..console import console, table
from ..data.coco import CocoData
from ..data.find import ImageFile
from ..environment import environment
from ..statistics import PairedDifference, Summary, paired_difference, summary
from ..tasks.classification.predictor import Classifier
from .pointing_game import Boxes, boxes_of, hits

# Name of each score, and whether higher is better; None if neither.
FIGURES: dict[str, tuple[str, bool | None]] = {
    "probability": ("probability", None),
    "deletion": ("deletion", False),
    "insertion": ("insertion", True),
    "drop": ("drop %", False),
    "increase": ("increase %", True),
    "pointing": ("pointing %", True),
}


@dataclass(frozen=True)
class Scored:
    """Scores of one model over many images.

    Attributes:
        label: Name of the model.
        layer: Module that the maps are made for.
        rows: Per image its name, the class explained and the scores of ``FIGURES``; without ``pointing`` if the image
            has no box of a class of the model.
    """

    label: str
    layer: str
    rows: list[dict[str, Any]]

    def figures(self, name: str) -> dict[int, float]:
        """Return one score of each image that has it, by the image's index."""
        return {number: row[name] for number, row in enumerate(self.rows) if name in row}

    def summary(self, name: str) -> Summary | None:
        return summary(self.figures(name))

    def difference(self, name: str, baseline: "Scored") -> PairedDifference | None:
        """Return the mean difference to another model on the same images, with a 95 % interval."""
        return paired_difference(self.figures(name), baseline.figures(name))

    def to_dict(self, baseline: "Scored | None" = None) -> dict[str, Any]:
        found: dict[str, Any] = {"network": self.label, "layer": self.layer, "images": len(self.rows)}
        for name in FIGURES:
            whole = self.summary(name)
            if whole is None:
                continue
            found[name] = asdict(whole)
            difference = self.difference(name, baseline) if baseline is not None else None
            if difference is not None:
                found[name]["to_the_first"] = {key: getattr(difference, key) for key in ("mean", "low", "high")}
        return {**found, "rows": self.rows}


def score(
    subject: Classifier,
    pictures: Sequence[ImageFile],
    *,
    method: str = "gradcam",
    target: str | None = None,
    layer: str | None = None,
    coco: CocoData | None = None,
    tolerance: float = 0.0,
    steps: int = 32,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] | None = None,
) -> Scored:
    """Return the scores of a model's maps over images.

    Args:
        subject: The model, on the device.
        pictures: The images.
        method: One of ``METHODS``.
        target: The class explained; by default the predicted one.
        layer: Module or stage of the maps.
        coco: Boxes in the images, for the pointing game.
        tolerance: Pixels of the input by which the pointing game may miss.
        steps: Steps of deletion and insertion.
        batch_size: Images explained at a time.
        device: Device of the model.
        watch: Called with the number of images after each batch.

    Raises:
        InputError: If there is no such method, class or layer, or a file cannot be read.
    """
    if not pictures:
        raise InputError("there are no images to score")
    chosen = None if target is None else subject.target(target)
    boxes: dict[str, list[Boxes]] = {}
    if coco is not None:
        for there in boxes_of(coco, pictures, subject.classes, len(subject.names)):
            boxes.setdefault(there.picture.name, []).append(there)
    rows: list[dict[str, Any]] = []
    name = ""
    for first in range(0, len(pictures), batch_size):
        batch = pictures[first : first + batch_size]
        images = torch.stack([subject.view.tensor(picture) for picture in batch]).to(device)
        found = explain(subject.model, images, method, chosen, layer)
        name = found.layer
        figures = faithfulness(subject.model, images, found.shares(), found.classes, steps=steps)
        for number, (picture, figure) in enumerate(zip(batch, figures, strict=True)):
            row = {
                "image": picture.name,
                "class": subject.names[int(found.classes[number])],
                "probability": found.probabilities[number].item(),
                **figure.to_dict(),
            }
            pointed = [
                _hit(subject, images[number : number + 1], there, method, layer, tolerance)
                for there in boxes.get(picture.name, [])
            ]
            pointed = [hit for hit in pointed if hit is not None]
            if pointed:
                row["pointing"] = 100 * statistics.fmean(pointed)
            rows.append(row)
        if watch is not None:
            watch(len(batch))
    return Scored(subject.label, name, rows)


def _hit(
    subject: Classifier, image: torch.Tensor, there: Boxes, method: str, layer: str | None, tolerance: float
) -> bool | None:
    """Return whether the map of a class points into one of its boxes; None if the crop shows no box."""
    boxes = subject.view.boxes(there.boxes, there.size)
    if not boxes:
        return None
    return hits(explain(subject.model, image, method, there.target, layer).maps[0], boxes, tolerance)


def print_scores(found: Sequence[Scored]) -> None:
    """Print means with standard deviations over images, and the differences to the first model."""
    title = ", ".join(f"{scored.label} ({scored.layer}), {len(scored.rows)} images" for scored in found)
    differences = [f"less {found[0].label} [95 %]"] if len(found) > 1 else []
    shown = table(("", "network", "mean ± deviation", *differences), text=("", "network"), title=title)
    for name, (said, rising) in FIGURES.items():
        for scored in found:
            if scored.figures(name):
                # The name of the score is printed for the first model only.
                arrow = {True: " ↑", False: " ↓", None: ""}[rising]
                row = [f"{said}{arrow}" if scored is found[0] else "", scored.label, _figure(scored, name)]
                shown.add_row(*row, *([_difference(scored, found[0], name)] if len(found) > 1 else []))
    console.print(shown)
    console.print("↑ higher is better, ↓ lower. Deviations and intervals are over images, not over trainings")


def _figure(scored: Scored, name: str) -> str:
    whole = scored.summary(name)
    if whole is None:
        return ""
    digits = _digits(name)
    return f"{whole.mean:.{digits}f}" + ("" if whole.deviation is None else f" ± {whole.deviation:.{digits}f}")


def _difference(scored: Scored, baseline: Scored, name: str) -> str:
    found = scored.difference(name, baseline) if scored is not baseline else None
    if found is None:
        return ""
    digits = _digits(name)
    ends = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{found.mean:+.{digits}f}{ends}"


def _digits(name: str) -> int:
    return 1 if "%" in FIGURES[name][0] else 3


def write_scores(found: Sequence[Scored], settings: dict[str, Any], folder: Path) -> list[str]:
    """Write the scores as JSON and, image by image, as CSV; return messages for the user."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = [scored.to_dict(None if scored is found[0] else found[0]) for scored in found]
    measured = environment("torchcam")
    content = {"machine": measured, "settings": settings, "scores": networks}
    write_json(folder / "scores.json", content)
    rows = [{"network": scored.label, "layer": scored.layer, **row} for scored in found for row in scored.rows]
    write_csv(folder / "scores.csv", rows, ["network", "layer", "image", "class", *FIGURES])
    return [f"wrote {folder / 'scores.json'} and {folder / 'scores.csv'}"]
