"""Files of gates: charts, arrays, and their distribution as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...explain.gates import Gates, attention_layers, destinations, gates, group_scores
from ...explain.stages import eval_mode
from ...files import atomic_write, write_json
from ..data.find import ImageFile
from ..environment import environment
from ..tasks.classification.predictor import Classifier
from .gate_charts import chosen_channels, draw_gates, draw_groups, draw_spatial_gates, spread_layers
from .models import folder_of

_CLASSES = 3  # that the scores of the groups are shown for


@dataclass
class GatePictures:
    """Writer of charts of gates and groups, of gates as arrays, and of their distribution as JSON.

    Attributes:
        subjects: The models.
        folder: Output folder; created with the first file.
        target: The class whose scores under the groups come first; the predicted one by default.
        layer: The layer whose spatial gates are drawn; by default several at even distances.
        channels: Channels of that layer to draw; by default those whose gates vary most over the image.
    """

    subjects: Sequence[Classifier]
    folder: Path
    target: str | None
    layer: str | None
    channels: Sequence[int]
    _images: list[dict[str, Any]] = field(default_factory=list)

    def folder_of(self, subject: Classifier) -> Path:
        """Create and return the folder of a model's files."""
        folder = folder_of(self.folder, subject, self.subjects)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(
        self, subject: Classifier, batch: Sequence[ImageFile], images: Tensor, advance: Callable[[int], None]
    ) -> None:
        """Write the gates of one model for a batch of images."""
        found = gates(subject.model, images)
        mapped = [g for g in found if g.layer == self.layer] if self.layer else spread_layers(found)
        chosen = [[chosen_channels(g, number, 6, self.channels) for g in mapped] for number in range(len(batch))]
        for number, picture in enumerate(batch):
            asked = None if self.target is None else subject.target(self.target)
            folder = self.folder_of(subject)
            pixels = subject.view.pixels(images[number])
            about = f"{picture.name}, {subject.label}"
            draw_gates(found, number, f"gates: {about}", folder / f"{picture.name}-gates.png")
            draw_spatial_gates(
                mapped,
                number,
                pixels,
                chosen[number],
                f"spatial gates: {about}",
                folder / f"{picture.name}-spatial.png",
            )
            classes = _classes_shown(subject, images[number], asked)
            scores, whole = group_scores(subject.model, images[number], classes)
            names = [subject.names[c] for c in classes]
            draw_groups(scores, whole, names, pixels, f"groups: {about}", folder / f"{picture.name}-groups.png")
            with atomic_write(folder / f"{picture.name}-gates.npz") as file:
                arrays: dict[str, Any] = {g.layer: g.values[number].half().cpu().numpy() for g in found}
                np.savez_compressed(file, **arrays)
            self._images.append(
                {
                    "file": str(picture.path),
                    "name": picture.name,
                    "network": subject.label,
                    "layers": [_spread(g, number) for g in found],
                    "groups": {
                        "classes": names,
                        "whole_image": whole,
                        "probabilities": {s.layer: s.probabilities.tolist() for s in scores},
                    },
                }
            )
            advance(1)

    def finish(self, settings: dict[str, Any]) -> list[str]:
        """Write the JSON file and return messages for the user."""
        sent = {
            subject.label: {
                name: destinations(layer).tolist() for name, layer in attention_layers(subject.model).items()
            }
            for subject in self.subjects
        }
        content = {**settings, "images": self._images, "destinations": sent, **environment()}
        write_json(self.folder / "gates.json", content, indent=None)
        return [f"wrote the gates of {len(self._images)} images to {self.folder}, and gates.json"]


def _classes_shown(subject: Classifier, image: Tensor, asked: int | None) -> list[int]:
    """Return the requested class and the most probable others."""
    with eval_mode(subject.model):
        order: list[int] = subject.model(image[None]).detach()[0].argsort(descending=True).tolist()
    first = [] if asked is None else [asked]
    return (first + [number for number in order if number != asked])[:_CLASSES]


def _spread(gates: Gates, number: int) -> dict[str, Any]:
    def of(values: Tensor) -> dict[str, float]:
        figures = {"mean": values.mean(), "deviation": values.std(unbiased=False)}
        return {name: value.item() for name, value in (figures | {"low": values.min(), "high": values.max()}).items()}

    return {
        "layer": gates.layer,
        "groups": gates.groups,
        "channel_gates": of(gates.of_channels()[number]),
        "spatial_gates": of(gates.of_places()[number]),
    }
