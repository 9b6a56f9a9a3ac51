"""What holds for every row of the table of policies, and for the next one."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.engine import decide
from ccr.guard import BoundedLoad
from ccr.picker import draw
from ccr.policies import POLICIES
from ccr.policy import Policy
from tests.factories import DRAWS, FLEETS, MODELS, ROWS, SEQS, a_fleet, a_request

every_policy = pytest.mark.parametrize("policy", [make() for make in POLICIES.values()], ids=list(POLICIES))
orderless_policy = pytest.mark.parametrize(
    "policy",
    # Round robin's turns follow the order of the nodes: that is what it is.
    [make() for name, make in POLICIES.items() if name != "round_robin"],
    ids=[name for name in POLICIES if name != "round_robin"],
)

REQUESTS = st.builds(
    a_request,
    st.sampled_from(MODELS),
    seq=SEQS,
    session=st.sampled_from(["", "s1", "s2"]),
    load_s=st.sampled_from([0.0, 2.5]),
)


def to_a_node(request_, fleet, policy, u):
    """A decision about a request that is not refused any more."""
    nobody_failed_it = np.zeros(len(fleet), dtype=np.bool_)
    return decide(request_, fleet, policy, BoundedLoad(), u, nobody_failed_it)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_known_by_its_name_in_the_table(name):
    assert POLICIES[name]().name == name


@every_policy
def test_a_policy_is_what_the_protocol_asks_for(policy):
    assert isinstance(policy, Policy)


@every_policy
def test_a_policy_is_a_value(policy):
    with pytest.raises(FrozenInstanceError):
        policy.name = "another"


@every_policy
@given(fleet=FLEETS, request_=REQUESTS)
def test_there_is_one_finite_score_per_node(policy, fleet, request_):
    """And two more where a policy may also refuse the request, or hold it."""
    scores = policy.scores(request_, fleet)

    assert scores.shape == (len(fleet) + (2 if policy.name == "learned" else 0),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


@every_policy
@given(fleet=FLEETS, request_=REQUESTS)
def test_asking_twice_changes_nothing(policy, fleet, request_):
    """Shadow mode relies on this: an unused answer must leave no trace."""
    columns, available = fleet.columns.copy(), fleet.available.copy()

    first, second = policy.scores(request_, fleet), policy.scores(request_, fleet)

    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(fleet.columns, columns)
    np.testing.assert_array_equal(fleet.available, available)


@every_policy
@given(fleet=FLEETS, request_=REQUESTS)
def test_scores_belong_to_the_caller(policy, fleet, request_):
    """Whoever writes into an answer must not change the next one, nor the fleet."""
    expected = policy.scores(request_, fleet).copy()

    policy.scores(request_, fleet)[:] = 99.0

    np.testing.assert_array_equal(policy.scores(request_, fleet), expected)


@orderless_policy
@given(rows=ROWS, request_=REQUESTS, data=st.data())
def test_the_order_of_the_nodes_does_not_matter(policy, rows, request_, data):
    order = data.draw(st.permutations(range(len(rows))))

    n = len(rows)
    # The learned policy takes means over the nodes, which add up in another order.
    tolerance = 1e-9 if policy.name == "learned" else 0.0

    scores = policy.scores(request_, a_fleet(*rows))
    permuted = policy.scores(request_, a_fleet(*(rows[i] for i in order)))

    np.testing.assert_allclose(permuted[:n], scores[list(order)], rtol=tolerance)
    np.testing.assert_allclose(permuted[n:], scores[n:], rtol=tolerance)


@every_policy
@given(fleet=FLEETS, request_=REQUESTS)
def test_probabilities_sum_to_one_over_eligible_nodes(policy, fleet, request_):
    p = policy.picker.probabilities(policy.scores(request_, fleet)[: len(fleet)], fleet.available)

    assert p.sum() == pytest.approx(1.0)
    assert (p >= 0.0).all()
    assert (p[~fleet.available] == 0.0).all()


@every_policy
@given(fleet=FLEETS, request_=REQUESTS, u=DRAWS)
def test_a_drawn_node_has_positive_probability(policy, fleet, request_, u):
    p = policy.picker.probabilities(policy.scores(request_, fleet)[: len(fleet)], fleet.available)

    assert p[draw(p, u)] > 0.0


@every_policy
@given(fleet=FLEETS, request_=REQUESTS, u=DRAWS)
def test_a_decision_names_an_eligible_node_with_the_probability_it_had(policy, fleet, request_, u):
    decision = to_a_node(request_, fleet, policy, u)

    assert fleet.available[decision.index]
    assert 0.0 < decision.propensity == decision.probabilities[decision.index] <= 1.0 + 1e-12
    assert decision.probabilities.sum() == pytest.approx(1.0)
    assert (decision.probabilities[~fleet.available] == 0.0).all()


@every_policy
@given(fleet=FLEETS, request_=REQUESTS, u=DRAWS)
def test_the_same_arguments_give_the_same_decision(policy, fleet, request_, u):
    first, second = (to_a_node(request_, fleet, policy, u) for _ in range(2))

    assert (first.node_id, first.drawn_id, first.propensity) == (
        second.node_id,
        second.drawn_id,
        second.propensity,
    )
