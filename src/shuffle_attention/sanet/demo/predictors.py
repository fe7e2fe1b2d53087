"""Results that the page shows for an image: predictions, maps and gates of classifiers, and detections.

Visitors share the models. Maps and gates need hooks, so each model processes one image at a time.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ...deploy import is_deployed
from ...errors import InputError
from ...explain.gates import Gates, attention_layers, gates
from ...explain.maps import TITLES, explain
from ...explain.stages import last_readable_stage, stages
from ..device import Process
from ..explain.gate_charts import chosen_channels, spread_layers
from ..explain.overlays import blended, overlay_of
from ..tasks import restore, task_named
from ..tasks.predictor import Predictor
from .uploads import read_upload

_MAX_EXAMPLES = 10
_LAYERS, _MAPPED, _CHANNELS = 16, 4, 4  # layers whose gates are listed, those with maps, and maps of each
_CONSTANT = 0.05  # gates that differ less are not drawn
_SMALLEST_SIDE = 4  # positions of a map that is drawn


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
class Row:
    """A class with its probability, or a detected class with its highest score and the number of objects."""

    name: str
    share: float
    count: int | None = None


@dataclass(frozen=True)
class Result:
    """The results of one model for an image.

    Attributes:
        label: Name of the model.
        about: Its kind, size and file.
        best: The most probable classes or the detected ones.
        images: Images to show.
        fault: Why something requested is missing.
        note: What a model of this kind cannot show.
    """

    label: str
    about: str
    best: list[Row] = field(default_factory=list)
    images: list[CaptionedImage] = field(default_factory=list)
    fault: str = ""
    note: str = ""


@dataclass(frozen=True)
class LayerGates:
    """The gates of one layer for an image.

    Attributes:
        layer: Name of the layer.
        ranges: Least, mean and greatest gate of the channel branch and of the spatial branch.
        size: Rows and columns of its maps.
        maps: The image, and maps of the spatial gates that vary most over it; empty if none are worth drawing.
        limits: Gates that the first and the last colour of the maps stand for.
    """

    layer: str
    ranges: list[tuple[float, float, float]]
    size: str = ""
    maps: list[CaptionedImage] = field(default_factory=list)
    limits: tuple[float, float] = (0.0, 1.0)


class Network:
    """A model on the page, which processes one image at a time.

    Args:
        predictor: The model, on its device.

    Attributes:
        label: Its name.
        classes: Names of the classes that a map can be asked for.
        layers: Suggested layers for maps; others can be given by name.
        detects: Whether it finds objects, of which the page shows those with a minimum score.
        gated: Whether it has shuffle attention.
        bit_depth: Bits that images of more than 8 bits fill.
    """

    def __init__(self, predictor: Predictor):
        self.predictor: Any = predictor
        self.label = predictor.label
        self.model = predictor.model
        self.classes = predictor.names if predictor.has_maps else []
        self.layers = [*stages(self.model), *attention_layers(self.model)] if predictor.has_maps else []
        self.detects = not predictor.classifies
        self.gated = bool(attention_layers(self.model))
        self.bit_depth = predictor.recipe.bit_depth
        self._lock = Lock()

    @property
    def about(self) -> str:
        """Number of classes and of parameters, and the end of the checkpoint's path."""
        return f"{self.predictor.about}, {Path(*Path(self.predictor.source).absolute().parts[-2:])}"

    def examples(self) -> list[tuple[Image.Image, str]]:
        """Return validation images of the data that the model was trained on, with names; none if they are not here."""
        examples = []
        if not self.predictor.knows_data:
            return examples
        with suppress(InputError, OSError):
            for image, name in task_named(self.predictor.recipe.kind).examples(self.predictor, _MAX_EXAMPLES):
                with suppress(InputError):
                    shown = (
                        image.convert("RGB") if isinstance(image, Image.Image) else read_upload(image, self.bit_depth)
                    )
                    examples.append((shown, name))
        return examples

    def look(self, image: Image.Image, wish: Request) -> Result:
        """Return the results for an RGB image."""
        predictor = self.predictor
        with self._lock:
            prediction = predictor.predict(image, 0.0 if predictor.classifies else wish.threshold)
        seen = CaptionedImage(prediction.caption, prediction.draw())
        if predictor.classifies:
            rows = [Row(name, share) for name, share in prediction.best]
            result = Result(self.label, self.about, rows, [seen])
            if predictor.has_maps:
                return self._with_map(result, image, wish)
            source = predictor.model.metadata.get("checkpoint", "the checkpoint that it was exported from")
            return replace(result, note=f"A deployed file has no map, which needs gradients. Open {source} to see one.")
        scores: dict[str, list[float]] = {}
        for name, score in prediction.best:
            scores.setdefault(name, []).append(score)
        rows = [Row(name, max(own), len(own)) for name, own in scores.items()]
        return Result(self.label, self.about, sorted(rows, key=lambda row: -row.share), [seen])

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
        overlay = overlay_of(predictor, image, explanation)
        rows, columns = explanation.raw.shape[1:]
        how = f"{TITLES[wish.method]} at {explanation.layer}, {rows} x {columns} positions"
        what = "no evidence for" if overlay.empty else "where it sees"
        caption = f"{what} {overlay.name} ({100 * overlay.probability:.1f} %): {how}"
        return replace(result, images=[*result.images, CaptionedImage(caption, blended(overlay), not overlay.empty)])

    def gates(self, image: Image.Image) -> tuple[list[LayerGates], list[str]]:
        """Return the layers whose gates vary for an image, and sentences about the others; empty without gates."""
        if not self.gated:
            return [], []
        inputs = self.predictor.inputs(image)
        with self._lock:
            by_layer = gates(self.model, inputs)
        varying = [g for g in by_layer if np.ptp(_limits(g)) >= _CONSTANT]
        rest = [g for g in by_layer if np.ptp(_limits(g)) < _CONSTANT]
        notes = []
        if rest:
            low, high = (f"{limit:.2f}" for limit in _limits(*rest))
            names = ", ".join(g.layer for g in rest) if varying else "all layers"
            notes = [f"All gates of {names} " + (f"are {low}." if low == high else f"lie between {low} and {high}.")]
        readable = [g for g in varying if min(g.values.shape[2:]) >= _SMALLEST_SIDE and _changes(g) >= _CONSTANT]
        mapped = {g.layer for g in spread_layers(readable, _MAPPED)}
        crop = to_pil_image(self.predictor.pixels(image).permute(2, 0, 1)) if self.classes else image
        seen = CaptionedImage("image", crop)
        return [_layer_gates(g, seen if g.layer in mapped else None) for g in spread_layers(varying, _LAYERS)], notes


def open_networks(sources: Sequence[str | os.PathLike], process: Process, device: str = "auto") -> list[Network]:
    """Return the models in checkpoints and deployed files, with distinct labels.

    Args:
        sources: The files.
        process: Device of checkpoints; deployed files are run on the CPU.
        device: Device that was asked for.

    Raises:
        InputError: If a file is missing or has no known model, or is a deployed file that does not run on the device.
    """
    for source in map(Path, sources):
        if not source.is_file():
            raise InputError(f"there is no checkpoint {source}")
    networks = []
    for source in sources:
        deployed = is_deployed(source)
        predictor = restore(source, settings={"device": device}) if deployed else restore(source)
        networks.append(Network(predictor.to(Process(torch.device("cpu")) if deployed else process)))
    _name_apart(networks)
    return networks


def examples_for(networks: Sequence[Network]) -> list[tuple[Image.Image, str]]:
    """Return a few example images of the models' data, which were not used in training, with names."""
    by_data = {(network.predictor.recipe.kind, network.predictor.recipe.data): network for network in networks}
    sets = [examples for network in by_data.values() if (examples := network.examples())]
    return [example for examples in sets for example in spread_layers(examples, max(2, _MAX_EXAMPLES // len(sets)))]


def _layer_gates(gates: Gates, seen: CaptionedImage | None) -> LayerGates:
    """Return the range of a layer's gates, and maps of some beside the image if it is given."""
    branches = (gates.of_channels()[0], gates.of_positions()[0])
    ranges = [(float(v.min()), float(v.mean()), float(v.max())) for v in branches]
    if seen is None:
        return LayerGates(gates.layer, ranges)
    channels = chosen_channels(gates, 0, _CHANNELS)
    planes = gates.values[0, channels].float().cpu().numpy()
    low, high = float(planes.min()), float(planes.max())
    colours = colormaps["viridis"]((planes - low) / (high - low), bytes=True)[..., :3]
    maps = [CaptionedImage(f"channel {n}", Image.fromarray(plane)) for n, plane in zip(channels, colours, strict=True)]
    size = "{} x {} positions".format(*planes.shape[1:])
    return LayerGates(gates.layer, ranges, size, [seen, *maps], (low, high))


def _limits(*layers: Gates) -> tuple[float, float]:
    return min(float(g.values.min()) for g in layers), max(float(g.values.max()) for g in layers)


def _changes(gates: Gates) -> float:
    """Return by how much the spatial gate that varies most changes over the image."""
    planes = gates.of_positions()[0].flatten(1)
    return float((planes.amax(1) - planes.amin(1)).max())


def _name_apart(networks: Sequence[Network]) -> None:
    """Add the checkpoints' folders to equal labels, or their files if the folders are equal."""
    names = [network.label for network in networks]
    folders = [f"{network.label} ({Path(network.predictor.source).resolve().parent.name})" for network in networks]
    for network, name, folder in zip(networks, names, folders, strict=True):
        if names.count(name) > 1:
            network.label = folder if folders.count(folder) == 1 else f"{name} ({network.predictor.source})"
