"""The models and jobs that benchmarks time: SA-ResNet-50 and what it is compared with.

A model is an entry of ``MODELS``, and a job one of ``JOBS``. ``figures.py`` and ``memory.py`` have the comparisons.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tail
import timm
import torch
import torchvision
from timing import FORMATS, STAGES, interleaved
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from shuffle_attention import attach
from shuffle_attention.deploy import rewrite
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.models.detectors import create_detector
from shuffle_attention.sanet.profile.costs import kept_for_backward, training_step
from shuffle_attention.sanet.profile.detectors import random_objects, work_alike

Calls = dict[str, Callable[[], object]]


def resnet50(attention: str = "none", **options: Any) -> nn.Module:
    name, defaults = resnet_with(attention, 50)
    return timm.create_model(name, **defaults, **options)


def by_modules(model: nn.Module) -> nn.Module:
    """Make every module of a model run by itself, in place: a hook may look at it."""
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def attached(model: nn.Module, attention: str) -> nn.Module:
    attach(model, attention, where="residual")
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": resnet50,
    "plain, norms folded": lambda: fuse(resnet50().eval()),
    "plain rewritten": lambda: rewrite(resnet50())[0],
    "plain with none": lambda: attached(resnet50(), "none"),
    "sa": lambda: resnet50("shuffle"),
    "sa by modules": lambda: by_modules(resnet50("shuffle")),
    "sa rewritten": lambda: rewrite(resnet50("shuffle"))[0],
    "sa rebuild": lambda: resnet50("shuffle", memory="rebuild"),
    "sa rebuild-all": lambda: resnet50("shuffle", memory="rebuild-all"),
    "se": lambda: resnet50("se"),
    "eca": lambda: resnet50("eca"),
    "torchvision": torchvision.models.resnet50,
    "torchvision attached": lambda: attached(torchvision.models.resnet50(), "shuffle"),
}


@functools.cache
def model(name: str, layout: str) -> nn.Module:
    """Return a model with its BatchNorms at their start, so that all models compute on similar numbers."""
    torch.manual_seed(0)
    return MODELS[name]().to(memory_format=FORMATS[layout])


@dataclass(frozen=True)
class Scene:
    """The conditions that models are compared in: a job, the batch, the layout, and the side of the images."""

    job: str
    batch: int
    layout: str
    size: int = 224

    def images(self) -> Tensor:
        shape = self.batch, 3, self.size, self.size
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=FORMATS[self.layout])


def in_inference(model: nn.Module, images: Any) -> Callable[[], object]:
    model.eval()
    return torch.inference_mode()(lambda: model(images))


def inference(scene: Scene, names: Sequence[str]) -> Calls:
    return {name: in_inference(model(name, scene.layout), scene.images()) for name in names}


def compiled_inference(scene: Scene, names: Sequence[str]) -> Calls:
    torch.compiler.reset()
    return {name: in_inference(torch.compile(model(name, scene.layout)), scene.images()) for name in names}


def training(scene: Scene, names: Sequence[str]) -> Calls:
    return {name: training_step(model(name, scene.layout), scene.images()) for name in names}


def block_end(scene: Scene, names: Sequence[str]) -> Calls:
    """Return the end of a block both ways, on the map of ResNet-50 whose side is the scene's size."""
    channels = next(channels for channels, size in STAGES if size == scene.size)
    calls = tail.tail_calls(scene.batch, channels, scene.size, scene.layout)
    return {name: calls[f"{name} both ways"] for name in names}


@functools.cache
def mask_rcnn(name: str) -> nn.Module:
    """Return a Mask R-CNN on 320 x 480 pixels, as ``sanet detect profile`` makes it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone_options": {"zero_init_last": False}, "min_size": 320, "max_size": 480}
    backbone = {"plain": "resnet50", "sa": "sa_resnet50"}[name]
    detector = create_detector("mask_rcnn", backbone, 81, frozen_norm=True, **options)
    work_alike(detector, (320, 480))
    return detector


def mask_rcnn_inference(scene: Scene, names: Sequence[str]) -> Calls:
    images = list(torch.rand(scene.batch, 3, 320, 480))
    return {name: in_inference(mask_rcnn(name), images) for name in names}


def mask_rcnn_training(scene: Scene, names: Sequence[str]) -> Calls:
    images, targets = list(torch.rand(scene.batch, 3, 320, 480)), random_objects((320, 480), scene.batch, masks=True)
    return {name: training_step(mask_rcnn(name), images, targets) for name in names}


@dataclass(frozen=True)
class Job:
    """A job that is timed.

    Attributes:
        calls: Returns the calls for a scene by model.
        repetitions: Repetitions in one process, four times as many at batch 1.
        processes: Processes whose repetitions are pooled at most. Where a process has its memory changes a ratio by up
            to 3 %, so that more processes say more than more repetitions.
    """

    calls: Callable[[Scene, Sequence[str]], Calls]
    repetitions: int
    processes: int = 99

    def measure(self, scene: Scene, names: Sequence[str], repetitions: int | None) -> dict[str, list[float]]:
        """Return the seconds of each repetition by model."""
        # Calls of more than some milliseconds are not repeated within one repetition, and need one call to warm up.
        least = 2e-3 if scene.job == "block end" else 0
        repetitions = repetitions or self.repetitions * (4 if scene.batch == 1 else 1)
        times = interleaved(self.calls(scene, names), repetitions, least)
        return {name: each.seconds for name, each in times.items()}


class Kept(Job):
    """The bytes that the forward pass of a training step keeps for the backward pass, without parameters."""

    def measure(self, scene: Scene, names: Sequence[str], repetitions: int | None) -> dict[str, list[float]]:
        return {name: [kept_for_backward(model(name, scene.layout), scene.images())] for name in names}


JOBS: dict[str, Job] = {
    "inference": Job(inference, 3),
    "compiled inference": Job(compiled_inference, 3),
    "training step": Job(training, 1),
    "block end": Job(block_end, 15),
    "kept": Kept(training, 1, processes=1),
    "Mask R-CNN inference": Job(mask_rcnn_inference, 1, processes=1),
    "Mask R-CNN training step": Job(mask_rcnn_training, 1, processes=1),
}
