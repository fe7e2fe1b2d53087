"""Files of maps: overlays, arrays, comparisons, and all numbers as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...explain.maps import TITLES, Explanation
from ...files import atomic_write, write_json
from ..data.find import ImageFile
from ..environment import environment
from ..tasks.classification.predictor import Classifier
from .models import folder_of
from .overlays import PER_PAGE, Overlay, draw_comparison, draw_overlay


@dataclass
class MapPictures:
    """Writer of an overlay and an array per image and model, a comparison of the models, and all numbers as JSON.

    Attributes:
        subjects: The models.
        method: One of ``METHODS``.
        folder: Output folder; created with the first file.
    """

    subjects: Sequence[Classifier]
    method: str
    folder: Path
    _images: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[tuple[str, list[Overlay]]] = field(default_factory=list)
    _pages: list[Path] = field(default_factory=list)
    _layers: list[str] = field(default_factory=list)

    def add(
        self,
        batch: Sequence[ImageFile],
        seen: Sequence[Tensor],
        found: Sequence[Explanation],
        advance: Callable[[int], None],
    ) -> None:
        """Write the explanations of a batch of images, given each model's inputs and explanations."""
        self._layers = [explanation.layer for explanation in found]
        shares = [explanation.shares().cpu() for explanation in found]
        for number, picture in enumerate(batch):
            overlays, records = [], []
            for subject, images, explanation, share in zip(self.subjects, seen, found, shares, strict=True):
                overlay = _overlay(subject, images[number], explanation, share[number], number)
                overlays.append(overlay)
                records.append(self._write(subject, picture, overlay, explanation, number))
            labelled = _labelled(self.subjects[0], picture)
            self._images.append(
                {"file": str(picture.path), "name": picture.name, "labelled": labelled, "networks": records}
            )
            if len(self.subjects) > 1:
                self._rows.append((f"labelled {labelled}" if labelled else picture.name, overlays))
            if len(self._rows) == PER_PAGE:
                self._draw_page()
            advance(1)

    def finish(self, settings: dict[str, Any]) -> list[str]:
        """Draw the last page of the comparison, write the JSON file and return messages for the user."""
        if self._rows:
            self._draw_page()
        path = self.folder / "explanations.json"
        content = {
            "method": self.method,
            **settings,
            "images": self._images,
            **environment("torchcam"),
        }
        write_json(path, content)
        maps = f"wrote {len(self._images) * len(self.subjects)} maps to {self.folder}, and {path.name}"
        return [maps, *(f"wrote {page}" for page in self._pages)]

    def _write(
        self, subject: Classifier, picture: ImageFile, overlay: Overlay, explanation: Explanation, number: int
    ) -> dict[str, Any]:
        folder = folder_of(self.folder, subject, self.subjects)
        folder.mkdir(parents=True, exist_ok=True)
        raw = explanation.raw[number].cpu().numpy()
        drawn, array = folder / f"{picture.name}.png", folder / f"{picture.name}.npy"
        draw_overlay(overlay, f"{picture.name}\n{subject.label}, {TITLES[self.method]} at {explanation.layer}", drawn)
        with atomic_write(array) as file:
            np.save(file, raw)
        predicted = int(explanation.predicted[number])
        return {
            "network": subject.label,
            "class": int(explanation.classes[number]),
            "class_name": overlay.name,
            "probability": overlay.probability,
            "predicted": predicted,
            "predicted_name": subject.names[predicted],
            "layer": explanation.layer,
            "overlay": str(drawn.relative_to(self.folder)),
            "map": str(array.relative_to(self.folder)),
            "map_shape": list(raw.shape),
            "lowest": float(raw.min()),
            "highest": float(raw.max()),
        }

    def _draw_page(self) -> None:
        path = self.folder / f"comparison-{len(self._pages) + 1}.png"
        names, rows = [name for name, _ in self._rows], [overlays for _, overlays in self._rows]
        columns = [f"{s.label} ({layer})" for s, layer in zip(self.subjects, self._layers, strict=True)]
        draw_comparison(rows, columns, names, f"{TITLES[self.method]}: where the evidence for the class is", path)
        self._pages.append(path)
        self._rows = []


def _labelled(subject: Classifier, picture: ImageFile) -> str | None:
    """Return the class after which the image's folder is named, if the model has it."""
    folder = picture.path.resolve().parent.name
    classes = subject.classes or []
    return subject.names[classes.index(folder)] if folder in classes else None


def _overlay(subject: Classifier, image: Tensor, explanation: Explanation, share: Tensor, number: int) -> Overlay:
    shown, predicted = int(explanation.classes[number]), int(explanation.predicted[number])
    return Overlay(
        subject.view.pixels(image),
        share,
        subject.names[shown],
        explanation.probabilities[number].item(),
        subject.names[predicted] if predicted != shown else None,
    )
