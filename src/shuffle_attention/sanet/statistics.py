"""Statistics of scores measured with several seeds: differences, their intervals, power, and when to stop.

Every variant is trained with the same seeds, so differences are taken seed by seed. All intervals cover the variation
between seeds, not that of other data or another recipe, and assume that differences are normally distributed.
Answers of two models are paired image by image.
"""

import functools
import math
import statistics
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POWER = 0.8  # probability of detecting a difference, in plans
_MOST_SEEDS = 10_000


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

    The interval is Student's, with one degree of freedom fewer than there are seeds.
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


def chance_reach(difference: PairedDifference, confidence: float = 0.95) -> float:
    """Return how large the mean difference of two models of one distribution becomes by chance.

    From the differences of a pair that is known to be of one distribution, whose mean is therefore 0: another such
    mean over as many seeds lies within plus and minus this with the given probability.
    """
    from scipy.stats import t

    values = list(difference.by_seed.values())
    squares = statistics.fmean(value**2 for value in values)
    return float(t.isf((1 - confidence) / 2, len(values))) * math.sqrt(squares / len(values))


@dataclass(frozen=True)
class Deviation:
    """Standard deviation of a paired difference, estimated from few seeds.

    Attributes:
        value: Estimate.
        low: Lower end of its 95 % confidence interval, by the chi-square distribution of the sample variance.
        high: Upper end.
        freedom: Degrees of freedom of the estimate.
    """

    value: float
    low: float
    high: float
    freedom: int


def deviation_of(value: float, freedom: int, confidence: float = 0.95) -> Deviation:
    """Return an estimated standard deviation with its confidence interval."""
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low, high = (value * math.sqrt(freedom / chi2.ppf(p, freedom)) for p in (1 - tail, tail))
    return Deviation(value, low, high, freedom)


@dataclass(frozen=True)
class Simultaneous:
    """Intervals of the differences of several variants to one baseline, which all hold together with 95 %.

    Attributes:
        half_width: Half the length of each interval.
        seeds: Seeds that all variants share.
        deviation: Deviation of a paired difference, pooled over all variants.
    """

    half_width: float
    seeds: list[int]
    deviation: Deviation


def simultaneous(scores: Sequence[Mapping[int, float]], confidence: float = 0.95) -> Simultaneous | None:
    """Return Dunnett's simultaneous intervals, in their version for paired scores.

    SciPy's ``dunnett`` is for unpaired samples, and counts what a seed does to all variants as noise. Here a seed is a
    block: score = variant + seed + error, with errors of one variance. The error variance is estimated from the
    residuals of all variants, with (variants - 1)(seeds - 1) degrees of freedom, and the studentised differences to
    the baseline have a multivariate t distribution with correlation 1/2, as in Dunnett's test. Intervals can
    therefore be shorter than Student's from the few seeds of one variant alone.

    Args:
        scores: Scores by seed of each variant, the baseline first.
        confidence: Probability that all intervals contain the true differences.

    Returns:
        The intervals, or None if the variants share fewer than two seeds.

    Source: Dunnett, "A Multiple Comparison Procedure for Comparing Several Treatments with a Control", JASA 50, 1955.
    """
    shared = sorted(set.intersection(*map(set, scores)))
    if len(shared) < 2 or len(scores) < 2:
        return None
    table = np.array([[each[seed] for seed in shared] for each in scores])
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(table) - 1) * (len(shared) - 1)
    deviation = math.sqrt(2 * float(np.square(residuals).sum()) / freedom)
    factor = dunnett_factor(len(table) - 1, freedom, confidence)
    return Simultaneous(factor * deviation / math.sqrt(len(shared)), shared, deviation_of(deviation, freedom))


@functools.cache
def dunnett_factor(comparisons: int, freedom: int, confidence: float = 0.95) -> float:
    """Return the two-sided critical value of Dunnett's test with groups of equal size.

    P(max |X_i - X_0| <= sqrt(2) c S) with X independent standard normal and S^2 chi-square over its degrees of freedom,
    integrated over X_0 and S: SciPy's ``dunnett`` has the same value up to the error of its random integration.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm

    nodes, weights = np.polynomial.legendre.leggauss(80)
    probabilities, weights = (nodes + 1) / 2, weights / 2
    spread = np.sqrt(chi2.ppf(probabilities, freedom) / freedom)
    base = norm.ppf(probabilities)[:, None]

    def excess(c: float) -> float:
        reach = math.sqrt(2) * c * spread
        inside = (norm.cdf(base + reach) - norm.cdf(base - reach)) ** comparisons
        return float(weights @ inside @ weights) - confidence

    root: Any = brentq(excess, 0.0, 1e4)
    return float(root)


def power_of(effect: float, deviation: float, seeds: int, confidence: float = 0.95) -> float:
    """Return the probability that the two-sided paired t-test over so many seeds detects a true difference."""
    from scipy.stats import nct, t

    if deviation == 0:
        return float(effect != 0)
    critical, shift = t.isf((1 - confidence) / 2, seeds - 1), abs(effect) * math.sqrt(seeds) / deviation
    # The other tail is a detection of the wrong sign.
    return float(nct.sf(critical, seeds - 1, shift))


def seeds_needed(effect: float, deviation: float) -> int | None:
    """Return the least number of seeds whose power is 80 %, or None if it is above 10,000."""
    numbers = range(2, _MOST_SEEDS + 1)
    index = bisect_left(numbers, POWER, key=lambda seeds: power_of(effect, deviation, seeds))
    return numbers[index] if index < len(numbers) else None


def detectable(deviation: float, seeds: int) -> float:
    """Return the true difference that so many seeds detect with a power of 80 %."""
    from scipy.optimize import brentq

    units: Any = brentq(lambda effect: power_of(effect, 1.0, seeds) - POWER, 0.0, 100.0)
    return deviation * float(units)


def confidence_sequence(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a confidence sequence for the mean, which may be looked at after every value.

    With the given probability the intervals of all numbers of values contain the mean together, so that one may stop
    at any time for any reason. Student's interval holds for one number that was fixed beforehand.

    With S the sum and V the sum of squares of n values minus the mean m, the statistic

        E_n(m) = sqrt(c^2 / (n + c^2)) * (1 - S^2 / ((n + c^2) V))^(-n / 2)

    is a martingale with mean 1: the likelihood ratio of S / sqrt(V) with a normal mixture of variance 1 / c^2 over
    the mean in units of the deviation, against a mean of 0. The interval has all m with E_n(m) < 1 / alpha (Ville's
    inequality). It is exact for normal values of any variance, at any n; c^2 = 2 alpha makes it finite from three
    values on. For fewer it is infinite.

    Source: Wang & Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance",
    arXiv:2310.03722 (the scale-invariant t-test martingale); Lai, Annals of Statistics 4, 1976, for the flat mixture.
    """
    mean, n = statistics.fmean(values), len(values)
    half = float(sequence_half_width(n, sum((value - mean) ** 2 for value in values), 1 - confidence))
    return mean - half, mean + half


def sequence_half_width(n: Any, squares: Any, alpha: float) -> Any:
    """Return half the length of the interval of :func:`confidence_sequence`, for numbers or arrays.

    Args:
        n: Number of values.
        squares: Sum of their squared deviations from their mean.
        alpha: Probability of error.
    """
    n, c2 = np.asarray(n, dtype=float), 2 * alpha
    root = (alpha**2 * c2 / (n + c2)) ** (1 / n)
    room = root * (n + c2) - c2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 0, np.sqrt((1 - root) * (n + c2) * squares / (n * np.maximum(room, 0))), np.inf)


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact two-sided test of equal accuracy on the same images.

    Images for which both models are right, or both wrong, do not tell a difference. Each model is right for half of the
    others if the accuracies are equal, which is a binomial test.

    Args:
        lost: Images for which only the first model is right.
        gained: Images for which only the second model is right.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def share_at_most(count: int, of: int, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper bound (Clopper-Pearson) of a share that was counted in a random sample.

    Args:
        count: Members of the sample that were counted.
        of: Size of the sample, 1 or more.
        confidence: Probability that the share is at most the bound.
    """
    from scipy.stats import binomtest

    return float(binomtest(count, of, alternative="less").proportion_ci(confidence, method="exact").high)
