"""Costs of models and detectors as tables and charts, and the paper's table 1 with the published numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ...models.attention_resnet import resnet_with
from ..charts import draw_bars
from ..console import console, table
from ..timing import Times
from .costs import Profile, Size, size_of
from .detectors import Cost
from .published import Published, notes, published, sources


def print_costs(profiles: Sequence[Profile]) -> None:
    """Print the costs of models, and their ratios to the first of them."""
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


def compare_with_paper(groups: Sequence[Sequence[Any]]) -> list[tuple[str, Size, Published | None]]:
    """Return the size of each model at 224 pixels, as published sizes are counted, and the published numbers."""
    rows = []
    for attention, depth in (which for group in groups for which in group):
        name, options = resnet_with(attention, depth)
        with torch.device("meta"):
            network = timm.create_model(name, **options)
        rows.append((name, size_of(network, 3, 224), published(attention, depth)))
    return rows


def print_published(compared: list[tuple[str, Size, Published | None]]) -> None:
    """Print measured beside published numbers, with a note on each difference."""
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


def draw_costs(tables: list[list[Profile]], title: str, path: Path) -> None:
    """Draw the ratios of costs to those of the first model of each table, as PNG."""
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


def print_detector_costs(costs: dict[str, Cost], times: dict[str, dict[str, Times]]) -> None:
    """Print the costs of detectors, and the ratios of their times to those of the first."""
    first = next(iter(costs))
    sizes = table(("", "parameters", "GFLOPs", *times))
    ratios = table(("", *times), title=f"over {first}, with quartiles")
    for name, cost in costs.items():
        milliseconds = [f"{1e3 * each[name].median:,.0f} ms" for each in times.values()]
        sizes.add_row(name, f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", *milliseconds)
        over = ["{:.3f} [{:.3f}, {:.3f}]".format(*each[name].over(each[first])) for each in times.values()]
        ratios.add_row(name, *over)
    console.print(sizes)
    if len(costs) > 1:
        console.print(ratios)
