"""Draw docs/images/kernels.png from the files in results/: ``python benchmarks/picture.py``."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tables import at_batch_32
from timing import FORMATS, RESULTS, SETS, read

OUTPUT = RESULTS.parents[1] / "docs/images/kernels.png"
FLOOR = "#444444"
# Label, ratio and colour of the bars; those of models name the benchmark and the ratio in its file.
LAYER = [
    ("kernels", "{way}", "#1f6fb4"),
    ("torch.compile of the reference", "compiled {way}", "#9cc4e4"),
    ("reference", "reference {way}", "#c9c9c9"),
]
MODELS = [
    ("SA", "figures", "SA / plain", "#1f6fb4"),
    ("SA rewritten / plain rewritten", "figures", "SA rewritten / plain rewritten", "#3f9b6c"),
    ("torchvision attached / torchvision", "figures", "torchvision attached / plain", "#8f6fb4"),
    ("SA by modules", "network", "sa by modules / plain", "#9cc4e4"),
    ("SE", "network", "se / plain", "#c9c9c9"),
    ("ECA", "network", "eca / plain", "#e3e3e3"),
]


def draw_bars(ax, series: list[tuple[str, str, list[float | None]]], base: float, digits: int) -> None:
    """Draw a group of bars per position, each from ``base`` up or down, with its value; None leaves a gap."""
    width = 0.86 / len(series)
    for i, (label, colour, heights) in enumerate(series):
        bars = [(x + (i - (len(series) - 1) / 2) * width, height) for x, height in enumerate(heights) if height]
        at, tops = [x for x, _ in bars], [height for _, height in bars]
        ax.bar(at, [height - base for height in tops], width, bottom=base, color=colour, label=label)
        for x, height in bars:
            ax.annotate(f"{height:.{digits}f}", (x, max(height, base)), ha="center", va="bottom", fontsize=5.5)


def draw_layer(ax, way: str, title: str) -> None:
    """Draw the layer at batch 32 over the copy of its map; the axis is logarithmic, for the reference."""
    sections = {name: at_batch_32(section["rows"]) for name, section in read("layer").items()}
    best = next(iter(sections.values()))
    series = []
    for name, rows in sections.items():
        bars = LAYER if rows is best else [("kernels, {set}", "{way}", "#0d3b63")]
        for label, ratio, colour in bars:
            heights = [row["ratios"].get(ratio.format(way=way), [None])[0] for row in rows.values()]
            series.append((label.format(set=SETS.get(name, name)), colour, heights))
    draw_bars(ax, series, 0, 1)
    floor = 1 if way == "forward" else 2.5
    ax.axhline(floor, color=FLOOR, linewidth=1, linestyle="--", label=f"bytes alone: {floor:g}")
    ax.set_yscale("log")
    ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_ylim(0.7, 150)
    ax.set_xticks(range(len(best)), [name.split(" x ")[1] for name, _ in best])
    for i, layout in enumerate(FORMATS):
        ax.text((i + 0.5) / len(FORMATS), -0.11, layout, transform=ax.transAxes, ha="center", va="top", fontsize=9)
    ax.set_title(title, fontsize=10, loc="left")


def draw_models(ax, job: str) -> None:
    """Draw models at batch 8 over their baselines, for each layout and instruction set."""
    groups = [(layout, name) for name in read("figures") | read("network") for layout in FORMATS]
    series = []
    for label, benchmark, what, colour in MODELS:
        medians = {}
        for name, section in read(benchmark).items():
            for row in section["rows"]:
                if (row["what"], row["job"], row["batch"]) == (what, job, 8):
                    medians[row["layout"], name] = row["ratio"][0]
        if medians:
            series.append((label, colour, [medians.get(group) for group in groups]))
    draw_bars(ax, series, 1, 2)
    ax.axhline(1, color=FLOOR, linewidth=1)
    ax.set_ylim(0.8, 1.3)
    ax.set_xticks(range(len(groups)), [f"{layout}\n{SETS.get(name, name)}" for layout, name in groups], fontsize=7)
    ax.set_title(f"Models, {job}, batch 8: time over the plain one", fontsize=10, loc="left")


def main() -> None:
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white", "axes.spines.top": False})
    plt.rcParams["axes.spines.right"] = False
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4))
    draw_layer(axes[0, 0], "forward", "Layer forward, batch 32: time over a copy of its map")
    draw_layer(axes[0, 1], "both ways", "Layer forward and backward: over the same copy")
    draw_models(axes[1, 0], "inference")
    draw_models(axes[1, 1], "training step")
    for row in (0, 1):
        axes[row, 0].legend(fontsize=7, ncols=2, loc="upper left", frameon=False)
    figure.tight_layout(h_pad=2)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT, dpi=150)
    print(OUTPUT)


if __name__ == "__main__":
    main()
