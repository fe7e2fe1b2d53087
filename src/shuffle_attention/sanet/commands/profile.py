"""The commands ``sanet profile`` and ``sanet detect profile``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError, asked_for, counted
from ...files import require_folder_of, write_json
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from torch import nn

    from ..device import Process

PAPER_DEPTHS = (50, 101)  # of table 1


@dataclass(kw_only=True)
class Profiling(Command):
    """Options that both commands have."""

    device: str = option("auto", "cpu, cuda, mps, ...")
    threads: int | None = option(None, "threads of the CPU; by default PyTorch's choice", minimum=1)
    json: str | None = option(None, "write the measurements to FILE", metavar="FILE")

    @contextmanager
    def on_device(self) -> Iterator[Process]:
        """Open the device and use the CPU threads that were asked for; restore their number afterwards."""
        import torch

        from ..device import open_process

        threads = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with open_process(self.device) as process:
                yield process
        finally:
            torch.set_num_threads(threads)


@dataclass(kw_only=True)
class ProfileModels(Profiling):
    """Measure parameters, multiply-adds, time and memory of models, compared with the first of them.

    A model is a name, a checkpoint or a deployed file. Of a file, its size and the time of inference on the CPU are
    measured; it does not tell the others.
    """

    name = "profile"
    summary = "measure the cost of models"

    models: list[str] = option(
        [], "models of timm or of this package, checkpoints, or files of sanet export", positional=True, metavar="MODEL"
    )
    paper: bool = option(False, "ResNet-50 and 101 with each attention layer, beside the published numbers")
    img_size: int | None = option(
        None, "side of the input, pixels; by default that of the first checkpoint or file, or 224", minimum=1
    )
    batch_size: int = option(8, "images at a time", minimum=1)
    layout: Literal["nchw", "nhwc"] = option("nchw", "memory format")
    repetitions: int = option(9, "how often each is timed", minimum=1)
    chart: str | None = option(None, "draw the ratios to FILE, as PNG", metavar="FILE", aliases=("--picture",))

    def run(self) -> int:
        """Measure all models, and print, write and draw the costs."""
        import timm
        import torch

        from ...attention import attention_names
        from ...deploy import Artefact, is_deployed
        from ...models.attention_resnet import resnet_with
        from ..console import console
        from ..environment import environment
        from ..network import create_network
        from ..profile.costs import Profile, draw_costs, print_costs, profile, size_of
        from ..profile.published import compare_with_paper, notes, print_published

        if bool(self.models) == self.paper:
            raise InputError("give the models to profile, or --paper for those of the paper's table 1")
        for flag, file in (("--json", self.json), ("--chart", self.chart)):
            require_folder_of(flag, file)
            if file is not None and Path(file).is_dir():
                raise InputError(f"{flag} {file}: that is a folder; name a file in it")
            if file is not None and not os.access(Path(file).resolve().parent, os.W_OK):
                raise InputError(f"{flag} {file}: {Path(file).parent} cannot be written to")
        if len(set(self.models)) < len(self.models):
            raise InputError(f"a model is named twice: {', '.join(self.models)}")
        tables: list[list[Profile]] = []
        layers = [[(attention, depth) for attention in attention_names()] for depth in PAPER_DEPTHS]
        if self.device == "auto" and any(map(is_deployed, self.models)):
            self.device = "cpu"  # where the runtimes of files run
        with self.on_device() as process:
            if process.device.type != "cpu" and any(map(is_deployed, self.models)):
                raise InputError(f"deployed files run on the CPU, not on {self.device}; give --device cpu")
            opened = {name: _opened(name) for name in self.models if is_deployed(name) or os.path.isfile(name)}
            channels, img_size = _common([shape for _, shape in opened.values()], self.img_size)
            batch = f"{counted(self.batch_size, 'image')} of {img_size} pixels, float32, {self.layout.upper()}"
            on_cpu = process.device.type == "cpu"
            torch.manual_seed(0)
            images = torch.randn(self.batch_size, channels, img_size, img_size, device=process.device)
            if self.layout == "nhwc":
                images = images.contiguous(memory_format=torch.channels_last)
            threads = f" with {counted(torch.get_num_threads(), 'thread')}" if on_cpu else ""
            console.print(f"{batch}, on {process.device}{threads}")
            for group in layers if self.paper else [self.models]:
                models = {}
                for each in group:
                    if each in opened:
                        label, (model, _) = each, opened[each]
                    elif isinstance(each, str):
                        label, model = each, create_network(Recipe(model=each).replaced(in_chans=channels), 1000)
                    else:
                        label, options = resnet_with(*each)
                        model = timm.create_model(label, **options)
                    models[label] = process.to_device(model, channels_last=self.layout == "nhwc")
                with asked_for(model=", ".join(models), img_size=img_size, batch_size=self.batch_size):
                    trained = {label: model for label, model in models.items() if not isinstance(model, Artefact)}
                    sizes = {label: size_of(model, channels, img_size) for label, model in trained.items()}
                    tables.append(profile(models, sizes, images, self.repetitions))
                del models, trained
                print_costs(tables[-1])
            console.print("GFLOPs: multiply-adds of convolutions and matrix products for one image, and no others")
            measured = environment()
        content: dict[str, Any] = {
            "machine": measured,
            "settings": {
                "img_size": img_size,
                **{name: getattr(self, name) for name in ("batch_size", "layout", "repetitions")},
            },
            "profiles": [p.to_dict(profiles[0]) for profiles in tables for p in profiles],
        }
        if self.paper:
            compared = compare_with_paper([layer for group in layers for layer in group])
            print_published(compared)
            content["paper"] = [
                {"name": name, **asdict(size), "published": None if printed is None else asdict(printed)}
                for name, size, printed in compared
            ]
            content["notes"] = notes()
        if self.json is not None:
            write_json(self.json, content)
        if self.chart is not None:
            machine = measured["cpu" if on_cpu else "accelerator"]
            title = f"{self.batch_size} x {img_size} px, {self.layout.upper()}, {machine}"
            draw_costs(tables, title, Path(self.chart))
        return 0


def _opened(path: str) -> tuple[nn.Module, tuple[int | None, int | None]]:
    """Return the model in a checkpoint or a deployed file, and the channels and side of its input, None where free."""
    from ...deploy import is_deployed, load
    from ..tasks.classification.predictor import restore_network

    if not is_deployed(path):
        restored = restore_network(path)
        return restored.model, (restored.recipe.in_chans, restored.recipe.img_size)
    file = load(path)
    recipe, (_, channels, side, _) = file.metadata.get("recipe", {}), file.shape or (None,) * 4
    return file, (channels, recipe.get("img_size") if side is None else side)


def _common(inputs: list[tuple[int | None, int | None]], img_size: int | None) -> tuple[int, int]:
    """Return channels and side of images for models with these inputs; 3 and 224 where they do not say."""
    channels = {channels for channels, _ in inputs if channels is not None} or {3}
    if len(channels) > 1:
        raise InputError(f"models for images of {' and '.join(map(str, sorted(channels)))} channels are not comparable")
    sides = [side for _, side in inputs if side is not None]
    return channels.pop(), img_size or (sides[0] if sides else 224)


@dataclass(kw_only=True)
class ProfileDetectors(Profiling):
    """Measure parameters, multiply-adds, time and memory of a detector on several backbones.

    Ratios are those to the first backbone.
    """

    name = "detect profile"
    summary = "measure the cost of detectors"

    backbones: list[str] = option(..., "models of timm or of this package", positional=True, metavar="BACKBONE")
    arch: str = option("mask_rcnn", "detector")
    backbone_args: dict[str, Any] = option({}, "further arguments of timm.create_model, as YAML")
    num_classes: int = option(81, "classes, background included")
    size: list[int] = option([800, 1333], "sides of the images, pixels", minimum=1, nargs=2)
    batch_size: int = option(1, "images at a time", minimum=1)
    frozen_norm: bool = option(True, "frozen BatchNorm, as in fine-tuning")
    repetitions: int = option(7, "how often each is timed", minimum=1)

    def run(self) -> int:
        """Measure all backbones, and print and write the costs."""
        import torch

        from ...models.detectors import ARCHITECTURES, create_detector
        from ..environment import environment
        from ..profile.costs import print_costs, profile
        from ..profile.detectors import detector_cost, random_objects, work_alike
        from ..tasks.evaluation import to_device

        size = (self.size[0], self.size[1])
        if len(set(self.backbones)) < len(self.backbones):
            raise InputError(f"each backbone can be named once, got {', '.join(self.backbones)}")
        require_folder_of("--json", self.json)
        options: dict[str, Any] = {"min_size": min(size), "max_size": max(size), "frozen_norm": self.frozen_norm}
        with self.on_device() as process:
            models: dict[str, torch.nn.Module] = {}
            for backbone in self.backbones:
                torch.manual_seed(0)
                models[backbone] = create_detector(
                    self.arch, backbone, self.num_classes, backbone_options=self.backbone_args, **options
                )
            sizes = {name: detector_cost(model, *size) for name, model in models.items()}
            for model in models.values():
                work_alike(model, size)
                model.to(process.device)
            targets = random_objects(size, self.batch_size, masks=ARCHITECTURES[self.arch].masks)
            images = list(torch.rand(self.batch_size, 3, *size))
            images, targets = to_device((images, targets), process.device)
            profiles = profile(models, sizes, images, self.repetitions, targets)
            measured = environment()
        print_costs(profiles)
        if self.json is not None:
            first, rows = profiles[0], {}
            for p in profiles:
                over, jobs = p.over(first), {"inference": ("forward", p.forward), "training step": ("step", p.step)}
                times = {job: {"seconds": t.median, "over_first": over[name]} for job, (name, t) in jobs.items() if t}
                rows[p.name] = {**asdict(sizes[p.name]), "kept_bytes": p.kept, **times}
            fields = ("arch", "size", "batch_size", "num_classes", "backbone_args", "frozen_norm", "repetitions")
            settings = {name: getattr(self, name) for name in fields}
            write_json(self.json, {"machine": measured, "settings": settings, "detectors": rows})
        return 0
