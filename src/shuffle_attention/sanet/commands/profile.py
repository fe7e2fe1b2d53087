"""The command ``sanet profile``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError, asked_for
from ...files import require_folder_of, write_json
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from torch import nn

    from ..profile.costs import Profile

PAPER_DEPTHS = (50, 101)  # of table 1


@dataclass(kw_only=True)
class ProfileModels(Command):
    """Measure parameters, multiply-adds, time and memory of models, compared with the first of them."""

    name = "profile"
    summary = "measure the cost of models"

    models: list[str] = option([], "models of timm or of this package", positional=True, metavar="MODEL")
    paper: bool = option(False, "ResNet-50 and 101 with each attention layer, beside the published numbers")
    img_size: int = option(224, "side of the input, pixels", minimum=1)
    batch_size: int = option(8, "images at a time", minimum=1)
    layout: Literal["nchw", "nhwc"] = option("nchw", "memory format")
    device: str = option("auto", "cpu, cuda, mps, ...")
    threads: int | None = option(None, "threads of the CPU; by default PyTorch's choice", minimum=1)
    repetitions: int = option(9, "how often each is timed", minimum=1)
    json: str | None = option(None, "write the measurements to FILE", metavar="FILE")
    chart: str | None = option(None, "draw the ratios to FILE, as PNG", metavar="FILE", aliases=("--picture",))

    def run(self) -> int:
        """Measure all models, and print, write and draw the costs."""
        import torch

        from ...attention import attention_names
        from ..console import console
        from ..device import open_process
        from ..environment import environment
        from ..profile.costs import profile
        from ..profile.published import notes
        from ..profile.tables import compare_with_paper, draw_costs, print_costs, print_published

        models, paper, img_size, batch_size, layout = (
            self.models,
            self.paper,
            self.img_size,
            self.batch_size,
            self.layout,
        )
        layouts = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
        if bool(models) == paper:
            raise InputError("give the models to profile, or --paper for those of the paper's table 1")
        for flag, file in (("--json", self.json), ("--chart", self.chart)):
            require_folder_of(flag, file)
            if file is not None and Path(file).is_dir():
                raise InputError(f"{flag} {file}: that is a folder; name a file in it")
            if file is not None and not os.access(Path(file).resolve().parent, os.W_OK):
                raise InputError(f"{flag} {file}: {Path(file).parent} cannot be written to")
        if len(set(models)) < len(models):
            raise InputError(f"a model is named twice: {', '.join(models)}")
        threads_before = torch.get_num_threads()
        groups = [[(a, d) for a in attention_names()] for d in PAPER_DEPTHS] if paper else [list(models)]
        tables: list[list[Profile]] = []
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with open_process(self.device) as process:
                torch.manual_seed(0)
                images = torch.randn(batch_size, 3, img_size, img_size, device=process.device)
                images = images.contiguous(memory_format=layouts[layout])
                console.print(
                    f"{batch_size} images of {img_size} pixels, float32, {layout.upper()}, on {process.device}"
                    + (f" with {torch.get_num_threads()} threads" if process.device.type == "cpu" else "")
                )
                for group in groups:
                    networks = {}
                    for which in group:
                        label, network = _network(which)
                        networks[label] = process.to_device(network, channels_last=layout == "nhwc")
                    with asked_for(model=", ".join(networks), img_size=img_size, batch_size=batch_size):
                        tables.append(profile(networks, images, self.repetitions))
                    del networks
                    print_costs(tables[-1])
            console.print("GFLOPs: multiply-adds of convolutions and matrix products for one image, and no others")
            measured = environment()
            on_cpu = process.device.type == "cpu"
        finally:
            torch.set_num_threads(threads_before)
        compared = compare_with_paper(groups) if paper else []
        if paper:
            print_published(compared)
        if self.json is not None:
            content: dict[str, Any] = {
                "machine": measured,
                "settings": {
                    "img_size": img_size,
                    "batch_size": batch_size,
                    "layout": layout,
                    "repetitions": self.repetitions,
                },
                "profiles": [p.to_dict(table[0]) for table in tables for p in table],
            }
            if paper:
                content["paper"] = [
                    {"name": name, **asdict(size), "published": None if found is None else asdict(found)}
                    for name, size, found in compared
                ]
                content["notes"] = notes()
            write_json(self.json, content)
        if self.chart is not None:
            title = f"{batch_size} x {img_size} px, {layout.upper()}, {measured['cpu' if on_cpu else 'accelerator']}"
            draw_costs(tables, title, Path(self.chart))
        return 0


def _network(which: str | tuple[str, int]) -> tuple[str, nn.Module]:
    """Return the name and the model of a row, which a model's name or the paper's layer and depth stand for."""
    import timm

    from ...models.attention_resnet import resnet_with
    from ..network import create_network

    if isinstance(which, str):
        return which, create_network(Recipe(model=which), 1000)
    name, options = resnet_with(*which)
    return name, timm.create_model(name, **options)
