"""Writes the tables of docs/kernels.md from the figures in results/: ``python benchmarks/tables.py``.

A table stands between the comments ``<!-- NAME -->`` and ``<!-- end -->``; what is not there is not written.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from timing import RESULTS

PAGE = Path(__file__).parents[1] / "docs/kernels.md"


def table(header: str, rows: list[list[object]], words: int = 2) -> str:
    """A table whose first ``words`` columns are words and the others figures."""
    columns = header.split("|")
    lines = [columns, ["---"] * words + ["---:"] * (len(columns) - words), *rows]
    return "".join(f"| {' | '.join(str(cell).strip() for cell in line)} |\n" for line in lines)


def measured(name: str) -> tuple[list[dict], str]:
    """The rows of a file, and the sentence on when and where they were measured."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    machine = content["machine"]
    commit, _, changes = machine["commit"].partition("+")
    where = (
        f"\nMeasured with {machine['threads']} threads on {machine['cpu']} ({machine['instruction_set']}), PyTorch "
        f"{machine['torch']}, commit {commit[:7]}{' and changes' * bool(changes)}, {machine['date']}, load "
        f"{machine['load']} at the end; medians of ratios, whose quartiles are in `{name}.json`.\n"
    )
    return content["rows"], where


def judged(value: float, target: float, digits: int = 2) -> str:
    """The figure, set bold where it misses its target."""
    return f"{value:.{digits}f}" if value <= target else f"**{value:.{digits}f}**"


def layer() -> str:
    rows, where = measured("layer")
    header = (
        "map at batch 32 | layout | forward | target | forward + backward | target | reference | both ways "
        "| compiled | both ways"
    )
    lines = []
    for row in rows:
        if row["batch"] != 32:
            continue
        line = [f"{row['channels']} x {row['size']}²", row["layout"]]
        for way in ("forward", "both_ways"):
            target = row[f"{way}_target"]
            line += [judged(row[f"{way}_over_clone"][0], target), f"{target:g}"]
        for what in ("reference", "compiled"):
            line += [f"{row[f'{what}_{way}_over_clone'][0]:.1f}" for way in ("forward", "both_ways")]
        lines.append(line)
    return table(header, lines) + where


def call() -> str:
    rows, where = measured("call")
    lines = [
        [row["call"], row["layout"], row["one_image_us"], row["kernel_us"], judged(row["a_call_us"][0], 25, 1)]
        for row in rows
        if row["call"] != "clone"
    ]
    return table("call | layout | microseconds | of these the kernel | the call", lines) + where


def tail() -> str:
    rows, where = measured("tail")
    header = (
        "map | layout | batch | fused, evaluation | forward | both ways | modules, evaluation | forward | both ways"
    )
    lines = []
    for row in rows:
        line = [f"{row['channels']} x {row['size']}²", row["layout"], row["batch"]]
        line.append(f"{row['fused_evaluation_over_plain'][0]:.2f}")
        line += [judged(row[f"fused_{way}_over_plain"][0], row[f"{way}_target"]) for way in ("forward", "both_ways")]
        line += [f"{row[f'modules_{way}_over_plain'][0]:.2f}" for way in ("evaluation", "forward", "both_ways")]
        lines.append(line)
    return table(header, lines) + where


def network() -> str:
    rows, where = measured("network")
    names = ("sa", "sa-modules", "se", "eca")
    header = "job | layout | batch | fused | modules one by one | SE | ECA | both compiled"
    compiled = {
        (row["job"], row["layout"], row["batch"]): judged(row["sa_over_plain"][0], row["target"], 3)
        for row in rows
        if row["compiled"]
    }
    lines = []
    for row in rows:
        if not row["compiled"]:
            ratios = [row[f"{name}_over_plain"][0] for name in names]
            line = [row["job"], row["layout"], row["batch"], judged(ratios[0], row["target"], 3)]
            line += [f"{ratio:.3f}" for ratio in ratios[1:]]
            lines.append([*line, compiled.get((row["job"], row["layout"], row["batch"]), "")])
    return table(header, lines) + where


def memory() -> str:
    rows, where = measured("memory")
    names = ("sa", "sa-modules", "se", "eca")
    lines = []
    for what in ("kept", "peak"):
        for row in rows:
            ratios = [row[f"{name}_{what}_over_plain"] for name in names]
            ours = judged(ratios[0], row["kept_target"], 3) if what == "kept" else f"{ratios[0]:.3f}"
            lines.append([what, row["layout"], ours, *(f"{ratio:.3f}" for ratio in ratios[1:])])
    return table("bytes | layout | fused | modules one by one | SE | ECA", lines) + where


TABLES: dict[str, Callable[[], str]] = {make.__name__: make for make in (layer, call, tail, network, memory)}


def written(page: str) -> str:
    """The page with its tables as the files have them."""
    for name, make in TABLES.items():
        page, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->\n)",
            lambda marks, make=make: marks[1] + make() + marks[2],
            page,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f"{PAGE.name} has {found} places for the table {name!r}, expected one")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    print(PAGE)
