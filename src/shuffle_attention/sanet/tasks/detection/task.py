"""Object detection and instance segmentation: data, losses and metrics."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from PIL import Image
from timm.task import TrainingTask
from torch import Tensor, nn

from ....checkpoints import find_state_dict, read_checkpoint
from ....errors import asked_for
from ....models.detector_weights import load_detector
from ....models.detectors import ARCHITECTURES
from ...data.coco import CocoData
from ...data.loading import TrainingBatches
from ...device import Process
from ...profile.costs import DetectorSize
from ...profile.detectors import detector_cost, random_objects, work_alike
from ..evaluation import Scores, held_out_batches, to_device
from ..task import Metric, Score, Section, Task
from .coco_scores import COCO_SCORES, evaluate_detector
from .predictor import Detector, detector_of, open_coco, restore_detector
from .recipe import DetectionRecipe
from .samples import CocoSamples, collate, detection_transform, training_transform

_LOSS = "training loss"
_BY_SIZE = ("APs", "APm", "APl")
_REPORT_BATCH = 2  # images at a time
_TIMED = 4  # images of a timed step, at most
_TRIED_SIZE = 128  # pixels; enough for every level of a pyramid


class Detection(Task[DetectionRecipe]):
    """A detector and its images with objects; there are no training images in an evaluation."""

    Recipe = DetectionRecipe
    metric = "val_box_AP"
    compared = tuple(
        Score(f"{kind}_{name}", f"{kind} {name}", f"val_{kind}_{name}", 100.0)
        for kind, name in (("box", "AP"), ("box", "AP50"), ("mask", "AP"))
    )
    training: CocoSamples
    validation: CocoSamples

    def __init__(self, recipe: DetectionRecipe, training: CocoData | None, validation: CocoData):
        self.data = validation
        self.losses = ARCHITECTURES[recipe.arch].losses
        self.averages = dict.fromkeys(["train_loss", *(f"train_{name}" for name in self.losses)], 1.0)
        known = validation if training is None else training
        self.classes, self.num_classes = known.names, known.num_classes
        masks = self.masks = ARCHITECTURES[recipe.arch].masks
        self.metrics = _metrics(self.losses, ["box", "mask"] if masks and validation.has_masks else ["box"])
        samples: Any = None
        if training is not None:
            options: dict[str, Any] = {"seed": recipe.seed, "empty": recipe.empty_images, "reading": recipe.reading}
            samples = CocoSamples(training, masks=masks, **options)
            samples.transform = training_transform(recipe)
        held_out = CocoSamples(
            validation, masks=False, reading=recipe.reading
        )  # the evaluation compares with the masks in the data
        held_out.transform = detection_transform(training=False)
        super().__init__(recipe, samples, held_out)

    @classmethod
    def choose_recipe(cls, given: dict[str, Any], *, pretrained: bool = True) -> tuple[DetectionRecipe, str]:
        from .choice import choose_recipe

        return choose_recipe(given, pretrained=pretrained)

    @classmethod
    def open(cls, recipe: DetectionRecipe, *, check: bool) -> "Detection":
        # Every process must know which images are left out.
        checked = recipe.check_images and (check or recipe.skip_bad_images)
        training, validation = open_coco(recipe, "train", "val", check=checked)
        return cls(recipe.replaced(drawn=validation.drawn), training, validation)

    @classmethod
    def restore(cls, path: str | os.PathLike, **options: Any) -> Detector:
        return restore_detector(path, **options)

    @classmethod
    def open_validation(cls, predictor: Detector) -> "Detection":
        recipe = predictor.recipe
        opened = open_coco(recipe, "val", categories=predictor.categories, check=recipe.check_images)
        return cls(recipe, None, *opened)

    @classmethod
    def untrained(cls, recipe: DetectionRecipe, num_classes: int) -> nn.Module:
        return detector_of(recipe, num_classes, restored=True)

    @classmethod
    def size(cls, recipe: DetectionRecipe, num_classes: int) -> DetectorSize:
        return detector_cost(cls.untrained(recipe, num_classes), recipe.min_size[-1], recipe.max_size)

    @classmethod
    def step_inputs(cls, recipe: DetectionRecipe, model: nn.Module, count: int) -> tuple[Any, ...]:
        size, count = (recipe.min_size[-1], recipe.max_size), min(count, _TIMED)
        work_alike(model, size)
        return [*torch.rand(count, 3, *size)], random_objects(size, count, masks=ARCHITECTURES[recipe.arch].masks)

    @classmethod
    def examples(cls, predictor: Detector, most: int) -> list[tuple[str | Image.Image, str]]:
        (data,) = open_coco(predictor.recipe, "val", categories=predictor.categories, check=False)
        chosen = range(0, len(data), max(1, -(-len(data) // most)))
        return [(data.files[index], str(data.images[index]["file_name"])) for index in chosen]

    def create_model(self, *, restored: bool) -> nn.Module:
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

    def load_initial(self, model: nn.Module) -> None:
        recipe = self.recipe
        if recipe.initial is not None:
            content = read_checkpoint(recipe.initial)
            weights, _ = find_state_dict(content, path=recipe.initial)
            options = {"may_differ": self.may_differ, "norm_eps": recipe.norm_eps}
            report = load_detector(model, recipe.arch, weights, recipe.initial, **options)
            self.compare_classes(content.get("classes"), recipe.initial, report.kept)

    def batches(self, process: Process) -> TrainingBatches:
        return TrainingBatches(self.training, self.recipe, process, collate=collate)

    def held_out(self, process: Process, batch_size: int) -> Any:
        return held_out_batches(self.validation, self.recipe.workers, process, batch_size, collate)

    def loss(self, trainer: TrainingTask, batch: Any, process: Process) -> tuple[Tensor, Tensor]:
        images, targets = to_device(batch, process.device)
        parts = trainer(images, targets)
        loss = torch.stack(list(parts.values())).sum()
        each = torch.stack([loss.detach(), *(parts[name].detach() for name in self.losses)]).float()
        return loss, torch.cat([each * len(images), torch.full_like(each[:1], len(images))])

    def evaluate(
        self, model: nn.Module, batches: Any, process: Process, *, watch: Callable[[int], None] | None = None
    ) -> Scores:
        return evaluate_detector(model, batches, self.data, process, precision=self.recipe.precision, watch=watch)

    def sections(self, model: nn.Module, best: Mapping[str, float], process: Process) -> list[Section]:
        from .report import detector_sections

        alone = Process(process.device)
        results = self.evaluate(model, self.held_out(alone, _REPORT_BATCH), alone).results
        options = {"masks": self.masks, "reading": self.recipe.reading}
        return detector_sections(self.data, results, best, **options)

    def content(self) -> dict[str, Any]:
        return {**super().content(), "categories": self.data.categories}


def _metrics(losses: Sequence[str], kinds: Sequence[str]) -> list[Metric]:
    """Return the columns of the losses of a detector, and of COCO's scores of boxes and masks."""
    parts = [Metric(f"train_{name}", name.removeprefix("loss_"), panel=_LOSS, line=False) for name in losses]
    scores = []
    for kind in kinds:
        for name in COCO_SCORES:
            panel, better = "average precision" if name in ("AP", "AP50") else "", "" if name in _BY_SIZE else "higher"
            scores.append(Metric(f"val_{kind}_{name}", f"{kind} {name}", "{:.3f}", panel, better, line=bool(panel)))
    return [Metric("train_loss", "loss", panel=_LOSS), *parts, *scores]


TASK = Detection
