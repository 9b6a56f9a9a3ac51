import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.settings import AdmissionSettings
from ccr.types import Outcome
from router.auth import Tenant
from router.limits import Admission, RetryBudget, TokenBucket
from router.refusals import Refusal

GAPS = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200)
EPS = 1e-6


@given(GAPS, st.floats(0.1, 50.0), st.floats(1.0, 20.0))
def test_no_window_gets_more_than_the_burst_and_the_rate(gaps, rate, burst):
    bucket, now_s, taken_s = TokenBucket(rate, burst), 0.0, []
    for gap in gaps:
        now_s += gap / rate
        if bucket.take(now_s):
            taken_s.append(now_s)

    for i, start_s in enumerate(taken_s):
        for j, end_s in enumerate(taken_s[i:], 1):
            assert j <= burst + rate * (end_s - start_s) + EPS


@given(st.floats(0.1, 50.0), st.floats(1.0, 20.0), st.integers(1, 200))
def test_a_client_within_the_rate_is_never_refused(rate, burst, requests):
    bucket = TokenBucket(rate, burst)

    assert all(bucket.take(i * (1.0 + EPS) / rate) for i in range(requests))


def test_the_first_burst_is_there_from_the_start():
    bucket = TokenBucket(rate=1.0, burst=3.0)

    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


EVENTS = st.lists(st.tuples(st.sampled_from(["request", "retry"]), st.floats(0.0, 2.0)), max_size=200)


@given(EVENTS, st.floats(0.0, 1.0), st.floats(0.0, 5.0))
def test_retries_never_exceed_their_share_the_trickle_and_one_burst(events, ratio, per_s):
    """From the start to any moment: ``ratio`` per request, ``per_s`` per second, and one burst of the trickle."""
    budget, now_s, requests, retries = RetryBudget(ratio, per_s), 0.0, 0, 0
    burst = max(per_s, 1.0) if per_s else 0.0
    for kind, gap_s in events:
        now_s += gap_s
        if kind == "request":
            budget.deposit(now_s)
            requests += 1
        elif budget.take(now_s):
            retries += 1

        assert retries <= ratio * requests + per_s * now_s + burst + EPS


@given(st.floats(0.01, 1.0), st.integers(0, 3000))
def test_at_most_the_share_of_a_thousand_requests_is_saved_up(ratio, requests):
    """However much went well before, an outage is not amplified by more than that at once."""
    budget = RetryBudget(ratio, per_s=0.0)
    for _ in range(requests):
        budget.deposit(0.0)

    retries = 0
    while budget.take(0.0):
        retries += 1

    assert retries == pytest.approx(ratio * min(requests, 1000), abs=1.0)


def test_what_was_earned_longer_ago_than_the_window_is_worth_nothing():
    budget = RetryBudget(ratio=0.5, per_s=0.0, window_s=10.0)
    for _ in range(100):
        budget.deposit(0.0)

    assert budget.take(1.0)
    assert not budget.take(11.0)


@pytest.mark.parametrize("per_s", [0.25, 1.0, 3.0])
def test_the_trickle_lets_the_first_retries_of_an_idle_router_through(per_s):
    budget = RetryBudget(ratio=0.0, per_s=per_s)

    assert budget.take(0.0)
    assert sum(budget.take(t / 4) for t in range(1, 401)) == pytest.approx(100 * per_s, abs=per_s + 1.0)


def test_no_share_and_no_trickle_means_no_retries():
    budget = RetryBudget(ratio=0.0, per_s=0.0)
    budget.deposit(0.0)

    assert not budget.take(0.0)
    assert budget.exhausted_total == 1


NOBODY = Tenant("", frozenset())


def refusal_of(admission, in_flight=0, priority=0, tenant=NOBODY, now_s=0.0):
    with pytest.raises(Refusal) as refused:
        admission.admit(in_flight, priority, tenant, now_s)
    assert (refused.value.status, refused.value.outcome) == (429, Outcome.REJECTED)
    return refused.value.code


def test_low_priority_gives_way_first_and_everybody_at_the_bound():
    admission = Admission(AdmissionSettings(max_inflight=10, low_priority_share=0.8))

    admission.admit(7, -1, NOBODY, 0.0)
    assert refusal_of(admission, in_flight=8, priority=-1) == "low_priority_shed"
    for priority in (0, 1):
        admission.admit(9, priority, NOBODY, 0.0)
        assert refusal_of(admission, in_flight=10, priority=priority) == "overloaded"


@given(
    st.integers(1, 50), st.floats(0.01, 1.0), st.integers(0, 60), st.integers(-100, 99), st.integers(0, 100)
)
def test_whoever_is_let_in_would_be_let_in_with_a_higher_priority_too(
    bound, share, in_flight, priority, more
):
    admission = Admission(AdmissionSettings(max_inflight=bound, low_priority_share=share))
    try:
        admission.admit(in_flight, priority, NOBODY, 0.0)
    except Refusal:
        return

    admission.admit(in_flight, priority + more, NOBODY, 0.0)


def test_a_tenant_at_its_limit_leaves_the_others_alone():
    admission = Admission(AdmissionSettings())
    greedy = Tenant("greedy", frozenset(), max_inflight=2, inflight=2)

    assert refusal_of(admission, tenant=greedy) == "tenant_limit"
    admission.admit(2, 0, Tenant("modest", frozenset(), max_inflight=2, inflight=1), 0.0)


def test_above_the_rate_requests_are_refused_until_time_passes():
    admission = Admission(AdmissionSettings(max_qps=2.0))

    admission.admit(0, 0, NOBODY, 0.0)
    admission.admit(0, 0, NOBODY, 0.0)
    assert refusal_of(admission) == "rate_limited"
    admission.admit(0, 0, NOBODY, 0.5)


def test_a_request_refused_for_another_reason_costs_no_token():
    admission = Admission(AdmissionSettings(max_qps=1.0, max_inflight=1))

    assert refusal_of(admission, in_flight=1) == "overloaded"
    admission.admit(0, 0, NOBODY, 0.0)


def test_a_refused_client_is_told_when_to_come_back():
    with pytest.raises(Refusal) as refused:
        Admission(AdmissionSettings(max_inflight=1, retry_after_s=3.0)).admit(1, 0, NOBODY, 0.0)

    assert (b"retry-after", b"3") in refused.value.headers()
