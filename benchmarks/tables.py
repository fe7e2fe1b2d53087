"""Writes the tables of the pages in docs/ from the figures in results/: ``python benchmarks/tables.py``.

A table stands between the comments ``<!-- NAME -->`` and ``<!-- end -->``; what is not there is not written.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timing import RESULTS

from shuffle_attention.attention import attention_names, get_spec
from shuffle_attention.explain.maps import TITLES
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.sanet.statistics import paired_difference

DOCS = Path(__file__).parents[1] / "docs"


def table(header: str, rows: list[list[object]], words: int = 2) -> str:
    """Return a table whose first ``words`` columns are words and the others numbers."""
    columns = header.split("|")
    lines = [columns, ["---"] * words + ["---:"] * (len(columns) - words), *rows]
    return "".join(f"| {' | '.join(str(cell).strip() for cell in line)} |\n" for line in lines)


def measured(name: str) -> tuple[Any, str]:
    """Return the rows of a file, and the sentence on when and where they were measured."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    return content["rows"], where(content["machine"], f"; medians of ratios, whose quartiles are in `{name}.json`")


def where(machine: dict[str, Any], more: str = "") -> str:
    """Return the sentence on when and where numbers were measured."""
    commit, _, changes = machine["commit"].partition("+")
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    load = "" if machine["load"] is None else f", load {machine['load']} at the end"
    return (
        f"\nMeasured with {threads} on {machine['cpu']} ({machine['instruction_set']}), PyTorch "
        f"{machine['torch']}, commit {commit[:7]}{' and changes' * bool(changes)}, {machine['date']}"
        f"{load}{more}.\n"
    )


def judged(value: float, target: float, digits: int = 2) -> str:
    """Return the number, set bold where it misses its target."""
    return f"{value:.{digits}f}" if value <= target else f"**{value:.{digits}f}**"


def layer() -> str:
    rows, said = measured("layer")
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
    return table(header, lines) + said


def call() -> str:
    rows, said = measured("call")
    lines = [
        [row["call"], row["layout"], row["one_image_us"], row["kernel_us"], judged(row["a_call_us"][0], 25, 1)]
        for row in rows
        if row["call"] != "clone"
    ]
    return table("call | layout | microseconds | of these the kernel | the call", lines) + said


def tail() -> str:
    rows, said = measured("tail")
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
    return table(header, lines) + said


def network() -> str:
    rows, said = measured("network")
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
    return table(header, lines) + said


def memory() -> str:
    rows, said = measured("memory")
    names = ("sa", "sa-modules", "se", "eca")
    lines = []
    for what in ("kept", "peak"):
        for row in rows:
            ratios = [row[f"{name}_{what}_over_plain"] for name in names]
            ours = judged(ratios[0], row["kept_target"], 3) if what == "kept" else f"{ratios[0]:.3f}"
            lines.append([what, row["layout"], ours, *(f"{ratio:.3f}" for ratio in ratios[1:])])
    return table("bytes | layout | fused | modules one by one | SE | ECA", lines) + said


def follow() -> str:
    content = json.loads((RESULTS / "follow.json").read_text())
    lines = []
    for row in content["rows"]:
        fused = (
            f"{row['fused']:.1e}"
            if row["target"] is None or row["fused"] <= row["target"]
            else f"**{row['fused']:.1e}**"
        )
        target = "" if row["target"] is None else f"{row['target']:.0e}"
        ends = f"{row['first_loss']:.2f} to {row['last_loss']:.3f}"
        lines.append([row["type"], f"{row['lr']:g}", ends, fused, target, f"{row['control']:.1e}"])
    return table("type | learning rate | loss | fused | target | control", lines, words=1) + where(content["machine"])


def costs() -> str:
    content = json.loads((RESULTS / "paper.json").read_text())
    published = {row["name"]: row["published"] for row in content["paper"]}
    lines = []
    for row in content["profiles"]:
        over, found = row["over_first"], published[row["name"]]
        line = [row["name"], f"{row['parameters'] / 1e6:.3f} M", f"{row['multiply_adds'] / 1e9:.3f} G"]
        for way in ("forward", "step"):
            line.append("{:.2f} [{:.2f}, {:.2f}]".format(*over[way]))
        top1 = found and found["top1"]
        lines.append([*line, f"{over['kept_bytes']:.3f}", f"{top1:.2f} %" if top1 else "-"])
    header = "network | parameters | multiply-adds | inference | training step | kept | top-1, published"
    return table(header, lines, words=1) + where(content["machine"])


def comparison(name: str) -> str:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    lines = []
    for row in content["variants"]:
        mean, over = row["mean"], row["difference"]
        line = [row["name"], f"{row['size']['parameters']:,}", f"{mean['mean']:.2f} %", f"{mean['deviation']:.2f}"]
        interval = "" if over is None else f"{over['low']:+.2f} to {over['high']:+.2f}"
        lines.append([*line, "" if over is None else f"{over['mean']:+.2f}", interval])
    header = f"attention | parameters | top-1 | deviation | over {content['baseline']} | 95 % interval"
    return table(header, lines, words=1) + where(content["machine"])


def cifar10() -> str:
    return comparison("cifar10")


def imagenette() -> str:
    return comparison("imagenette")


def full() -> str:
    return comparison("imagenette-full")


def finetune() -> str:
    content = json.loads((RESULTS / "finetune.json").read_text())
    curves = content["curves"]
    steps = [int(step) for step, _ in next(iter(curves.values()))]
    lines = []
    for row in content["variants"]:
        over = row["difference"]
        difference = "" if over is None else f"{over['mean']:+.2f} ({over['low']:+.2f} to {over['high']:+.2f})"
        lines.append([row["name"], *(f"{accuracy:.1f}" for _, accuracy in curves[row["name"]]), difference])
    header = " | ".join(["variant", "before", *(f"step {step}" for step in steps[1:]), "at the end, over none"])
    return table(header, lines, words=1) + where(content["machine"])


def nuclei() -> str:
    content = json.loads((RESULTS / "nuclei.json").read_text())
    names = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")
    lines = [
        [row["backbone"], row["seed"], *(f"{row['figures'][name]:.3f}" for name in names)] for row in content["rows"]
    ]
    return table("backbone | seed | box AP | AP50 | mask AP | AP50", lines) + where(content["machine"])


def twins() -> str:
    content = json.loads((RESULTS / "explain-twins.json").read_text())
    figures = ("probability", "deletion", "insertion", "drop", "increase")
    lines, found = [], []
    for pair in content["seeds"]:
        for row in pair["scores"]:
            line = [row["network"], pair["seed"]]
            line += [f"{row[name]['mean']:.3f} ± {row[name]['deviation']:.3f}" for name in figures[:3]]
            lines.append([*line, *(f"{row[name]['mean']:.1f} %" for name in figures[3:])])
        found.append([[row[name]["mean"] for name in figures] for row in pair["scores"]])
    line = ["difference", "all"]
    for number, digits in enumerate((3, 3, 3, 1, 1)):
        plain, attentive = ({seed: pair[n][number] for seed, pair in enumerate(found)} for n in (0, 1))
        over = paired_difference(attentive, plain)
        line.append(f"{over.mean:+.{digits}f} [{over.low:+.{digits}f}, {over.high:+.{digits}f}]")
    header = "network | seed | probability | deletion ↓ | insertion ↑ | drop ↓ | increase ↑"
    return table(header, [*lines, line], words=2) + explained(content)


def maps() -> str:
    content = json.loads((RESULTS / "explain-imagenette.json").read_text())
    lines = [
        [
            TITLES[row["method"]],
            row["layer"],
            " x ".join(map(str, row["places"])),
            *(f"{row[figure]['mean']:.3f}" for figure in ("deletion", "insertion")),
            *(f"{row[figure]['mean']:.1f} %" for figure in ("drop", "increase")),
        ]
        for row in content["maps"]
    ]
    return table("method | layer | places | deletion ↓ | insertion ↑ | drop ↓ | increase ↑", lines) + explained(content)


def gates() -> str:
    content = json.loads((RESULTS / "explain-imagenette.json").read_text())
    lines = [
        [
            f"`{row['layer']}`",
            *(f"{row[kind]['mean']:.3f} ± {row[kind]['deviation']:.3f}" for kind in ("channel_gates", "spatial_gates")),
        ]
        for row in content["gates"]
    ]
    return table("layer | channel gates | spatial gates", lines, words=1)


def models() -> str:
    lines = []
    for name in attention_names():
        line: list[object] = [f"`{name}`", f"`{resnet_with(name, 50)[0]}`"]
        for depth in (50, 101):
            counts = [parameters(attention, depth) for attention in (name, "none")]
            line += [f"{counts[0]:,}", f"{counts[0] - counts[1]:,}"]
        lines.append(line)
    return table("attention | model | parameters, 50 layers | added | 101 layers | added", lines)


def parameters(attention: str, depth: int) -> int:
    """Return the number of parameters of the ResNet with an attention."""
    name, options = resnet_with(attention, depth)
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def layers() -> str:
    lines = []
    for spec in map(get_spec, attention_names()):
        source = f"{spec.source} ([{spec.arxiv}](https://arxiv.org/abs/{spec.arxiv}))" if spec.source else ""
        lines.append([f"`{spec.name}`", spec.parameters, spec.notes, source])
    return table("attention | parameters for C channels | settings | source", lines, words=4)


def explained(content: dict[str, Any]) -> str:
    """Return the sentence on when and where numbers were measured that do not depend on the machine's speed."""
    machine = content["machine"]
    versions = f"PyTorch {machine['torch']}, timm {machine['timm']} and torchcam {machine['torchcam']}"
    return f"\nFound with {versions} on {machine['cpu']}, commit {machine['commit'][:7]}, {machine['date']}.\n"


PAGES: dict[str, list[Callable[[], str]]] = {
    "kernels.md": [layer, call, tail, network, memory, follow],
    "results.md": [costs, cifar10, finetune, imagenette, full],
    "detection.md": [nuclei],
    "explain.md": [twins, maps, gates],
    "networks.md": [models, layers],
}


def written(path: Path) -> str:
    """Return a page with its tables as the files have them."""
    page = path.read_text()
    for make in PAGES[path.name]:
        page, found = re.subn(
            rf"(<!-- {make.__name__} -->\n).*?(<!-- end -->\n)",
            lambda marks, make=make: marks[1] + make() + marks[2],
            page,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f"{path.name} has {found} places for the table {make.__name__!r}, expected one")
    return page


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(written(DOCS / name))
        print(DOCS / name)
