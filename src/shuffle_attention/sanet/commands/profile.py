"""The command ``sanet profile``: what networks cost, as tables, JSON and a picture."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ...attention import attention_names
from ...errors import InputError, asked_for
from ...files import require_folder_of, write_json
from ...models.attention_resnet import resnet_with
from ..charts import draw_bars
from ..console import console, table
from ..device import open_process
from ..environment import environment
from ..network import create_network
from ..profile.costs import Profile, Size, profile, size_of
from ..profile.published import Published, notes, published, sources
from ..recipes.recipe import Recipe

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PAPER_DEPTHS = (50, 101)  # of table 1


def profile_command(
    models: Sequence[str],
    *,
    paper: bool,
    img_size: int,
    batch_size: int,
    layout: str,
    device: str,
    threads: int | None,
    repetitions: int,
    json_file: str | None,
    picture: str | None,
) -> int:
    """Runs ``sanet profile`` and returns its exit code."""
    if bool(models) == paper:
        raise InputError("give the models to profile, or --paper for those of the paper's table 1")
    for name, value in (("img-size", img_size), ("batch-size", batch_size), ("repetitions", repetitions)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")
    for option, file in (("--json", json_file), ("--picture", picture)):
        require_folder_of(option, file)
        if file is not None and Path(file).is_dir():
            raise InputError(f"{option} {file}: that is a folder; name a file in it")
        if file is not None and not os.access(Path(file).resolve().parent, os.W_OK):
            raise InputError(f"{option} {file}: {Path(file).parent} cannot be written to")
    if len(set(models)) < len(models):
        raise InputError(f"a model is named twice: {', '.join(models)}")
    threads_before = torch.get_num_threads()
    groups = [[(a, d) for a in attention_names()] for d in PAPER_DEPTHS] if paper else [list(models)]
    tables: list[list[Profile]] = []
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with open_process(device) as process:
            torch.manual_seed(0)
            images = torch.randn(batch_size, 3, img_size, img_size, device=process.device)
            images = images.contiguous(memory_format=LAYOUTS[layout])
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
                    tables.append(profile(networks, images, repetitions))
                del networks
                print_costs(tables[-1])
        console.print("GFLOPs: multiply-adds of convolutions and matrix products for one image, and no others")
        measured = environment()
        on_cpu = process.device.type == "cpu"
    finally:
        torch.set_num_threads(threads_before)
    compared = _compared(groups) if paper else []
    if paper:
        _print_published(compared)
    if json_file is not None:
        content: dict[str, Any] = {
            "machine": measured,
            "settings": {"img_size": img_size, "batch_size": batch_size, "layout": layout, "repetitions": repetitions},
            "profiles": [p.to_dict(table[0]) for table in tables for p in table],
        }
        if paper:
            content["paper"] = [
                {"name": name, **asdict(size), "published": None if found is None else asdict(found)}
                for name, size, found in compared
            ]
            content["notes"] = notes()
        write_json(json_file, content)
    if picture is not None:
        title = f"{batch_size} x {img_size} px, {layout.upper()}, {measured['cpu' if on_cpu else 'accelerator']}"
        _draw(tables, title, Path(picture))
    return 0


def _network(which: str | tuple[str, int]) -> tuple[str, nn.Module]:
    """A network by its name, or of the paper's table; initialised alike, as far as that is timm's to choose."""
    if isinstance(which, str):
        return which, create_network(Recipe(model=which), 1000)
    name, options = resnet_with(*which)
    return name, timm.create_model(name, **options)


def print_costs(profiles: Sequence[Profile]) -> None:
    """Prints what networks cost, and the ratios to the first of them."""
    first = profiles[0]
    costs = table(("", "parameters", "GFLOPs", "forward", "training step", "kept"))
    for p in profiles:
        times = [f"{1e3 * t.median:,.1f} ms" for t in (p.forward, p.step)]
        gflops = f"{p.size.multiply_adds / 1e9:.3f}"
        costs.add_row(p.name, f"{p.size.parameters:,}", gflops, *times, f"{p.kept / 2**20:,.0f} MiB")
    console.print(costs)
    if len(profiles) > 1:
        columns = ("", "params", "GFLOPs", "forward", "training step", "kept")
        ratios = table(columns, title=f"over {first.name}, times with quartiles")
        for p in profiles[1:]:
            over = p.to_dict(first)["over_first"]
            counts = [f"{over[name]:.4f}" for name in ("parameters", "multiply_adds")]
            times = ["{:.2f} [{:.2f}, {:.2f}]".format(*over[name]) for name in ("forward", "step")]
            ratios.add_row(p.name, *counts, *times, f"{over['kept_bytes']:.3f}")
        console.print(ratios)


_Compared = list[tuple[str, Size, Published | None]]


def _compared(groups: Sequence[Sequence[Any]]) -> _Compared:
    """Each network of the table, counted at 224 pixels as the published ones are, whatever was timed."""
    rows = []
    for attention, depth in (which for group in groups for which in group):
        name, options = resnet_with(attention, depth)
        with torch.device("meta"):
            network = timm.create_model(name, **options)
        rows.append((name, size_of(network, 3, 224), published(attention, depth)))
    return rows


def _print_published(compared: _Compared) -> None:
    """Prints what is measured beside what is published, with every difference explained."""
    keys = {key: str(number) for number, key in enumerate(notes(), 1)}
    letters = {name: chr(ord("a") + number) for number, name in enumerate(sources())}
    paper = table(
        ("", "M", "publ.", "GFLOPs", "all", "publ.", "top-1", "top-5", "src", "notes"),
        text=("", "notes"),
        title="table 1 of the paper: here | published",
    )
    for name, size, found in compared:
        here = (
            f"{size.parameters / 1e6:.3f}",
            f"{size.multiply_adds / 1e9:.3f}",
            f"{size.with_pointwise / 1e9:.3f}",
        )
        if found is None:
            paper.add_row(name, here[0], "-", *here[1:], "-", "-", "-", "-", "")
            continue
        paper.add_row(
            name,
            here[0],
            _figure(found.millions, 2),
            *here[1:],
            _figure(found.gflops, 3),
            _figure(found.top1, 2),
            _figure(found.top5, 2),
            letters[found.source],
            ",".join(keys[note] for note in found.notes),
        )
    console.print(paper)
    console.print(
        "M: millions of parameters; all: GFLOPs with 2 for each value of a BatchNorm, 1 of a ReLU or max pooling"
    )
    for key, number in keys.items():
        console.print(f"{number}: {' '.join(notes()[key].split())}")
    for source, said in sources().items():
        console.print(f"{letters[source]}: {said}")
    console.print("-: no published figure that could be verified")


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _draw(tables: list[list[Profile]], title: str, path: Path) -> None:
    names, panels = [], {"parameters": [], "GFLOPs": [], "forward": [], "training step": [], "kept for backward": []}
    for profiles in tables:
        for p in profiles:
            over = p.to_dict(profiles[0])["over_first"]
            names.append(p.name)
            values = over["parameters"], over["multiply_adds"], over["forward"][0], over["step"][0], over["kept_bytes"]
            for panel, value in zip(panels.values(), values, strict=True):
                panel.append(value)
    baselines = [profiles[0].name for profiles in tables]
    draw_bars(names, baselines, panels, f"over {' and '.join(baselines)}: {title}", path)
