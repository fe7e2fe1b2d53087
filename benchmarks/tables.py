"""Write the tables of README and docs from the files in results/: ``python benchmarks/tables.py``.

A table stands between the comments ``<!-- NAME -->`` and ``<!-- end -->``; nothing else of a page is changed.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timing import FORMATS, RESULTS, SETS, Row, read

from shuffle_attention.attention import attention_names, get_spec
from shuffle_attention.explain.maps import TITLES
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.sanet.statistics import detectable, paired_difference, seeds_needed, simultaneous
from shuffle_attention.sanet.training.gate_activity import by_layer, constant_layers

ROOT = Path(__file__).parents[1]
Rows = Callable[[str], list[Row]]  # the rows of a benchmark by its name, for one instruction set


def table(header: str, rows: list[list[object]], words: int = 2) -> str:
    """Return a table whose first ``words`` columns are words and the others numbers."""
    columns = header.split("|")
    lines = [columns, ["---"] * words + ["---:"] * (len(columns) - words), *rows]
    return "".join(f"| {' | '.join(str(cell).strip() for cell in line)} |\n" for line in lines)


def content(name: str) -> Any:
    """Return the content of a file of results that does not depend on the instruction set."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def where(machine: Row, quartiles: str = "") -> str:
    """Return the sentence on when and where numbers were measured."""
    commit, _, changes = machine["commit"].partition("+")
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    load = "" if machine["load"] is None else f", load {machine['load']} at the end"
    return (
        f"\nMeasured with {threads} on {machine['cpu']} ({machine['instruction_set']}), PyTorch "
        f"{machine['torch']}, commit {commit[:7]}{' and changes' * bool(changes)}, {machine['date']}"
        f"{load}{quartiles}.\n"
    )


def per_set(name: str, header: str, lines_of: Callable[[Rows], list[list[str]]], words: int) -> str:
    """Return the table of a benchmark with the numbers of all instruction sets in each cell.

    Args:
        name: Name of the results.
        header: Titles of the columns.
        lines_of: Returns the cells of the table for one instruction set.
        words: Number of columns of words, which tell lines apart.
    """
    cells: dict[tuple[str, ...], list[list[str]]] = {}
    for chosen in read(name):
        for line in lines_of(lambda name, chosen=chosen: read(name).get(chosen, {"rows": []})["rows"]):
            cells.setdefault(tuple(line[:words]), []).append(line[words:])
    lines = [[*key, *map(both, zip(*each, strict=True))] for key, each in cells.items()]
    machines = [section["machine"] for section in read(name).values()]
    quartiles = f"; medians of ratios, whose quartiles are in `{name}.json`"
    return table(header, lines, words) + "".join(where(machine, quartiles) for machine in machines)


def both(cells: Iterable[str]) -> str:
    """Return one cell for the numbers of all instruction sets."""
    cells = list(cells)
    return cells[0] if len(set(cells)) == 1 else " / ".join(cell or "-" for cell in cells)


def judged(value: float, target: float | None, form: str = ".2f") -> str:
    """Return the number, set bold where it misses its target."""
    return f"{value:{form}}" if target is None or value <= target else f"**{value:{form}}**"


def ratios(row: Row | None, *names: str) -> list[str]:
    """Return the medians of some ratios as cells, which are empty for what was not measured."""
    found = row or {"ratios": {}}
    return [
        judged(found["ratios"][name][0], found["targets"].get(name)) if name in found["ratios"] else ""
        for name in names
    ]


def grouped(rows: list[Row], *names: str, by: str = "layout") -> list[tuple[list[str], dict[str, Row]]]:
    """Return the rows with the same values of some fields, each group as these values and its rows by another field."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in names), {})[row[by]] = row
    return [([*key], group) for key, group in groups.items()]


def over(row: Row | None) -> str:
    """Return the ratio of a row of figures.py as a cell."""
    return "" if row is None else judged(row["ratio"][0], row["target"], ".3f")


def figures() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for key, group in grouped(rows("figures"), "job", "what", "batch"):
            target = next(iter(group.values()))["target"]
            lines.append(
                [*key, "" if target is None else f"{target:.2f}", *(over(group.get(each)) for each in FORMATS)]
            )
        return lines

    return per_set("figures", "job | ratio | batch | at most | NCHW | channels_last", lines_of, 4)


def summary() -> str:
    """Return the table of README: the ratios of whole models, each with its range over the layouts."""
    sections = {SETS.get(name, name): section["rows"] for name, section in read("figures").items()}
    spans: dict[tuple[str, ...], dict[str, str]] = {}
    for name, rows in sections.items():
        for (job, what, batch), group in grouped(rows, "job", "what", "batch"):
            medians = sorted(f"{row['ratio'][0]:.2f}" for row in group.values())
            if job != "block end":
                cell = medians[0] if medians[0] == medians[-1] else f"{medians[0]} to {medians[-1]}"
                spans.setdefault((what, f"{job}, batch {batch}"), {})[name] = cell
    lines: list[list[object]] = [[*key, *(cells.get(name, "-") for name in sections)] for key, cells in spans.items()]
    return table(" | ".join(["ratio", "of", *sections]), lines)


def network() -> str:
    names = [f"{name} / plain" for name in ("sa", "sa by modules", "se", "eca")]

    def lines_of(rows: Rows) -> list[list[str]]:
        groups = grouped(rows("network"), "job", "layout", "batch", by="what")
        return [[*key, *(over(group.get(name)) for name in names)] for key, group in groups]

    return per_set("network", "job | layout | batch | SA | SA by modules | SE | ECA", lines_of, 3)


def at_batch_32(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(f"{row['channels']} x {row['size']}²", row["layout"]): row for row in rows if row["batch"] == 32}


def layer() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        half, lines = at_batch_32(rows("layer_bfloat16")), []
        for key, row in at_batch_32(rows("layer")).items():
            line = [*key]
            for way in ("forward", "both ways"):
                line += [f"{row['targets'][way]:g}", *ratios(row, way), *ratios(half.get(key), way)]
                line += ratios(row, f"reference {way}", f"compiled {way}")
            lines.append(line)
        return lines

    ways = [f"{way}, at most | {way} | bfloat16 | reference | compiled" for way in ("forward", "both ways")]
    return per_set("layer", " | ".join(["map at batch 32 | layout", *ways]), lines_of, 2)


def call() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for row in rows("call"):
            if row["call"] != "clone":
                line = [row["call"], row["layout"], f"{row['one_image_us']:.0f}", f"{row['kernel_us']:.0f}"]
                lines.append([*line, judged(row["a_call_us"][0], row["target"], ".0f")])
        return lines

    return per_set("call", "call | layout | microseconds | of these the kernel | the call", lines_of, 2)


def tail() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        kept = {tuple(key): row for key, row in keyed(rows("tail_memory_kept"))}
        lines = []
        for key, row in keyed(rows("tail")):
            line = [*key, *ratios(row, "fused evaluation", "fused forward", "fused both ways")]
            line += ratios(kept.get(tuple(key)), "fused both ways")
            lines.append([*line, *ratios(row, "modules evaluation", "modules forward", "modules both ways")])
        return lines

    def keyed(rows: list[Row]) -> list[tuple[list[str], Row]]:
        return [([f"{row['channels']} x {row['size']}²", row["layout"], str(row["batch"])], row) for row in rows]

    header = "map | layout | batch | evaluation | forward | both ways | pages kept"
    return per_set("tail", f"{header} | modules: evaluation | forward | both ways", lines_of, 3)


def memory() -> str:
    names = ("sa", "sa rebuild", "sa rebuild-all", "sa by modules", "se", "eca")
    targets = {("kept", "sa"): 1.0, ("kept", "sa rebuild"): 0.82}

    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for row in rows("memory"):
            mib, line = row["mib"], [row["bytes"], row["layout"]]
            for name in names:
                target = targets.get((row["bytes"], name))
                line.append(judged(mib[name] / mib["plain"], target, ".3f") if name in mib else "")
            lines.append(line)
        return lines

    header = "bytes | layout | SA | SA rebuild | SA rebuild-all | SA by modules | SE | ECA"
    return per_set("memory", header, lines_of, 2)


def follow() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for row in rows("follow"):
            line = [row["type"], f"{row['lr']:g}", f"{row['first_loss']:.2f} to {row['last_loss']:.3f}"]
            line += [judged(row["fused"], row["target"], ".1e"), f"{row['target']:.0e}" if row["target"] else ""]
            lines.append([*line, f"{row['control']:.1e}"])
        return lines

    return per_set("follow", "type | learning rate | loss | fused | target | control", lines_of, 2)


RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def deploy_times() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        return [
            [RUNTIMES[row["runtime"]], row["batch"], f"{row['targets']['sa']:.2f}", *ratios(row, "sa")]
            for row in rows("deploy")
            if "runtime" in row
        ]

    return per_set("deploy", "runtime | batch | at most | SA / plain", lines_of, 3)


def deploy_files() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for row in rows("deploy"):
            if "format" in row:
                line = [f"`{row['format']}`", row["model"], f"{row['bytes'] / 2**20:.1f} MB"]
                for name, form in (("difference", ".1e"), ("nodes", "d"), ("transposes", "d")):
                    value = row.get(name)
                    line.append("-" if value is None else judged(value, row["targets"].get(name), form))
                lines.append(line)
        return lines

    return per_set("deploy", "format | model | size | difference | nodes | transpositions", lines_of, 2)


def quantised() -> str:
    def lines_of(rows: Rows) -> list[list[str]]:
        lines = []
        for row in rows("quantise"):
            line = [RUNTIMES[row["runtime"]], row["quantiser"], f"`{row['model']}`"]
            if "top1" in row:
                line += [f"{row['top1'][name]:.2f} %" for name in ("float", "int8")]
                line += [judged(row["loss"], row["targets"]["loss"]), f"{row['loss_at_most']:.2f}"]
                line.append(f"{row['mcnemar_p']:.2g}")
            else:
                line += ["-"] * 5
            line.append(judged(row["size"], row["targets"]["size"]))
            lines.append([*line, *ratios(row, "batch 1", "batch 8")])
        return lines

    header = "runtime | quantiser | model | top-1, float | int8 | points lost | at most | p | size | batch 1 | batch 8"
    return per_set("quantise", header, lines_of, 3)


def costs() -> str:
    results = content("paper")
    published = {row["name"]: row["published"] for row in results["paper"]}
    lines = []
    for row in results["profiles"]:
        over, printed = row["over_first"], published[row["name"]]
        line = [row["name"], f"{row['parameters'] / 1e6:.3f} M", f"{row['multiply_adds'] / 1e9:.3f} G"]
        for way in ("forward", "step"):
            line.append("{:.2f} [{:.2f}, {:.2f}]".format(*over[way]))
        top1 = printed and printed["top1"]
        lines.append([*line, f"{over['kept_bytes']:.3f}", f"{top1:.2f} %" if top1 else "-"])
    header = "network | parameters | multiply-adds | inference | training step | kept | top-1, published"
    return table(header, lines, words=1) + where(results["machine"])


def compared(results: dict[str, Any]) -> list[dict[int, float]]:
    """Return the score by seed of the baseline and of what is compared with it, without nulls and controls."""
    apart = {(results.get(key) or {}).get(field) for key, field in (("chance", "null"), ("control", "name"))}
    rows = [row[results.get("score", "top1")] for row in results["variants"] if row["name"] not in apart]
    return [{int(seed): score for seed, score in row.items()} for row in rows]


def comparison(name: str) -> str:
    """Return the table of a comparison: a copy of its ``comparison.json`` in results/."""
    results = content(name)
    control, chance, together = results.get("control"), results.get("chance"), simultaneous(compared(results))
    assert together
    lines = []
    for row in results["variants"]:
        mean, over, at_cost = row["mean"], row["difference"], row.get("over_control")
        line = [row["name"], f"{row['size']['parameters']:,}", f"{mean['mean']:.2f} %", f"{mean['deviation']:.2f}"]
        line += difference(over)
        own = over is not None and row["name"] not in ((chance or {}).get("null"), (control or {}).get("name"))
        line.append(span(over["mean"] - together.half_width, over["mean"] + together.half_width) if own else "")
        if control:
            line += ["" if row["step"] is None else f"{row['step']:.2f}", " ".join(difference(at_cost)).strip()]
        lines.append(line)
    if chance:
        lines.append(["*chance*", "", "", "", *difference(chance["difference"]), *[""] * (3 if control else 1)])
    header = f"attention | parameters | top-1 | deviation | over {results['baseline']} | 95 % interval | all at once"
    if control:
        header += " | time of a step | over plain of that cost"
    return table(header, lines, words=1) + where(results["machine"])


def difference(over: dict[str, Any] | None) -> list[str]:
    """Return a difference and its interval as cells."""
    return ["", ""] if over is None else [f"{over['mean']:+.2f}", span(over["low"], over["high"])]


def span(low: float, high: float) -> str:
    return f"{low:+.2f} to {high:+.2f}"


def ten_seeds() -> str:
    return comparison("imagenette-ten-seeds")


def ten_seeds_plan() -> str:
    """Return what the seeds detect of each attention, by the deviation of its own difference."""
    comparison = content("imagenette-ten-seeds")
    lines = []
    for row in comparison["plan"]["rows"]:
        if not row["name"]:  # all of them, pooled
            continue
        spread, (seeds, least, most) = row["deviation"], row["seeds"]
        found = detectable(spread["value"], len(comparison["seeds"]))
        ranges = f"{spread['low']:.2f} to {spread['high']:.2f}", f"{seeds} ({least} to {most})"
        lines.append([row["name"], f"{spread['value']:.2f}", ranges[0], f"{found:.2f}", ranges[1]])
    header = "compared with none | deviation of the difference | 95 % range | detectable | seeds for 0.5 points"
    return table(header, lines, words=1)


def power() -> str:
    """Return what the seeds of each comparison can detect, and how many it would take."""
    lines = []
    for title, name in (
        ("Imagenette, ten epochs", "imagenette-ten-seeds"),
        ("Imagenette, one epoch", "imagenette"),
        ("Imagenette, full width, 20 epochs", "imagenette-full"),
        ("CIFAR-10, one epoch", "cifar10"),
    ):
        together, chance = simultaneous(compared(content(name))), content(name).get("chance")
        assert together
        spread, count = together.deviation, len(together.seeds)
        line = [title, count, f"{spread.value:.2f}", f"{spread.low:.2f} to {spread.high:.2f}"]
        line += [f"{chance['reach']:.2f}" if chance else "-", f"{detectable(spread.value, count):.2f}"]
        for effect in (1.0, 0.5):
            needed = [seeds_needed(effect, value) for value in (spread.value, spread.low, spread.high)]
            least, low, high = ("over 10,000" if seeds is None else str(seeds) for seeds in needed)
            line.append(f"{least} ({low} to {high})")
        lines.append(line)
    header = "comparison | seeds | deviation of a difference | 95 % range | chance reaches | detectable"
    return table(f"{header} | seeds for 1 point | seeds for 0.5 points", lines, words=1)


def cifar10() -> str:
    return comparison("cifar10")


def imagenette() -> str:
    return comparison("imagenette")


def full() -> str:
    return comparison("imagenette-full")


def finetune() -> str:
    results = content("finetune")
    curves = results["curves"]
    steps = [int(step) for step, _ in next(iter(curves.values()))]
    lines = []
    for row in results["variants"]:
        over = row["difference"]
        difference = "" if over is None else f"{over['mean']:+.2f} ({over['low']:+.2f} to {over['high']:+.2f})"
        lines.append([row["name"], *(f"{accuracy:.1f}" for _, accuracy in curves[row["name"]]), difference])
    header = " | ".join(["variant", "before", *(f"step {step}" for step in steps[1:]), "at the end, over none"])
    return table(header, lines, words=1) + where(results["machine"])


def finetune_seeds() -> str:
    return comparison("imagenette-finetune")


def attention_lr() -> str:
    """Return accuracy and activity of the gates for each factor of the learning rate."""
    results = content("attention_lr")
    runs: dict[float, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        runs.setdefault(run["factor"], []).append(run)
    together = simultaneous([{run["seed"]: run["top1"] for run in each} for each in runs.values()])
    assert together
    lines = []
    for factor, each in runs.items():
        top1, over = (results["factors"][f"{factor:g}"][name] for name in ("top1", "difference"))
        line = [f"{factor:g}", len(each), f"{top1['mean']:.2f} %", f"{top1['deviation']:.2f}"]
        if factor == next(iter(runs)):
            line += [""] * 3
        else:
            line += [*difference(over), span(over["mean"] - together.half_width, over["mean"] + together.half_width)]
        for name in ("gates_over_images", "gates_over_positions", "gates_from_start"):
            line.append(f"{sum(run[name] for run in each) / len(each):.3f}")
        constant = [len(constant_layers(run["layers"])) for run in each]
        lines.append([*line, f"{sum(constant) / len(constant):.1f} of {len(by_layer(each[0]['layers']))}"])
    header = "factor | seeds | top-1 | deviation | over factor 1 | 95 % interval | all at once"
    gates = "over images | over positions | from the start | constant"
    found = detectable(together.deviation.value, len(together.seeds))
    note = f"\nThese seeds detect a true difference of {found:.2f} points with 80 % power.\n"
    return table(f"{header} | {gates}", lines, words=1) + note + where(results)


def rank() -> str:
    """Return the trainings with attention at the best and at other positions, by seed."""
    results = content("rank")
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for row in results["rows"]:
        by_seed.setdefault(row["seed"], {})[row.get("variant", "ranking")] = row
    lines: list[list[object]] = []
    for seed, rows in by_seed.items():
        line: list[object] = [str(seed), *(", ".join(f"`{n}`" for n in rows[name]["where"]) for name in RANKED[:2])]
        for metric, form in (("val_top1", ".2f"), ("val_loss", ".4f")):
            line += [f"{rows[name][metric]:{form}}" for name in RANKED]
        lines.append(line)
    line = ["less those of random", "", ""]
    for metric, form in (("val_top1", "+.2f"), ("val_loss", "+.4f")):
        for name in RANKED:
            over = results["difference"][metric].get(name)
            line.append(f"{over['mean']:{form}} ({over['low']:{form}} to {over['high']:{form}})" if over else "")
    header = "seed | best three | three at random | top-1: best | random | none | loss: best | random | none"
    return table(header, [*lines, line], words=3) + where(results)


RANKED = ("best", "random", "none")


def nuclei_seeds() -> str:
    """Return the table of a comparison of detectors with a block of rows for each metric."""
    results = content("nuclei-seeds")
    lines = []
    for each in (results, *results["others"]):
        for row in each["variants"]:
            line = [each["score"].replace("_", " "), row["name"], len(row[each["score"]]), f"{row['mean']['mean']:.2f}"]
            line += [f"{row['mean']['deviation']:.2f}", *difference(row["difference"])]
            lines.append([*line, "" if row["simultaneous"] is None else span(*row["simultaneous"])])
        if each["chance"]:
            reach = f"reaches {each['chance']['reach']:.2f}"
            lines.append(["", "*chance*", "", "", "", *difference(each["chance"]["difference"]), reach])
    header = (
        f"metric | attention | seeds | mean, % | deviation | over {results['baseline']} | 95 % interval | all at once"
    )
    scores = {row["name"]: {int(seed): ap for seed, ap in row[results["score"]].items()} for row in results["variants"]}
    over = paired_difference(scores["shuffle"], scores["constant"])
    note = (
        f"\nBox AP of shuffle over constant: {over.mean:+.2f} ({over.low:+.2f} to {over.high:+.2f}). These seeds "
        f"detect a true difference of {results['detectable'][0]:.2f} points with 80 % power.\n"
    )
    return table(header, lines) + note + where(results["machine"])


def twins() -> str:
    results = content("explain-twins")
    metrics = ("probability", "deletion", "insertion", "drop", "increase")
    lines, means = [], []
    for pair in results["seeds"]:
        for row in pair["scores"]:
            line = [row["network"], pair["seed"]]
            line += [f"{row[name]['mean']:.3f} ± {row[name]['deviation']:.3f}" for name in metrics[:3]]
            lines.append([*line, *(f"{row[name]['mean']:.1f} %" for name in metrics[3:])])
        means.append([[row[name]["mean"] for name in metrics] for row in pair["scores"]])
    line = ["difference", "all"]
    for number, digits in enumerate((3, 3, 3, 1, 1)):
        plain, attentive = ({seed: pair[n][number] for seed, pair in enumerate(means)} for n in (0, 1))
        over = paired_difference(attentive, plain)
        line.append(f"{over.mean:+.{digits}f} [{over.low:+.{digits}f}, {over.high:+.{digits}f}]")
    header = "network | seed | probability | deletion ↓ | insertion ↑ | drop ↓ | increase ↑"
    return table(header, [*lines, line], words=2) + explained(results)


def maps() -> str:
    results = content("explain-imagenette")
    lines = [
        [
            TITLES[row["method"]],
            row["layer"],
            " x ".join(map(str, row["places"])),
            *(f"{row[name]['mean']:.3f}" for name in ("deletion", "insertion")),
            *(f"{row[name]['mean']:.1f} %" for name in ("drop", "increase")),
        ]
        for row in results["maps"]
    ]
    return table("method | layer | places | deletion ↓ | insertion ↑ | drop ↓ | increase ↑", lines) + explained(results)


def gates() -> str:
    results = content("explain-imagenette")
    lines = [
        [
            f"`{row['layer']}`",
            *(f"{row[kind]['mean']:.3f} ± {row[kind]['deviation']:.3f}" for kind in ("channel_gates", "spatial_gates")),
        ]
        for row in results["gates"]
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


def explained(results: dict[str, Any]) -> str:
    """Return the sentence on when and where numbers were measured that do not depend on the machine's speed."""
    machine = results["machine"]
    versions = f"PyTorch {machine['torch']}, timm {machine['timm']} and torchcam {machine['torchcam']}"
    return f"\nFound with {versions} on {machine['cpu']}, commit {machine['commit'][:7]}, {machine['date']}.\n"


PAGES: dict[str, list[Callable[[], str]]] = {
    "README.md": [summary],
    "docs/kernels.md": [figures, layer, call, tail, network, memory, follow],
    "docs/deploy.md": [quantised, deploy_times, deploy_files],
    "docs/results.md": [
        *(power, ten_seeds, ten_seeds_plan, attention_lr, finetune_seeds, rank),
        *(costs, cifar10, finetune, imagenette, full),
    ],
    "docs/detection.md": [nuclei_seeds],
    "docs/explain.md": [twins, maps, gates],
    "docs/networks.md": [models, layers],
}


def written(name: str) -> str:
    """Return a page with its tables as the files have them."""
    page = (ROOT / name).read_text()
    for make in PAGES[name]:
        page, count = re.subn(
            rf"(<!-- {make.__name__} -->\n).*?(<!-- end -->\n)",
            lambda marks, make=make: marks[1] + make() + marks[2],
            page,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f"{name} has {count} positions for the table {make.__name__!r}, expected one")
    return page


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(written(name))
        print(ROOT / name)
