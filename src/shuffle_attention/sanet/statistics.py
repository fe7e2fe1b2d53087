"""Mean, deviation and paired differences of a figure measured with several seeds."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Of the figures of one variant.

    Attributes:
        mean: Their mean.
        deviation: Sample standard deviation, over n - 1; None for one figure.
        count: How many there are.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """Of one variant to another, over the seeds that both have.

    Attributes:
        mean: Mean difference.
        low: Lower end of the confidence interval of the mean; None for one seed, where it is not defined.
        high: Upper end.
        by_seed: The difference for each seed.
    """

    mean: float
    low: float | None
    high: float | None
    by_seed: dict[int, float]


def summary(figures: Mapping[int, float]) -> Summary | None:
    """Returns the summary of the figures by seed, or None where there are none."""
    values = list(figures.values())
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(
    figures: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """Returns the difference of figures to those of a baseline with the same seeds, or None where none is shared.

    The interval is Student's, with one degree of freedom fewer than there are seeds. It covers what differs from
    seed to seed, not what another data set or recipe would change.
    """
    from scipy.stats import t

    by_seed = {seed: figures[seed] - baseline[seed] for seed in sorted(figures.keys() & baseline.keys())}
    if not by_seed:
        return None
    values = list(by_seed.values())
    mean = statistics.fmean(values)
    if len(values) == 1:
        return PairedDifference(mean, None, None, by_seed)
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return PairedDifference(mean, mean - half, mean + half, by_seed)
