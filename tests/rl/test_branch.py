"""A label is the difference that an action makes: it is held against whole episodes in which only that action differs."""

from dataclasses import replace

import numpy as np
import pytest

from ccr.policies.least_cost import LeastCost
from envs.kernel import stepping
from envs.scenarios import MODELS, plain
from envs.seats import Seats, by_policy
from rl import branch

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1200)]

CROWDED = replace(
    plain("crowded", "Small and crowded.", nodes=3, rate=1.7, duration_s=40.0, models=MODELS[:6]),
    warmup_s=0.0,
)
SEED = 7


def played(script, seats=None):
    """Total cost of the episode in which every request goes where the script says."""
    seats = seats or Seats(1, len(CROWDED.nodes), by_policy(LeastCost()))
    sitting = seats.seat(0, CROWDED, SEED)
    while (j := int(seats.told[0, stepping.ASKS])) >= 0:
        seats.step([script[j]])
        assert seats.told[0, stepping.NODE] == script[j]
    return float(sitting.play.cost.sum())


def the_script():
    seats = Seats(1, len(CROWDED.nodes), by_policy(LeastCost()))
    sitting = seats.seat(0, CROWDED, SEED)
    seats.step([stepping.RUN])
    return sitting.sim.node.copy(), sitting.sim.placed[:, 6].copy()


def test_labels_tell_what_whole_episodes_cost_more():
    node, at_s = the_script()
    by_time = np.argsort(at_s, kind="stable")
    usual = played(node)
    seats = Seats(1, len(CROWDED.nodes), by_policy(LeastCost()))
    sitting = seats.seat(0, CROWDED, SEED)
    seat = stepping.seat_of(sitting.play)
    checked = 0
    while (j := int(seats.told[0, stepping.ASKS])) >= 0:
        if j % 20 == 10:
            found = np.zeros(len(CROWDED.nodes))
            first = int(np.searchsorted(at_s[by_time], at_s[j]))
            branch.labels(seat, j, seats.mask[0], node, at_s, by_time, first, np.inf, found)
            for other in range(len(CROWDED.nodes)):
                elsewhere = node.copy()
                elsewhere[j] = other
                try:
                    whole = played(elsewhere)
                except AssertionError:
                    continue  # the guard would not have let it happen
                assert found[other] - found[node[j]] == pytest.approx(whole - usual, rel=1e-6, abs=1e-6)
                checked += other != node[j]
        seats.step([stepping.POLICY])
    assert checked > 5


def test_looking_ahead_changes_nothing():
    node, at_s = the_script()
    by_time = np.argsort(at_s, kind="stable")
    seats = Seats(1, len(CROWDED.nodes), by_policy(LeastCost()))
    sitting = seats.seat(0, CROWDED, SEED)
    seat = stepping.seat_of(sitting.play)
    for _ in range(60):
        j = int(seats.told[0, stepping.ASKS])
        first = int(np.searchsorted(at_s[by_time], at_s[j]))
        branch.labels(seat, j, seats.mask[0], node, at_s, by_time, first, 30.0, np.zeros(3))
        seats.step([stepping.POLICY])
    seats.step([stepping.RUN])

    np.testing.assert_array_equal(sitting.sim.node, node)
