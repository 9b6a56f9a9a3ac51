"""Poison is given as the table says, the router's own core holds, and a drill sees it when the core does not."""

from dataclasses import dataclass

import numpy as np
import pytest

from ccr.fleet import LiveFleet
from ccr.outlier import Health
from ccr.picker import GREEDY
from ccr.policies.least_cost import LeastCost
from rl.drills import poison
from rl.drills.poison import (
    POISONS,
    Noting,
    Times,
    fast_failing_node,
    lying_node,
    nan_feedback,
    sybil,
    target_of,
)

SHORT = Times(20.0, 50.0)
SEED = 58_000_000


@dataclass(frozen=True)
class Believes:
    """The planted mistake: whoever says that it is idle gets everything."""

    name: str = "believes"
    picker: object = GREEDY

    def scores(self, request, fleet):
        return fleet.gpu_free_gib - fleet.running - fleet.waiting


@pytest.mark.parametrize("name", POISONS)
def test_every_figure_with_a_bar_is_measured(name):
    figures = POISONS[name].play(LeastCost(), SEED, SHORT, True)

    assert {limit.figure for limit in POISONS[name].limits} <= set(figures)
    assert np.isfinite(list(figures.values())).all()


def test_a_node_that_fails_at_once_gets_five_requests_and_a_probe_now_and_then():
    figures = fast_failing_node(LeastCost(), SEED, SHORT, True)

    assert figures["failures_per_ejection"] <= 5.0
    assert figures["share_after_5s"] <= 0.02
    assert figures["failed_requests"] == 0.0
    assert figures["ejections"] >= 1.0


def test_without_ejection_the_drill_sees_what_failing_fast_does(monkeypatch):
    monkeypatch.setattr(Health, "_eject", lambda *_, **__: None)

    figures = fast_failing_node(LeastCost(), SEED, SHORT, True)

    assert figures["failures"] > 20.0
    assert figures["share_after_5s"] > 0.02


def test_a_policy_that_believes_a_liar_is_found_out():
    held, believed = (
        lying_node(policy, SEED, SHORT, True)["of_fair"] for policy in (LeastCost(), Believes())
    )

    assert held <= 1.0 < believed


def test_up_to_the_lie_both_arms_are_one_day(monkeypatch):
    noted = []
    monkeypatch.setattr(poison, "Noting", lambda fleet: noted.append(Noting(fleet)) or noted[-1])
    late = SHORT._replace(begins_s=SHORT.end_s - 2.0)
    seen = {}

    for arm in (False, True):
        lying_node(LeastCost(), SEED, late, arm)
        seen[arm] = [each for each in noted[-1].sent if each.at_s < late.begins_s]

    assert seen[False] == seen[True]


def test_times_that_are_none_are_refused():
    assert nan_feedback(LeastCost(), SEED, SHORT, True)["not_finite"] == 0.0


def test_a_core_that_takes_anything_is_found_out(monkeypatch):
    told = []
    record = LiveFleet.record

    def gullible(fleet, state, outcome, latency_s, now_s, u, **more):
        told.append(latency_s)
        if outcome.name == "OK" and np.isnan(latency_s):
            state.latency_s = latency_s
        return record(fleet, state, outcome, latency_s, now_s, u, **more)

    monkeypatch.setattr(LiveFleet, "record", gullible)

    assert nan_feedback(LeastCost(), SEED, SHORT, True)["not_finite"] > 0.0
    assert np.isnan(told).any()


def test_liars_are_a_fifth_of_those_who_report_on_the_node(monkeypatch):
    lies = []
    played = poison._play

    def noting(scenario, policy, seed, told=None):
        def heard(j, node, ttft_s, latency_s):
            found = told(j, node, ttft_s, latency_s)
            lies.append((node, found != (ttft_s, latency_s)))
            return found

        return played(scenario, policy, seed, heard)

    monkeypatch.setattr(poison, "_play", noting)
    sybil(LeastCost(), SEED, Times(0.0, 60.0), True)

    at = target_of(poison._day(SHORT), SEED)
    assert not any(is_lie for node, is_lie in lies if node != at)
    assert np.mean([is_lie for node, is_lie in lies if node == at]) == pytest.approx(0.2, abs=0.12)
