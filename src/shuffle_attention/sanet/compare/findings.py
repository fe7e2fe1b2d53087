"""The results of a comparison, and the files that they are written to: JSON, CSV and charts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import InputError, counted
from ...files import write_csv, write_json
from ..charts import Bar, Circle, Curve, draw_accuracy, draw_differences, draw_steps
from ..environment import environment
from ..profile.costs import AnySize
from ..statistics import (
    Deviation,
    PairedDifference,
    Summary,
    chance_reach,
    confidence_sequence,
    detectable,
    paired_difference,
    simultaneous,
    summary,
)
from ..tasks.task import Score
from .comparison import Comparison

# By variant and seed, the value after each epoch, in percent.
Histories = Mapping[str, Mapping[int, list[float]]]
Verdict = Literal["better", "worse", "small", "open"]


@dataclass(frozen=True)
class Finding:
    """The results of one variant, in percent.

    Attributes:
        name: Name of the variant.
        size: Parameters and multiply-adds.
        scores: Score after the last epoch, by seed.
        best: Score of the best epoch, by seed; too high, since the epoch is chosen on the same images.
        mean: Summary of ``scores``; None if no run is finished.
        difference: Difference to the baseline, paired by seed; None for the baseline. Its interval is Student's, or
            of a confidence sequence if the comparison trains until differences are decided.
        simultaneous: Its interval among those that hold for all variants together; None for the baseline and a null.
        verdict: For a comparison that trains until differences are decided: ``better`` or ``worse`` if the interval
            excludes 0, ``small`` if the difference is smaller than the effect of interest, ``open`` otherwise.
        step: Time of a training step over that of the baseline, if the comparison has a control of width.
        over_control: Difference to a plain network whose step takes as long; None for the baseline and the control.
    """

    name: str
    size: AnySize
    scores: dict[int, float]
    best: dict[int, float]
    mean: Summary | None
    difference: PairedDifference | None
    simultaneous: tuple[float, float] | None = None
    verdict: Verdict | None = None
    step: float | None = None
    over_control: PairedDifference | None = None


@dataclass(frozen=True)
class Chance:
    """What chance does: the difference of a null to the variant that has the same distribution.

    Attributes:
        null: Name of the null.
        twin: Name of the other variant.
        difference: Difference of the two, paired by seed.
        reach: How far from 0 such a mean difference lies by chance, in 95 % of comparisons with as many seeds.
    """

    null: str
    twin: str
    difference: PairedDifference
    reach: float


@dataclass(frozen=True)
class Findings:
    """The results of a comparison.

    Attributes:
        score: What is compared.
        variants: Results of each variant, the baseline first.
        chance: What chance does, if a null was trained.
        deviation: Deviation of a paired difference, pooled over the variants.
        detectable: True difference that the seeds detect with a power of 80 %, and its range.
        others: Results of the further metrics that the runs have.
    """

    score: Score
    variants: list[Finding]
    chance: Chance | None = None
    deviation: Deviation | None = None
    detectable: tuple[float, float, float] | None = None
    others: Sequence["Findings"] = ()

    @property
    def baseline(self) -> Finding:
        return self.variants[0]


def findings(comparison: Comparison, sizes: Mapping[str, AnySize] | None = None) -> Findings:
    """Return the results of the finished runs of a comparison, in the order of its variants.

    Args:
        comparison: The comparison.
        sizes: Sizes of its variants, if they are known.

    Raises:
        InputError: If no run has begun, or results cannot be read.
    """
    if not comparison.seeds:
        raise InputError(f"{comparison.folder} has no run yet")
    sizes = sizes or comparison.sizes()
    finished = [(run, run.history(comparison.base.epochs)) for run in comparison.runs if run.finished]
    results = []
    for score in comparison.task.compared:
        without = [run for run, rows in finished if any(score.column not in row for row in rows)]
        if results and without:
            continue  # such as the AP of masks of a detector without masks
        if without:
            raise InputError(f"{without[0].files.metrics} has no {score.column}; this run is not one of the comparison")
        histories: dict[str, dict[int, list[float]]] = {variant.name: {} for variant in comparison.variants}
        for run, rows in finished:
            histories[run.variant.name][run.seed] = [score.factor * row[score.column] for row in rows]
        results.append(_findings(comparison, sizes, score, histories))
    return replace(results[0], others=results[1:])


def _findings(comparison: Comparison, sizes: Mapping[str, AnySize], score: Score, histories: Histories) -> Findings:
    """Return the results of one metric."""
    last = {name: {seed: scores[-1] for seed, scores in runs.items()} for name, runs in histories.items()}
    baseline = comparison.variants[0].name
    compared = [variant.name for variant in comparison.compared]
    results = []
    for name, runs in histories.items():
        difference, verdict = None if name == baseline else paired_difference(last[name], last[baseline]), None
        if comparison.until is not None:
            if difference:
                difference = at_any_time(difference, len(compared) if name in compared else 1)
            verdict = _verdict(difference, comparison.until) if name in compared else None
        best = {seed: max(scores) for seed, scores in runs.items()}
        step, over = _against_control(comparison, last, name)
        results.append(
            Finding(name, sizes[name], last[name], best, summary(last[name]), difference, None, verdict, step, over)
        )
    chance = _chance(comparison, last)
    # How many seeds there are then depends on their scores, and intervals for a fixed number do not hold.
    together = simultaneous([last[baseline], *(last[name] for name in compared if last[name])])
    if comparison.until is not None or together is None:
        return Findings(score, results, chance)
    for index, each in enumerate(results):
        if each.difference and each.name in compared:
            middle = statistics.fmean(each.difference.by_seed[seed] for seed in together.seeds)
            results[index] = replace(each, simultaneous=(middle - together.half_width, middle + together.half_width))
    spread, seeds = together.deviation, len(together.seeds)
    detected = [detectable(value, seeds) for value in (spread.value, spread.low, spread.high)]
    return Findings(score, results, chance, spread, (detected[0], detected[1], detected[2]))


def _against_control(
    comparison: Comparison, scores: Mapping[str, Mapping[int, float]], name: str
) -> tuple[float | None, PairedDifference | None]:
    """Return the time of a variant's step over the baseline's, and its difference to a plain network of that cost.

    The score of that network is interpolated between those of the baseline and the control by the time of a step. Wider
    networks gain less and less, so a straight line gives the plain network too little rather than too much.
    """
    control = next((variant for variant in comparison.variants if variant.cost), None)
    if control is None or name not in control.cost["step"]:
        return None, None
    step, wide = (control.cost["step"][each][0] for each in (name, control.name))
    if name not in [variant.name for variant in comparison.compared]:
        return step, None
    share = min(1.0, max(0.0, (step - 1) / max(wide - 1, 1e-9)))
    plain, wider = scores[comparison.variants[0].name], scores[control.name]
    at_cost = {seed: plain[seed] + share * (wider[seed] - plain[seed]) for seed in plain.keys() & wider.keys()}
    difference = paired_difference(scores[name], at_cost)
    if difference and comparison.until is not None:
        difference = at_any_time(difference, len(comparison.compared))
    return step, difference


def at_any_time(difference: PairedDifference, comparisons: int) -> PairedDifference:
    """Return a difference with the interval of a confidence sequence in place of Student's.

    The error probability of 5 % is shared out among the comparisons (Bonferroni), so that their intervals contain the
    true differences together and at all times in 95 % of cases.
    """
    low, high = confidence_sequence([*difference.by_seed.values()], 1 - 0.05 / comparisons)
    return replace(difference, low=low, high=high) if math.isfinite(low) else replace(difference, low=None, high=None)


def _verdict(difference: PairedDifference | None, effect: float) -> Verdict:
    if difference is None or difference.low is None or difference.high is None:
        return "open"
    if difference.low > 0 or difference.high < 0:
        return "better" if difference.low > 0 else "worse"
    return "small" if -effect < difference.low and difference.high < effect else "open"


def _chance(comparison: Comparison, scores: Mapping[str, Mapping[int, float]]) -> Chance | None:
    for variant in comparison.variants:
        if variant.twin in scores and (difference := paired_difference(scores[variant.name], scores[variant.twin])):
            if comparison.until is not None:
                difference = at_any_time(difference, 1)
            return Chance(variant.name, variant.twin, difference, chance_reach(difference))
    return None


def write_findings(comparison: Comparison, results: Findings, failed: Mapping[str, str], **further: Any) -> list[Path]:
    """Write ``comparison.json``, ``comparison.csv`` and charts, each completely or not at all, and return their paths.

    ``comparison.png`` needs a finished run, ``differences.png`` two seeds, ``curves.png`` evaluations within epochs.
    """
    base, score, folder = comparison.base, results.score, comparison.folder
    content: dict[str, Any] = {
        "baseline": results.baseline.name,
        "data": base.data,
        "recipe": comparison.shared_fields(),
        "seeds": comparison.seeds,
        **_content(results),
        "others": [_content(each) for each in results.others],
        "until": comparison.until,
        "curves": _curves(comparison),
        "control": next(({"name": v.name, **v.cost} for v in comparison.variants if v.cost), None),
        **further,
        "failed": dict(failed),
        "trained_on": trained_on(comparison),
        "machine": environment(),
    }
    written = [folder / "comparison.json", folder / "comparison.csv"]
    write_json(written[0], content)
    columns = ("variant", "seed", score.name, f"best_{score.name}", "over_baseline", "parameters", "multiply_adds")
    columns += tuple(each.score.name for each in results.others)
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
        for f in results.variants
        if f.mean is not None
    ]
    if circles:
        written.append(folder / "comparison.png")
        title = f"{data}, {counted(base.epochs, 'epoch')}, {_runs_in_words(results.variants)}"
        draw_accuracy(circles, title, written[-1], axis)
    bars = [
        Bar(f.name, f.difference.mean, f.difference.low, f.difference.high)
        for f in results.variants
        if f.difference and f.difference.low is not None and f.difference.high is not None
    ]
    if bars:
        written.append(folder / "differences.png")
        reach = results.chance and results.chance.reach
        title = f"{data}: difference to {results.baseline.name} with 95 % intervals"
        draw_differences(bars, reach, title, written[-1], f"{score.label}, points")
    return written


def _content(results: Findings) -> dict[str, Any]:
    """Return the results of one metric for ``comparison.json``."""
    score = results.score
    return {
        "score": score.name,
        "figure": f"{score.label} on the validation images after the last epoch, in percent",
        "variants": [
            {score.name if k == "scores" else k: v for k, v in asdict(each).items()} for each in results.variants
        ],
        "chance": results.chance and asdict(results.chance),
        "deviation": results.deviation and asdict(results.deviation),
        "detectable": results.detectable,
    }


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
    curves, score = {}, comparison.score
    for variant in comparison.variants:
        runs = [run.curve() for run in comparison.runs if run.variant == variant and run.finished]
        by_step = [{row["step"]: score.factor * row[score.column] for row in rows} for rows in runs if rows]
        shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
        if shared:
            curves[variant.name] = [(step, sum(run[step] for run in by_step) / len(by_step)) for step in shared]
    return curves


def _rows(results: Findings) -> list[tuple[Any, ...]]:
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
            *(each.variants[number].scores[seed] for each in results.others),
        )
        for number, finding in enumerate(results.variants)
        for seed, score in finding.scores.items()
    ]
