"""Batches of images: their order, their share per process, and the processes that load them."""

import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import util
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

import torch
from PIL import Image
from timm.data import IterableImageDataset, create_loader, create_transform
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, Sampler

from ...errors import DataError, asked_for, listed
from ..device import Process
from ..recipes.recipe import Recipe, RunRecipe
from .datasets import Samples
from .images import to_mode, turned
from .memory import EvaluationImages, InMemory, TrainingImages, decode_small, expected_bytes

logger = logging.getLogger(__name__)
_OF_SINGLE_IMAGES = ("auto_augment", "color_jitter", "random_erasing")


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends only on seed and epoch, from any batch on.

    All processes together see the batches that one process would see: process r takes every ``world``-th sample of
    each batch, starting with the r-th. Images that do not fill a batch are left to the order of another epoch.

    Args:
        size: Number of samples in the data set.
        batch_size: Number of samples per batch over all processes.
        batches: Number of batches per epoch.
        rank: Number of this process.
        world: Number of processes.
        seed: Seed of the order.
    """

    def __init__(self, size: int, batch_size: int, batches: int, *, rank: int = 0, world: int = 1, seed: int = 0):
        self.size, self.batch_size, self.batches = size, batch_size, batches
        self.rank, self.world_size, self.seed = rank, world, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        for batch in range(self.start, self.batches):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in indices[self.rank :: self.world_size]]


class TrainingBatches:
    """Batches of one epoch after another, from any step on.

    Args:
        dataset: Training data with their transform, or in memory.
        recipe: Batch size, workers and seed.
        process: Process and device that the batches go to.
        collate: Function that makes a batch of samples; PyTorch's by default.

    Attributes:
        steps: Optimiser steps per epoch.
        per_step: Batches per step.

    Raises:
        DataError: If the batch size cannot be divided among the processes, or exceeds the data.
    """

    loader: Any

    def __init__(
        self,
        dataset: Samples | InMemory,
        recipe: RunRecipe,
        process: Process,
        *,
        collate: Callable[[Any], Any] | None = None,
    ):
        self.steps, self.per_step = _steps(len(dataset), recipe, process), recipe.grad_accum
        # timm's create_loader makes its own sampler, which can neither start in the middle of an epoch nor split the
        # batch of one process among several.
        self.sampler = EpochSampler(
            len(dataset),
            recipe.batch_size // recipe.grad_accum,
            self.steps * self.per_step,
            rank=process.rank,
            world=process.world_size,
            seed=recipe.seed,
        )
        if isinstance(dataset, InMemory):
            self.loader = dataset.loader(batch_sampler=self.sampler, generator=torch.Generator())
            return
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=recipe.workers,
            collate_fn=collate,
            pin_memory=process.device.type == "cuda",
            persistent_workers=recipe.workers > 0,
            worker_init_fn=ignore_signals(),
            # The loader draws seeds that nobody uses; its own generator leaves those of the run alone.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch from step ``start`` on, ``grad_accum`` of them per step."""
        self.sampler.epoch, self.sampler.start = epoch, start * self.per_step
        yield from self.loader


class StreamedBatches(TrainingBatches):
    """Batches from a stream; those before step ``start`` are read and discarded.

    Args:
        dataset: Stream of training data.
        recipe: Augmentation, batch size and workers.
        process: Process and device that the batches go to.
    """

    def __init__(self, dataset: IterableImageDataset, recipe: Recipe, process: Process):
        self.steps, self.per_step = _steps(len(dataset), recipe, process), recipe.grad_accum
        self.stream = dataset
        self.loader = _timm_loader(
            dataset,
            recipe,
            process,
            recipe.batch_size // (process.world_size * recipe.grad_accum),
            is_training=True,
            **_training_images(recipe),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        self.stream.set_epoch(epoch)
        count, wanted = 0, self.steps * self.per_step
        for count, batch in enumerate(self.loader, 1):
            if start * self.per_step < count <= wanted:
                yield batch
        if count < wanted:
            raise DataError(
                f"the stream ended after {count} of {wanted} batches of this process; "
                f"shards must be at least as many as processes x workers"
            )


def _steps(images: int, recipe: RunRecipe, process: Process) -> int:
    share = process.world_size * recipe.grad_accum
    if recipe.batch_size % share:
        raise DataError(
            f"batch_size must be a multiple of processes x grad_accum = {process.world_size} x {recipe.grad_accum}, "
            f"got {recipe.batch_size}"
        )
    if images < recipe.batch_size:
        raise DataError(f"batch_size {recipe.batch_size} exceeds the {images} training images")
    return images // recipe.batch_size


def training_batches(dataset: Samples | IterableImageDataset, recipe: Recipe, process: Process) -> TrainingBatches:
    """Return batches for a classifier: augmented and normalised images (B, C, H, W) on the device, and labels (B,).

    Raises:
        DataError: If the batch size cannot be divided among the processes, is odd with mixup or cutmix, or exceeds
            the data.
    """
    each = recipe.batch_size // (process.world_size * recipe.grad_accum)
    if (recipe.mixup or recipe.cutmix) and each % 2:
        raise DataError(f"mixup and cutmix need an even batch on each process, got {each}")
    if isinstance(dataset, IterableImageDataset):
        return StreamedBatches(dataset, recipe, process)
    single = [name for name in _OF_SINGLE_IMAGES if getattr(recipe, name)]
    decoded = decode_small(dataset, recipe.cache_mb) if recipe.cache_mb and not single else None
    if decoded is not None:
        crops: dict[str, Any] = {"size": recipe.img_size, "scale": recipe.scale, "ratio": recipe.ratio}
        crops |= {"hflip": recipe.hflip, "interpolation": recipe.interpolation, **_normalisation(recipe)}
        return TrainingBatches(TrainingImages(dataset, decoded, device=process.device, **crops), recipe, process)
    prefetch = _prefetches(process)
    with asked_for(auto_augment=recipe.auto_augment, color_jitter=recipe.color_jitter):
        dataset.transform = create_transform(is_training=True, use_prefetcher=prefetch, **_training_images(recipe))
    if single and recipe.cache_mb and expected_bytes(dataset) is not None:
        logger.info("images are read and augmented one by one, since %s works on single images", listed(single))
    batches = TrainingBatches(dataset, recipe, process, collate=fast_collate if prefetch else None)
    if prefetch:
        normalisation = {"re_prob": recipe.random_erasing, **_normalisation(recipe)}
        batches.loader = PrefetchLoader(batches.loader, device=process.device, **normalisation)
    return batches


def evaluation_batches(
    dataset: Samples | IterableImageDataset,
    recipe: Recipe,
    process: Process,
    batch_size: int,
    *,
    repeated: bool = False,
) -> Any:
    """Return a loader of a whole data set in order, divided among the processes.

    Small images that are evaluated ``repeated`` times are kept in memory.
    """
    decoded = None
    inputs = recipe.in_chans * recipe.img_size**2  # bytes of each
    if repeated and isinstance(dataset, Samples) and len(dataset) * inputs <= recipe.cache_mb * 10**6:
        decoded = decode_small(dataset, recipe.cache_mb)
    if decoded is not None and isinstance(dataset, Samples):
        options: dict[str, Any] = {**_images(recipe), "crop_pct": recipe.crop_pct}
        transform: Any = create_transform(is_training=False, use_prefetcher=True, **options)
        images = EvaluationImages(dataset, decoded, transform, device=process.device, **_normalisation(recipe))
        shared = process.world_size > 1
        sampler = OrderedDistributedSampler(images, process.world_size, process.rank) if shared else None
        return images.loader(batch_size=batch_size, sampler=sampler)
    return _timm_loader(
        dataset,
        recipe,
        process,
        batch_size,
        is_training=False,
        crop_pct=recipe.crop_pct,
        persistent_workers=recipe.workers > 0,
        **_images(recipe),
    )


def _timm_loader(dataset: Any, recipe: Recipe, process: Process, batch_size: int, **options: Any) -> Any:
    """Return a loader of timm whose processes leave signals to the main one."""
    loader: Any = create_loader(
        dataset,
        batch_size=batch_size,
        num_workers=recipe.workers,
        device=process.device,
        use_prefetcher=_prefetches(process),
        distributed=process.world_size > 1,
        **options,
    )
    if isinstance(dataset, IterableImageDataset):
        transform: Any = dataset.transform
        dataset.transform = functools.partial(_converted, reading=recipe.reading, transform=transform)
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    inner.worker_init_fn = ignore_signals(inner.worker_init_fn)
    return loader


def _converted(image: Image.Image, reading: dict[str, Any], transform: Callable[[Image.Image], Any]) -> Any:
    """Return an image of a stream, transformed after it was turned and converted as images of files are."""
    return transform(to_mode(image if reading["as_stored"] else turned(image), **reading))


def _images(recipe: Recipe) -> dict:
    return {
        "input_size": (recipe.in_chans, recipe.img_size, recipe.img_size),
        "interpolation": recipe.interpolation,
        **_normalisation(recipe),
    }


def _training_images(recipe: Recipe) -> dict:
    return {
        "scale": recipe.scale,
        "ratio": recipe.ratio,
        "hflip": recipe.hflip,
        "color_jitter": recipe.color_jitter or None,
        "auto_augment": recipe.auto_augment,
        "re_prob": recipe.random_erasing,
        **_images(recipe),
    }


def _normalisation(recipe: Recipe) -> dict:
    return {"mean": recipe.mean, "std": recipe.std}


def _prefetches(process: Process) -> bool:
    """Return whether images are sent to the device as bytes and normalised there."""
    return process.device.type == "cuda"


def ignore_signals(before: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """Return a ``worker_init_fn`` that makes loader processes ignore signals until the main process exits.

    A signal to the process group of a terminal or job would otherwise end them before the run has been saved.

    Args:
        before: Another ``worker_init_fn`` to call first.
    """
    return functools.partial(_start_worker, before=before, leaving=_leaving())


@functools.cache
def _leaving() -> Event:
    """Return an event that is set when this process exits, before Python terminates and joins its children.

    The traceback of an uncaught error keeps the loaders alive until then.
    """
    event = multiprocessing.Event()
    util.Finalize(None, event.set, exitpriority=0)
    return event


def _start_worker(worker: int, before: Callable[[int], None] | None, leaving: Event) -> None:
    if before is not None:
        before(worker)

    def handle(number: int, frame: FrameType | None) -> None:
        if leaving.is_set():
            os._exit(128 + number)

    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), handle)
