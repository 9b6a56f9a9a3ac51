"""The arms of a drill live through one day until the drift, and then differ in what their routers know and in nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from ccr.book import SPEED
from ccr.policies.least_cost import LeastCost
from envs.simulator import simulate
from rl.drills.drifts import DRIFTS, Times, node_slow
from rl.drills.play import ARMS, FROZEN, ONLINE, TRUTH, played

# Compiled code is kept on disk; the first run on a machine makes it.
pytestmark = pytest.mark.timeout(600)

SHORT = Times(40.0, 70.0, 120.0)
SEED = 57_000_000
POLICY = LeastCost()


@pytest.fixture(scope="module")
def ends():
    """Every drift, played once, by its name."""
    return {
        name: played(drift.case(SEED, SHORT), POLICY, SEED, SHORT.drift_s) for name, drift in DRIFTS.items()
    }


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", DRIFTS)
def test_up_to_the_drift_the_arms_are_one_day(name, ends):
    episodes = [ends[name][arm].episode for arm in ARMS]

    for other in episodes[1:]:
        early = episodes[0].arrived_s < SHORT.drift_s
        np.testing.assert_array_equal(other.arrived_s, episodes[0].arrived_s)
        np.testing.assert_array_equal(other.node[early], episodes[0].node[early])


@pytest.mark.parametrize("name", DRIFTS)
def test_frozen_knows_at_the_end_what_it_knew_and_online_has_gone_on(name, ends):
    arms = ends[name]

    assert same(arms[FROZEN].learned, arms[FROZEN].told)
    assert same(arms[FROZEN].told, arms[ONLINE].told)
    assert not same(arms[ONLINE].learned, arms[ONLINE].told)


@pytest.mark.parametrize("name", [name for name in DRIFTS if DRIFTS[name].recovers])
def test_only_the_truth_is_told(name, ends):
    arms = ends[name]

    assert not same(arms[TRUTH].told, arms[ONLINE].told)


def test_online_is_the_product_as_it_is(ends):
    """Stepped and copied at the drift, it is the episode that the simulator runs in one go."""
    case = node_slow(SEED, SHORT)

    plain = simulate(case.scenario, POLICY, SEED, engine="compiled")

    for column in ("arrived_s", "total_s", "ttft_s", "node", "status", "cold"):
        np.testing.assert_array_equal(
            getattr(ends["node-slow"][ONLINE].episode, column), getattr(plain, column)
        )


def test_a_slow_node_is_found_out_by_those_who_learn(ends):
    arms = ends["node-slow"]
    was, now, told = (arms[arm].learned.speed[0, 0] for arm in (FROZEN, ONLINE, TRUTH))

    slow = int(np.argmax(now / was))

    assert now[slow] / was[slow] == pytest.approx(2.0, rel=0.35)
    assert told[slow] / was[slow] == pytest.approx(2.0, rel=0.35)


def test_what_was_told_is_what_online_comes_to_know(ends):
    """A truth that is none would show here: what is learned of long traffic is what was told."""
    for name, field in (("node-slow", "speed"), ("lengths-tripled", "output_tokens")):
        arms = ends[name]
        moved = np.log(getattr(arms[TRUTH].told, field) / getattr(arms[ONLINE].told, field))
        learned = np.log(getattr(arms[ONLINE].learned, field) / getattr(arms[ONLINE].told, field))
        if field == "speed":
            moved, learned = moved[0, 0], learned[0, 0]
        assert np.corrcoef(moved.ravel(), learned.ravel())[0, 1] > 0.5, name


def test_a_lie_instead_of_the_truth_costs(ends):
    """The planted mistake: the wrong node is told to be slow."""
    case = node_slow(SEED, SHORT)
    right = ends["node-slow"][TRUTH]
    slow = int(np.argmax(right.told.speed[0, 0] / ends["node-slow"][FROZEN].told.speed[0, 0]))

    def lie(sim):
        sim.books.load[:, SPEED] *= 4.0
        sim.books.load[:, SPEED, slow] /= 8.0

    lied = played(replace(case, tell=lie), POLICY, SEED, SHORT.drift_s)[TRUTH]

    assert lied.episode.metrics()["cost"] > 1.05 * right.episode.metrics()["cost"]


def test_an_episode_of_a_later_drift_is_counted_after_it():
    case = node_slow(SEED, SHORT)

    assert case.scenario.warmup_s == SHORT.counted_s
    assert case.scenario.troubles[0].from_s == SHORT.drift_s


def test_two_models_trade_places_and_nobody_changes_in_the_middle_of_a_conversation():
    arrivals = DRIFTS["popularity-swap"].case(SEED, Times()).arrivals

    shares = [
        np.bincount(arrivals.model[kept], minlength=17) / kept.sum()
        for kept in (arrivals.t < Times().drift_s, arrivals.t > Times().counted_s)
    ]
    told = np.unique(np.stack((arrivals.session, arrivals.model))[:, arrivals.session >= 0], axis=1)

    assert shares[0].argmax() == 0
    assert shares[1].argmax() == 16
    assert shares[0][16] < 0.05 > shares[1][0]
    assert len(np.unique(told[0])) == told.shape[1]  # one model for each conversation


def test_answers_are_three_times_as_long_from_the_drift_on():
    case = DRIFTS["lengths-tripled"].case(SEED, Times())
    output, late = case.arrivals.output_tokens, case.arrivals.t >= Times().drift_s

    assert output[late].mean() / output[~late].mean() == pytest.approx(3.0, rel=0.2)
