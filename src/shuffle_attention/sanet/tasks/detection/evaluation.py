"""COCO scores and speed of a detector over a data set."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import DataError
from ...data.coco import CocoData
from ...device import Process, autocast
from .batches import to_device
from .coco_scores import coco_results, coco_scores
from .samples import UNREADABLE

__all__ = ["DetectionScores", "evaluate_detector"]


@dataclass(frozen=True)
class DetectionScores:
    """What an evaluation measured.

    Attributes:
        figures: COCO's figures by name, as :func:`coco_scores` returns them.
        images: Images counted.
        unreadable: Images that could not be decoded and are not counted.
        images_per_second: Speed, loading and masks included; without the first batch if there are others.
        results: What was found, as COCO's records in the order of the image ids.
    """

    figures: dict[str, float]
    images: int
    unreadable: int
    images_per_second: float
    results: list[dict[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, float]:
        counts = {"images": self.images, "unreadable": self.unreadable, "images_per_second": self.images_per_second}
        return {**self.figures, **counts}


@torch.inference_mode()
def evaluate_detector(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]],
    data: CocoData,
    process: Process,
    *,
    precision: str = "fp32",
    watch: Callable[[int], None] | None = None,
) -> DetectionScores:
    """Returns the scores of a detector over the batches of all processes.

    The mode of the detector and the generator of randomness are afterwards as they were. An image that the sampler
    gave to two processes is counted once.

    Args:
        model: Detector from :func:`create_detector`.
        batches: A loader of lists of images and of targets, of which the ``image_id`` is read.
        data: The objects that should be found.
        process: Where to compute.
        precision: fp32, bf16 or fp16.
        watch: Called with the number of images after each batch.

    Raises:
        DataError: If there is no image at all.
    """
    training, state = model.training, torch.get_rng_state()
    model.eval()
    found: dict[int, list[dict[str, Any]]] = {}
    unreadable = seen = 0
    masks = False
    marks = [(time.perf_counter(), 0)]
    try:
        for batch in batches:
            images, targets = to_device(*batch, process.device)
            with autocast(process, precision):
                outputs = model(images)
            for output, target in zip(outputs, targets, strict=True):
                masks = masks or "masks" in output
                image_id = int(target["image_id"])
                if image_id == UNREADABLE:
                    unreadable += 1
                else:
                    found[image_id] = coco_results(output, image_id, data)
            seen += len(images)
            if watch is not None:
                watch(len(images))
            marks.append((time.perf_counter(), seen))
    finally:
        model.train(training)
        torch.set_rng_state(state)
    own = (found, unreadable, masks)
    processes: list[Any] = [own]
    if process.world_size > 1:
        processes = [None] * process.world_size
        torch.distributed.all_gather_object(processes, own)
    everywhere = {image_id: records for part, _, _ in processes for image_id, records in part.items()}
    unreadable = sum(count for _, count, _ in processes)
    if not everywhere:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    results = [record for _, records in sorted(everywhere.items()) for record in records]
    masks = any(with_masks for _, _, with_masks in processes) and data.has_masks
    figures = coco_scores(data, results, masks=masks, image_ids=list(everywhere))
    (began, first), (ended, last) = marks[1 if len(marks) > 2 else 0], marks[-1]
    return DetectionScores(
        figures, len(everywhere), unreadable, process.world_size * (last - first) / (ended - began), results
    )
