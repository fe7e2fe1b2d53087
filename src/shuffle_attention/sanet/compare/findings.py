"""The results of a comparison: a table, and the same as JSON, CSV and charts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import write_csv, write_json
from ..charts import Circle, Curve, draw_accuracy, draw_steps
from ..console import console, table
from ..environment import environment
from ..profile.costs import Size
from ..statistics import PairedDifference, Summary, paired_difference, summary
from .comparison import Comparison


@dataclass(frozen=True)
class Finding:
    """The results of one variant, in percent of the validation images.

    Attributes:
        name: Name of the variant.
        size: Parameters and multiply-adds.
        top1: Accuracy after the last epoch, by seed.
        best: Accuracy of the best epoch, by seed; too high, since the epoch is chosen on the same images.
        mean: Summary of ``top1``; None if no run is finished.
        difference: Difference to the baseline, paired by seed; None for the baseline.
    """

    name: str
    size: Size
    top1: dict[int, float]
    best: dict[int, float]
    mean: Summary | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class FindingsTable:
    """Results as text.

    Attributes:
        columns: Heading of each column, of two lines; empty for the names.
        rows: The cells of each variant.
        note: Explanation below the table.
    """

    columns: list[str]
    rows: list[list[str]]
    note: str


def findings(comparison: Comparison, sizes: Mapping[str, Size]) -> list[Finding]:
    """Return the results of the finished runs of a comparison, in the order of its variants."""
    top1: dict[str, dict[int, float]] = {variant.name: {} for variant in comparison.variants}
    best: dict[str, dict[int, float]] = {variant.name: {} for variant in comparison.variants}
    for run in comparison.runs:
        if run.finished:
            accuracies = [row["val_top1"] for row in run.history(comparison.base.epochs)]
            top1[run.variant.name][run.seed] = accuracies[-1]
            best[run.variant.name][run.seed] = max(accuracies)
    baseline = comparison.variants[0].name
    return [
        Finding(
            name,
            sizes[name],
            scores,
            best[name],
            summary(scores),
            None if name == baseline else paired_difference(scores, top1[baseline]),
        )
        for name, scores in top1.items()
    ]


def findings_table(results: list[Finding], seeds: int) -> FindingsTable:
    """Return the table, with a column for the number of runs if some are not finished."""
    incomplete = any(len(finding.top1) < seeds for finding in results)
    columns = ["", "params\nM", "\nGFLOPs", "top-1\n%", "\nstd", f"over\n{results[0].name}", "95 %\ninterval"]
    rows = []
    for finding in results:
        size = f"{finding.size.parameters / 1e6:.3f}", f"{finding.size.multiply_adds / 1e9:.3f}"
        mean, difference = finding.mean, finding.difference
        accuracy = ("-", "-") if mean is None else (f"{mean.mean:.2f}", _or_dash(mean.deviation))
        over = ("", "") if difference is None else (f"{difference.mean:+.2f}", _interval(difference))
        runs = [f"{len(finding.top1)}/{seeds}"] if incomplete else []
        rows.append([finding.name, *size, *accuracy, *over, *runs])
    each = "" if incomplete else f"{seeds} seed{'s' if seeds > 1 else ''} each; "
    note = (
        f"{each}top-1 after the last epoch; differences are paired by seed, with Student's interval over seeds. "
        "An interval that contains 0 shows no difference."
    )
    return FindingsTable([*columns, *(["\nruns"] if incomplete else [])], rows, note)


def print_findings(results: list[Finding], seeds: int) -> None:
    """Print the table."""
    content = findings_table(results, seeds)
    shown = table(content.columns)
    for row in content.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(content.note)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(difference: PairedDifference) -> str:
    if difference.low is None or difference.high is None:
        return "not defined"
    return f"[{difference.low:+.2f}, {difference.high:+.2f}]"


def write_findings(comparison: Comparison, results: list[Finding], failed: Mapping[str, str]) -> list[Path]:
    """Write ``comparison.json``, ``comparison.csv`` and charts, each completely or not at all, and return their paths.

    ``comparison.png`` needs a finished run, ``curves.png`` evaluations within the epochs.
    """
    base = comparison.base
    content: dict[str, Any] = {
        "baseline": results[0].name,
        "data": base.data,
        "recipe": comparison.shared_fields(),
        "seeds": comparison.seeds,
        "figure": "top-1 in percent of the validation images after the last epoch",
        "variants": [asdict(finding) for finding in results],
        "curves": _curves(comparison),
        "failed": dict(failed),
        "trained_on": trained_on(comparison),
        "machine": environment(),
    }
    folder = comparison.folder
    written = [folder / "comparison.json", folder / "comparison.csv"]
    write_json(written[0], content)
    write_csv(written[1], _rows(results), _COLUMNS)
    if curves := content["curves"]:
        written.append(folder / "curves.png")
        attached = {variant.name: variant.attach for variant in comparison.variants}
        lines = [
            Curve(name, points, attached[name].get("name", name), dashed=attached[name].get("preserve") is False)
            for name, points in curves.items()
        ]
        draw_steps(lines, f"{Path(base.data).name}, mean over the seeds of each", written[-1])
    circles = [
        Circle(f.name, f.size.parameters / 1e6, f.size.multiply_adds / 1e9, f.mean.mean, f.mean.deviation)
        for f in results
        if f.mean is not None
    ]
    if circles:
        written.append(folder / "comparison.png")
        epochs = f"{base.epochs} epoch{'s' if base.epochs > 1 else ''}"
        title = f"{Path(base.data).name}, {epochs}, {_runs_in_words(results)}"
        draw_accuracy(circles, title, written[-1])
    return written


def trained_on(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the distinct environments of the finished runs: machine, software and commit."""
    records = []
    for run in comparison.runs:
        if run.finished and (record := run.files.record()) not in records:
            records.append(record)
    return records


def _runs_in_words(results: list[Finding]) -> str:
    counts = sorted({len(finding.top1) for finding in results} - {0})
    if counts[-1] == 1:
        return "one seed each"
    return f"mean and standard deviation of {' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} seeds"


def _curves(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Return the mean accuracy of each variant at the steps at which all its finished runs were evaluated."""
    curves = {}
    for variant in comparison.variants:
        runs = [run.curve() for run in comparison.runs if run.variant == variant and run.finished]
        by_step = [{row["step"]: row["val_top1"] for row in rows} for rows in runs if rows]
        shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
        if shared:
            curves[variant.name] = [(step, sum(run[step] for run in by_step) / len(by_step)) for step in shared]
    return curves


_COLUMNS = ("variant", "seed", "top1", "best_top1", "over_baseline", "parameters", "multiply_adds")


def _rows(results: list[Finding]) -> list[dict[str, Any]]:
    """Return the rows of ``comparison.csv``, one per finished run."""
    return [
        {
            "variant": finding.name,
            "seed": seed,
            "top1": accuracy,
            "best_top1": finding.best[seed],
            "over_baseline": finding.difference.by_seed.get(seed, "") if finding.difference else "",
            "parameters": finding.size.parameters,
            "multiply_adds": finding.size.multiply_adds,
        }
        for finding in results
        for seed, accuracy in finding.top1.items()
    ]
