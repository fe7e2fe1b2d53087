"""Accuracy, loss and speed of a network over a data set."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.data import IterableImageDataset
from timm.task.evaluator import ClassificationEvaluator, evaluation_sample_limit
from torch import nn

from ....errors import DataError
from ...device import Process, autocast


@dataclass(frozen=True)
class Scores:
    """What an evaluation measured.

    Attributes:
        top1: Images whose highest score is their class, in percent.
        top5: Images whose class is among the five highest scores, in percent.
        loss: Mean cross-entropy.
        images: Images counted.
        unreadable: Images that could not be decoded and are not counted.
        images_per_second: Speed, loading included; without the first batch, for which the loader starts, if
            there are others.
    """

    top1: float
    top5: float
    loss: float
    images: int
    unreadable: int
    images_per_second: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Any,
    process: Process,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """Returns the scores of a network over the batches of all processes.

    The mode of the network and the generators of randomness are afterwards as they were.

    Args:
        model: Network giving (B, classes) logits.
        batches: A loader of images (B, C, H, W) and labels (B,); the label -1 marks an unreadable image.
        process: Where to compute.
        precision: fp32, bf16 or fp16.
        channels_last: Whether the images are given in NHWC memory format.
        watch: Called with the number of images after each batch.

    Raises:
        DataError: If a label exceeds the classes of the network, or there is no image at all.
    """
    training = model.training
    model.eval()
    evaluator = ClassificationEvaluator(process.device)
    limit = evaluation_sample_limit(batches)
    seen = unreadable = 0
    marks = [(time.perf_counter(), 0)]
    # A loader draws seeds for its workers when it starts, and how often it starts must not matter.
    state = torch.get_rng_state()
    try:
        for images, labels in batches:
            images, labels = images.to(process.device), labels.to(process.device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast(process, precision):
                logits = model(images)
            # What the sampler added to give every process as many images is computed but not counted.
            counted = len(labels) if limit is None else max(0, min(len(labels), limit - seen))
            seen += counted
            logits, labels = logits[:counted], labels[:counted]
            readable = labels >= 0
            unreadable += int((~readable).sum())
            if counted and int(labels.max()) >= logits.shape[1]:
                raise DataError(f"label {int(labels.max())} exceeds the {logits.shape[1]} classes of the network")
            evaluator.update(logits[readable], labels[readable])
            if watch is not None:
                watch(counted)
            marks.append((time.perf_counter(), seen))
    finally:
        model.train(training)
        torch.set_rng_state(state)
    totals = torch.tensor([int(evaluator.counts[0]), unreadable], dtype=torch.int64, device=process.device)
    if process.world_size > 1:
        torch.distributed.all_reduce(totals)
    images, unreadable = (int(total) for total in totals)
    if isinstance(getattr(batches, "dataset", None), IterableImageDataset):
        # A stream passes over what it cannot read; how many there should have been is known.
        unreadable += max(0, len(batches.dataset) - images - unreadable)
    if images == 0:
        raise DataError(f"no image could be evaluated ({unreadable} unreadable)")
    (began, first), (ended, last) = marks[1 if len(marks) > 2 else 0], marks[-1]
    found = evaluator.compute(distributed=process.world_size > 1)
    return Scores(
        found["top1"],
        found["top5"],
        found["loss"],
        images,
        unreadable,
        process.world_size * (last - first) / (ended - began),
    )
