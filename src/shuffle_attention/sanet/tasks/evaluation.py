"""The evaluation loop of every task."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.task.evaluator import evaluation_sample_limit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.loading import ignore_signals
from ..device import Process, autocast


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics by name.
        images: Images counted.
        unreadable: Images that could not be decoded and are not counted.
        images_per_second: Speed, loading included; without the first batch, for which the loader starts, if there
            are others.
        results: Prediction for each image, if the task keeps them.
    """

    metrics: dict[str, float]
    images: int
    unreadable: int
    images_per_second: float
    results: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return metrics, counts and speed, by name."""
        counts = {"images": self.images, "unreadable": self.unreadable, "images_per_second": self.images_per_second}
        return {**self.metrics, **counts}


@torch.inference_mode()
def run_model(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    process: Process,
    on_batch: Callable[[Any, Any, Any], None],
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    watch: Callable[[int], None] | None = None,
) -> float:
    """Run a model in evaluation mode over batches, and return the speed of all processes in images per second.

    The mode of the model and the random state are restored.

    Args:
        model: The model.
        batches: Inputs and targets, each a tensor or a list with one entry per image.
        process: This process.
        on_batch: Receives inputs, outputs and targets of each batch on the device, without the images that the
            sampler added to give every process as many.
        precision: fp32, bf16 or fp16.
        channels_last: Whether image tensors are converted to NHWC memory format.
        watch: Called with the number of images after each batch.
    """
    limit = evaluation_sample_limit(batches)
    seen, marks = 0, [(time.perf_counter(), 0)]
    # A loader draws seeds for its workers when it starts, and how often it starts must not matter.
    training, state = model.training, torch.get_rng_state()
    model.eval()
    try:
        for batch in batches:
            inputs, targets = to_device(batch, process.device, channels_last=channels_last)
            with autocast(process, precision):
                outputs = model(inputs)
            count = len(targets) if limit is None else max(0, min(len(targets), limit - seen))
            seen += count
            on_batch(inputs[:count], outputs[:count], targets[:count])
            if watch is not None:
                watch(count)
            marks.append((time.perf_counter(), seen))
    finally:
        model.train(training)
        torch.set_rng_state(state)
    (began, first), (ended, last) = marks[1 if len(marks) > 2 else 0], marks[-1]
    return process.world_size * (last - first) / max(ended - began, 1e-9)


def to_device(batch: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """Return a batch of nested lists, tuples and dicts with its tensors on a device."""
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
        nhwc = channels_last and batch.dim() == 4
        return batch.contiguous(memory_format=torch.channels_last) if nhwc else batch
    if isinstance(batch, dict):
        return {name: to_device(value, device, channels_last=channels_last) for name, value in batch.items()}
    return type(batch)(to_device(value, device, channels_last=channels_last) for value in batch)


def held_out_batches(
    data: Dataset, workers: int, process: Process, batch_size: int, collate: Callable[[Any], Any] | None = None
) -> DataLoader:
    """Return a loader of samples in order, split among the processes."""
    sampler: Any = OrderedDistributedSampler(data, process.world_size, process.rank) if process.world_size > 1 else None
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=process.device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals(),
    )
