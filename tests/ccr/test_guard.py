import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ccr.engine import decide
from ccr.guard import BoundedLoad
from ccr.ledger import Ledger
from ccr.picker import BEST_OF_TWO, GREEDY, Exploring
from tests.factories import DRAWS, ROWS, Fixed, a_fleet, a_live_fleet, a_node, a_request

GUARD = BoundedLoad()


def guarded(fleet, scores, mask=None):
    """What is left of the best score: probabilities, and the id of the node that is executed."""
    scores = np.array(scores, dtype=float)
    mask = np.ones(len(scores), dtype=bool) if mask is None else np.array(mask)
    proposed = GREEDY.probabilities(scores, mask)
    executed, chosen = GUARD.executed(proposed, scores, mask, fleet, int(proposed.argmax()))
    return executed.tolist(), fleet.specs[chosen].id


def test_a_node_within_the_bound_keeps_what_the_policy_gave_it():
    fleet = a_fleet(a_node("a", inflight=3), a_node("b"), a_node("c"))

    assert guarded(fleet, [3, 2, 1]) == ([1.0, 0.0, 0.0], "a")


def test_what_was_drawn_on_an_overloaded_node_goes_to_the_best_of_the_others():
    fleet = a_fleet(a_node("a", inflight=8), a_node("b"), a_node("c", inflight=1))

    assert guarded(fleet, [3, 1, 2]) == ([0.0, 0.0, 1.0], "c")


def test_the_best_of_the_others_may_be_overloaded_too():
    fleet = a_fleet(*(a_node(id_, inflight=9) for id_ in "ab"), *(a_node(id_) for id_ in "cdef"))

    assert guarded(fleet, [6, 5, 1, 2, 4, 3])[1] == "e"


@pytest.mark.parametrize(
    ("inflight", "executed"),
    [
        pytest.param(3, "a", id="a fourth request is allowed on an idle fleet"),
        pytest.param(4, "b", id="a fifth is not: twice the mean of 5/3 rounds up to 4"),
    ],
)
def test_a_handful_of_requests_is_never_an_overload(inflight, executed):
    fleet = a_fleet(a_node("a", inflight=inflight), a_node("b"), a_node("c"))

    assert guarded(fleet, [3, 2, 1])[1] == executed


def test_nodes_that_may_not_serve_do_not_count_towards_the_mean():
    """Were ``busy`` to count, ``a`` could take dozens."""
    fleet = a_fleet(a_node("a", inflight=4), a_node("b"), a_node("c"), a_node("busy", inflight=90))

    assert guarded(fleet, [3, 2, 1, 4], [True, True, True, False])[1] == "b"


def test_of_two_nodes_none_is_ever_over_twice_the_mean():
    fleet = a_fleet(a_node("a", inflight=50), a_node("b"))

    assert guarded(fleet, [2, 1])[1] == "a"


@pytest.mark.parametrize(
    ("ramp", "inflight", "executed"),
    [
        pytest.param(1.0, 13, "new", id="full rotation: ceil(2 * (14 + 6) / 3) = 14 is the bound"),
        pytest.param(1.0, 14, "old", id="full rotation: a fifteenth is too many"),
        pytest.param(0.5, 2, "new", id="half way: ceil(2 * (3 + 6) / 3) * 0.5 = 3"),
        pytest.param(0.5, 3, "old", id="half way: ceil(2 * (4 + 6) / 3) * 0.5 = 3.5"),
        pytest.param(0.1, 0, "new", id="just back: always at least one"),
        pytest.param(0.1, 1, "old", id="just back: but not two"),
    ],
)
def test_a_node_in_slow_start_is_held_to_its_share_of_the_bound(ramp, inflight, executed):
    fleet = a_fleet(
        a_node("new", inflight=inflight, ramp=ramp), a_node("old", inflight=3), a_node("x", inflight=3)
    )

    assert guarded(fleet, [3, 2, 1])[1] == executed


def test_a_node_the_policy_never_wanted_still_takes_overload_by_load():
    """The guard is not negotiable, not even with -inf; and the position in the fleet decides nothing."""
    fleet = a_fleet(a_node("a", inflight=3), a_node("b", inflight=19), a_node("c", inflight=1))

    assert guarded(fleet, [-np.inf, 1, -np.inf]) == ([0.0, 0.0, 1.0], "c")


def test_when_all_nodes_ramp_up_the_least_loaded_for_its_share_takes_it():
    fleet = a_fleet(a_node("a", inflight=2, ramp=0.1), a_node("b", inflight=3, ramp=0.2))

    assert guarded(fleet, [2, 1]) == ([0.0, 1.0], "b")


def may_take_one(rows, mask):
    """Who is within the bound with one request more; the class docstring, word for word."""
    eligible = [row for row, may in zip(rows, mask, strict=True) if may]
    mean = (sum(row["inflight"] for row in eligible) + 1) / len(eligible)
    bound = max(math.ceil(2 * mean), 4)
    return np.array([row["inflight"] + 1 <= max(bound * row["ramp"], 1) for row in rows])


@given(rows=ROWS, picker=st.sampled_from([GREEDY, BEST_OF_TWO, Exploring(0.3)]), data=st.data())
def test_overloaded_nodes_lose_what_they_had_to_one_node_and_nobody_else_changes(rows, picker, data):
    fleet = a_fleet(*rows)
    n, mask = len(fleet), fleet.available
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float)
    proposed = picker.probabilities(scores, mask)
    drawn = data.draw(st.sampled_from(np.flatnonzero(proposed).tolist()))

    executed, chosen = GUARD.executed(proposed, scores, mask, fleet, drawn)

    fits = may_take_one(rows, mask)
    assert executed.sum() == pytest.approx(1.0)
    assert (executed[~mask] == 0.0).all()
    assert (executed[fits] >= proposed[fits]).all()
    assert np.count_nonzero(executed > proposed) <= 1
    assert chosen == drawn or not fits[drawn]
    if (mask & fits).any():
        assert (executed[~fits] == 0.0).all()
        assert fits[chosen]


class DispatchesAndFinishes(RuleBasedStateMachine):
    """Whatever policies want, and whoever drains meanwhile, no dispatch breaks the bound."""

    nodes = "abcd"

    def __init__(self):
        super().__init__()
        self.live = a_live_fleet(*self.nodes)
        self.ledger = Ledger(self.live)
        self.leases = []

    @rule(scores=st.lists(st.integers(-2, 2), min_size=4, max_size=4), u=DRAWS, times=st.integers(1, 9))
    @precondition(lambda self: self.live.at(0.0).available.any())
    def dispatch(self, scores, u, times):
        for _ in range(times):
            decision = decide(a_request(), self.live.at(0.0), Fixed(scores), GUARD, u)

            state = self.live.state(decision.node_id)
            self.leases.append(self.ledger.lease(state, a_request(), 0.0))

            inflight = [
                self.live.state(id_).inflight
                for id_, may in zip(self.nodes, decision.mask, strict=True)
                if may
            ]
            assert state.inflight <= max(math.ceil(2 * sum(inflight) / len(inflight)), 4)

    @rule(position=st.integers(0))
    @precondition(lambda self: self.leases)
    def finish(self, position):
        self.leases.pop(position % len(self.leases)).release()

    @rule(node=st.sampled_from(nodes), draining=st.booleans())
    def drain(self, node, draining):
        self.live.drain(node, draining=draining, now_s=0.0)

    @invariant()
    def nothing_is_lost(self):
        assert len(self.leases) == self.ledger.in_flight == sum(state.inflight for state in self.live.states)


TestDispatchesAndFinishes = DispatchesAndFinishes.TestCase
