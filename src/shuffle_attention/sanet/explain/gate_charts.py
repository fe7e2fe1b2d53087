"""Charts of the gates of an image, its groups and the channel shuffles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...explain.gates import Gates, GroupScores, attention_layers, destinations
from ..charts import drawing, show_image

START = 1 / (1 + np.exp(-1.0))  # sigmoid(1), the initial value of every gate
_BINS = 50
_ROWS = 8  # largest number of layers in a chart of maps
_ROW_HEIGHT = 1.42  # inches
L = TypeVar("L")


def draw_gates(by_layer: Sequence[Gates], image: int, title: str, path: Path) -> None:
    """Draw the distribution of the gates of one image of the batch, with one column, a histogram, per layer."""
    with drawing(path, max(6.0, 2.2 + 0.34 * len(by_layer)), 6.2, title) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
        shown: Any = None
        for axes, name, values in (
            (upper, "channel gates: one per plane", [gates.of_channels()[image] for gates in by_layer]),
            (lower, "spatial gates: one per position", [gates.of_positions()[image] for gates in by_layer]),
        ):
            counts = np.stack([np.histogram(v.cpu().numpy(), _BINS, (0, 1))[0] / v.numel() for v in values], axis=1)
            extent = (-0.5, len(by_layer) - 0.5, 0, 1)
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
        lower.set_xticks(range(len(by_layer)), [gates.layer for gates in by_layer], rotation=90, fontsize=8)
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
    deviations = gates.of_positions()[image].flatten(1).std(1, unbiased=False)
    return [spatial[index] for index in deviations.topk(min(count, len(spatial))).indices.tolist()]


def draw_spatial_gates(
    by_layer: Sequence[Gates], image: int, pixels: Tensor, channels: Sequence[Sequence[int]], title: str, path: Path
) -> None:
    """Draw an image of the batch and the spatial gates of some channels, one row per layer.

    ``pixels`` are the image as the model sees it, (height, width, 3), and ``channels`` those to show of each layer.
    """
    columns = max(map(len, channels))
    with drawing(path, 1.25 * (columns + 1) + 0.9, _ROW_HEIGHT * len(by_layer) + 0.7, title) as figure:
        grid = figure.subplots(len(by_layer), columns + 1, squeeze=False)
        shown: Any = None
        for row, gates, chosen in zip(grid, by_layer, channels, strict=True):
            planes = gates.values[image, list(chosen)].cpu().numpy()
            rows, cols = planes.shape[1:]
            titles = [f"channel {channel}" for channel in chosen]
            shown = _draw_row(row, pixels, f"{gates.layer}\n{rows} x {cols}", planes, titles, vmin=0, vmax=1)
        bar = figure.colorbar(shown, ax=list(grid.flat), fraction=0.04, pad=0.02, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("spatial gate", fontsize=8)


def _draw_row(row: Sequence[Any], pixels: Tensor, label: str, maps: Any, titles: Sequence[str], **options: Any) -> Any:
    """Draw the image and then maps with their titles, hide the axes left over, and return the last map's image."""
    shown = show_image(row[0], pixels, interpolation="antialiased")
    row[0].set_ylabel(label, fontsize=7)
    for axes, values, title in zip(row[1:], maps, titles, strict=False):
        shown = show_image(axes, values, title, cmap="viridis", **options)
    for axes in row[1 + len(maps) :]:
        axes.set_visible(False)
    return shown


def spread_layers(layers: Sequence[L], most: int = _ROWS) -> list[L]:
    """Return at most ``most`` layers at even distances, the last one included."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(index * (len(layers) - 1) / (most - 1))] for index in range(most)]


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
    with drawing(path, 8, 0.8 + sum(0.55 + 0.24 * height for height in heights), title) as figure:
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
    by_layer: Sequence[GroupScores],
    whole: Sequence[float],
    names: Sequence[str],
    pixels: Tensor,
    title: str,
    path: Path,
    best: int = 6,
) -> None:
    """Draw the class scores under the masks of the groups, by depth, and the masks of the ``best`` highest scores.

    ``whole`` are the probabilities of the classes for the unmasked image, ``pixels`` the image as the model sees it,
    (height, width, 3).
    """
    layers = spread_layers(by_layer)
    height = _ROW_HEIGHT * len(layers)
    with drawing(path, max(7.5, 1.3 * (best + 1)), 3.4 + height, title) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[3.0, height])
        _draw_depth(upper.subplots(), by_layer, whole, names)
        lower.suptitle(f"masks under which {names[0]} is most probable", fontsize=9)
        for row, scores in zip(lower.subplots(len(layers), best + 1, squeeze=False), layers, strict=True):
            order = scores.probabilities[:, 0].argsort(descending=True).tolist()[:best]
            titles = [f"group {group}: {100 * scores.probabilities[group, 0]:.0f} %" for group in order]
            _draw_row(row, pixels, scores.layer, [scores.means[group].cpu() for group in order], titles)


def _draw_depth(axes: Any, by_layer: Sequence[GroupScores], whole: Sequence[float], names: Sequence[str]) -> None:
    for index, (name, probability) in enumerate(zip(names, whole, strict=True)):
        columns = [scores.probabilities[:, index].cpu().numpy() for scores in by_layer]
        quartiles = np.stack([np.quantile(column, [0.25, 0.5, 0.75]) for column in columns], axis=1)
        depth = np.arange(len(by_layer))
        axes.fill_between(depth, quartiles[0], quartiles[2], color=f"C{index}", alpha=0.2, lw=0)
        axes.plot(depth, quartiles[1], "o-", ms=3, color=f"C{index}", label=f"{name}, whole image {probability:.2f}")
        axes.plot(depth, [column.max() for column in columns], ":", lw=1, color=f"C{index}")
    axes.set_xticks(range(len(by_layer)), [scores.layer for scores in by_layer], rotation=90, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability under a group's mask", fontsize=8)
    axes.set_title("over the groups of a layer: median, quartiles, highest (dotted)", fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
