"""The command ``sanet explain``: maps, gates and figures of networks on images, as pictures, arrays and tables."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from rich import progress
from torch import Tensor

from ...errors import InputError
from ...explain.eval_mode import eval_mode
from ...explain.gates import attention_layers, gates
from ...explain.maps import explain
from ..console import console
from ..data.coco import CocoData
from ..data.coco_reading import read_coco
from ..data.find import Picture, find_pictures, require_apart
from ..device import Process, open_process
from ..explain.gate_charts import chosen_channels, draw_shuffle
from ..explain.gate_files import GatePictures
from ..explain.map_files import MapPictures
from ..explain.models import folder_of, open_models
from ..explain.score_files import print_scores, write_scores
from ..explain.scoring import score
from ..network import Classifier


def explain_command(
    *,
    images: Sequence[str],
    skip_bad_images: bool,
    checkpoint: str | None,
    compare: Sequence[str] | None,
    model: str | None,
    pretrained: bool,
    ema: bool | None,
    labels: Sequence[str],
    img_size: int | None,
    device: str,
    method: str,
    target: str | None,
    layer: str | None,
    limit: int | None,
    batch_size: int,
    output: str,
    gates: bool,
    scores: bool,
    channels: Sequence[int],
    boxes: str | None,
    tolerance: float,
    steps: int,
) -> int:
    """Runs ``sanet explain`` and returns its exit code."""
    folder = Path(output)
    for name, value in (("batch-size", batch_size), ("limit", limit), ("steps", steps), ("img-size", img_size)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if not tolerance >= 0:
        raise InputError(f"--tolerance must not be below 0, got {tolerance}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {output}: that is a file; name a folder")
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--output {output}: {there} cannot be written to")
    if boxes is not None and (not scores or len(images) != 1 or not Path(images[0]).is_dir()):
        raise InputError("--boxes goes with --scores and one folder, in which the annotated files lie")
    if channels and not (gates and layer):
        raise InputError("--channels goes with --gates and --layer, whose channels they are")
    sources = _sources(checkpoint, compare, model)
    pictures = find_pictures(images, limit, skip_bad=skip_bad_images)
    coco = None
    if boxes is not None:
        coco = read_coco(boxes, images[0], check_files=False, skip_bad=skip_bad_images)
    of_weights = model if checkpoint is not None else None
    subjects = open_models(
        sources, labels=labels, pretrained=pretrained, ema=ema, img_size=img_size, of_weights=of_weights
    )
    require_apart(folder, images, [folder_of(folder, subject, subjects) for subject in subjects])
    if target is not None:
        for subject in subjects:
            subject.target(target)
    with open_process(device) as process:
        for subject in subjects:
            process.to_device(subject.model, channels_last=False)
            if img_size is not None:
                _try(subject, img_size, process)
        if scores:
            settings = {"method": method, "target": target, "layer": layer, "steps": steps, "tolerance": tolerance}
            written = _scores(subjects, pictures, process, batch_size, coco, settings, folder)
        elif gates:
            written = _gates(subjects, pictures, process, batch_size, target, layer, channels, folder)
        else:
            written = _maps(subjects, pictures, process, batch_size, method, target, layer, folder)
    for line in written:
        console.print(line)
    return 0


def _sources(checkpoint: str | None, compare: Sequence[str] | None, model: str | None) -> list[str]:
    """The files and models that are to be opened."""
    if compare is not None:
        if model is not None:
            raise InputError("--compare takes models by their names too; --model cannot be given with it")
        return list(compare)
    if checkpoint is not None:
        return [checkpoint]
    if model is None:
        raise InputError("name a network: --checkpoint FILE, --compare FILE FILE ... or --model NAME")
    if not timm.is_model(model):
        raise InputError(f"no model {model!r}; a checkpoint is given with --checkpoint")
    return [model]


def _try(subject: Classifier, img_size: int, process: Process) -> None:
    """Refuses a size that a network does not take before it is in the middle of its first layer."""
    channels = 3 if subject.view.mode == "RGB" else 1
    try:
        with eval_mode(subject.model), torch.no_grad():
            subject.model(torch.zeros(1, channels, img_size, img_size, device=process.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"{subject.label} cannot be used with --img-size {img_size}: {error}") from error


def _maps(
    subjects: Sequence[Classifier],
    pictures: Sequence[Picture],
    process: Process,
    batch_size: int,
    method: str,
    target: str | None,
    layer: str | None,
    folder: Path,
) -> list[str]:
    report = MapPictures(subjects, method, folder)
    with _Bar(len(pictures), "explaining") as advance:
        for batch in _batches(pictures, batch_size):
            # All networks before the first file: what is wrong with one of them leaves nothing behind.
            seen = [_tensors(subject, batch, process) for subject in subjects]
            found = [
                explain(subject.model, images, method, None if target is None else subject.target(target), layer)
                for subject, images in zip(subjects, seen, strict=True)
            ]
            report.add(batch, seen, found, advance)
    return report.finish(_of(subjects))


def _scores(
    subjects: Sequence[Classifier],
    pictures: Sequence[Picture],
    process: Process,
    batch_size: int,
    coco: CocoData | None,
    settings: dict[str, Any],
    folder: Path,
) -> list[str]:
    options: dict[str, Any] = {"coco": coco, "batch_size": batch_size, "device": process.device, **settings}
    with _Bar(len(subjects) * len(pictures), "scoring") as advance:
        found = [score(subject, pictures, watch=advance, **options) for subject in subjects]
    print_scores(found)
    boxes = None if coco is None else coco.source
    return write_scores(found, {**settings, "boxes": boxes, **_of(subjects)}, folder)


def _gates(
    subjects: Sequence[Classifier],
    pictures: Sequence[Picture],
    process: Process,
    batch_size: int,
    target: str | None,
    layer: str | None,
    channels: Sequence[int],
    folder: Path,
) -> list[str]:
    for subject in subjects:
        layers = attention_layers(subject.model)
        if not layers:
            raise InputError(f"{subject.label} has no shuffle attention, whose gates could be shown")
        if layer is not None and layer not in layers:
            raise InputError(f"{subject.label} has no shuffle attention {layer!r}; there are {', '.join(layers)}")
    if channels:  # of all networks before anything is written
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


def _batches(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    return [pictures[first : first + size] for first in range(0, len(pictures), size)]


def _tensors(subject: Classifier, batch: Sequence[Picture], process: Process) -> Tensor:
    return torch.stack([subject.view.tensor(picture) for picture in batch]).to(process.device)


def _of(subjects: Sequence[Classifier]) -> dict[str, Any]:
    return {"networks": [{"label": subject.label, "source": subject.source} for subject in subjects]}


class _Bar:
    """A bar of images with the time left."""

    def __init__(self, total: int, doing: str):
        columns = (progress.TextColumn(doing), progress.BarColumn(bar_width=24), progress.MofNCompleteColumn())
        self._bar = progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda images: self._bar.advance(self._task, images)

    def __exit__(self, *_) -> None:
        self._bar.stop()
