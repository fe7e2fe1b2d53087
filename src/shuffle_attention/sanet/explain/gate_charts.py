"""Charts of the gates of an image, its groups and the channel shuffles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...explain.gates import Gates, GroupScores, attention_layers, destinations
from ..charts import drawing

START = 1 / (1 + np.exp(-1.0))  # sigmoid(1), the initial value of every gate
_BINS = 50
_ROWS = 8  # largest number of layers in a chart of maps


def draw_gates(found: Sequence[Gates], image: int, title: str, path: Path) -> None:
    """Draw the distribution of one image's gates, with one column, a histogram, per layer.

    Args:
        found: Gates of all layers.
        image: Index of the image in the batch.
        title: Title of the figure.
        path: PNG to write.
    """
    with drawing(path, figsize=(max(6.0, 2.2 + 0.34 * len(found)), 6.2)) as figure:
        figure.suptitle(title, fontsize=10)
        upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
        shown: Any = None
        for axes, name, values in (
            (upper, "channel gates: one per plane", [gates.of_channels()[image] for gates in found]),
            (lower, "spatial gates: one per position", [gates.of_places()[image] for gates in found]),
        ):
            counts = np.stack([np.histogram(v.cpu().numpy(), _BINS, (0, 1))[0] / v.numel() for v in values], axis=1)
            extent = (-0.5, len(found) - 0.5, 0, 1)
            # Most gates may lie in one bin; the square root makes the others visible.
            shown = axes.imshow(
                np.sqrt(counts), origin="lower", aspect="auto", extent=extent, cmap="Blues", vmin=0, vmax=1
            )
            axes.plot([v.mean().item() for v in values], "o-", color="C1", ms=3, lw=1, label="mean")
            axes.axhline(START, color="0.4", lw=0.8, ls="--", label="initial value: 0.731")
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_ylabel("gate", fontsize=9)
            axes.tick_params(labelsize=8)
        upper.legend(fontsize=7, loc="lower left")
        lower.set_xticks(range(len(found)), [gates.layer for gates in found], rotation=90, fontsize=8)
        bar = figure.colorbar(shown, ax=[upper, lower], fraction=0.04, pad=0.02, ticks=[0, 0.5, 1])
        bar.set_ticklabels(["0 %", "25 %", "100 %"], fontsize=8)
        bar.set_label("share of the layer's gates", fontsize=8)


def chosen_channels(gates: Gates, image: int, count: int, asked: Sequence[int] = ()) -> list[int]:
    """Return channels with spatial gates: the requested ones, or those whose gates vary most over one image.

    Raises:
        InputError: If a requested channel has no spatial gates; the message lists channels that have.
    """
    spatial = gates.spatial.nonzero().flatten().tolist()
    wrong = [channel for channel in asked if channel not in spatial]
    if wrong:
        n, there = len(gates.spatial) // (2 * gates.groups), len(gates.spatial)
        near = sorted(min(spatial, key=lambda other, channel=channel: abs(other - channel)) for channel in wrong)
        raise InputError(
            f"{gates.layer} has no spatial gates for the channels {', '.join(map(str, wrong))} of {there}; "
            f"it has them for the last {n} of every {2 * n}, such as {', '.join(map(str, near))}"
        )
    if asked:
        return list(asked)
    deviations = gates.of_places()[image].flatten(1).std(1, unbiased=False)
    return [spatial[index] for index in deviations.topk(min(count, len(spatial))).indices.tolist()]


def draw_spatial_gates(
    found: Sequence[Gates], image: int, pixels: Tensor, channels: Sequence[Sequence[int]], title: str, path: Path
) -> None:
    """Draw the spatial gates of some channels beside the image, one row per layer.

    Args:
        found: Gates of the layers to show.
        image: Index of the image in the batch.
        pixels: The image as the model sees it, (height, width, 3).
        channels: Channels to show of each layer.
        title: Title of the figure.
        path: PNG to write.
    """
    columns = max(map(len, channels))
    with drawing(path, figsize=(1.25 * (columns + 1) + 0.9, 1.42 * len(found) + 0.7)) as figure:
        figure.suptitle(title, fontsize=10)
        grid = figure.subplots(len(found), columns + 1, squeeze=False)
        shown: Any = None
        for row, gates, chosen in zip(grid, found, channels, strict=True):
            planes = gates.values[image, list(chosen)].cpu().numpy()
            row[0].imshow(np.asarray(pixels))
            rows, cols = planes.shape[1:]
            row[0].set_ylabel(f"{gates.layer}\n{rows} x {cols}", fontsize=7)
            for axes in row[1 + len(chosen) :]:
                axes.set_visible(False)
            for axes, channel, plane in zip(row[1:], chosen, planes, strict=False):
                shown = axes.imshow(plane, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(f"channel {channel}", fontsize=7, pad=2)
            for axes in row:
                axes.set_xticks([])
                axes.set_yticks([])
        bar = figure.colorbar(shown, ax=list(grid.flat), fraction=0.04, pad=0.02, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("spatial gate", fontsize=8)


def spread_layers(found: Sequence[Gates], most: int = _ROWS) -> list[Gates]:
    """Return at most ``most`` layers at even distances, the last one included."""
    if len(found) <= most:
        return list(found)
    return [found[round(index * (len(found) - 1) / (most - 1))] for index in range(most)]


def draw_shuffle(model: nn.Module, title: str, path: Path) -> None:
    """Draw the composition of the channel shuffles, one panel per sequence of layers of one width.

    The colour of a column is the index of its channel before the first layer. In the model, convolutions between two
    shuffles mix the channels; the panels show the shuffles alone.

    Raises:
        InputError: If the model has no shuffle attention.
    """
    runs = _runs(model)
    if not runs:
        raise InputError(f"{type(model).__name__} has no shuffle attention")
    heights = [1 + min(len(run), _ROWS) for run in runs]
    with drawing(path, figsize=(8, 0.8 + sum(0.55 + 0.24 * height for height in heights))) as figure:
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, run in zip(panels, runs, strict=True):
            channels = len(run[0][1])
            lines, labels = [np.arange(channels)], ["input"]
            for name, sent in run[:_ROWS]:
                line = np.empty(channels, dtype=int)
                line[sent.numpy()] = lines[-1]
                lines.append(line)
                labels.append(name)
            axes.imshow(np.stack(lines), cmap="turbo", aspect="auto", interpolation="nearest")
            axes.set_yticks(range(len(lines)), labels, fontsize=7)
            axes.set_xticks([0, channels // 2, channels - 1])
            axes.tick_params(axis="x", labelsize=7)
            more = f", the first {_ROWS} of {len(run)} layers" if len(run) > _ROWS else ""
            axes.set_title(f"{channels} channels{more}", fontsize=8, loc="left", pad=3)
        panels[-1].set_xlabel("channel after the layer; the colour is the channel of the input", fontsize=8)


def _runs(model: nn.Module) -> list[list[tuple[str, Tensor]]]:
    """Return sequences of layers of one width, each layer with the destinations of its channels."""
    runs: list[list[tuple[str, Tensor]]] = []
    for name, layer in attention_layers(model).items():
        if not runs or len(runs[-1][0][1]) != layer.channels:
            runs.append([])
        runs[-1].append((name, destinations(layer)))
    return runs


def draw_groups(
    found: Sequence[GroupScores],
    whole: Sequence[float],
    names: Sequence[str],
    pixels: Tensor,
    title: str,
    path: Path,
    best: int = 6,
) -> None:
    """Draw the class scores under the masks of the groups, by depth, and the masks of the highest scores.

    Args:
        found: Scores of each layer's groups.
        whole: Probability of each class for the unmasked image.
        names: Names of the classes.
        pixels: The image as the model sees it, (height, width, 3).
        title: Title of the figure.
        path: PNG to write.
        best: Number of masks to show per layer.
    """
    layers = [found[i] for i in sorted({round(i * (len(found) - 1) / (_ROWS - 1)) for i in range(_ROWS)})]
    with drawing(path, figsize=(max(7.5, 1.3 * (best + 1)), 3.4 + 1.42 * len(layers))) as figure:
        figure.suptitle(title, fontsize=10)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3.0, 1.42 * len(layers)])
        upper, lower = parts
        axes = upper.subplots()
        _draw_depth(axes, found, whole, names)
        grid = lower.subplots(len(layers), best + 1, squeeze=False)
        lower.suptitle(f"masks under which {names[0]} is most probable", fontsize=9)
        for row, scores in zip(grid, layers, strict=True):
            row[0].imshow(np.asarray(pixels))
            row[0].set_ylabel(scores.layer, fontsize=7)
            order = scores.probabilities[:, 0].argsort(descending=True).tolist()[:best]
            for cell in row[1 + len(order) :]:
                cell.set_visible(False)
            for cell, group in zip(row[1:], order, strict=False):
                cell.imshow(scores.means[group].cpu().numpy(), cmap="viridis", interpolation="nearest")
                cell.set_title(f"group {group}: {100 * scores.probabilities[group, 0]:.0f} %", fontsize=7, pad=2)
            for cell in row:
                cell.set_xticks([])
                cell.set_yticks([])


def _draw_depth(axes: Any, found: Sequence[GroupScores], whole: Sequence[float], names: Sequence[str]) -> None:
    for index, (name, probability) in enumerate(zip(names, whole, strict=True)):
        columns = [scores.probabilities[:, index].cpu().numpy() for scores in found]
        quartiles = np.stack([np.quantile(column, [0.25, 0.5, 0.75]) for column in columns], axis=1)
        places = np.arange(len(found))
        axes.fill_between(places, quartiles[0], quartiles[2], color=f"C{index}", alpha=0.2, lw=0)
        axes.plot(places, quartiles[1], "o-", ms=3, color=f"C{index}", label=f"{name}, whole image {probability:.2f}")
        axes.plot(places, [column.max() for column in columns], ":", lw=1, color=f"C{index}")
    axes.set_xticks(range(len(found)), [scores.layer for scores in found], rotation=90, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability under a group's mask", fontsize=8)
    axes.set_title("over the groups of a layer: median, quartiles, highest (dotted)", fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
