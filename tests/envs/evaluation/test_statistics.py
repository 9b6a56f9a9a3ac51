"""Intervals cover what they promise, planted effects are found, and nothing is found where nothing is."""

import numpy as np
import pytest

from envs.evaluation.statistics import geometric, holm, of_means, over_scenarios

EPISODE_SD = 0.15
"""Of the log ratio of an episode: what real comparisons have."""


def paired(rng, effect, n, sd=EPISODE_SD):
    """Figures of a policy and a baseline that share good and bad days much larger than the effect."""
    days = np.exp(rng.normal(0.0, 0.6, n))
    return days * effect * np.exp(rng.normal(0.0, sd, n)), days


def bootstrap(policy, baseline, statistic, rng, repeats=8000):
    """The percentile interval of a statistic of resampled pairs."""
    picks = rng.integers(0, len(policy), (repeats, len(policy)))
    return np.quantile([statistic(policy[pick], baseline[pick]) for pick in picks], [0.025, 0.975])


def test_three_per_cent_is_found_with_enough_seeds():
    rng = np.random.default_rng(1)

    ratio = geometric(*paired(rng, 0.97, 600))

    assert ratio.verdict(higher_is_better=False) == "better"
    assert ratio.low < 0.97 < ratio.high < 1.0


def test_three_per_cent_is_a_tie_with_few_seeds():
    """An honest answer: a handful of episodes cannot tell."""
    rng = np.random.default_rng(1)

    assert geometric(*paired(rng, 0.97, 8)).verdict(higher_is_better=False) == "tie"


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("statistic", [geometric, of_means])
def test_a_policy_like_the_baseline_is_a_tie_19_times_out_of_20(statistic, n):
    rng = np.random.default_rng(7)

    ties = [statistic(*paired(rng, 1.0, n)).verdict(higher_is_better=False) == "tie" for _ in range(2000)]

    # 0.95 within three standard errors of 2000 repeats; the delta method is an approximation, worst with few pairs.
    assert np.mean(ties) == pytest.approx(0.95, abs=0.016 if statistic is geometric else 0.06)


def test_the_geometric_interval_agrees_with_a_bootstrap():
    rng = np.random.default_rng(3)
    policy, baseline = paired(rng, 0.9, 80)

    ratio = geometric(policy, baseline)

    resampled = bootstrap(policy, baseline, lambda a, b: np.exp(np.log(a / b).mean()), rng)
    assert [ratio.low, ratio.high] == pytest.approx(resampled, rel=0.01)


def test_the_interval_of_means_agrees_with_a_bootstrap_though_figures_are_0_now_and_then():
    rng = np.random.default_rng(4)
    days = rng.gamma(4.0, 1.0, 120)
    policy, baseline = rng.poisson(1.2 * days).astype(float), rng.poisson(days).astype(float)

    ratio = of_means(policy, baseline)

    resampled = bootstrap(policy, baseline, lambda a, b: a.mean() / b.mean(), rng)
    assert (policy == 0.0).any()
    assert [ratio.low, ratio.high] == pytest.approx(resampled, rel=0.02)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(5)
    policy, baseline = paired(rng, 0.9, 40)

    together = geometric(policy, baseline)
    shuffled = geometric(policy, rng.permutation(baseline))

    assert together.high / together.low < 0.8 * shuffled.high / shuffled.low


@pytest.mark.parametrize("statistic", [geometric, of_means])
def test_a_policy_against_itself_is_exactly_one(statistic):
    figures = np.array([1.1, 0.3, 7.0])

    ratio = statistic(figures, figures)

    assert (ratio.ratio, ratio.low, ratio.high, ratio.n) == (1.0, 1.0, 1.0, 3)
    assert ratio.verdict(higher_is_better=False) == "tie"


def test_a_constant_ratio_is_certain():
    baseline = np.array([1.0, 2.0, 5.0])

    ratio = geometric(0.5 * baseline, baseline)

    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio.verdict(higher_is_better=False) == "better"


def test_one_pair_has_a_ratio_but_no_interval_and_no_verdict():
    ratio = geometric(np.array([2.0]), np.array([4.0]))

    assert (ratio.ratio, ratio.low, ratio.high, ratio.n) == (0.5, None, None, 1)
    assert ratio.verdict(higher_is_better=False) is None


def test_episodes_without_a_figure_drop_out_and_n_says_so():
    ratio = geometric(np.array([1.0, np.nan, 2.0, 3.0]), np.array([2.0, 5.0, 4.0, np.nan]))

    assert (ratio.ratio, ratio.n) == (pytest.approx(0.5), 2)


@pytest.mark.parametrize("statistic", [geometric, of_means])
def test_nothing_measured_is_no_ratio(statistic):
    ratio = statistic(np.array([np.nan, np.nan]), np.array([1.0, 2.0]))

    assert (ratio.ratio, ratio.n, ratio.verdict(higher_is_better=False)) == (None, 0, None)


def test_where_the_baseline_is_0_there_is_no_ratio_but_a_verdict():
    refused = np.array([0.10, 0.12, 0.09, 0.11])

    ratio = of_means(refused, np.zeros(4))

    assert (ratio.ratio, ratio.low, ratio.high) == (None, None, None)
    assert ratio.verdict(higher_is_better=False) == "worse"


def test_a_policy_that_is_always_0_has_a_ratio_of_0_and_a_verdict():
    ratio = of_means(np.zeros(5), np.array([4.0, 5.0, 6.0, 5.0, 4.0]))

    assert (ratio.ratio, ratio.low, ratio.high) == (0.0, None, None)
    assert ratio.verdict(higher_is_better=False) == "better"


def test_both_0_is_a_tie():
    assert of_means(np.zeros(5), np.zeros(5)).verdict(higher_is_better=False) == "tie"


def test_more_is_better_where_it_is():
    ratio = of_means(np.array([0.97, 0.98, 0.99]), np.array([0.71, 0.70, 0.72]))

    assert ratio.verdict(higher_is_better=True) == "better"
    assert ratio.verdict(higher_is_better=False) == "worse"


def test_over_scenarios_the_seed_is_the_observation():
    """Two scenarios with the same seeds are not twice the evidence."""
    logs = np.random.default_rng(6).normal(-0.05, 0.1, 12)

    one, twice = over_scenarios(logs[None]), over_scenarios(np.array([logs, logs]))

    assert twice == one
    assert twice.n == 12


def test_holm_asks_more_of_the_first_than_of_the_last():
    assert holm([0.02, 0.001, 0.04, 0.5]) == [False, True, False, False]
    assert holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert holm([]) == []


def test_holm_keeps_chance_findings_of_a_family_at_one_in_twenty():
    rng = np.random.default_rng(8)

    found = [any(holm(rng.random(12).tolist())) for _ in range(2000)]

    assert np.mean(found) == pytest.approx(0.05, abs=0.016)
