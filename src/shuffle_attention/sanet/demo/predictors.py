"""What a page shows of an image: predictions, maps and gates of classifiers, and what detectors find.

Visitors share the networks. Maps and gates put hooks on modules, so that each network sees one image at a time.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from ...checkpoints import read_checkpoint
from ...errors import InputError
from ...explain.gates import Gates, attention_layers, gates
from ...explain.maps import explain
from ...explain.stages import stage_with_places, stages
from ..data.images import to_mode
from ..device import Process, autocast
from ..explain.gate_charts import chosen_channels, draw_gates, draw_spatial_gates, spread_layers
from ..explain.models import ExplainedModel, open_models
from ..explain.overlays import Overlay, blended
from ..tasks.detection.drawing import draw_detections
from ..tasks.detection.predictor import RestoredDetector, restore_detector
from ..tasks.detection.recipe import DetectionRecipe

BEST = 5  # classes that are listed
_GATE_LAYERS, _GATE_CHANNELS = 4, 4
_drawing = Lock()  # matplotlib's fonts are one for all threads


@dataclass(frozen=True)
class Request:
    """What a visitor wants to see.

    Attributes:
        target: Class to explain; that which each network predicts by default.
        layer: Module or stage of the map; by default the last stage whose map has at least 4 places a side.
        method: One of ``shuffle_attention.explain.METHODS``.
        threshold: Least score of what a detector finds.
    """

    target: str | None = None
    layer: str | None = None
    method: str = "gradcam"
    threshold: float = 0.5


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows."""

    caption: str
    image: Image.Image
    is_map: bool = False


@dataclass(frozen=True)
class Result:
    """What one network made of an image.

    Attributes:
        label: What the network is called.
        about: What it is.
        best: The most probable classes, or the objects found, with probability or score.
        pictures: What there is to see.
        notes: What is to be known besides.
        fault: Why something that was wished for is missing.
    """

    label: str
    about: str
    best: list[tuple[str, float]]
    pictures: list[Picture]
    notes: list[str]
    fault: str = ""


class Network(ABC):
    """One network on a page.

    Args:
        label: What it is called.
        about: What it is.
        model: The network, on its device.
        source: The checkpoint that it comes from.

    Attributes:
        classes: Names of its classes.
        layers: Layers that can be asked for; others can be as well, by their names.
        gated: Whether it has shuffle attention.
        data: The data set that it was trained with, where that is known.
    """

    kind: str

    def __init__(self, label: str, about: str, model: torch.nn.Module, source: Path, data: str):
        self.label, self.about, self.source, self.data = label, about, source, data
        self.model = model
        self.classes: list[str] = []
        self.layers: list[str] = []
        self.gated = bool(attention_layers(model))
        self._lock = Lock()

    @abstractmethod
    def look(self, image: Image.Image, wish: Request) -> Result:
        """Returns what the network makes of an RGB image."""

    @abstractmethod
    def _gates(self, image: Image.Image) -> tuple[list[Gates], Tensor]:
        """Returns the gates, and what the network saw as (height, width, 3)."""

    def gates(self, image: Image.Image) -> list[Picture]:
        """Returns how the gates for an image are spread, and some spatial gates; nothing without shuffle attention."""
        if not self.gated:
            return []
        with self._lock:
            found, pixels = self._gates(image)
        mapped = spread_layers([g for g in found if g.values.shape[-1] > 1] or found, _GATE_LAYERS)
        channels = [chosen_channels(g, 0, _GATE_CHANNELS) for g in mapped]
        with tempfile.TemporaryDirectory() as folder, _drawing:
            spread, spatial = Path(folder) / "spread.png", Path(folder) / "spatial.png"
            draw_gates(found, 0, f"gates of {self.label}", spread)
            draw_spatial_gates(mapped, 0, pixels, channels, f"spatial gates of {self.label}", spatial)
            return [
                Picture("Spatial gates of the channels in which they differ most over the image", _opened(spatial)),
                Picture("How all gates are spread, from the first layer to the last", _opened(spread)),
            ]


class Classifier(Network):
    """A classifier on a page."""

    kind = "classifier"

    def __init__(self, subject: ExplainedModel, process: Process, data: str):
        about = f"{_count(len(subject.names), 'class', 'classes')}, {_parameters(subject.model)}"
        model = process.to_device(subject.model, channels_last=False)
        super().__init__(subject.label, about, model, Path(subject.source), data)
        self.subject, self.process = subject, process
        self.classes = subject.names
        self.layers = [*stages(model), *attention_layers(model)]

    def look(self, image: Image.Image, wish: Request) -> Result:
        view = self.subject.view
        with self._lock:
            seen = self._seen(image)
            with torch.inference_mode():
                shares = self.model(seen)[0].float().softmax(0).cpu()
            found = fault = None
            try:
                target = None if wish.target is None else self.subject.target(wish.target)
                found = explain(
                    self.model, seen, wish.method, target, wish.layer or stage_with_places(self.model, seen)
                )
            except InputError as error:
                fault = str(error)
        best = shares.topk(min(BEST, len(shares)))
        names = self.subject.names
        listed = [
            (names[index], share) for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        size = f"{seen.shape[-1]} x {seen.shape[-2]} pixels"
        look = Result(self.label, f"{self.about}, {size}", listed, [], [], fault or "")
        if found is None:
            pixels = Overlay(view.pixels(seen[0]), torch.zeros(seen.shape[2:]), "", 0.0)
            return replace(look, pictures=[Picture("what the network saw", blended(pixels))])
        shown = int(found.classes[0])
        overlay = Overlay(view.pixels(seen[0]), found.shares()[0].cpu(), names[shown], float(found.probabilities[0]))
        rows, columns = found.raw.shape[1:]
        caption = f"evidence for {names[shown]} ({_percent(overlay.probability)}) at {found.layer}, {rows} x {columns}"
        notes = [f"There is no evidence for {names[shown]} at any position of {found.layer}."] if overlay.empty else []
        plain = replace(overlay, share=torch.zeros_like(overlay.share))
        pictures = [
            Picture("what the network saw", blended(plain)),
            Picture(caption, blended(overlay), not overlay.empty),
        ]
        return replace(look, pictures=pictures, notes=notes)

    def _seen(self, image: Image.Image) -> Tensor:
        view = self.subject.view
        return view.transform(to_mode(image, view.mode))[None].to(self.process.device)

    def _gates(self, image: Image.Image) -> tuple[list[Gates], Tensor]:
        seen = self._seen(image)
        return gates(self.model, seen), self.subject.view.pixels(seen[0])


class Detector(Network):
    """A detector on a page."""

    kind = "detector"

    def __init__(self, restored: RestoredDetector, source: Path, process: Process):
        recipe = restored.recipe
        about = f"detector of {_count(len(restored.names), 'class', 'classes')}, {_parameters(restored.model)}"
        model = process.to_device(restored.model, channels_last=recipe.channels_last).eval()
        super().__init__(recipe.title, about, model, source, recipe.data)
        self.restored, self.process = restored, process

    def look(self, image: Image.Image, wish: Request) -> Result:
        with self._lock, torch.inference_mode(), autocast(self.process, self.restored.recipe.precision):
            output = self.model([self._seen(image)])[0]
        kept = {name: value[output["scores"] >= wish.threshold].cpu() for name, value in output.items()}
        names = self.restored.names
        labels, scores = kept["labels"].tolist(), kept["scores"].tolist()
        listed = [(names[label - 1], score) for label, score in zip(labels, scores, strict=True)]
        count = _count(len(listed), "object", "objects")
        with _drawing:  # it takes its font from matplotlib
            picture = draw_detections(image, kept, names, threshold=wish.threshold)
        caption = f"{count} of score {wish.threshold:.2f} and more"
        return Result(self.label, self.about, listed, [Picture(caption, picture)], [])

    def _seen(self, image: Image.Image) -> Tensor:
        return functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True).to(self.process.device)

    def _gates(self, image: Image.Image) -> tuple[list[Gates], Tensor]:
        seen = self._seen(image)
        images: Any = [seen]  # a detector takes a list, and makes a batch of it
        return gates(self.model, images), seen.permute(1, 2, 0).cpu()


def open_networks(sources: Sequence[str | os.PathLike], process: Process) -> list[Network]:
    """Returns the networks in checkpoints, each with a label of its own.

    Raises:
        InputError: If a file is missing or holds no network that is known.
    """
    found: list[Network] = []
    for source in map(Path, sources):
        if not source.is_file():
            raise InputError(f"there is no checkpoint {source}")
        content = read_checkpoint(source)
        recipe = content.get("recipe")
        if content.get("kind") == DetectionRecipe.kind:
            found.append(Detector(restore_detector(source), source, process))
        else:
            data = str(recipe.get("data", "")) if isinstance(recipe, dict) else ""
            found.append(Classifier(open_models([source])[0], process, data))
    _name_apart(found)
    return found


def _name_apart(networks: Sequence[Network]) -> None:
    """Adds to labels that are the same the folders of their checkpoints, or where these are the same the files."""
    names = [network.label for network in networks]
    folders = [f"{network.label} ({network.source.resolve().parent.name})" for network in networks]
    for network, name, folder in zip(networks, names, folders, strict=True):
        if names.count(name) > 1:
            network.label = folder if folders.count(folder) == 1 else f"{name} ({network.source})"


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _parameters(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
