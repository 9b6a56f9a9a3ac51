"""Rows are paired: a seed counts when every contender has finished it."""

import pytest

from envs.evaluation.comparison import Comparison
from envs.evaluation.metrics import METRICS
from envs.evaluation.plan import Contender, Plan
from envs.evaluation.result import LEVELS, measure
from tests.envs.evaluation.synthetic import run


def a_comparison(*policies, scenarios=("calm", "rush"), seeds=12, without=()):
    plan = Plan(tuple(Contender(name, name) for name in policies), policies[0], scenarios, range(seeds))
    results = [
        measure(run, task) for task in plan.tasks() if (task.contender.label, task.seed) not in without
    ]
    return Comparison(plan, results)


def test_there_is_a_row_for_every_scenario_policy_and_metric():
    comparison = a_comparison("base", "half")

    assert [(row.scenario, row.policy, row.metric) for row in comparison.rows] == [
        (scenario, policy, metric)
        for scenario in ("calm", "rush")
        for policy in ("base", "half")
        for metric in METRICS
    ]


def test_the_value_is_the_mean_over_the_episodes():
    comparison = a_comparison("base", "half", seeds=3)

    expected = sum(run("calm", "half", seed, {}).metrics()["p99_s"] for seed in range(3)) / 3
    assert comparison.row("calm", "half", "p99_s").value == pytest.approx(expected)


def test_the_baseline_is_one_and_says_so():
    row = a_comparison("base", "half").row("calm", "base", "cost")

    assert (row.against.ratio, row.against.low, row.against.high, row.verdict) == (1.0, 1.0, 1.0, "baseline")


def test_half_the_latency_is_better_and_more_of_it_is_worse():
    comparison = a_comparison("base", "half", "slow")

    assert comparison.row("calm", "half", "mean_s").verdict == "better"
    assert comparison.row("calm", "half", "mean_s").against.ratio == pytest.approx(0.5, rel=0.1)
    assert comparison.row("calm", "slow", "slo").verdict == "worse"


def test_a_policy_that_serves_nothing_has_a_cost_but_no_latency():
    comparison = a_comparison("base", "hopeless")

    assert comparison.row("calm", "hopeless", "cost").verdict == "worse"
    assert comparison.row("calm", "hopeless", "p99_s").value is None
    assert comparison.row("calm", "hopeless", "p99_s").against.n == 0
    assert len(comparison.latencies_s("calm", "hopeless")) == 0


def test_what_was_never_measured_has_no_ratio():
    assert a_comparison("base", "half").row("calm", "half", "decision_us").against.ratio is None


def test_an_unfinished_seed_is_left_out_for_everyone():
    whole = a_comparison("base", "half", seeds=4)
    cut = a_comparison("base", "half", seeds=5, without={("half", 4)})

    assert cut.seeds["calm"] == (0, 1, 2, 3)
    assert cut.rows == whole.rows


def test_nothing_finished_is_an_empty_comparison():
    comparison = a_comparison("base", "half", seeds=1, without={("half", 0)})

    assert (comparison.scenarios, comparison.rows, comparison.summary()) == ((), [], [])


def test_the_summary_lies_between_the_scenarios_and_counts_seeds():
    comparison = a_comparison("base", "slow")
    (row,) = comparison.summary()

    each = [comparison.row(name, "slow", "cost").against.ratio for name in ("calm", "rush")]
    assert min(each) <= row.against.ratio <= max(each)
    assert (row.against.n, row.verdict) == (12, "worse")


def test_a_clear_difference_survives_the_correction_and_a_marginal_one_is_doubtful():
    comparison = a_comparison("base", "half", "three_per_cent", "same", seeds=30)

    doubtful = {(row.scenario, row.policy) for row in comparison.doubtful()}

    marginal = comparison.row("calm", "three_per_cent", "cost")
    assert marginal.verdict == "better"
    assert 0.05 / 6 < marginal.against.p < 0.05
    assert ("calm", "three_per_cent") in doubtful
    assert not doubtful & {("calm", "half"), ("rush", "half")}


def test_latencies_are_sketched_in_order():
    latencies_s = a_comparison("base", "half").latencies_s("calm", "base")

    assert len(latencies_s) == len(LEVELS)
    assert (latencies_s[1:] >= latencies_s[:-1]).all()
    assert list(LEVELS) == sorted(set(LEVELS))
