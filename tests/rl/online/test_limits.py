"""How far one publication may move the policy: never further than the limits, and not at all where nothing speaks for it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.canary import State, states
from ccr.features import node_features, request_features
from ccr.lesson import Flag, as_numbers
from ccr.policies.network import Network, logits
from ccr.types import COLUMNS
from rl.online.limits import Limits, between, bucket, limited, state_of, step, thinly_seen
from tests.lessons import a_lesson
from tests.looks import NODES, a_book, look
from tests.weights import a_network

SEEN = list(states())[:60] * 4
CURRENT = a_network(1)
FAR = a_network(2)._replace(out=6.0 * a_network(2).out)
LIMITS = Limits(kl=0.05, thin_kl=0.05, least=1)


def nudged(network, by):
    return network._replace(theta=network.theta * (1.0 + by))


def shares(state, network):
    found = logits(state.nodes, state.request, state.mask, network)
    found = np.where(np.append(state.mask, [True, True]), found, -np.inf)
    found = np.exp(found - found.max())
    return found / found.sum()


def divergence(seen, new, current):
    """KL(new || current), the mean over the states, worked out the plain way."""
    found = []
    for state in seen:
        p, q = shares(state, new), shares(state, current)
        found.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0.0))
    return float(np.mean(found))


def test_a_step_within_the_limits_is_taken_whole():
    near = nudged(CURRENT, 1e-3)

    found = step(CURRENT, near, SEEN, LIMITS)

    assert found.network is near
    assert (found.share, found.reason) == (1.0, "")
    assert found.kl == pytest.approx(divergence(SEEN, near, CURRENT))


def test_a_step_that_is_too_long_is_shortened_to_the_limit():
    found = step(CURRENT, FAR, SEEN, LIMITS)

    assert 0.0 < found.share < 1.0
    assert 0.04 < divergence(SEEN, found.network, CURRENT) <= 0.05
    assert "KL" in found.reason


def test_what_is_left_of_a_step_leads_where_the_step_led():
    found = step(CURRENT, FAR, SEEN, LIMITS)

    expected = between(CURRENT, FAR, found.share)
    for one, other in zip(found.network, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert divergence(SEEN, found.network, FAR) < divergence(SEEN, CURRENT, FAR)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(0.001, 1.0))
def test_no_step_exceeds_the_limits(seed, kl):
    limits = Limits(kl=kl, thin_kl=kl / 10.0, least=20)
    proposed = a_network(seed)

    found = limited(CURRENT, proposed, SEEN[:60], limits)

    thin = thinly_seen(SEEN[:60], 20)
    assert divergence(SEEN[:60], found, CURRENT) <= kl * (1.0 + 1e-9)
    if thin.any():
        seldom = [state for state, is_thin in zip(SEEN, thin, strict=False) if is_thin]
        assert divergence(seldom, found, CURRENT) <= kl / 10.0 * (1.0 + 1e-9)


def test_a_step_of_which_next_to_nothing_would_be_left_is_not_taken():
    found = step(CURRENT, FAR, SEEN, Limits(kl=1e-7, thin_kl=1.0, least=1))

    assert found.network is CURRENT
    assert "less than 2% of the step" in found.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_not_taken_a_step_towards(bad):
    out = FAR.out.copy()
    out[0] = bad

    assert limited(CURRENT, FAR._replace(out=out), SEEN, LIMITS) is CURRENT


def test_without_states_nothing_speaks_for_a_change():
    assert limited(CURRENT, FAR, []) is CURRENT


def test_the_first_publication_may_go_further_if_a_person_says_so():
    assert step(CURRENT, FAR, SEEN, LIMITS, is_first=True).network is FAR
    assert step(CURRENT, FAR, [], LIMITS, is_first=True).network is FAR


def test_where_little_was_seen_the_policy_in_force_counts():
    """The same step, the same states: only what is known of their buckets differs."""
    seen = Counter({bucket(state): 1000 for state in SEEN})
    often = step(CURRENT, FAR, SEEN, Limits(), seen=seen)
    seldom = step(CURRENT, FAR, SEEN, Limits(), seen=Counter())

    assert (often.thin, seldom.thin) == (0.0, 1.0)
    assert seldom.kl <= 0.005 < often.kl
    assert seldom.share < often.share


def a_state(*, gib=5.0, busy=0.0, may=2):
    book = a_book()
    book.weights_gib[0] = gib
    seen = look(book)
    seen.asked[5] = busy
    return State(node_features(seen), request_features(seen), np.arange(NODES) < may)


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        pytest.param(a_state(gib=6.0), True, id="about the same size"),
        pytest.param(a_state(gib=14.0), False, id="a larger model"),
        pytest.param(a_state(busy=0.9), True, id="about the same load"),
        pytest.param(a_state(busy=5.0), False, id="more load"),
        pytest.param(a_state(may=4), False, id="more nodes"),
    ],
)
def test_a_bucket_is_a_kind_of_situation(other, is_same):
    assert (bucket(other) == bucket(a_state())) == is_same


def test_a_record_gives_back_what_the_network_saw():
    seen = look(a_book())
    lesson = a_lesson(
        n=NODES, flags=int(Flag.LOOKED), columns=as_numbers(seen.columns), load=as_numbers(seen.load),
        pairs=as_numbers(seen.pairs), asked=as_numbers(seen.asked),
    )  # fmt: skip

    state = state_of(lesson)

    np.testing.assert_allclose(state.nodes, node_features(seen), atol=1e-5)
    np.testing.assert_allclose(state.request, request_features(seen), atol=1e-5)
    assert state.mask.all()


def test_a_record_of_a_policy_that_did_not_look_gives_none():
    assert state_of(a_lesson(columns=as_numbers(np.ones((len(COLUMNS), 2))))) is None


def test_half_way_is_half_way():
    half = between(CURRENT, FAR, 0.5)

    assert isinstance(half, Network)
    np.testing.assert_allclose(half.theta, 0.5 * (CURRENT.theta + FAR.theta))
