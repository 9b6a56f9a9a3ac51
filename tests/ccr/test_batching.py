import pytest

from ccr.batching import MAX_MODELS, BatchingWindow, FixedHint
from tests.factories import a_request


def a_window(max_wait_s=0.010, size=4, rate_window_s=1.0):
    return BatchingWindow(FixedHint(max_wait_s, size), rate_window_s)


def a_busy_window(now_s=0.0, arrivals=200, model="llama", **settings):
    """A window that has seen enough of the model's requests to expect company; none is waiting."""
    window = a_window(**settings)
    for seq in range(arrivals):
        batch = window.arrive(a_request(model, seq=1000 + seq), now_s)
        if batch is not None:
            window.close(batch)
    return window


def test_a_request_that_can_expect_no_company_goes_at_once():
    window = a_window()

    # One arrival a second, and one hundredth of a second to wait for the next.
    waits = [window.arrive(a_request(seq=seq), now_s=float(seq)) for seq in range(20)]

    assert waits == [None] * 20


@pytest.mark.parametrize(
    ("max_wait_s", "is_held"),
    [
        pytest.param(0.009, False, id="0.9 companions expected"),
        pytest.param(0.011, True, id="1.1 companions expected"),
    ],
)
def test_a_request_is_held_when_company_is_expected_within_its_wait(max_wait_s, is_held):
    window = a_busy_window(arrivals=100, max_wait_s=max_wait_s)

    batch = window.arrive(a_request(), now_s=0.0)

    assert (batch is not None) == is_held


def test_company_is_expected_of_the_same_model_only():
    window = a_busy_window(model="llama")

    assert window.arrive(a_request("qwen"), 0.0) is None


def test_a_rush_is_forgotten():
    window = a_busy_window(now_s=0.0, rate_window_s=1.0)

    assert window.arrive(a_request(), now_s=10.0) is None


def test_requests_of_one_model_wait_together_until_the_first_one_is_due():
    window = a_busy_window(max_wait_s=0.010)

    first = window.arrive(a_request(seq=1), now_s=0.000)
    second = window.arrive(a_request(seq=2), now_s=0.004)

    assert first is second
    assert [request.seq for request in first.requests] == [1, 2]
    assert first.due_s == 0.010
    assert not first.is_closed


def test_a_full_batch_starts_at_once_and_the_next_request_opens_another():
    window = a_busy_window(size=3)

    batches = [window.arrive(a_request(seq=seq), now_s=0.001 * seq) for seq in range(4)]

    assert batches[0] is batches[1] is batches[2]
    assert batches[2].is_closed
    assert [request.seq for request in batches[2].requests] == [0, 1, 2]
    assert batches[3] is not batches[2]
    assert not batches[3].is_closed


def test_a_hint_may_only_bring_the_start_forward():
    waits_s = iter([0.010, 0.010, 0.002, 0.050])  # asked before a batch opens, then after each arrival
    window = a_busy_window()
    window._hint = lambda _: next(waits_s)

    dues_s = [window.arrive(a_request(seq=seq), now_s=0.0).due_s for seq in range(3)]

    assert dues_s == [0.010, 0.002, 0.002]


def test_a_request_that_gave_up_leaves_the_others_waiting():
    window = a_busy_window()
    staying, leaving = a_request(seq=1), a_request(seq=2)
    batch = window.arrive(staying, 0.0)
    window.arrive(leaving, 0.0)

    window.leave(batch, leaving)

    assert batch.requests == [staying]
    assert not batch.is_closed
    assert window.arrive(a_request(seq=3), 0.0) is batch


def test_the_last_one_to_give_up_closes_the_batch():
    window = a_busy_window()
    only = a_request(seq=1)
    batch = window.arrive(only, 0.0)

    window.leave(batch, only)

    assert batch.is_closed
    assert window.arrive(a_request(seq=2), 0.0) is not batch


def test_leaving_a_batch_twice_is_harmless():
    window = a_busy_window()
    one, two = a_request(seq=1), a_request(seq=2)
    batch = window.arrive(one, 0.0)
    window.arrive(two, 0.0)

    for _ in range(2):
        window.leave(batch, one)

    assert batch.requests == [two]


def test_closing_a_batch_late_does_not_close_the_next_one():
    window = a_busy_window(size=1000)
    old = window.arrive(a_request(seq=1), 0.0)
    window.close(old)
    new = window.arrive(a_request(seq=2), 0.0)

    window.close(old)

    assert window.arrive(a_request(seq=3), 0.0) is new


def test_models_nobody_asks_for_any_more_are_forgotten():
    window = a_window()

    for i in range(MAX_MODELS + 500):
        window.arrive(a_request(f"model-{i}"), 0.0)

    assert len(window._rates) == MAX_MODELS
    assert f"model-{MAX_MODELS + 499}" in window._rates
    assert "model-0" not in window._rates
