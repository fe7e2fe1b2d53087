"""Batches: which samples, in what order, from where in an epoch, on which process."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from timm.data import IterableImageDataset, create_loader, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, Sampler

from ...errors import DataError, asked_for
from ..device import Process
from ..recipes.recipe import Recipe, RunRecipe
from .datasets import Samples
from .workers import ignore_signals


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends on seed and epoch alone, from any batch on.

    The batches of all processes together are those that one process would see: process r takes every
    world-th sample of each, from the r-th on. The images left over wait for another epoch's order.

    Args:
        size: Samples in the data set.
        batch_size: Samples of one batch over all processes.
        batches: Batches of one epoch.
        rank: Which process this is.
        world: How many there are.
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
    """Batches of one epoch after the other, from any step of it on.

    Args:
        dataset: Data opened for training, with their transform.
        recipe: Batch size, workers, seed.
        process: Where the batches go.
        collate: Makes a batch of samples; PyTorch's own by default.

    Attributes:
        steps: Optimiser steps of one epoch.
        per_step: Batches of one step.

    Raises:
        DataError: If the batch size cannot be divided among the processes, or exceeds the data.
    """

    loader: Any

    def __init__(
        self, dataset: Samples, recipe: RunRecipe, process: Process, *, collate: Callable[[Any], Any] | None = None
    ):
        self.steps, self.per_step = _steps(len(dataset), recipe, process), recipe.grad_accum
        # timm's create_loader makes a sampler of its own, which can neither start in the middle of an epoch nor
        # deal the batch of one process out to several; its other parts serve.
        self.sampler = EpochSampler(
            len(dataset),
            recipe.batch_size // recipe.grad_accum,
            self.steps * self.per_step,
            rank=process.rank,
            world=process.world_size,
            seed=recipe.seed,
        )
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=recipe.workers,
            collate_fn=collate,
            pin_memory=process.device.type == "cuda",
            persistent_workers=recipe.workers > 0,
            worker_init_fn=ignore_signals(),
            # Its seeds are not used, and drawing them must not move the generators of the run.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch from step ``start`` on, ``grad_accum`` for each step."""
        self.sampler.epoch, self.sampler.start = epoch, start * self.per_step
        yield from self.loader


class StreamedBatches(TrainingBatches):
    """The same from a stream, of which what comes before ``start`` is read and passed over.

    Args:
        dataset: Stream opened for training.
        recipe: Augmentation, batch size, workers.
        process: Where the batches go.
    """

    def __init__(self, dataset: IterableImageDataset, recipe: Recipe, process: Process):
        self.steps, self.per_step = _steps(len(dataset), recipe, process), recipe.grad_accum
        self.stream = dataset
        self.loader = _heedless(
            create_loader(
                dataset,
                batch_size=recipe.batch_size // (process.world_size * recipe.grad_accum),
                is_training=True,
                num_workers=recipe.workers,
                device=process.device,
                use_prefetcher=_prefetches(process),
                distributed=process.world_size > 1,
                **_training_images(recipe),
            )
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        self.stream.set_epoch(epoch)
        index = -1
        for index, batch in enumerate(self.loader):
            if start * self.per_step <= index < self.steps * self.per_step:
                yield batch
        if index + 1 < self.steps * self.per_step:
            raise DataError(
                f"the stream ended after {index + 1} of {self.steps * self.per_step} batches of this process; "
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
    """Returns the batches of a classifier: augmented images (B, C, H, W), normalised and on the device, and labels.

    Raises:
        DataError: If the batch size cannot be divided as it has to be, or exceeds the data.
    """
    each = recipe.batch_size // (process.world_size * recipe.grad_accum)
    if (recipe.mixup or recipe.cutmix) and each % 2:
        raise DataError(f"mixup and cutmix need an even batch on each process, got {each}")
    if isinstance(dataset, IterableImageDataset):
        return StreamedBatches(dataset, recipe, process)
    prefetch = _prefetches(process)
    with asked_for(auto_augment=recipe.auto_augment, color_jitter=recipe.color_jitter):
        dataset.transform = create_transform(is_training=True, use_prefetcher=prefetch, **_training_images(recipe))
    batches = TrainingBatches(dataset, recipe, process, collate=fast_collate if prefetch else None)
    if prefetch:
        normalisation = {"re_prob": recipe.random_erasing, **_normalisation(recipe)}
        batches.loader = PrefetchLoader(batches.loader, device=process.device, **normalisation)
    return batches


def evaluation_batches(dataset: Samples | IterableImageDataset, recipe: Recipe, process: Process, batch_size: int):
    """Returns a loader over the whole of a data set in order, dealt out among the processes."""
    loader = create_loader(
        cast(Any, dataset),  # timm asks of it no more than what Samples has
        input_size=(recipe.in_chans, recipe.img_size, recipe.img_size),
        batch_size=batch_size,
        is_training=False,
        interpolation=recipe.interpolation,
        crop_pct=recipe.crop_pct,
        num_workers=recipe.workers,
        distributed=process.world_size > 1,
        device=process.device,
        use_prefetcher=_prefetches(process),
        persistent_workers=recipe.workers > 0,
        **_normalisation(recipe),
    )
    return _heedless(loader)


def _training_images(recipe: Recipe) -> dict:
    return {
        "input_size": (recipe.in_chans, recipe.img_size, recipe.img_size),
        "scale": recipe.scale,
        "ratio": recipe.ratio,
        "hflip": recipe.hflip,
        "color_jitter": recipe.color_jitter or None,
        "auto_augment": recipe.auto_augment,
        "interpolation": recipe.interpolation,
        "re_prob": recipe.random_erasing,
        **_normalisation(recipe),
    }


def _normalisation(recipe: Recipe) -> dict:
    return {"mean": recipe.mean, "std": recipe.std}


def _prefetches(process: Process) -> bool:
    """Whether images travel to the device as bytes, and are normalised there."""
    return process.device.type == "cuda"


def _heedless(loader):
    """A loader of timm's, whose processes leave signals to the main one."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    inner.worker_init_fn = ignore_signals(inner.worker_init_fn)
    return loader
