"""The watch counts what requests of the weights in force came to, and nothing else."""

import pytest

from ccr.latency import promised_s
from ccr.types import Outcome
from ccr.watch import FIGURES
from router.publishing.watch import MAX_WAITING, MOST, Watch
from tests.router.publishing.requests import LOOK, an_attempt, ends

OURS, OTHERS = object(), object()
PROMISE_S = promised_s(LOOK)
ROW = {name: row for row, name in enumerate(FIGURES)}


def counted(watch, figure, now_s=0.0, policy=OURS):
    """Requests of a figure, and those that count."""
    watch.count(policy, now_s)
    number, count = watch.interval().closed()
    return number[ROW[figure]].sum(), count[ROW[figure]].sum()


@pytest.fixture
def watch():
    return Watch(rest=lambda: None)


def test_decisions_count_when_they_are_made(watch):
    for chosen in (0, 1, 3):
        watch.decided(an_attempt(OURS, chosen))

    assert counted(watch, "avoidable") == (3, 1)


def test_what_others_decided_does_not_count(watch):
    theirs = an_attempt(OTHERS, 3)
    watch.decided(theirs)
    ends(watch, theirs, Outcome.UPSTREAM_5XX)

    assert counted(watch, "avoidable") == (0, 0)
    assert counted(watch, "failed") == (0, 0)


@pytest.mark.parametrize(
    ("outcome", "total_s", "missed", "failed"),
    [
        pytest.param(Outcome.OK, 0.5, (1, 0), (1, 0), id="in time"),
        pytest.param(Outcome.OK, PROMISE_S + 1.0, (1, 1), (1, 0), id="late"),
        pytest.param(Outcome.UPSTREAM_5XX, 0.001, (1, 1), (1, 1), id="failed fast"),
        pytest.param(Outcome.CLIENT_CLOSED, 0.5, (0, 0), (0, 0), id="the client left in time: not known"),
        pytest.param(Outcome.CLIENT_CLOSED, PROMISE_S + 1.0, (1, 1), (0, 0), id="the client left late"),
        pytest.param(Outcome.EXPIRED, 0.5, (0, 0), (0, 0), id="nobody reported"),
        pytest.param(Outcome.UPSTREAM_4XX, 0.1, (1, 0), (1, 0), id="the client's fault"),
    ],
)
def test_how_a_request_ends(watch, outcome, total_s, missed, failed):
    attempt = an_attempt(OURS)
    watch.decided(attempt)
    ends(watch, attempt, outcome, total_s)

    watch.count(OURS, 0.0)
    number, count = watch.interval().closed()

    assert (number[ROW["missed"]].sum(), count[ROW["missed"]].sum()) == missed
    assert (number[ROW["failed"]].sum(), count[ROW["failed"]].sum()) == failed


def test_what_is_late_is_known_before_it_ends_and_counts_once(watch):
    attempt = an_attempt(OURS, arrived_s=100.0)
    watch.decided(attempt)
    assert counted(watch, "missed", 100.0 + PROMISE_S - 0.1) == (0, 0)

    assert counted(watch, "missed", 100.0 + PROMISE_S + 0.1) == (1, 1)
    assert counted(watch, "missed", 200.0) == (0, 0)
    ends(watch, attempt, total_s=150.0)
    assert counted(watch, "missed", 250.0) == (0, 0)


def test_a_routed_request_that_nobody_reports_on_is_not_taken_for_late(watch):
    watch.decided(an_attempt(OURS, is_reported=True))

    assert counted(watch, "missed", 1e6) == (0, 0)


def test_a_try_that_went_on_to_another_node_is_a_failure_but_no_end(watch):
    attempt = an_attempt(OURS)
    watch.decided(attempt)
    ends(watch, attempt, Outcome.UPSTREAM_RESET, went_on=True)

    watch.count(OURS, 0.0)
    number, count = watch.interval().closed()

    assert count[ROW["failed"]].sum() == 1
    assert number[ROW["missed"]].sum() == 0


def test_of_a_lot_of_traffic_a_sample_is_looked_at(watch):
    attempts = [an_attempt(OURS) for _ in range(2 * MOST)]
    for attempt in attempts:
        watch.decided(attempt)
        ends(watch, attempt)

    assert counted(watch, "failed") == (MOST, 0)


def test_nobody_counting_does_not_fill_the_memory(watch):
    attempt = an_attempt(OURS)
    for _ in range(MAX_WAITING + 10):
        watch.decided(attempt)

    assert len(watch._queue) == MAX_WAITING


def test_nothing_is_left_open(watch):
    attempts = [an_attempt(OURS) for _ in range(50)]
    for attempt in attempts:
        watch.decided(attempt)
    watch.count(OURS, 0.0)
    for attempt in attempts:
        ends(watch, attempt)
    watch.count(OURS, 0.0)

    assert not watch._open


def test_other_weights_begin_with_nothing(watch):
    watch.decided(an_attempt(OURS, 3))
    watch.count(OURS, 0.0)

    watch.begin()

    assert counted(watch, "avoidable") == (0, 0)
    assert not watch._open
