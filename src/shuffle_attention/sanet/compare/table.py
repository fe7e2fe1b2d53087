"""The results of a comparison as a table with notes, for the terminal and the report."""

from dataclasses import dataclass

from rich.measure import Measurement

from ...errors import counted
from ..console import console, table
from ..statistics import PairedDifference
from .comparison import Comparison
from .findings import Findings

_WIDEST = 400  # characters of a line


@dataclass(frozen=True)
class FindingsTable:
    """Results as text.

    Attributes:
        columns: Heading of each column, of two lines; empty for the names.
        rows: The cells of each variant.
        notes: Explanations below the table.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def findings_table(comparison: Comparison, results: Findings) -> FindingsTable:
    """Return the table: without deviations and intervals if one seed is finished, with counts if runs are missing."""
    label, seeds = results.score.label, len(comparison.seeds)
    incomplete = any(len(finding.scores) < seeds for finding in results.variants)
    several = any(len(finding.scores) > 1 for finding in results.variants)
    together = sum(finding.simultaneous is not None for finding in results.variants) > 1
    control = next((variant for variant in comparison.variants if variant.cost), None)
    columns = {
        "": True,
        "params\nM": True,
        "\nGFLOPs": True,
        f"{label}\n%": True,
        "\nstd": several,
        f"over\n{results.baseline.name}": True,
        "95 %\ninterval" if comparison.until is None else "95 % at\nany time": several,
        "all at\nonce": together,
        "\nverdict": comparison.until is not None,
        "time of\na step": control is not None,
        "over plain\nof that cost": control is not None,
        "\nruns": incomplete,
    }
    rows = []
    for finding in results.variants:
        mean, difference = finding.mean, finding.difference
        rows.append(
            [
                finding.name,
                f"{finding.size.parameters / 1e6:.3f}",
                f"{finding.size.multiply_adds / 1e9:.3f}",
                "-" if mean is None else f"{mean.mean:.2f}",
                "-" if mean is None or mean.deviation is None else f"{mean.deviation:.2f}",
                *_difference_cells(difference),
                "" if finding.simultaneous is None else interval_text(*finding.simultaneous),
                f"below {comparison.until:g}" if finding.verdict == "small" else finding.verdict or "",
                "" if finding.step is None else f"{finding.step:.2f}",
                " ".join(_difference_cells(finding.over_control)).strip(),
                f"{len(finding.scores)}/{seeds}",
            ]
        )
    if chance := results.chance:
        rows.append(["chance", "", "", "", "", *_difference_cells(chance.difference), *[""] * 5])
    shown = [*columns.values()]
    rows = [[cell for cell, show in zip(row, shown, strict=True) if show] for row in rows]
    return FindingsTable([name for name, show in columns.items() if show], rows, _notes(comparison, results, together))


def others_table(comparison: Comparison, results: Findings) -> FindingsTable | None:
    """Return the table of the further metrics, one below the other, or None without any."""
    interval = "95 %\ninterval" if comparison.until is None else "95 % at\nany time"
    columns = ["", "", "\n%", "\nstd", f"over\n{results.baseline.name}", interval, "all at\nonce"]
    rows = []
    for each in results.others:
        for number, finding in enumerate(each.variants):
            mean, together = finding.mean, finding.simultaneous
            rows.append(
                [
                    "" if number else each.score.label,
                    finding.name,
                    "-" if mean is None else f"{mean.mean:.2f}",
                    "-" if mean is None or mean.deviation is None else f"{mean.deviation:.2f}",
                    *_difference_cells(finding.difference),
                    "" if together is None else interval_text(*together),
                ]
            )
        if each.chance:
            rows.append(["", "chance", "", "", *_difference_cells(each.chance.difference), ""])
    note = f"Intervals are for one metric each. What is planned and decided is {results.score.label}."
    return FindingsTable(columns, rows, [note]) if rows else None


def _difference_cells(difference: PairedDifference | None) -> list[str]:
    if difference is None:
        return ["", ""]
    return [f"{difference.mean:+.2f}", interval_text(difference.low, difference.high)]


def interval_text(low: float | None, high: float | None) -> str:
    """Return an interval in brackets, and a dash if it is unknown or infinite."""
    return "-" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"


def _notes(comparison: Comparison, results: Findings, together: bool) -> list[str]:
    seeds = len(comparison.seeds)
    incomplete = any(len(finding.scores) < seeds for finding in results.variants)
    several = any(len(finding.scores) > 1 for finding in results.variants)
    each = "" if incomplete else f"{counted(seeds, 'seed')} each; "
    notes = [f"{each}{results.score.label} after the last epoch. "]
    if comparison.until is not None:
        notes[0] += (
            "Differences are paired by seed. Their intervals are those of a confidence sequence: they hold at any "
            "number of seeds, and for all variants together."
        )
    elif several:
        notes[0] += (
            "Differences are paired by seed, with Student's interval over the seeds. An interval that contains 0 shows "
            "no difference."
        )
    else:
        notes[0] += "One seed gives no interval: another seed may change any difference."
    if together:
        notes.append(
            "Each 95 % interval is for one variant; those of the next column hold for all variants at once (Dunnett)."
        )
    if chance := results.chance:
        text = (
            f"chance: {chance.null} minus {chance.twin}. The two have the same distribution, so they differ "
            f"by chance alone"
        )
        if len(chance.difference.by_seed) > 1 and comparison.until is None:
            count = counted(len(chance.difference.by_seed), "seed")
            text += f": over {count} by up to {chance.reach:.2f} points in 95 % of comparisons"
        notes.append(f"{text}.")
    if control := next((variant for variant in comparison.variants if variant.cost), None):
        channels = ", ".join(map(str, control.own_args["channels"]))
        notes.append(
            f"{control.name} has the channels {channels}, so that a training step takes as long as with "
            f"{control.cost['like']}. The last difference is to a plain network whose step takes as long as the "
            f"variant's, interpolated between {results.baseline.name} and {control.name}."
        )
    if results.detectable:
        value, low, high = results.detectable
        notes.append(
            f"These seeds detect a true difference of {value:.2f} points ({low:.2f} to {high:.2f}) with 80 % power."
        )
    return notes


def print_findings(content: FindingsTable) -> None:
    """Print a table and its notes."""
    shown = table(content.columns)
    for row in content.rows:
        shown.add_row(*row)
    # Numbers are never cut off, not even on a narrow terminal.
    shown.width = Measurement.get(console, console.options.update(max_width=_WIDEST), shown).maximum
    console.print(shown)
    for note in content.notes:
        console.print(note)
