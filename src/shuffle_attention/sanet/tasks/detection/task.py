"""Training a detector: its data, its losses, and the figures that tell how good it is."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from PIL import Image
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ....errors import asked_for
from ....models.detectors import ARCHITECTURES
from ...data.coco import CocoData
from ...data.loading import TrainingBatches, ignore_signals
from ...device import Process
from ..task import Panel, Section, Task
from .batches import DetectionTask, collate, to_device
from .digits import digits_coco
from .evaluation import evaluate_detector
from .predictor import Detector, detector_of, open_coco, restore_detector
from .recipe import DetectionRecipe
from .samples import CocoSamples, detection_transform

__all__ = ["Detection", "held_out_batches"]
_EXAMPLES = 5  # images in the demo
_TRIED_SIZE = 128  # pixels; enough for every level of a pyramid


class Detection(Task[DetectionRecipe]):
    """A detector and its images with objects.

    Args:
        recipe: Settings of the run.
        training: Images to train on.
        validation: Images to evaluate on.
    """

    Recipe = DetectionRecipe
    metric = "val_box_AP"
    training: CocoSamples
    validation: CocoSamples

    def __init__(self, recipe: DetectionRecipe, training: CocoData, validation: CocoData):
        self.data = validation
        self.losses = ARCHITECTURES[recipe.arch].losses
        self.sums = 2 + len(self.losses)
        self.classes, self.num_classes = training.names, training.num_classes
        masks = self.masks = ARCHITECTURES[recipe.arch].masks
        samples = CocoSamples(training, masks=masks, seed=recipe.seed, empty=recipe.empty_images)
        samples.transform = detection_transform(training=True, hflip=recipe.hflip, vflip=recipe.vflip)
        super().__init__(recipe, samples, evaluation_samples(validation))

    @classmethod
    def open(cls, recipe: DetectionRecipe, *, check: bool) -> "Detection":
        # What is left out has to be known by every process.
        look = recipe.check_images and (check or recipe.skip_bad_images)
        training = open_coco(recipe, "train", check=look)
        return cls(recipe, training, open_coco(recipe, "val", categories=training.categories, check=look))

    @classmethod
    def restore(cls, path: str | os.PathLike, **options: Any) -> Detector:
        return restore_detector(path, **options)

    @classmethod
    def examples(cls) -> list[tuple[Image.Image, str]]:
        images = [image for image in digits_coco("val", _EXAMPLES).pictures if not isinstance(image, str)]
        return [(image.convert("RGB"), f"photo {number}") for number, image in enumerate(images, 1)]

    def create_network(self, *, restored: bool) -> nn.Module:
        return detector_of(self.recipe, self.num_classes, restored=restored)

    def try_once(self, model: nn.Module, count: int) -> None:
        side = _TRIED_SIZE
        target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.ones(1, dtype=torch.int64)}
        if self.masks:
            target["masks"] = torch.ones(1, side, side, dtype=torch.uint8)
        received = {"arch": self.recipe.arch, "backbone": self.recipe.backbone}
        with asked_for(**received, detector_args=self.recipe.detector_args), torch.no_grad():
            copy: Any = deepcopy(model).train()
            copy.transform.min_size, copy.transform.max_size = (side,), side
            copy([torch.zeros(3, side, side)] * count, [target] * count)

    def batches(self, process: Process) -> TrainingBatches:
        return TrainingBatches(self.training, self.recipe, process, collate=collate)

    def held_out(self, process: Process, batch_size: int) -> Any:
        return held_out_batches(self.validation, self.recipe.workers, process, batch_size)

    def create_trainer(self, model: nn.Module, process: Process) -> TrainingTask:
        return DetectionTask(model, device=process.device)

    def loss(self, trainer: TrainingTask, batch: Any, process: Process) -> tuple[Tensor, Tensor]:
        images, targets = batch
        images, targets = to_device(images, targets, process.device)
        result = trainer(images, targets)
        each = torch.stack([result["loss"].detach(), *(result["parts"][name] for name in self.losses)]).float()
        return result["loss"], torch.cat([each * len(images), torch.full_like(each[:1], len(images))])

    def evaluate(
        self, model: nn.Module, batches: Any, process: Process, *, watch: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        scores = evaluate_detector(model, batches, self.data, process, precision=self.recipe.precision, watch=watch)
        return {f"val_{name}": value for name, value in scores.figures.items()}

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        names = ("loss", *self.losses)
        return {f"train_{name}": value / sums[-1] for name, value in zip(names, sums[:-1], strict=True)}

    def running(self, sums: Sequence[float]) -> str:
        return f"loss {sums[0] / max(1.0, sums[-1]):.4f}"

    def line(self, row: Mapping[str, float]) -> str:
        return f"loss {row['train_loss']:.4f}  " + "  ".join(
            f"{kind} AP {row[f'val_{kind}_AP']:.3f}  AP50 {row[f'val_{kind}_AP50']:.3f}" for kind in _kinds(row)
        )

    def panels(self, history: Sequence[Mapping[str, float]]) -> list[Panel]:
        losses = {"train_loss": "all"} | {f"train_{name}": name.removeprefix("loss_") for name in self.losses}
        scores = {
            f"val_{kind}_{figure}": f"{kind} {figure}" for kind in _kinds(history[0]) for figure in ("AP", "AP50")
        }
        return [Panel("training loss", "loss", losses), Panel("validation", "average precision", scores)]

    @staticmethod
    def best_figures(row: Mapping[str, float]) -> dict[str, str]:
        return {
            f"{kind} {name}": f"{row[f'val_{kind}_{name}']:.3f}"
            for kind in _kinds(row)
            for name in ("AP", "AP50", "AP75")
        }

    def report_sections(self, model: nn.Module, best: Mapping[str, float], process: Process) -> list[Section]:
        from .report import detector_sections

        options = {"masks": self.masks, "precision": self.recipe.precision}
        return detector_sections(model, self.data, best, process, **options)

    def content(self) -> dict[str, Any]:
        return {**super().content(), "categories": self.data.categories}


def evaluation_samples(data: CocoData) -> CocoSamples:
    """Returns images to evaluate on; what should be found, the evaluation has from the data."""
    samples = CocoSamples(data, masks=False)
    samples.transform = detection_transform(training=False)
    return samples


def held_out_batches(samples: CocoSamples, workers: int, process: Process, batch_size: int) -> DataLoader:
    """Returns a loader of lists of images and targets in order, dealt out among the processes."""
    sampler: Any = (
        OrderedDistributedSampler(samples, process.world_size, process.rank) if process.world_size > 1 else None
    )
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=process.device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals(),
    )


def _kinds(row: Mapping[str, float]) -> list[str]:
    return [kind for kind in ("box", "mask") if f"val_{kind}_AP" in row]


TASK = Detection
