"""The results of a comparison: a table, and the same as JSON, CSV and charts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, counted
from ...files import write_csv, write_json
from ..charts import Circle, Curve, draw_accuracy, draw_steps
from ..console import console, table
from ..environment import environment
from ..profile.costs import Size
from ..statistics import PairedDifference, Summary, paired_difference, summary
from .comparison import Comparison


@dataclass(frozen=True)
class Finding:
    """The results of one variant, in percent.

    Attributes:
        name: Name of the variant.
        size: Parameters and multiply-adds.
        scores: Score after the last epoch, by seed.
        best: Score of the best epoch, by seed; too high, since the epoch is chosen on the same images.
        mean: Summary of ``scores``; None if no run is finished.
        difference: Difference to the baseline, paired by seed; None for the baseline.
    """

    name: str
    size: Size
    scores: dict[int, float]
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


def findings(comparison: Comparison) -> list[Finding]:
    """Return the results of the finished runs of a comparison, in the order of its variants.

    Raises:
        InputError: If no run has begun, or results cannot be read.
    """
    if not comparison.seeds:
        raise InputError(f"{comparison.folder} has no run yet")
    sizes = comparison.sizes()
    histories: dict[str, dict[int, list[float]]] = {variant.name: {} for variant in comparison.variants}
    for run in comparison.runs:
        if run.finished:
            histories[run.variant.name][run.seed] = run.scores(comparison.score, comparison.base.epochs)
    last = {name: {seed: scores[-1] for seed, scores in runs.items()} for name, runs in histories.items()}
    baseline = comparison.variants[0].name
    return [
        Finding(
            name,
            sizes[name],
            last[name],
            {seed: max(scores) for seed, scores in runs.items()},
            summary(last[name]),
            None if name == baseline else paired_difference(last[name], last[baseline]),
        )
        for name, runs in histories.items()
    ]


def findings_table(comparison: Comparison, results: list[Finding]) -> FindingsTable:
    """Return the table: without deviations and intervals if one seed is finished, with counts if runs are missing."""
    label, seeds = comparison.score.label, len(comparison.seeds)
    incomplete = any(len(finding.scores) < seeds for finding in results)
    several = any(len(finding.scores) > 1 for finding in results)
    baseline = results[0].name
    columns = ["", "params\nM", "\nGFLOPs", f"{label}\n%", "\nstd", f"over\n{baseline}", "95 %\ninterval", "\nruns"]
    shown = [True, True, True, True, several, True, several, incomplete]
    rows = []
    for finding in results:
        mean, difference = finding.mean, finding.difference
        row = [
            finding.name,
            f"{finding.size.parameters / 1e6:.3f}",
            f"{finding.size.multiply_adds / 1e9:.3f}",
            "-" if mean is None else f"{mean.mean:.2f}",
            "-" if mean is None or mean.deviation is None else f"{mean.deviation:.2f}",
            "" if difference is None else f"{difference.mean:+.2f}",
            "" if difference is None else _interval(difference),
            f"{len(finding.scores)}/{seeds}",
        ]
        rows.append([cell for cell, show in zip(row, shown, strict=True) if show])
    each = "" if incomplete else f"{counted(seeds, 'seed')} each; "
    note = f"{each}{label} after the last epoch. " + (
        "Differences are paired by seed, with Student's interval over the seeds. An interval that contains 0 shows no "
        "difference."
        if several
        else "One seed gives no interval: another seed may change any difference."
    )
    return FindingsTable([column for column, show in zip(columns, shown, strict=True) if show], rows, note)


def print_findings(comparison: Comparison, results: list[Finding]) -> None:
    """Print the table."""
    content = findings_table(comparison, results)
    shown = table(content.columns)
    for row in content.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(content.note)


def _interval(difference: PairedDifference) -> str:
    if difference.low is None or difference.high is None:
        return "-"
    return f"[{difference.low:+.2f}, {difference.high:+.2f}]"


def write_findings(comparison: Comparison, results: list[Finding], failed: Mapping[str, str]) -> list[Path]:
    """Write ``comparison.json``, ``comparison.csv`` and charts, each completely or not at all, and return their paths.

    ``comparison.png`` needs a finished run, ``curves.png`` evaluations within the epochs.
    """
    base, score, folder = comparison.base, comparison.score, comparison.folder
    content: dict[str, Any] = {
        "baseline": results[0].name,
        "data": base.data,
        "recipe": comparison.shared_fields(),
        "seeds": comparison.seeds,
        "figure": f"{score.label} on the validation images after the last epoch, in percent",
        "variants": [{score.name if k == "scores" else k: v for k, v in asdict(each).items()} for each in results],
        "curves": _curves(comparison),
        "failed": dict(failed),
        "trained_on": trained_on(comparison),
        "machine": environment(),
    }
    written = [folder / "comparison.json", folder / "comparison.csv"]
    write_json(written[0], content)
    columns = ("variant", "seed", score.name, f"best_{score.name}", "over_baseline", "parameters", "multiply_adds")
    write_csv(written[1], [dict(zip(columns, row, strict=True)) for row in _rows(results)], columns)
    data, axis = Path(base.data).name, f"{score.label}, %"
    if curves := content["curves"]:
        written.append(folder / "curves.png")
        attached = {variant.name: variant.attach for variant in comparison.variants}
        lines = [
            Curve(name, points, attached[name].get("name", name), dashed=attached[name].get("preserve") is False)
            for name, points in curves.items()
        ]
        draw_steps(lines, f"{data}, mean over the seeds of each", written[-1], axis)
    circles = [
        Circle(f.name, f.size.parameters / 1e6, f.size.multiply_adds / 1e9, f.mean.mean, f.mean.deviation)
        for f in results
        if f.mean is not None
    ]
    if circles:
        written.append(folder / "comparison.png")
        title = f"{data}, {counted(base.epochs, 'epoch')}, {_runs_in_words(results)}"
        draw_accuracy(circles, title, written[-1], axis)
    return written


def trained_on(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the distinct environments of the finished runs: machine, software and commit."""
    records = []
    for run in comparison.runs:
        if run.finished and (record := run.files.record()) not in records:
            records.append(record)
    return records


def _runs_in_words(results: list[Finding]) -> str:
    counts = sorted({len(finding.scores) for finding in results} - {0})
    if counts[-1] == 1:
        return "one seed each"
    return f"mean and standard deviation of {' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} seeds"


def _curves(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Return the mean score of each variant at the steps at which all its finished runs were evaluated."""
    curves, column = {}, comparison.score.column
    for variant in comparison.variants:
        runs = [run.curve() for run in comparison.runs if run.variant == variant and run.finished]
        by_step = [{row["step"]: row[column] for row in rows} for rows in runs if rows]
        shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
        if shared:
            curves[variant.name] = [(step, sum(run[step] for run in by_step) / len(by_step)) for step in shared]
    return curves


def _rows(results: list[Finding]) -> list[tuple[Any, ...]]:
    """Return the rows of ``comparison.csv``, one per finished run."""
    return [
        (
            finding.name,
            seed,
            score,
            finding.best[seed],
            finding.difference.by_seed.get(seed, "") if finding.difference else "",
            finding.size.parameters,
            finding.size.multiply_adds,
        )
        for finding in results
        for seed, score in finding.scores.items()
    ]
