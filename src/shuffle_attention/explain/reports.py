"""The files of ``sanet explain``: pictures, arrays, and what was found as JSON and CSV."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from ..files import written_whole
from ..progress import console
from ..reporting import versions, write_text
from .cams import Explanation
from .gate_charts import chosen_channels, draw_gates, draw_groups, draw_spatial_gates, spread_layers
from .gates import Gates, attention_layers, destinations, gates
from .groups import group_scores
from .overlays import PER_PAGE, Overlay, draw_comparison, draw_overlay
from .pictures import Picture
from .scoring import FIGURES, Scored
from .subjects import Subject
from .untouched import untouched

_CLASSES = 3  # that the scores of the groups are shown for


@dataclass
class MapPictures:
    """An overlay and an array for each image and network, a comparison of the networks, and all figures as JSON.

    Attributes:
        subjects: The networks.
        method: How the maps are made.
        folder: Where to write; made with the first file.
    """

    subjects: Sequence[Subject]
    method: str
    folder: Path
    _images: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[tuple[str, list[Overlay]]] = field(default_factory=list)
    _pages: list[Path] = field(default_factory=list)
    _layers: list[str] = field(default_factory=list)

    def add(
        self,
        batch: Sequence[Picture],
        seen: Sequence[Tensor],
        found: Sequence[Explanation],
        advance: Callable[[int], None],
    ) -> None:
        """Writes what was found for some images: of each network what it saw and the explanations."""
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
        """Draws what is left of the comparison, writes the JSON, and returns what to say."""
        if self._rows:
            self._draw_page()
        path = self.folder / "explanations.json"
        content = {"method": self.method, **settings, "images": self._images, **versions()}
        write_text(path, json.dumps(content, indent=1) + "\n")
        maps = f"wrote {len(self._images) * len(self.subjects)} maps to {self.folder}, and {path.name}"
        return [maps, *(f"wrote {page}" for page in self._pages)]

    def _write(
        self, subject: Subject, picture: Picture, overlay: Overlay, explanation: Explanation, number: int
    ) -> dict[str, Any]:
        folder = _folder_of(self.folder, subject, self.subjects)
        raw = explanation.raw[number].cpu().numpy()
        drawn, array = folder / f"{picture.name}.png", folder / f"{picture.name}.npy"
        draw_overlay(overlay, f"{picture.name}\n{subject.label}, {self.method} at {explanation.layer}", drawn)
        with written_whole(array) as file:
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
        draw_comparison(rows, columns, names, f"{self.method}: where the evidence for the class is", path)
        self._pages.append(path)
        self._rows = []


def _labelled(subject: Subject, picture: Picture) -> str | None:
    """The class in whose folder the image lies, where the network knows one of that name."""
    folder = picture.path.resolve().parent.name
    classes = subject.classes or []
    return subject.names[classes.index(folder)] if folder in classes else None


def _overlay(subject: Subject, image: Tensor, explanation: Explanation, share: Tensor, number: int) -> Overlay:
    shown, predicted = int(explanation.classes[number]), int(explanation.predicted[number])
    return Overlay(
        subject.view.pixels(image),
        share,
        subject.names[shown],
        explanation.probabilities[number].item(),
        subject.names[predicted] if predicted != shown else None,
    )


@dataclass
class GatePictures:
    """Pictures of the gates and the groups of each image and network, the gates as arrays, their spread as JSON.

    Attributes:
        subjects: The networks.
        folder: Where to write; made with the first file.
        target: The class whose scores under the groups are shown first; the predicted one by default.
        layer: The layer whose spatial gates are shown; by default several, at even distances.
        channels: The channels of that layer to show; by default those whose gates differ most over the image.
    """

    subjects: Sequence[Subject]
    folder: Path
    target: str | None
    layer: str | None
    channels: Sequence[int]
    _images: list[dict[str, Any]] = field(default_factory=list)

    def folder_of(self, subject: Subject) -> Path:
        return _folder_of(self.folder, subject, self.subjects)

    def add(self, subject: Subject, batch: Sequence[Picture], images: Tensor, advance: Callable[[int], None]) -> None:
        """Writes what one network's gates make of some images."""
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
            with written_whole(folder / f"{picture.name}-gates.npz") as file:
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
        """Writes the JSON, and returns what to say."""
        sent = {
            subject.label: {
                name: destinations(layer).tolist() for name, layer in attention_layers(subject.model).items()
            }
            for subject in self.subjects
        }
        content = {**settings, "images": self._images, "destinations": sent, **versions()}
        write_text(self.folder / "gates.json", json.dumps(content) + "\n")
        return [f"wrote the gates of {len(self._images)} images to {self.folder}, and gates.json"]


def _classes_shown(subject: Subject, image: Tensor, asked: int | None) -> list[int]:
    """The class asked for, and the most probable others."""
    with untouched(subject.model):
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


def _folder_of(root: Path, subject: Subject, subjects: Sequence[Subject]) -> Path:
    """A folder for each network where there are several; made where it is missing."""
    folder = root / subject.label.replace("/", "-") if len(subjects) > 1 else root
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def print_scores(found: Sequence[Scored]) -> None:
    """Prints means with deviations over images, and the differences to the first network."""
    title = ", ".join(f"{scored.label} ({scored.layer}), {len(scored.rows)} images" for scored in found)
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for column in ("", "network", "mean ± deviation"):
        table.add_column(column, justify="right" if "mean" in column else "left", no_wrap=column != "network")
    if len(found) > 1:
        table.add_column(f"less {found[0].label} [95 %]", justify="right")
    for name, (said, rising) in FIGURES.items():
        for scored in found:
            if scored.figures(name):
                # Of the first network the name of the figure is said as well.
                arrow = {True: " ↑", False: " ↓", None: ""}[rising]
                row = [f"{said}{arrow}" if scored is found[0] else "", scored.label, _figure(scored, name)]
                table.add_row(*row, *([_difference(scored, found[0], name)] if len(found) > 1 else []))
    console.print(table)
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
    """Writes the figures as JSON and, image by image, as CSV, and returns what to say."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = [scored.to_dict(None if scored is found[0] else found[0]) for scored in found]
    write_text(folder / "scores.json", json.dumps({**settings, "scores": networks, **versions()}, indent=1) + "\n")
    text = io.StringIO()
    columns = ["network", "layer", "image", "class", *FIGURES]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for scored in found:
        writer.writerows({"network": scored.label, "layer": scored.layer, **row} for row in scored.rows)
    write_text(folder / "scores.csv", text.getvalue())
    return [f"wrote {folder / 'scores.json'} and {folder / 'scores.csv'}"]
