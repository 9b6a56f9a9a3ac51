from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.engine import Engine, decide
from ccr.errors import NoEligibleNodeError, PolicyError
from ccr.guard import BoundedLoad
from ccr.picker import BEST_OF_TWO, GREEDY, Exploring, Picker
from ccr.policies.least_request import LeastRequest
from tests.factories import DRAWS, FLEETS, Fixed, a_fleet, a_node, a_request, a_spec

PICKERS = st.sampled_from([GREEDY, BEST_OF_TWO, Exploring(0.2)])


@dataclass(frozen=True)
class Raises:
    error: Exception
    name: str = "raises"
    picker: Picker = GREEDY

    def scores(self, request, fleet):
        raise self.error


def an_engine(policy):
    return Engine(policy, fallback=LeastRequest())


def middles(probabilities):
    """For each likely node, a draw in the middle of its share."""
    ends = probabilities.cumsum() / probabilities.sum()
    return {i: float(ends[i] - probabilities[i] / 2) for i in np.flatnonzero(probabilities)}


def test_the_best_eligible_node_is_chosen():
    fleet = a_fleet(a_node("best", available=False), a_node("second"), a_node("third"))

    decision = an_engine(Fixed([3, 2, 1])).decide(a_request(seq=7), fleet, u=0.5)

    assert (decision.node_id, decision.index, decision.drawn_id) == ("second", 1, "second")
    assert (decision.request_id, decision.policy, decision.u) == ("r7", "fixed", 0.5)
    assert (decision.propensity, decision.guard_reason, decision.fallback) == (1.0, "", "")
    assert decision.mask.tolist() == [False, True, True]


def test_a_retry_goes_elsewhere():
    fleet = a_fleet(a_node("a"), a_node("b"))

    decision = an_engine(Fixed([2, 1])).decide(a_request(), fleet, 0.5, exclude=np.array([True, False]))

    assert decision.node_id == "b"


def test_a_moved_draw_is_told_with_its_reason():
    fleet = a_fleet(a_node("a", inflight=9), a_node("b"), a_node("c"))

    decision = an_engine(Fixed([3, 2, 1])).decide(a_request(), fleet, u=0.5)

    assert (decision.drawn_id, decision.node_id, decision.guard_reason) == ("a", "b", "bounded_load")
    assert decision.propensity == 1.0


def test_no_eligible_node_is_refused_with_each_reason_and_a_remedy():
    fleet = a_fleet(
        a_node("a10-3", available=False, why="ejected for 4 s (5 errors in a row)"),
        a_node("a10-7", room_gib=2.1),
        a_node(spec=a_spec("a10-9", serves="qwen")),
    )

    with pytest.raises(NoEligibleNodeError) as refused:
        an_engine(Fixed([1, 1, 1])).decide(a_request("llama", model_gib=7.9), fleet, u=0.5)

    assert str(refused.value) == (
        "no node can serve model 'llama' (a10-3: ejected for 4 s (5 errors in a row); "
        "a10-7: needs 7.9 GiB, has 2.1; a10-9: does not serve it). "
        "Add a node that has it, or relax what excludes these in the config."
    )
    assert refused.value.model == "llama"
    assert set(refused.value.reasons) == {"a10-3", "a10-7", "a10-9"}


def test_an_empty_fleet_is_refused_in_words():
    with pytest.raises(NoEligibleNodeError, match="the fleet is empty"):
        an_engine(LeastRequest()).decide(a_request(), a_fleet(), u=0.5)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        pytest.param(Raises(PolicyError("script.py:3: division by zero")), "script.py:3: division by zero", id="raises"),
        pytest.param(Raises(PolicyError()), "PolicyError", id="raises without a word"),
        pytest.param(Fixed([np.nan, 1]), "no usable score: the best of the eligible nodes is nan", id="NaN"),
        pytest.param(Fixed([np.inf, 1]), "no usable score: the best of the eligible nodes is inf", id="+inf"),
        pytest.param(Fixed([-np.inf] * 2), "no usable score: the best of the eligible nodes is -inf", id="all -inf"),
    ],
)  # fmt: skip
def test_a_failing_policy_is_replaced_by_the_fallback_and_the_decision_says_so(policy, why):
    fleet = a_fleet(a_node("busy", inflight=3), a_node("idle"))

    decision = an_engine(policy).decide(a_request(), fleet, u=0.5)

    assert (decision.node_id, decision.policy, decision.fallback) == ("idle", "least_request", why)


def test_a_fault_of_our_own_is_not_hidden_behind_the_fallback():
    with pytest.raises(ZeroDivisionError):
        an_engine(Raises(ZeroDivisionError())).decide(a_request(), a_fleet(a_node()), u=0.5)


def test_having_no_node_is_not_blamed_on_the_policy():
    with pytest.raises(NoEligibleNodeError):
        an_engine(Raises(PolicyError())).decide(a_request(), a_fleet(a_node(available=False)), u=0.5)


@given(fleet=FLEETS, picker=PICKERS, data=st.data())
def test_the_propensity_is_the_probability_of_all_draws_that_end_there(fleet, picker, data):
    """Executed, not intended: after mask and guard. Off-policy estimates stand on this."""
    policy = Fixed(
        data.draw(st.lists(st.integers(-3, 3), min_size=len(fleet), max_size=len(fleet))), picker=picker
    )
    drawn = picker.probabilities(policy.scores(a_request(), fleet), fleet.available)

    decisions = {i: decide(a_request(), fleet, policy, BoundedLoad(), u) for i, u in middles(drawn).items()}

    executed = np.zeros(len(fleet))
    for i, decision in decisions.items():
        assert decision.drawn_id == fleet.specs[i].id
        executed[decision.index] += drawn[i]
    for decision in decisions.values():
        np.testing.assert_allclose(decision.probabilities, executed, atol=1e-12)
        assert decision.propensity == decision.probabilities[decision.index] > 0.0


@given(fleet=FLEETS, picker=PICKERS, data=st.data())
def test_nodes_are_executed_as_often_as_their_propensity_says(fleet, picker, data):
    policy = Fixed(
        data.draw(st.lists(st.integers(-3, 3), min_size=len(fleet), max_size=len(fleet))), picker=picker
    )
    grid = (np.arange(200) + 0.5) / 200

    decisions = [decide(a_request(), fleet, policy, BoundedLoad(), u) for u in grid]

    counts = np.bincount([decision.index for decision in decisions], minlength=len(fleet))
    # A node takes the shares of up to n draws, each of them exact up to one point of the grid.
    np.testing.assert_allclose(counts / 200, decisions[0].probabilities, atol=1.001 * len(fleet) / 200)


@given(fleet=FLEETS, u=DRAWS)
def test_the_node_of_a_decision_is_eligible(fleet, u):
    decision = decide(a_request(), fleet, LeastRequest(), BoundedLoad(), u)

    assert fleet.available[decision.index]
    assert fleet.specs[decision.index].id == decision.node_id


@given(fleet=FLEETS, u=DRAWS)
def test_deciding_changes_nothing(fleet, u):
    before = fleet.columns.copy()

    decide(a_request(), fleet, LeastRequest(), BoundedLoad(), u)

    np.testing.assert_array_equal(fleet.columns, before)
