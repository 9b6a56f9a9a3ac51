"""An explanation adds up: its parts are those the policy decided by."""

import numpy as np
import pytest
from hypothesis import given

from ccr import cost
from ccr.engine import decide
from ccr.explain import TERM_NAMES, explain, look_in, weighted_terms
from ccr.guard import BoundedLoad
from ccr.picker import Exploring
from ccr.policies import POLICIES
from ccr.policies.learned import PRIORITY_LOGIT, Learned
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import EXTRA, KAPPA
from ccr.trace import decode, encode, record_of
from ccr.types import Outcome
from tests.factories import DRAWS, FLEETS, Fixed, a_fleet, a_node, a_request
from tests.looks import LOOKS
from tests.weights import a_network

every_policy = pytest.mark.parametrize("policy", [make() for make in POLICIES.values()], ids=list(POLICIES))
LEARNED = Learned(a_network(), "v7")
FLEET = a_fleet(
    a_node("warm", models="llama", inflight=3.0), a_node("cold"), a_node("gone", available=False, why="draining"),
)  # fmt: skip


def explained(policy, fleet=FLEET, request=None, *, u=0.5, guard=None, why_not=None):
    """The explanation of a decision that was on disk, and the decision."""
    request = request or a_request("llama")
    decision = decide(request, fleet, policy, guard or BoundedLoad(), u)
    record = record_of(request, decision, fleet, t=0.0, status=Outcome.OK)
    return explain(decode(encode(record)), policy, why_not), decision


@every_policy
@given(fleet=FLEETS, u=DRAWS)
def test_every_policy_s_decisions_are_explained(policy, fleet, u):
    found, decision = explained(policy, fleet, u=u)

    assert (found.node, found.propensity, found.policy) == (
        decision.node_id,
        decision.propensity,
        policy.name,
    )
    assert [node.node for node in found.nodes if node.is_chosen] == [decision.node_id]
    assert [node.probability for node in found.nodes] == decision.probabilities.tolist()
    assert [not node.why_not for node in found.nodes] == decision.mask.tolist()


@given(FLEETS, DRAWS)
def test_a_logit_is_the_residual_and_the_logarithm_of_the_cost(fleet, u):
    found, decision = explained(LEARNED, fleet, u=u)

    kappa = LEARNED.network.scalars[KAPPA]
    for node, logit in zip(found.nodes, decision.scores, strict=True):
        assert sum(node.weighted.values()) == pytest.approx(node.cost_s)
        assert node.residual - kappa * np.log(node.cost_s) == pytest.approx(logit, rel=1e-6, abs=1e-6)
        assert node.score == logit


@given(FLEETS, DRAWS)
def test_a_score_of_the_heuristic_is_minus_its_cost(fleet, u):
    found, _ = explained(LeastCost(cold=3.0), fleet, u=u)

    for node in found.nodes:
        assert sum(node.weighted.values()) == pytest.approx(node.cost_s) == pytest.approx(-node.score)
        assert node.residual is None


@given(LOOKS)
def test_weighted_terms_add_up_to_the_cost(look):
    theta = np.array(LeastCost().theta)
    parts = cost.terms(look)

    weighted = weighted_terms(parts, theta)

    np.testing.assert_allclose(weighted.sum(axis=0), cost.total(parts, theta), rtol=1e-9)
    assert (np.minimum(weighted[cost.LOAD], weighted[cost.BACKLOG]) == 0.0).all()


def test_the_terms_are_the_eight_of_the_cost_in_seconds():
    found, decision = explained(LEARNED)

    parts = cost.terms(decision.look)
    assert len(TERM_NAMES) == len(cost.TERMS)
    assert [list(node.terms.values()) for node in found.nodes] == parts.T.tolist()
    assert found.nodes[0].terms["cold"] == 0.0 < found.nodes[1].terms["cold"]


@given(FLEETS, DRAWS)
def test_the_heuristic_is_what_least_cost_would_draw(fleet, u):
    found, _ = explained(LEARNED, fleet, u=u)

    heuristic, _ = explained(LeastCost(), fleet, u=0.0)
    assert found.heuristic == heuristic.drawn
    assert [node.heuristic_s for node in found.nodes] == pytest.approx(
        [node.cost_s for node in heuristic.nodes]
    )


def test_who_was_not_eligible_says_why():
    found, _ = explained(LEARNED, why_not={"gone": "draining"})
    unknown, _ = explained(LEARNED)

    assert [node.why_not for node in found.nodes] == ["", "", "draining"]
    assert unknown.nodes[2].why_not == "not eligible"


def test_a_move_of_the_guard_is_told():
    fleet = a_fleet(a_node("full", inflight=20.0), a_node("idle"))

    found, _ = explained(Fixed([1.0, 0.0]), fleet, guard=BoundedLoad(factor=1.0))

    assert (found.drawn, found.node, found.guard_reason) == ("full", "idle", "bounded_load")
    assert (found.drawn_propensity, found.propensity) == (1.0, 1.0)


def test_propensities_are_those_of_an_exploring_policy():
    policy = Learned(a_network(), picker=Exploring(epsilon=0.2))

    found, decision = explained(policy, u=0.0)

    assert found.drawn_propensity == decision.drawn_propensity
    assert sum(node.probability for node in found.nodes) == pytest.approx(1.0)
    assert sorted(node.probability for node in found.nodes) == pytest.approx([0.0, 0.1, 0.9])


def test_refusing_and_holding_have_logits_and_a_word_whether_they_were_allowed():
    request = a_request("llama", priority=2)
    found, decision = explained(LEARNED, request=request)
    absent, _ = explained(LEARNED, request=a_request("qwen"))

    refuse, hold = found.actions
    plain = LEARNED.logits(decision.look, decision.mask)[-EXTRA:]
    assert [refuse.logit, hold.logit] == pytest.approx([plain[0] - 2 * PRIORITY_LOGIT, plain[1]])
    assert (refuse.is_allowed, hold.is_allowed) == (False, False)
    assert [action.is_allowed for action in absent.actions] == [False, True]


@pytest.mark.parametrize("name", ["round_robin", "hot_cold", "least_request"])
def test_a_policy_that_does_not_look_shows_its_scores_and_says_so(name):
    found, decision = explained(POLICIES[name]())

    assert "does not look" in found.note
    assert found.heuristic is None
    assert found.actions == ()
    assert [node.score for node in found.nodes] == decision.scores.tolist()
    assert all(node.terms == node.weighted == {} and node.cost_s is None for node in found.nodes)


def test_a_policy_that_looks_but_weighs_no_terms_shows_them_for_comparison():
    found, _ = explained(POLICIES["least_work"]())

    assert "for comparison" in found.note
    assert all(node.terms and not node.weighted for node in found.nodes)
    assert found.heuristic is not None


def test_weights_and_version_are_told():
    assert explained(LEARNED)[0].version == "v7"
    assert explained(LeastCost())[0].version == ""


def test_another_policy_than_the_one_that_decided_explains_nothing():
    request = a_request("llama")
    decision = decide(request, FLEET, LEARNED, BoundedLoad(), 0.5)
    record = record_of(request, decision, FLEET, t=0.0, status=Outcome.OK)

    with pytest.raises(ValueError, match="'learned' decided"):
        explain(record, LeastCost())


def test_what_was_seen_comes_back_from_the_record():
    request = a_request("llama")
    decision = decide(request, FLEET, LEARNED, BoundedLoad(), 0.5)
    record = decode(encode(record_of(request, decision, FLEET, t=0.0, status=Outcome.OK)))

    for there, here in zip(look_in(record), decision.look, strict=True):
        np.testing.assert_array_equal(there, here)
