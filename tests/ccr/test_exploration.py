"""Exploration: only where the promise is expected to be kept, with exact probabilities, at a price that is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import cost
from ccr.engine import Engine
from ccr.exploration import Budget, Exploration
from ccr.look import BACKLOG_S, IDEAL_S
from ccr.policies.least_cost import LeastCost
from ccr.policies.least_request import LeastRequest
from ccr.reward import slo_s
from ccr.types import Explored
from tests.factories import DRAWS, a_fleet, a_node, a_request
from tests.looks import LOOKS, NODES, a_book, look

MASKS = st.lists(st.booleans(), min_size=NODES, max_size=NODES).filter(any).map(np.array)
SHARES = st.floats(0.01, 1.0)


def latency_s(seen):
    return cost.latency_s(cost.terms(seen))


def certain(n, chosen):
    return np.eye(n)[chosen]


def mixed(share, seen, mask=None, scores=None, chosen=0):
    mask = np.ones(NODES, dtype=np.bool_) if mask is None else mask
    scores = np.zeros(NODES) if scores is None else scores
    return Exploration(share).mixed(certain(NODES, chosen), scores, mask, seen)


def a_look(*backlogs_s):
    """Warm nodes with so much prefill before the request."""
    book = a_book()
    book.resident[:] = True
    seen = look(book)
    seen.pairs[BACKLOG_S] = backlogs_s
    return seen


FAST, LATE = 0.0, 1e3


def test_a_share_goes_to_the_nodes_that_keep_the_promise():
    p, explored = mixed(0.2, a_look(FAST, FAST, LATE, LATE))

    assert p.tolist() == pytest.approx([0.8 + 0.1, 0.1, 0.0, 0.0])
    assert explored.share == 0.2


def test_the_policys_own_choice_stays_possible_where_it_is_late_itself():
    p, _ = mixed(0.2, a_look(LATE, FAST, FAST, LATE))

    assert p.tolist() == pytest.approx([0.8, 0.1, 0.1, 0.0])


@pytest.mark.parametrize(
    "backlogs_s",
    [
        pytest.param((LATE, LATE, LATE, LATE), id="none is safe"),
        pytest.param((FAST, LATE, LATE, LATE), id="one is safe"),
    ],
)
def test_with_fewer_than_two_safe_nodes_nothing_is_explored(backlogs_s):
    p, explored = mixed(1.0, a_look(*backlogs_s), chosen=3)

    assert p.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert (explored.share, explored.cost_s) == (0.0, 0.0)


def test_a_policy_that_does_not_look_does_not_explore():
    fleet = a_fleet(a_node("a"), a_node("b", inflight=3), a_node("c", inflight=3))
    engine = Engine(LeastRequest(), LeastRequest(), exploration=Exploration(1.0))

    decision = engine.decide(a_request(), fleet, 0.99)

    assert (decision.node_id, decision.propensity, decision.explored) == ("a", 1.0, None)


def test_a_node_that_is_not_eligible_or_never_wanted_is_not_explored():
    seen = a_look(FAST, FAST, FAST, FAST)
    mask = np.array([True, True, False, True])
    scores = np.array([0.0, 0.0, 0.0, -np.inf])

    p, _ = mixed(1.0, seen, mask, scores)

    assert p.tolist() == [0.5, 0.5, 0.0, 0.0]


@given(LOOKS, MASKS, SHARES, st.integers(0, NODES - 1))
def test_probabilities_are_exact_and_the_explored_part_breaks_no_promise(seen, mask, share, chosen):
    chosen = int(np.flatnonzero(mask)[chosen % mask.sum()])

    p, explored = mixed(share, seen, mask, chosen=chosen)

    keeps = mask & (latency_s(seen) <= slo_s(seen.asked[IDEAL_S]))
    assert p.sum() == pytest.approx(1.0)
    assert (p[~mask] == 0.0).all()
    assert not np.flatnonzero(p[~keeps & (np.arange(NODES) != chosen)]).size
    if keeps.sum() >= 2:
        np.testing.assert_allclose(
            p[keeps], share / keeps.sum() + (1.0 - share) * certain(NODES, chosen)[keeps]
        )
    assert explored.cost_s >= -1e-12


def test_what_is_told_is_what_it_costs_against_the_best_node():
    seen = a_look(0.0, 0.2, 0.4, LATE)
    seconds = latency_s(seen)

    _, explored = mixed(0.3, seen)

    assert explored.cost_s == pytest.approx(0.3 * (seconds[:3].mean() - seconds.min()))
    assert explored.best_s == pytest.approx(seconds.min())


def test_at_a_standstill_what_could_be_lost_is_still_counted():
    p, explored = mixed(0.0, a_look(FAST, FAST, FAST, FAST))

    assert p.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert explored.share == 0.0
    assert explored.best_s > 0.0


@given(seen=LOOKS, u=DRAWS)
def test_a_decision_tells_the_probability_it_was_drawn_with(seen, u):
    fleet = a_fleet(*[a_node(name) for name in "abcd"])
    fleet.looker = lambda *_: seen
    engine = Engine(LeastCost(), LeastRequest(), exploration=Exploration(0.4))

    decision = engine.decide(a_request(), fleet, u)

    assert decision.propensity == decision.probabilities[decision.index] > 0.0
    assert decision.probabilities.sum() == pytest.approx(1.0)


# -- the budget


def test_a_budget_is_a_share_of_what_is_expected():
    budget = Budget(share=0.1, window_s=60.0)

    may = [budget.spend(Explored(0.5, 0.04, 1.0), 0.0), budget.spend(Explored(0.5, 0.2, 1.0), 0.0)]

    assert may == [True, False]
    assert budget.used == pytest.approx(1.2)
    assert budget.cost_s == pytest.approx(0.24)


def test_a_budget_that_is_used_up_comes_back_with_what_is_expected_meanwhile():
    budget = Budget(share=0.1, window_s=60.0)
    budget.spend(Explored(0.5, 0.2, 1.0), 0.0)

    may = [budget.spend(Explored(0.0, 0.0, 1.0), 0.0) for _ in range(3)]

    assert may == [False, True, True]


def test_what_was_spent_long_ago_counts_no_more():
    budget = Budget(share=0.1, window_s=60.0)
    budget.spend(Explored(0.5, 5.0, 1.0), 0.0)

    assert not budget.spend(Explored(0.0, 0.0, 1.0), 60.0)
    assert budget.spend(Explored(0.0, 0.0, 1.0), 400.0)


def test_over_time_no_more_is_spent_than_the_budget():
    budget, share, spent_s, expected_s = Budget(share=0.05, window_s=30.0), 0.2, 0.0, 0.0
    for k in range(4000):
        cost_s = share and 0.2 * (0.5 + 0.3 * np.sin(k))
        explored = Explored(share, cost_s, 1.0)
        share = 0.2 if budget.spend(explored, 0.1 * k) else 0.0
        spent_s, expected_s = spent_s + cost_s, expected_s + 1.0

    assert 0.04 < spent_s / expected_s < 0.055


def test_without_a_budget_nothing_is_spent_after_the_first():
    budget = Budget(share=0.0, window_s=30.0)

    assert not budget.spend(Explored(0.1, 0.01, 1.0), 0.0)
    assert not budget.spend(Explored(0.0, 0.0, 1.0), 1.0)
