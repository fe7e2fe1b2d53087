"""Mean, standard deviation and paired differences of scores measured with several seeds."""

import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and count of one variant's scores.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation, over n - 1; None for a single score.
        count: Number of scores.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """Difference between two variants, paired by shared seeds.

    Attributes:
        mean: Mean difference.
        low: Lower end of the confidence interval of the mean; None for a single seed, where it is undefined.
        high: Upper end.
        by_seed: The difference for each seed.
    """

    mean: float
    low: float | None
    high: float | None
    by_seed: dict[int, float]


def summary(scores: Mapping[int, float]) -> Summary | None:
    """Return the summary of scores by seed, or None without any."""
    values = list(scores.values())
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(
    scores: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """Return the difference of scores to a baseline's with the same seeds, or None if no seed is shared.

    The interval is Student's, with one degree of freedom fewer than there are seeds. It covers the variation between
    seeds, not that of other data or another recipe.
    """
    from scipy.stats import ttest_rel

    by_seed = {seed: scores[seed] - baseline[seed] for seed in sorted(scores.keys() & baseline.keys())}
    if not by_seed:
        return None
    mean, low, high = statistics.fmean(by_seed.values()), None, None
    if len(by_seed) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal differences have an interval too, of length 0
            test = ttest_rel([scores[seed] for seed in by_seed], [baseline[seed] for seed in by_seed])
            low, high = map(float, test.confidence_interval(confidence))
    return PairedDifference(mean, low, high, by_seed)
