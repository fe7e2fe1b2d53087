"""How many seeds detect a difference, and how long they take."""

import statistics
from dataclasses import dataclass

from ...errors import InputError, counted
from ..statistics import Deviation, deviation_of, seeds_needed
from .comparison import Comparison
from .findings import Findings
from .table import FindingsTable


@dataclass(frozen=True)
class Plan:
    """The seeds that detect a difference of one variant to the baseline, or of all of them.

    Attributes:
        name: Name of the variant; empty for all together.
        deviation: Deviation of the paired difference.
        seeds: Number of seeds, and its range by that of the deviation; None above 10,000.
        hours_per_seed: Hours of one seed of the variants concerned, the baseline included; None if no run was timed.
    """

    name: str
    deviation: Deviation
    seeds: tuple[int | None, int | None, int | None]
    hours_per_seed: float | None


def plans(comparison: Comparison, results: Findings, effect: float) -> list[Plan]:
    """Return the seeds that detect an effect with a power of 80 %, by the finished runs.

    The deviation of all variants together is pooled over them, so more is known of it than of any single one.

    Args:
        comparison: The comparison.
        results: Its findings.
        effect: True difference to detect, in percentage points.

    Raises:
        InputError: If no variant shares two finished seeds with the baseline.
    """
    hours = hours_of_runs(comparison)
    baseline, rows = results.baseline.name, []
    for finding in results.variants:
        if finding.difference and len(values := [*finding.difference.by_seed.values()]) > 1:
            deviation = deviation_of(statistics.stdev(values), len(values) - 1)
            rows.append(_plan(finding.name, deviation, effect, [hours[baseline], hours[finding.name]]))
    if not rows:
        raise InputError("--plan needs two finished seeds of the baseline and of another variant")
    if results.deviation and len(rows) > 1:
        rows.append(_plan("", results.deviation, effect, [*hours.values()]))
    return rows


def plan_table(comparison: Comparison, rows: list[Plan], effect: float) -> FindingsTable:
    """Return the plans as a table with notes."""
    columns = ["", "std of a\ndifference", "95 %\nrange", f"seeds for\n{effect:g} points", "\nrange"]
    columns += ["\nhours", "\nrange"]
    cells = []
    for plan in rows:
        spread, (needed, *between) = plan.deviation, plan.seeds
        hours = [None if n is None or plan.hours_per_seed is None else n * plan.hours_per_seed for n in plan.seeds]
        cells.append(
            [
                plan.name or "all",
                f"{spread.value:.2f}",
                f"{spread.low:.2f} to {spread.high:.2f}",
                _count(needed),
                " to ".join(map(_count, between)),
                _time(hours[0]),
                " to ".join(map(_time, hours[1:])),
            ]
        )
    notes = [
        f"So many seeds detect a true difference of {effect:g} points with 80 % power, by a two-sided paired t-test at "
        f"5 %. The ranges follow from that of the deviation."
    ]
    last = rows[-1]
    done = min(sum(run.finished for run in comparison.runs if run.variant == each) for each in comparison.variants)
    if last.seeds[0] is not None:
        left = max(0, last.seeds[0] - done)
        rest = "" if last.hours_per_seed is None else f": {left * last.hours_per_seed:.1f} hours"
        finished = f"{counted(done, 'seed')} of {last.name or 'all variants'} {'is' if done == 1 else 'are'} finished"
        notes.append(f"{finished}, and {left} left to train{rest}.")
    return FindingsTable(columns, cells, notes)


def _plan(name: str, deviation: Deviation, effect: float, hours: list[float | None]) -> Plan:
    least, low, high = (seeds_needed(effect, value) for value in (deviation.value, deviation.low, deviation.high))
    known = [each for each in hours if each is not None]
    return Plan(name, deviation, (least, low, high), sum(known) if len(known) == len(hours) else None)


def hours_of_runs(comparison: Comparison) -> dict[str, float | None]:
    """Return the median hours of a run of each variant, by the runs that were timed."""
    hours: dict[str, float | None] = {}
    for variant in comparison.variants:
        timed = [run.seconds for run in comparison.runs if run.variant == variant and run.finished]
        known = [seconds for seconds in timed if seconds is not None]
        hours[variant.name] = statistics.median(known) / 3600 if known else None
    return hours


def _count(seeds: int | None) -> str:
    return "over 10,000" if seeds is None else f"{seeds:,}"


def _time(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:.1f}"
