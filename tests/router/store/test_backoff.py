"""Tries come later and later, and not together."""

from hypothesis import given
from hypothesis import strategies as st

from router.store.backoff import FIRST_S, LONGEST_S, Backoff


def test_nothing_is_put_off_before_a_failure():
    assert Backoff().is_due(0.0)


def test_the_wait_doubles_up_to_the_longest():
    backoff, waits = Backoff(draw=lambda: 1.0), []
    for _ in range(8):
        backoff.failed(100.0)
        waits.append(next(k / 10 for k in range(100) if backoff.is_due(100.0 + k / 10)))

    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_S, LONGEST_S]


def test_a_success_makes_the_next_try_due_at_once():
    backoff = Backoff(draw=lambda: 1.0)
    backoff.failed(0.0)

    backoff.succeeded()

    assert backoff.is_due(0.0)


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 100))
def test_no_wait_is_longer_than_the_longest(u, failures):
    backoff = Backoff(draw=lambda: u)
    for _ in range(failures):
        backoff.failed(0.0)

    assert backoff.is_due(LONGEST_S)
    assert failures > 1 or backoff.is_due(FIRST_S)
