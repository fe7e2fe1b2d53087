"""Train seed after seed until the differences are decided."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count

from ...errors import counted
from ..console import console, duration
from ..device import Process
from ..profile.costs import AnySize
from .comparison import Comparison, Run
from .findings import Findings, findings
from .planning import hours_of_runs
from .table import interval_text


def train_until(
    comparison: Comparison,
    sizes: Mapping[str, AnySize],
    process: Process,
    announcer: Callable[[Comparison], Callable[[Run, int], None]],
    *,
    most: int | None,
    budget: float | None,
) -> tuple[Comparison, dict[str, str]]:
    """Train one seed after the other until every variant is decided, and return the comparison with all its seeds.

    A variant that is decided is not trained any further. Runs that are finished count, so that the same comparison
    goes on where it was.

    Args:
        comparison: The comparison, with ``until``.
        sizes: Sizes of its variants.
        process: Process to train in; every process of a distributed comparison calls this.
        announcer: Returns what is called before each run of a comparison.
        most: Largest number of seeds, or None.
        budget: Hours that this call may take, or None. A seed is not begun if it would probably end later.

    Returns:
        The comparison, and the reasons of runs that failed, by folder.
    """
    began, failed = time.perf_counter(), {}
    while True:
        comparison = replace(comparison, seeds=comparison.trained_seeds() or [comparison.base.seed])
        hours = (time.perf_counter() - began) / 3600
        following = (
            None if failed else process.first(process.rank == 0 and _next(comparison, sizes, hours, most, budget))
        )
        if not following:
            return comparison, failed
        names, seed = following
        variants = [variant for variant in comparison.variants if variant.name in names]
        one = replace(comparison, variants=variants, seeds=[seed])
        failed = one.train(process, announcer(one))
        # The images were checked with the first run.
        comparison = replace(comparison, base=comparison.base.replaced(check_images=False))


def _next(
    comparison: Comparison, sizes: Mapping[str, AnySize], hours: float, most: int | None, budget: float | None
) -> tuple[list[str], int] | None:
    """Print what is decided after some hours; return the variants to train and their seed, or None to stop."""
    results, first = findings(comparison, sizes), comparison.base.seed
    scores = {finding.name: finding.scores for finding in results.variants}
    undecided = [finding.name for finding in results.variants if finding.verdict == "open"]
    if any(scores.values()):
        console.print(f"{_verdicts(results)}, {duration(3600 * hours)}")
    if not undecided:
        return None
    decided = {variant.name for variant in comparison.compared} - {*undecided}
    names = [name for name in scores if name not in decided]
    seed = next(n for n in count(first) if any(n not in scores[name] for name in (results.baseline.name, *undecided)))
    known = hours_of_runs(comparison)
    expected = sum(known[name] or 0.0 for name in names if seed not in scores[name])
    if most is not None and seed >= first + most:
        reason = f"there are {counted(most, 'seed')}"
    elif budget is not None and hours + expected > budget:
        reason = f"another seed would exceed {budget:g} hours"
    else:
        return names, seed
    console.print(f"{', '.join(undecided)}: not decided, and {reason}. The same command with more goes on")
    return None


def _verdicts(results: Findings) -> str:
    parts = []
    for each in results.variants:
        if each.verdict and (difference := each.difference):
            interval = interval_text(difference.low, difference.high)
            parts.append(f"{each.name} {difference.mean:+.2f} {interval} {each.verdict}")
    seeds = counted(max(len(finding.scores) for finding in results.variants), "seed")
    return f"after {seeds}: {', '.join(parts) or 'no difference yet'}"
