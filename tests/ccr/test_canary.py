"""The canary's states never change, and it notices what a checksum cannot."""

import hashlib

import numpy as np
import pytest

from ccr import canary
from ccr.errors import WeightsError
from ccr.features import FEATURES, REQUEST_FEATURES
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import blank
from tests.weights import a_network


@pytest.fixture(scope="module")
def walked():
    return canary.walk(a_network())


def test_the_states_are_fleets_with_somebody_to_choose():
    for state in canary.states():
        n = len(state.mask)
        assert 2 <= n <= 16
        assert state.mask.any()
        assert state.nodes.shape == (n, len(FEATURES))
        assert state.request.shape == (len(REQUEST_FEATURES),)
        assert ((state.nodes >= 0.0) & (state.nodes <= 1.5)).all()
    assert len(canary.states()) == canary.STATES


def test_the_states_are_the_same_for_ever():
    """Stored canaries would die with them. A new feature makes new ones, and new weights."""
    draws = canary._Draws(canary._SEED)

    numbers = [draws.take(2), draws.take(1, 2)]

    assert hashlib.sha256(b"".join(each.tobytes() for each in numbers)).hexdigest()[:16] == "a2cd7ea447093ded"


def test_most_of_what_a_policy_can_do_is_tried():
    """Nodes of all places, refusing and holding."""
    willing = a_network()
    willing.scalars[1:3] = 0.5, 1.1
    walk = canary.walk(willing)
    sizes = np.array([len(state.mask) for state in canary.states()])

    assert len(set(walk.places.tolist())) > 8
    assert (walk.actions == sizes).any()
    assert (walk.actions == sizes + 1).any()
    assert (walk.actions < sizes).any()


def test_a_walk_is_the_same_as_itself(walked):
    canary.check_same(canary.walk(a_network()), walked.as_json(), "w")


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(None, id="nothing"),
        pytest.param([], id="a list"),
        pytest.param({"actions": [1], "sums": [1.0]}, id="one state"),
        pytest.param({"actions": ["a"] * 256, "sums": [0.0] * 256}, id="words"),
        pytest.param({"actions": [10**30] * 256, "sums": [0.0] * 256}, id="numbers too large"),
        pytest.param({"actions": [[1, 2], [3]], "sums": []}, id="ragged"),
    ],
)
def test_what_is_no_canary_is_refused(walked, stored):
    with pytest.raises(WeightsError, match=r"^w: its canary is not 256 actions and sums"):
        canary.check_same(walked, stored, "w")


def test_one_other_action_kills_it(walked):
    stored = walked.as_json()
    stored["actions"][7] += 1

    with pytest.raises(WeightsError, match="the canary is dead: 1 of 256 actions"):
        canary.check_same(walked, stored, "w")


@pytest.mark.parametrize(("off", "lives"), [(1e-8, True), (1e-5, False), (float("nan"), False)])
def test_logits_may_differ_by_rounding_and_no_more(walked, off, lives):
    stored = walked.as_json()
    stored["sums"][7] += off * walked.sizes[7]

    if lives:
        canary.check_same(walked, stored, "w")
        return
    with pytest.raises(WeightsError, match="0 of 256 actions are not those"):
        canary.check_same(walked, stored, "w")


def test_weights_that_overflow_are_refused():
    net = a_network()
    net.own[:] = 1e308

    with pytest.raises(WeightsError, match="logits are not finite on state 0 of the canary"):
        canary.check_sane(canary.walk(net), "w")


def test_weights_that_treat_all_nodes_alike_are_refused():
    with pytest.raises(WeightsError, match="number 1 of those that may be chosen"):
        canary.check_sane(canary.walk(blank(np.zeros(8))), "w")


def test_the_heuristic_alone_is_sane():
    canary.check_sane(canary.walk(blank(np.array(LeastCost().theta))), "w")


def test_weights_agree_with_themselves_and_less_with_others(walked):
    other = canary.walk(blank(np.array(LeastCost().theta)[::-1].copy()))

    assert canary.agreement(walked, walked) == 1.0
    assert canary.agreement(walked, other) == canary.agreement(other, walked) < 1.0


def test_a_walk_rests_before_each_state():
    rests = []

    canary.walk(a_network(), lambda: rests.append(1))

    assert len(rests) == canary.STATES
