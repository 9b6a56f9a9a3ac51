"""Drawn scenarios are equal for equal seeds, and cover what was asked for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.timing import LOAD_SOURCES
from envs.randomised import REGIMES, REPLICAS, randomised, varied
from envs.scenarios import SCENARIOS

SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_constants_stay_in_the_ranges_the_learner_was_studied_with(seed):
    scenario = varied(SCENARIOS["medium"], seed)

    for node in scenario.nodes:
        assert 0.05e-3 <= node.engine.per_sequence_s <= 0.25e-3
        assert 0.0 <= node.overhead_s <= 0.1
        assert 0.5 <= node.loads.bytes_per_s / LOAD_SOURCES[node.loads.name].bytes_per_s <= 1.5
        assert (1 / 2.2 if node.is_hidden else 0.85) <= node.bw_scale <= (1.25 if node.is_hidden else 1.15)
    assert scenario.replicas in REPLICAS
    assert 0.1 <= scenario.telemetry_delay_s <= 1.0


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_equal_seeds_give_equal_scenarios(seed):
    one, other = randomised(seed), randomised(seed)

    assert one.nodes == other.nodes
    assert (one.name, one.troubles, one.replicas) == (other.name, other.troubles, other.replicas)
    assert (one.arrivals(3).t == other.arrivals(3).t).all()


def test_a_variation_keeps_the_day():
    scenario = varied(SCENARIOS["straggler"], 4)

    assert scenario.troubles == SCENARIOS["straggler"].troubles
    assert [node.warm for node in scenario.nodes] == [node.warm for node in SCENARIOS["straggler"].nodes]
    assert (scenario.arrivals(1).t == SCENARIOS["straggler"].arrivals(1).t).all()


def test_a_hidden_node_is_taken_for_a_plain_one():
    hidden = next(
        node for seed in range(100) for node in varied(SCENARIOS["medium"], seed).nodes if node.is_hidden
    )

    assert (hidden.prices().overhead_s, hidden.prices().bw_scale) == (0.0, 1.0)
    assert hidden.settings(keep_evicted=False).bw_scale == hidden.bw_scale


def test_a_hundred_draws_meet_every_regime_and_kind_of_trouble():
    drawn = [randomised(seed) for seed in range(100)]

    assert {scenario.name.rsplit("-", 1)[0].removeprefix("random-") for scenario in drawn} == set(REGIMES)
    assert {trouble.kind for scenario in drawn for trouble in scenario.troubles} == {"slow", "freeze"}
    assert {scenario.replicas for scenario in drawn} == set(REPLICAS)
    assert any(node.is_hidden for scenario in drawn for node in scenario.nodes)
    assert any("@3" in model for scenario in drawn for model in scenario.models)
    assert all(4 <= len(scenario.nodes) <= 16 for scenario in drawn)


def test_a_level_of_load_that_is_asked_for_changes_nothing_else():
    one, other = randomised(7, regime="low"), randomised(7, regime="saturated")

    assert [scenario.name for scenario in (one, other)] == ["random-low-7", "random-saturated-7"]
    assert (one.nodes, list(one.models), one.replicas) == (other.nodes, list(other.models), other.replicas)
    assert len(other.arrivals(1).t) > 2 * len(one.arrivals(1).t)


def test_brief_requests_are_brief_and_many_models_share_the_nodes():
    for seed in range(5):
        scenario = randomised(seed, regime="brief")
        arrivals = scenario.arrivals(1)

        assert np.median(arrivals.output_tokens) < 60
        assert np.median(arrivals.prompt_tokens) < 400
        assert len(scenario.models) >= 2 * len(scenario.nodes)
