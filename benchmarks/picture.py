"""Draws docs/images/kernels.png from the figures in results/: ``python benchmarks/picture.py``."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from timing import RESULTS

OUTPUT = Path(__file__).parents[1] / "docs/images/kernels.png"
LAYOUTS = ("NCHW", "channels_last")
OURS, LIGHT, FLOOR, OTHER = "#1f6fb4", "#9cc4e4", "#444444", "#c9c9c9"
NAMES = {"sa": "SA, fused", "sa-modules": "SA, by modules", "se": "SE", "eca": "ECA"}


def rows(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def middle(value: list[float] | float) -> float:
    return value[0] if isinstance(value, list) else value


def draw_layer(ax, way: str, title: str) -> None:
    """Bars of the layer at batch 32 over the copy of its map; the axis is logarithmic, for the reference."""
    found = [row for row in rows("layer") if row["batch"] == 32]
    series = {"kernels": OURS, "torch.compile of the reference": LIGHT, "reference": OTHER}
    keys = {"kernels": way, "torch.compile of the reference": f"compiled_{way}", "reference": f"reference_{way}"}
    width = 0.8 / len(series)
    for i, (label, colour) in enumerate(series.items()):
        at = [x + (i - 1) * width for x in range(len(found))]
        heights = [middle(row.get(f"{keys[label]}_over_clone", 0)) for row in found]
        ax.bar(at, heights, width, color=colour, label=label)
        if label == "kernels":
            for x, height in zip(at, heights, strict=True):
                ax.annotate(f"{height:.1f}", (x, height), ha="center", va="bottom", fontsize=8, color=OURS)
    floor = 1 if way == "forward" else 2.5
    ax.axhline(floor, color=FLOOR, linewidth=1, linestyle="--", label=f"bytes alone: {floor:g}")
    ax.set_yscale("log")
    ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_ylim(0.7, 90)
    ax.set_xticks(range(len(found)), [f"{row['size']}²" for row in found])
    for i, layout in enumerate(LAYOUTS):
        ax.text(1.5 + 4 * i, 0.38, layout, ha="center", va="top", fontsize=9)
    ax.set_title(title, fontsize=10, loc="left")


def draw_networks(ax, job: str) -> None:
    """Bars of the networks at batch 8 over ResNet-50, from the line at 1 up or down."""
    found = [row for row in rows("network") if row["batch"] == 8 and row["job"] == job]
    plain = {row["layout"]: row for row in found if not row["compiled"]}
    compiled = {row["layout"]: row for row in found if row["compiled"]}
    colours = {"sa": OURS, "sa-modules": LIGHT, "se": OTHER, "eca": "#e3e3e3"}
    bars = [(NAMES[name], f"{name}_over_plain", plain, colour) for name, colour in colours.items()]
    bars.append(("SA, both compiled", "sa_over_plain", compiled, "#3f9b6c"))
    width = 0.8 / len(bars)
    for i, (label, key, source, colour) in enumerate(bars):
        at = [x + (i - (len(bars) - 1) / 2) * width for x in range(len(LAYOUTS))]
        heights = [middle(source[layout][key]) if key in source.get(layout, {}) else 1 for layout in LAYOUTS]
        ax.bar(at, [height - 1 for height in heights], width, bottom=1, color=colour, label=label)
        for x, height in zip(at, heights, strict=True):
            ax.annotate(f"{height:.2f}", (x, max(height, 1)), ha="center", va="bottom", fontsize=8)
    ax.axhline(1, color=FLOOR, linewidth=1, label="ResNet-50: 1")
    ax.set_ylim(0.9, 1.4)
    ax.set_xticks(range(len(LAYOUTS)), LAYOUTS)
    ax.set_title(f"Networks, {job}: time over ResNet-50", fontsize=10, loc="left")


def main() -> None:
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white", "axes.spines.top": False})
    plt.rcParams["axes.spines.right"] = False
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.8))
    draw_layer(axes[0, 0], "forward", "Layer forward, batch 32: time over a copy of its map")
    draw_layer(axes[0, 1], "both_ways", "Layer forward and backward: over the same copy")
    draw_networks(axes[1, 0], "inference")
    draw_networks(axes[1, 1], "training step")
    for row, columns in ((0, 2), (1, 3)):
        axes[row, 0].legend(fontsize=8, ncols=columns, loc="upper left", frameon=False)
    figure.tight_layout(h_pad=2)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT, dpi=150)
    print(OUTPUT)


if __name__ == "__main__":
    main()
