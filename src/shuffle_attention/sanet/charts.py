"""Charts of measurements, as PNG."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_write


@dataclass(frozen=True)
class Circle:
    """One model of :func:`draw_accuracy`: its label, position and size."""

    label: str
    millions: float
    gflops: float
    top1: float
    deviation: float | None


@dataclass(frozen=True)
class Curve:
    """One line of :func:`draw_steps`.

    Attributes:
        label: Name in the legend.
        points: Step and accuracy of each point.
        colour_of: Curves with the same value have the same colour.
        dashed: Whether the line is dashed.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour_of: str
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """One row of :func:`draw_differences`: a difference with its interval."""

    label: str
    mean: float
    low: float
    high: float


def new_figure(width: float, height: float) -> Any:
    """Return a figure of matplotlib, its sides in inches, that needs no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def drawing(path: Path, width: float, height: float, title: str = "") -> Iterator[Any]:
    """Yield a figure to draw on, its sides in inches, which is written to ``path`` as PNG when the block ends."""
    figure = new_figure(width, height)
    if title:
        figure.suptitle(title, fontsize=10)
    yield figure
    save(figure, path)


def show_image(axes: Any, pixels: Any, title: str = "", interpolation: str = "nearest", **options: Any) -> Any:
    """Show an image or a map without ticks, and return matplotlib's image."""
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=7, pad=2)
    return axes.imshow(np.asarray(pixels), interpolation=interpolation, **options)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG completely or not at all; names of files and classes are not parsed as mathematics."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings(), atomic_write(path) as file:
        warnings.filterwarnings("ignore", "Glyph")  # characters missing from the font become boxes
        figure.savefig(file, format="png", dpi=120)


def draw_bars(
    names: Sequence[str], baselines: Collection[str], panels: Mapping[str, Sequence[float]], title: str, path: Path
) -> None:
    """Draw bars of ratios to a baseline; ``panels`` has those of all names by title, ``baselines`` are grey."""
    with drawing(path, 2 + 2.1 * len(panels), 1.3 + 0.32 * len(names), title) as figure:
        for axes, (panel, ratios) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            axes.barh(range(len(names)), ratios, color=["0.6" if name in baselines else "C0" for name in names])
            axes.axvline(1, color="0.3", lw=0.8)
            axes.set_xlim(0, 1.3 * max(ratios))
            for row, ratio in enumerate(ratios):
                axes.text(ratio, row, f" {ratio:.3f}", va="center", fontsize=8)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(panel, fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].invert_yaxis()


def draw_accuracy(circles: Sequence[Circle], title: str, path: Path, score: str = "top-1, %") -> None:
    """Draw accuracy against parameters, with circles whose area is the multiply-adds, after figure 1 of the paper.

    Labels form a column beside the circles, in the order of accuracy, each with a line to its circle: models that
    differ in few parameters lie above one another. If all differ in less than two percent, each is a row instead.
    """
    if max(c.millions for c in circles) < 1.02 * min(c.millions for c in circles):
        _draw_rows(circles, title, path, score)
        return
    with drawing(path, 8, 5) as figure:
        axes = figure.add_subplot()
        largest = max(circle.gflops for circle in circles)
        for index, circle in enumerate(circles):
            colour = f"C{index % 10}"
            area = 700 * circle.gflops / largest
            axes.scatter(circle.millions, circle.top1, s=area, color=colour, alpha=0.4, lw=0)
            axes.errorbar(
                circle.millions, circle.top1, yerr=circle.deviation or None, fmt="o", ms=3, color=colour, capsize=3
            )
        bottom, top = _limits(circles)
        axes.set_ylim(bottom, top)
        smallest, widest = min(c.millions for c in circles), max(c.millions for c in circles)
        middle = (smallest + widest) / 2
        reach = 0.7 * (widest - smallest)
        axes.set_xlim(middle - reach, middle + reach)
        axes.ticklabel_format(axis="both", useOffset=False)
        axes.locator_params(axis="x", nbins=5)  # labels of three decimals must fit side by side
        wanted = [(circle.top1 - bottom) / (top - bottom) for circle in circles]
        for index, height in _spread(wanted, 0.065).items():
            circle = circles[index]
            axes.annotate(
                f"{circle.label}  {circle.top1:.2f} %, {_cost(circle)}",
                (circle.millions, circle.top1),
                (1.05, height),
                textcoords="axes fraction",
                va="center",
                fontsize=9,
                color=f"C{index % 10}",
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": f"C{index % 10}", "shrinkB": 3, "relpos": (0, 0.5)},
                annotation_clip=False,
            )
        _label(axes, "parameters, millions", score, title)


def _draw_rows(circles: Sequence[Circle], title: str, path: Path, score: str) -> None:
    """Draw accuracy and deviation of each model as a row, the first on top."""
    with drawing(path, 8, 1.2 + 0.45 * len(circles)) as figure:
        axes = figure.add_subplot()
        for row, circle in enumerate(circles):
            axes.errorbar(circle.top1, row, xerr=circle.deviation or None, fmt="o", color=f"C{row % 10}", capsize=4)
            axes.annotate(f"{circle.top1:.2f} %", (circle.top1, row), (0, 5), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(circles)), [f"{circle.label}\n{_cost(circle)}" for circle in circles], fontsize=8)
        axes.set_ylim(len(circles) - 0.4, -0.6)
        axes.set_xlim(*_limits(circles))
        _label(axes, score, "", title)


def draw_differences(bars: Sequence[Bar], reach: float | None, title: str, path: Path, score: str) -> None:
    """Draw differences to a baseline with their intervals, and as a band how far chance alone reaches from 0."""
    with drawing(path, 8, 1.5 + 0.45 * len(bars)) as figure:
        axes = figure.add_subplot()
        if reach is not None:
            axes.axvspan(-reach, reach, color="0.88", lw=0, label=f"chance alone, ±{reach:.2f}")
            figure.legend(loc="outside lower right", fontsize=8)
        axes.axvline(0, color="0.3", lw=0.8)
        for row, bar in enumerate(bars):
            ends = [[bar.mean - bar.low], [bar.high - bar.mean]]
            axes.errorbar(bar.mean, row, xerr=ends, fmt="o", color="C0", capsize=4)
            axes.annotate(f"{bar.mean:+.2f}", (bar.mean, row), (0, 5), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
        axes.set_ylim(len(bars) - 0.4, -0.7)
        _label(axes, score, "", title)


def _limits(circles: Sequence[Circle]) -> tuple[float, float]:
    """Return the ends of an axis of accuracy."""
    low = min(circle.top1 - (circle.deviation or 0) for circle in circles)
    high = max(circle.top1 + (circle.deviation or 0) for circle in circles)
    margin = max(0.2 * (high - low), 0.05)
    return low - margin, high + margin


def _cost(circle: Circle) -> str:
    return f"{circle.millions:.4g} M, {circle.gflops:.3g} G"


def draw_steps(curves: Sequence[Curve], title: str, path: Path, score: str = "top-1, %") -> None:
    """Draw accuracy over the steps of training, one line per curve."""
    colours: dict[str, str] = {}
    with drawing(path, 10, 5) as figure:
        axes = figure.add_subplot()
        for curve in curves:
            colour = colours.setdefault(curve.colour_of, f"C{len(colours) % 10}")
            steps, accuracies = zip(*curve.points, strict=True)
            axes.plot(steps, accuracies, "--" if curve.dashed else "-", marker=".", label=curve.label, color=colour)
        figure.legend(loc="outside right upper")  # beside the axes, since lines can be anywhere inside
        _label(axes, "optimiser steps", score, title)


def _label(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)


def _spread(wanted: Sequence[float], gap: float) -> dict[int, float]:
    """Return heights at least ``gap`` apart, near the wanted ones and with their mean."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    heights: dict[int, float] = {}
    for index in order:
        lowest = max(heights.values()) + gap if heights else wanted[index]
        heights[index] = max(wanted[index], lowest)
    shift = sum(heights[index] - wanted[index] for index in order) / max(1, len(order))
    return {index: height - shift for index, height in heights.items()}
