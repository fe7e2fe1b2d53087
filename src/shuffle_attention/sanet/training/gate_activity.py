"""Whether the attention does anything: how much its gates vary, measured after every epoch of a run."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import Any

from torch import nn

from ...errors import listed
from ...explain.gates import attention_layers, gate_activity
from ..charts import new_figure
from ..data.datasets import Samples
from ..device import Process
from ..tasks.evaluation import run_model
from ..tasks.task import Metric, Task

METRICS = (
    Metric("gates_over_images", "channel gates: deviation over images"),
    Metric("gates_over_positions", "spatial gates: deviation over positions"),
    Metric("gates_from_start", "all gates: distance from the start"),
)
# Gates that deviate by less, over images and over positions, do what a constant factor does.
CONSTANT = 0.01
# One hundredth of the training images costs about one hundredth of an epoch: these images are run forward only, block
# by block, and their gates are computed once more.
_SHARE, _LEAST, _MOST, _AT_A_TIME = 100, 8, 128, 16
_LEGEND = 16  # layers that a legend has room for


def measure_gates(task: Task, model: nn.Module, process: Process) -> dict[str, float]:
    """Return the metrics of each attention layer, named METRIC/LAYER, over some validation images.

    The images are the same every time. Neither the model nor the random state is changed, and every process computes
    the same. A model whose layers have no gates to show, and streams of images, have no such metrics.
    """
    if not attention_layers(model) or not isinstance(task.validation, Samples):
        return {}
    few = copy(task)
    few.recipe = task.recipe.replaced(workers=0)
    few.validation = task.validation.some(min(_MOST, max(_LEAST, len(task.training) // _SHARE)))
    alone = Process(process.device)
    batches = few.held_out(alone, min(_AT_A_TIME, len(few.validation)))
    options: dict[str, Any] = {"precision": task.recipe.precision, "channels_last": task.recipe.channels_last}
    layers = gate_activity(model, lambda: run_model(model, batches, alone, lambda *_: None, **options))
    each = {name: asdict(activity) for name, activity in layers.items()}
    return {f"{m.name}/{name}": values[m.name.removeprefix("gates_")] for m in METRICS for name, values in each.items()}


def by_layer(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics in a row of :func:`measure_gates` by layer and metric."""
    layers: dict[str, dict[str, float]] = {}
    for column, value in row.items():
        metric, _, layer = column.partition("/")
        if layer:
            layers.setdefault(layer, {})[metric] = value
    return layers


def means(row: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each metric over the layers, empty without any."""
    layers = by_layer(row).values()
    return {m.name: sum(values[m.name] for values in layers) / len(layers) for m in METRICS} if layers else {}


def constant_layers(row: Mapping[str, float]) -> list[str]:
    """Return the names of the layers whose gates vary neither over images nor over positions."""
    return [name for name, values in by_layer(row).items() if all(values[m.name] < CONSTANT for m in METRICS[:2])]


def verdict(row: Mapping[str, float]) -> str:
    """Return a sentence that says whether the attention attends."""
    layers, constant = by_layer(row), constant_layers(row)
    rule = f"over images and over positions they vary by less than {CONSTANT:g}"
    if len(constant) == len(layers):
        return (
            f"The gates of all {len(layers)} attention layers are constant: {rule}. The attention scales maps by fixed "
            f"factors, which a model without attention can do as well"
        )
    if constant:
        return (
            f"The gates of {len(constant)} of {len(layers)} attention layers are constant ({listed(constant)}): {rule}"
        )
    return f"The gates of all {len(layers)} attention layers vary over images or positions, by {CONSTANT:g} or more"


def gates_figure(rows: Sequence[Mapping[str, float]]) -> Any:
    """Return a figure with a panel per metric and a line per layer over the epochs, the first layers dark."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    layers = list(by_layer(rows[-1]))
    figure = new_figure(13, 4)
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for number, layer in enumerate(layers):
            values = [row.get(f"{metric.name}/{layer}", float("nan")) for row in rows]
            ends = number in (0, len(layers) - 1) or len(layers) <= _LEGEND
            colour = colormaps["viridis"](0.9 * number / max(1, len(layers) - 1))
            axes.plot(
                [row["epoch"] for row in rows], values, "-", marker=".", color=colour, label=layer if ends else None
            )
        if metric in METRICS[:2]:
            axes.axhline(CONSTANT, color="0.5", lw=0.8, ls=":")
        axes.set_ylim(bottom=0)
        axes.set_title(metric.label, fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure
