"""Figures for the maps of a network over many images, beside those of others."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...errors import InputError
from ...explain.maps import explain
from ...explain.scores import faithfulness
from ..data.coco import CocoData
from ..data.find import ImageFile
from ..network import Classifier
from ..statistics import PairedDifference, Summary, paired_difference, summary
from .pointing_game import Boxes, boxes_of, hits

# What each figure is called, and whether more of it is better; None where it is neither.
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
    """One network over many images.

    Attributes:
        label: What the network is called.
        layer: Module that the maps are of.
        rows: Figures of each image: its name, the class explained, and those of ``FIGURES``; without ``pointing``
            where there are no boxes of a class that the network knows.
    """

    label: str
    layer: str
    rows: list[dict[str, Any]]

    def figures(self, name: str) -> dict[int, float]:
        """Returns one figure of each image that has it, by the image's number."""
        return {number: row[name] for number, row in enumerate(self.rows) if name in row}

    def summary(self, name: str) -> Summary | None:
        return summary(self.figures(name))

    def difference(self, name: str, baseline: "Scored") -> PairedDifference | None:
        """Returns the mean difference to another network on the same images, with a 95 % interval."""
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
    """Returns the figures of a network's maps over images.

    Args:
        subject: The network, on the device.
        pictures: The images.
        method: One of ``METHODS``.
        target: The class explained; that which the network predicts by default.
        layer: Module or stage of the maps.
        coco: Boxes in the images, for the pointing game, which is played for the classes that have a box.
        tolerance: By how many pixels of the input it may miss.
        steps: Steps of deletion and insertion.
        batch_size: Images explained at a time.
        device: Where the network is.
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
    """Whether the map of a class points into one of its boxes; None where the crop shows none of them."""
    boxes = subject.view.boxes(there.boxes, there.size)
    if not boxes:
        return None
    return hits(explain(subject.model, image, method, there.target, layer).maps[0], boxes, tolerance)
