"""Results that the page shows for an image: predictions, maps and gates of classifiers, and detections.

Visitors share the models. Maps and gates need hooks, so each model processes one image at a time.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from ...errors import InputError
from ...explain.gates import attention_layers, gates
from ...explain.maps import explain
from ...explain.stages import last_readable_stage, stages
from ..device import Process
from ..explain.gate_charts import chosen_channels, draw_gates, draw_spatial_gates, spread_layers
from ..explain.overlays import Overlay, blended
from ..tasks import restore, task_named
from ..tasks.predictor import Predictor

_GATE_LAYERS, _GATE_CHANNELS = 4, 4
_drawing = Lock()  # matplotlib's fonts are shared by all threads


@dataclass(frozen=True)
class Request:
    """The choices of a visitor.

    Attributes:
        target: Class to explain; by default the one that each model predicts.
        layer: Module or stage of the map; by default the last stage whose map has at least 4 positions per side.
        method: One of ``shuffle_attention.explain.METHODS``.
        threshold: Smallest score of detections.
    """

    target: str | None = None
    layer: str | None = None
    method: str = "gradcam"
    threshold: float = 0.5


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its caption."""

    caption: str
    image: Image.Image
    is_map: bool = False


@dataclass(frozen=True)
class Result:
    """The results of one model for an image.

    Attributes:
        label: Name of the model.
        about: Its kind and size.
        best: The most probable classes or the detections, with probability or score.
        images: Images to show.
        notes: Further remarks.
        fault: Why something requested is missing.
    """

    label: str
    about: str
    best: list[tuple[str, float]]
    images: list[CaptionedImage]
    notes: list[str]
    fault: str = ""


class Network:
    """A model on the page, which processes one image at a time.

    Args:
        predictor: The model, on its device.

    Attributes:
        label: Its name.
        classes: Names of the classes that a map can be asked for.
        layers: Suggested layers for maps; others can be given by name.
        gated: Whether it has shuffle attention.
    """

    def __init__(self, predictor: Predictor):
        self.predictor, self.label = predictor, predictor.label
        self.model = predictor.model
        self.kind, self.data = predictor.recipe.kind, predictor.recipe.data
        self.classes = predictor.names if predictor.has_maps else []
        self.layers = [*stages(self.model), *attention_layers(self.model)] if predictor.has_maps else []
        self.gated = bool(attention_layers(self.model))
        self._lock = Lock()

    def look(self, image: Image.Image, wish: Request) -> Result:
        """Return the results for an RGB image."""
        predictor, threshold = self.predictor, 0.0 if self.predictor.has_maps else wish.threshold
        with self._lock:
            prediction = predictor.predict(image, threshold)
        with _drawing:  # fonts come from matplotlib
            seen = prediction.draw()
        about = predictor.about
        if predictor.has_maps:
            about += f", {seen.width} x {seen.height} pixels"
        result = Result(self.label, about, prediction.best, [CaptionedImage(prediction.caption, seen)], [])
        return self._with_map(result, image, wish) if predictor.has_maps else result

    def _with_map(self, result: Result, image: Image.Image, wish: Request) -> Result:
        predictor = self.predictor
        with self._lock:
            inputs = predictor.inputs(image)
            try:
                target = None if wish.target is None else predictor.target(wish.target)
                layer = wish.layer or last_readable_stage(self.model, inputs)
                explanation = explain(self.model, inputs, wish.method, target, layer)
            except InputError as error:
                return replace(result, fault=str(error))
        shown = int(explanation.classes[0])
        name, share = self.classes[shown], explanation.shares()[0].cpu()
        overlay = Overlay(predictor.pixels(inputs), share, name, float(explanation.probabilities[0]))
        rows, columns = explanation.raw.shape[1:]
        caption = f"evidence for {name} ({_percent(overlay.probability)}) at {explanation.layer}, {rows} x {columns}"
        notes = [f"There is no evidence for {name} at any position of {explanation.layer}."] if overlay.empty else []
        images = [*result.images, CaptionedImage(caption, blended(overlay), not overlay.empty)]
        return replace(result, images=images, notes=notes)

    def gates(self, image: Image.Image) -> list[CaptionedImage]:
        """Return charts of the gates for an image: some spatial gates and the distribution; empty without gates."""
        if not self.gated:
            return []
        inputs: Any = self.predictor.inputs(image)
        with self._lock:
            by_layer = gates(self.model, inputs)
        drawn = spread_layers([g for g in by_layer if g.values.shape[-1] > 1] or by_layer, _GATE_LAYERS)
        channels = [chosen_channels(g, 0, _GATE_CHANNELS) for g in drawn]
        with tempfile.TemporaryDirectory() as folder, _drawing:
            spread, spatial = Path(folder) / "spread.png", Path(folder) / "spatial.png"
            draw_gates(by_layer, 0, f"gates of {self.label}", spread)
            pixels = self.predictor.pixels(inputs)
            draw_spatial_gates(drawn, 0, pixels, channels, f"spatial gates of {self.label}", spatial)
            return [
                CaptionedImage(
                    "Spatial gates of the channels in which they vary most over the image", _opened(spatial)
                ),
                CaptionedImage("Distribution of all gates, from the first layer to the last", _opened(spread)),
            ]


def open_networks(sources: Sequence[str | os.PathLike], process: Process) -> list[Network]:
    """Return the models in checkpoints, with distinct labels.

    Raises:
        InputError: If a file is missing or has no known model.
    """
    for source in map(Path, sources):
        if not source.is_file():
            raise InputError(f"there is no checkpoint {source}")
    networks = [Network(restore(source).to(process)) for source in sources]
    _name_apart(networks)
    return networks


def examples_for(kinds: Iterable[str]) -> list[tuple[Image.Image, str]]:
    """Return the example images, not used in training, of tasks of these kinds (such as "classifier"), with names."""
    return [example for kind in sorted(kinds) for example in task_named(kind).examples()]


def kinds_of(networks: Iterable[Network]) -> set[str]:
    """Return the kinds of the models that were trained on embedded data, whose validation images are examples."""
    return {network.kind for network in networks if network.data == "digits"}


def _name_apart(networks: Sequence[Network]) -> None:
    """Add the checkpoints' folders to equal labels, or their files if the folders are equal."""
    names = [network.label for network in networks]
    folders = [f"{network.label} ({Path(network.predictor.source).resolve().parent.name})" for network in networks]
    for network, name, folder in zip(networks, names, folders, strict=True):
        if names.count(name) > 1:
            network.label = folder if folders.count(folder) == 1 else f"{name} ({network.predictor.source})"


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
