"""The jobs of ``sanet explain``: maps, gates and scores of models on images, as images, arrays and tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import progress
from torch import Tensor

from ...errors import InputError
from ...explain.gates import attention_layers, gates
from ...explain.maps import explain
from ...explain.stages import eval_mode
from ..console import console
from ..data.coco import CocoData
from ..data.find import ImageFile
from ..device import Process
from ..tasks.classification.predictor import Classifier
from .gate_charts import chosen_channels, draw_shuffle
from .gate_files import GatePictures
from .map_files import MapPictures
from .scoring import print_scores, score, write_scores


def try_size(subject: Classifier, img_size: int, process: Process) -> None:
    """Raise InputError if a model does not take images of a size, before anything is computed."""
    channels = 3 if subject.view.mode == "RGB" else 1
    try:
        with eval_mode(subject.model), torch.no_grad():
            subject.model(torch.zeros(1, channels, img_size, img_size, device=process.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"{subject.label} cannot be used with --img-size {img_size}: {error}") from error


def write_maps(
    subjects: Sequence[Classifier],
    pictures: Sequence[ImageFile],
    process: Process,
    batch_size: int,
    method: str,
    target: str | None,
    layer: str | None,
    folder: Path,
) -> list[str]:
    """Write the maps of all images, and return lines that name the files."""
    report = MapPictures(subjects, method, folder)
    with _Bar(len(pictures), "explaining") as advance:
        for batch in _batches(pictures, batch_size):
            # Run all models before the first file is written: an error of one leaves nothing behind.
            seen = [_tensors(subject, batch, process) for subject in subjects]
            found = [
                explain(subject.model, images, method, None if target is None else subject.target(target), layer)
                for subject, images in zip(subjects, seen, strict=True)
            ]
            report.add(batch, seen, found, advance)
    return report.finish(_of(subjects))


def write_model_scores(
    subjects: Sequence[Classifier],
    pictures: Sequence[ImageFile],
    process: Process,
    batch_size: int,
    coco: CocoData | None,
    settings: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Print and write how faithful the maps of each model are, and return lines that name the files."""
    options: dict[str, Any] = {"coco": coco, "batch_size": batch_size, "device": process.device, **settings}
    with _Bar(len(subjects) * len(pictures), "scoring") as advance:
        found = [score(subject, pictures, watch=advance, **options) for subject in subjects]
    print_scores(found)
    boxes = None if coco is None else coco.source
    return write_scores(found, {**settings, "boxes": boxes, **_of(subjects)}, folder)


def write_gates(
    subjects: Sequence[Classifier],
    pictures: Sequence[ImageFile],
    process: Process,
    batch_size: int,
    target: str | None,
    layer: str | None,
    channels: Sequence[int],
    folder: Path,
) -> list[str]:
    """Write the gates of all images, and return lines that name the files."""
    for subject in subjects:
        layers = attention_layers(subject.model)
        if not layers:
            raise InputError(f"{subject.label} has no shuffle attention, whose gates could be shown")
        if layer is not None and layer not in layers:
            raise InputError(f"{subject.label} has no shuffle attention {layer!r}; there are {', '.join(layers)}")
    if channels:  # check all models before anything is written
        for subject in subjects:
            found = gates(subject.model, _tensors(subject, pictures[:1], process))
            for each in (each for each in found if each.layer == layer):
                chosen_channels(each, 0, len(channels), channels)
    report = GatePictures(subjects, folder, target, layer, channels)
    with _Bar(len(subjects) * len(pictures), "looking") as advance:
        for batch in _batches(pictures, batch_size):
            for subject in subjects:
                report.add(subject, batch, _tensors(subject, batch, process), advance)
    for subject in subjects:
        path = report.folder_of(subject) / "shuffle.png"
        draw_shuffle(subject.model, f"where the shuffles of {subject.label} send the channels", path)
    return report.finish(_of(subjects))


def _batches(pictures: Sequence[ImageFile], size: int) -> list[Sequence[ImageFile]]:
    return [pictures[first : first + size] for first in range(0, len(pictures), size)]


def _tensors(subject: Classifier, batch: Sequence[ImageFile], process: Process) -> Tensor:
    return torch.stack([subject.view.tensor(picture) for picture in batch]).to(process.device)


def _of(subjects: Sequence[Classifier]) -> dict[str, Any]:
    return {"networks": [{"label": subject.label, "source": subject.source} for subject in subjects]}


class _Bar:
    """Progress bar over images, with the time left."""

    def __init__(self, total: int, doing: str):
        columns = (progress.TextColumn(doing), progress.BarColumn(bar_width=24), progress.MofNCompleteColumn())
        self._bar = progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda images: self._bar.advance(self._task, images)

    def __exit__(self, *_) -> None:
        self._bar.stop()
