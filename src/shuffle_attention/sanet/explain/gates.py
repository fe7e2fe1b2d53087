"""Write gates: charts of gates, groups and shuffles, arrays, and the distribution of the gates as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import InputError, counted
from ...explain.gates import Gates, attention_layers, destinations, gates, group_scores
from ...explain.stages import eval_mode
from ...files import atomic_write, write_json
from ..console import progress_bar
from ..data.image_files import ImageFile
from ..environment import environment
from ..tasks.classification.predictor import Classifier
from .gate_charts import chosen_channels, draw_gates, draw_groups, draw_shuffle, draw_spatial_gates, spread_layers
from .models import batches, folder_of, inputs_of, sources_of

_CLASSES = 3  # number of classes whose scores under the groups' masks are shown


def write_gates(
    classifiers: Sequence[Classifier],
    images: Sequence[ImageFile],
    batch_size: int,
    target: str | None,
    layer: str | None,
    channels: Sequence[int],
    folder: Path,
) -> list[str]:
    """Write the gates of all images, and return lines that name the files.

    Args:
        classifiers: The models.
        images: The images.
        batch_size: Images at a time.
        target: The class whose scores under the groups come first; the predicted one by default.
        layer: The layer whose spatial gates are drawn; by default several at even distances.
        channels: Channels of that layer to draw; by default those whose gates vary most over the image.
        folder: Output folder; created with the first file.

    Raises:
        InputError: If a model has no shuffle attention or not that layer, or a channel has no spatial gates.
    """
    for classifier in classifiers:
        layers = attention_layers(classifier.model)
        if not layers:
            raise InputError(f"{classifier.label} has no shuffle attention, whose gates could be shown")
        if layer is not None and layer not in layers:
            raise InputError(f"{classifier.label} has no shuffle attention {layer!r}; there are {', '.join(layers)}")
    if channels:  # check all models before anything is written
        for classifier in classifiers:
            for each in gates(classifier.model, inputs_of(classifier, images[:1])):
                if each.layer == layer:
                    chosen_channels(each, 0, len(channels), channels)
    records: list[dict[str, Any]] = []
    with progress_bar(len(classifiers) * len(images), "looking") as advance:
        for batch in batches(images, batch_size):
            for classifier in classifiers:
                x = inputs_of(classifier, batch)
                by_layer = gates(classifier.model, x)
                drawn = [g for g in by_layer if g.layer == layer] if layer else spread_layers(by_layer)
                chosen = [[chosen_channels(g, i, 6, channels) for g in drawn] for i in range(len(batch))]
                index = None if target is None else classifier.target(target)
                own = folder_of(folder, classifier, classifiers)
                own.mkdir(parents=True, exist_ok=True)
                for number, image in enumerate(batch):
                    stem, about = own / image.name, f"{image.name}, {classifier.label}"
                    pixels = classifier.view.pixels(x[number])
                    draw_gates(by_layer, number, f"gates: {about}", Path(f"{stem}-gates.png"))
                    title, path = f"spatial gates: {about}", Path(f"{stem}-spatial.png")
                    draw_spatial_gates(drawn, number, pixels, chosen[number], title, path)
                    with atomic_write(f"{stem}-gates.npz") as file:
                        arrays: dict[str, Any] = {g.layer: g.values[number].half().cpu().numpy() for g in by_layer}
                        np.savez_compressed(file, **arrays)
                    groups = _write_groups(classifier, x[number], index, f"groups: {about}", stem)
                    records.append(
                        {
                            "file": str(image.path),
                            "name": image.name,
                            "network": classifier.label,
                            "layers": [_spread(g, number) for g in by_layer],
                            "groups": groups,
                        }
                    )
                    advance(1)
    sent = {}
    for classifier in classifiers:
        path = folder_of(folder, classifier, classifiers) / "shuffle.png"
        draw_shuffle(classifier.model, f"where the shuffles of {classifier.label} send the channels", path)
        layers = attention_layers(classifier.model)
        sent[classifier.label] = {name: destinations(module).tolist() for name, module in layers.items()}
    content = {**sources_of(classifiers), "images": records, "destinations": sent, **environment()}
    write_json(folder / "gates.json", content, indent=None)
    return [f"wrote the gates of {counted(len(records), 'image')} to {folder}, and gates.json"]


def _write_groups(classifier: Classifier, x: Tensor, target: int | None, title: str, stem: Path) -> dict[str, Any]:
    """Draw the class scores under the groups' masks and return them."""
    with eval_mode(classifier.model):
        order: list[int] = classifier.model(x[None]).detach()[0].argsort(descending=True).tolist()
    first = [] if target is None else [target]
    classes = (first + [index for index in order if index != target])[:_CLASSES]
    names = [classifier.names[index] for index in classes]
    scores, whole = group_scores(classifier.model, x, classes)
    draw_groups(scores, whole, names, classifier.view.pixels(x), title, Path(f"{stem}-groups.png"))
    by_layer = {score.layer: score.probabilities.tolist() for score in scores}
    return {"classes": names, "whole_image": whole, "probabilities": by_layer}


def _spread(gates: Gates, number: int) -> dict[str, Any]:
    def of(values: Tensor) -> dict[str, float]:
        spread = {"mean": values.mean(), "deviation": values.std(unbiased=False)}
        return {name: v.item() for name, v in (spread | {"low": values.min(), "high": values.max()}).items()}

    return {
        "layer": gates.layer,
        "groups": gates.groups,
        "channel_gates": of(gates.of_channels()[number]),
        "spatial_gates": of(gates.of_positions()[number]),
    }
