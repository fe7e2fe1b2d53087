"""Write maps: an overlay and an array per image and model, comparisons of the models, and all numbers as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import counted
from ...explain.maps import TITLES, Explanation, explain
from ...files import atomic_write, write_json
from ..console import progress_bar
from ..data.image_files import ImageFile
from ..data.images import read_image
from ..environment import environment
from ..tasks.classification.predictor import Classifier
from .models import batches, folder_of, inputs_of, sources_of
from .overlays import PER_PAGE, Overlay, draw_comparison, draw_overlay, overlay_of


def write_maps(
    classifiers: Sequence[Classifier],
    images: Sequence[ImageFile],
    batch_size: int,
    method: str,
    target: str | None,
    layer: str | None,
    folder: Path,
) -> list[str]:
    """Write the maps of all images, and return lines that name the files."""
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, list[Overlay]]] = []
    pages: list[Path] = []
    targets = [None if target is None else classifier.target(target) for classifier in classifiers]
    with progress_bar(len(images), "explaining") as advance:
        for batch in batches(images, batch_size):
            # Run all models before the first file is written: an error of one leaves nothing behind.
            inputs = [inputs_of(classifier, batch) for classifier in classifiers]
            explanations = [
                explain(classifier.model, x, method, index, layer)
                for classifier, x, index in zip(classifiers, inputs, targets, strict=True)
            ]
            for number, image in enumerate(batch):
                by_model, overlays = [], []
                for classifier, explanation in zip(classifiers, explanations, strict=True):
                    whole = read_image(image.path, **classifier.view.reading)
                    overlays.append(overlay_of(classifier, whole, explanation, number))
                    stem = folder_of(folder, classifier, classifiers) / image.name
                    by_model.append(_write(classifier, overlays[-1], explanation, number, stem, folder))
                labelled = _labelled(classifiers[0], image)
                records.append(
                    {"file": str(image.path), "name": image.name, "labelled": labelled, "networks": by_model}
                )
                rows.append((f"labelled {labelled}" if labelled else image.name, overlays))
                if len(rows) == PER_PAGE or len(records) == len(images):
                    if len(classifiers) > 1:
                        columns = [f"{c.label} ({e.layer})" for c, e in zip(classifiers, explanations, strict=True)]
                        pages.append(folder / f"comparison-{len(pages) + 1}.png")
                        title = f"{TITLES[method]}: where the evidence for the class is"
                        draw_comparison(rows, columns, title, pages[-1])
                    rows = []
                advance(1)
    path = folder / "explanations.json"
    write_json(path, {"method": method, **sources_of(classifiers), "images": records, **environment("torchcam")})
    maps = f"wrote {counted(len(images) * len(classifiers), 'map')} to {folder}, and {path.name}"
    return [maps, *(f"wrote {page}" for page in pages)]


def _write(
    classifier: Classifier, overlay: Overlay, explanation: Explanation, number: int, stem: Path, folder: Path
) -> dict[str, Any]:
    """Write an overlay and its map, and return their numbers, with paths relative to ``folder``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    raw = explanation.raw[number].cpu().numpy()
    drawn, array = Path(f"{stem}.png"), Path(f"{stem}.npy")
    method = TITLES[explanation.method]
    draw_overlay(overlay, f"{stem.name}\n{classifier.label}, {method} at {explanation.layer}", drawn)
    with atomic_write(array) as file:
        np.save(file, raw)
    predicted = int(explanation.predicted[number])
    return {
        "network": classifier.label,
        "class": int(explanation.classes[number]),
        "class_name": overlay.name,
        "probability": overlay.probability,
        "predicted": predicted,
        "predicted_name": classifier.names[predicted],
        "layer": explanation.layer,
        "overlay": str(drawn.relative_to(folder)),
        "map": str(array.relative_to(folder)),
        "map_shape": list(raw.shape),
        "lowest": float(raw.min()),
        "highest": float(raw.max()),
    }


def _labelled(classifier: Classifier, image: ImageFile) -> str | None:
    """Return the class after which the image's folder is named, if the model has it."""
    folder = image.path.resolve().parent.name
    classes = classifier.classes or []
    return classifier.names[classes.index(folder)] if folder in classes else None
