"""Statistics of scores by seed: against SciPy, and by simulation with fixed seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from shuffle_attention.sanet.statistics import (
    chance_reach,
    confidence_sequence,
    detectable,
    deviation_of,
    dunnett_factor,
    paired_difference,
    power_of,
    seeds_needed,
    sequence_half_width,
    simultaneous,
    summary,
)


def test_mean_and_deviation():
    whole = summary({0: 1.0, 1: 2.0, 2: 6.0})
    assert (whole.mean, whole.count) == (3.0, 3)
    assert whole.deviation == pytest.approx(math.sqrt(7))
    assert summary({5: 2.0}).deviation is None
    assert summary({}) is None


def test_the_interval_is_that_of_scipys_paired_test():
    accuracies, baseline = {0: 80.1, 1: 79.4, 2: 81.0, 7: 80.0}, {2: 80.2, 1: 79.1, 0: 79.9, 9: 1.0}
    difference = paired_difference(accuracies, baseline)
    test = stats.ttest_rel([80.1, 79.4, 81.0], [79.9, 79.1, 80.2])
    interval = test.confidence_interval(0.95)
    assert difference.by_seed == pytest.approx({0: 0.2, 1: 0.3, 2: 0.8})
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    # t(0.975, 2) = 4.3027; the deviation of 0.2, 0.3, 0.8 is 0.3215.
    assert difference.high - difference.mean == pytest.approx(4.3027 * 0.32146 / math.sqrt(3), rel=1e-4)


def test_one_seed_has_no_interval_and_none_no_difference():
    assert paired_difference({0: 1.0}, {0: 0.5}).low is None
    assert paired_difference({0: 1.0}, {1: 0.5}) is None


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 5), (3, 4), (6, 10)])
def test_the_critical_value_is_that_of_scipys_dunnett(comparisons, seeds):
    """SciPy's test is unpaired: its variance and its degrees of freedom are those within the groups."""
    samples = np.random.default_rng(0).normal(size=(comparisons + 1, seeds))
    interval = stats.dunnett(*samples[1:], control=samples[0], random_state=1).confidence_interval()
    error = math.sqrt(2 * samples.var(1, ddof=1).mean() / seeds)
    factor = (interval.high - interval.low) / 2 / error
    assert dunnett_factor(comparisons, len(samples) * (seeds - 1)) == pytest.approx(factor[0], rel=5e-3)


def test_the_critical_value_of_one_comparison_is_students():
    assert dunnett_factor(1, 9) == pytest.approx(stats.t.ppf(0.975, 9), rel=1e-4)


def test_simultaneous_intervals_of_two_variants_are_the_paired_one():
    scores = {0: 80.1, 1: 79.4, 2: 81.0}, {0: 79.9, 1: 79.1, 2: 80.2, 3: 5.0}
    difference, both = paired_difference(*scores), simultaneous(scores)
    assert both.half_width == pytest.approx(difference.high - difference.mean, rel=1e-3)
    assert (both.seeds, both.deviation.freedom) == ([0, 1, 2], 2)
    assert both.deviation.value == pytest.approx(np.std([0.2, 0.3, 0.8], ddof=1))
    assert simultaneous([{0: 1.0}, {0: 2.0}]) is None
    assert simultaneous([{0: 1.0, 1: 2.0}, {2: 2.0, 3: 1.0}]) is None


def test_simultaneous_intervals_hold_together_in_95_percent_of_experiments():
    """Six variants that differ by seed as well, and each from the baseline: 600 experiments of five seeds."""
    rng, effects, covered = np.random.default_rng(0), np.array([0, 1.0, -2, 0, 0, 3, 0.5]), 0
    for _ in range(600):
        scores = effects[:, None] + rng.normal(size=(7, 5)) + 3 * rng.normal(size=5)
        half = simultaneous([dict(enumerate(row)) for row in scores]).half_width
        means = scores.mean(1)
        covered += np.all(np.abs(means[1:] - means[0] - effects[1:]) <= half)
    assert covered / 600 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("seeds", [3, 10, 23])
def test_power_is_the_share_of_simulated_tests_that_detect(seeds):
    effect, deviation = 0.5, 0.8
    values = np.random.default_rng(1).normal(effect, deviation, size=(20_000, seeds))
    t = values.mean(1) / values.std(1, ddof=1) * math.sqrt(seeds)
    share = np.mean(t > stats.t.ppf(0.975, seeds - 1))
    assert power_of(effect, deviation, seeds) == pytest.approx(share, abs=0.01)


def test_a_plan_is_the_least_number_of_seeds():
    assert seeds_needed(0.5, 0.8) == 23
    assert power_of(0.5, 0.8, 22) < 0.8 <= power_of(0.5, 0.8, 23)
    assert seeds_needed(-0.5, 0.8) == 23
    assert seeds_needed(0.5, 0.0) == 2
    assert seeds_needed(0.5, 1000.0) is None
    assert power_of(detectable(0.8, 10), 0.8, 10) == pytest.approx(0.8)
    assert detectable(0.0, 10) == 0


def test_chance_stays_within_its_reach_in_95_percent_of_comparisons():
    pairs, inside = np.random.default_rng(4).normal(size=(2, 1_000, 4)), 0
    for one, other in zip(*pairs, strict=True):
        ruler = paired_difference(dict(enumerate(one)), dict.fromkeys(range(4), 0.0))
        inside += abs(other.mean()) <= chance_reach(ruler)
    assert inside / 1_000 == pytest.approx(0.95, abs=0.02)


def test_the_range_of_a_deviation_contains_it_in_95_percent_of_experiments():
    samples = np.random.default_rng(2).normal(size=(2_000, 4)).std(1, ddof=1)
    one = deviation_of(1.0, 3)
    # The interval is the estimate times two constants.
    assert np.mean((samples * one.low <= 1) & (samples * one.high >= 1)) == pytest.approx(0.95, abs=0.015)


def looked_at_always(values: np.ndarray, mean: float, alpha: float) -> np.ndarray:
    """Return for each experiment (a row) whether any interval from two values on excluded the mean."""
    n = np.arange(1, values.shape[1] + 1)
    means = values.cumsum(1) / n
    squares = np.maximum((values**2).cumsum(1) - n * means**2, 0)
    return (np.abs(means - mean) > sequence_half_width(n, squares, alpha))[:, 1:].any(1)


@pytest.mark.parametrize(("alpha", "seeds"), [(0.05, 30), (0.05, 1000), (0.05 / 6, 100)])
def test_a_confidence_sequence_errs_in_at_most_5_percent_of_experiments_looked_at_after_every_seed(alpha, seeds):
    values = np.random.default_rng(3).normal(0.3, 1.7, size=(2_000, seeds))
    errors = looked_at_always(values, 0.3, alpha).mean()
    assert errors <= alpha
    assert looked_at_always(values, 2.0, alpha).mean() > 0.5  # and excludes what is wrong
    if seeds == 1000:  # where Student's interval, looked at as often, is wrong most of the time
        n = np.arange(2, seeds + 1)
        means = values.cumsum(1)[:, 1:] / n
        squares = (values**2).cumsum(1)[:, 1:] - n * means**2
        half = stats.t.ppf(0.975, n - 1) * np.sqrt(squares / (n - 1) / n)
        assert (np.abs(means - 0.3) > half).any(1).mean() > 0.3


def test_a_confidence_sequence_does_not_depend_on_units_and_is_infinite_for_two_values():
    values = [0.2, 0.5, -0.1, 0.3]
    low, high = confidence_sequence(values)
    assert low < 0.225 < high < 3
    assert confidence_sequence([10 * value - 3 for value in values]) == pytest.approx((10 * low - 3, 10 * high - 3))
    assert confidence_sequence(values[:2]) == (-math.inf, math.inf)
    assert confidence_sequence([0.1]) == (-math.inf, math.inf)
    # E_n at the ends of the interval is 1 / alpha.
    n, c2, centred = 4, 0.1, np.array(values) - high
    evidence = math.sqrt(c2 / (n + c2)) * (1 - centred.sum() ** 2 / ((n + c2) * (centred**2).sum())) ** (-n / 2)
    assert evidence == pytest.approx(20)
