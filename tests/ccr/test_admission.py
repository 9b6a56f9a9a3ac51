"""Refusing and holding are masked until the fleet's state asks for them."""

import numpy as np
import pytest

from ccr.admission import HOLD_S, IN_DANGER, MAX_HOLD_S, SATURATED_S, may_hold, may_reject
from ccr.cost import latency_s, terms
from ccr.look import BACKLOG_S, IDEAL_S, KV_WAIT_S
from ccr.reward import slo_s
from tests.looks import NODES, a_book, look

EVERYBODY = np.ones(NODES, dtype=bool)


def waiting(row, waits_s, book=None):
    """A fleet with these waits; nothing else of the request is in danger."""
    seen = look(a_book() if book is None else book)
    seen.pairs[row] = waits_s
    return seen


def warm_book(*nodes):
    book = a_book()
    book.resident[0, list(nodes)] = True
    return book


def warm_on(*nodes):
    return look(warm_book(*nodes))


@pytest.mark.parametrize("row", [BACKLOG_S, KV_WAIT_S])
@pytest.mark.parametrize(
    ("waits_s", "saturated"),
    [
        pytest.param([0.0, 0.0, 0.0, 0.0], False, id="idle"),
        pytest.param([7.0, 0.0, 0.0, 0.0], False, id="one busy node is no saturated fleet"),
        pytest.param([9.0, 9.0, 9.0, 9.0], True, id="on average it is"),
    ],
)
def test_refusing_takes_a_saturated_fleet(row, waits_s, saturated):
    seen = waiting(row, waits_s)

    assert may_reject(seen, EVERYBODY) is saturated
    assert (sum(waits_s) / NODES > SATURATED_S) is saturated


def test_what_some_node_would_serve_well_within_its_promise_is_not_refused():
    seen = waiting(BACKLOG_S, [9.0, 9.0, 9.0, 0.0], warm_book(0, 1, 2, 3))
    half_s = IN_DANGER * float(slo_s(seen.asked[IDEAL_S]))

    assert latency_s(terms(seen))[3] < half_s
    assert not may_reject(seen, EVERYBODY)
    assert may_reject(seen, np.array([True, True, True, False]))


def test_a_long_request_may_be_refused_later_than_a_short_one():
    short = waiting(BACKLOG_S, [3.0] * NODES, warm_book(0, 1, 2, 3))
    long = waiting(BACKLOG_S, [3.0] * NODES, warm_book(0, 1, 2, 3))
    long.asked[IDEAL_S] += 8.0

    assert may_reject(short, EVERYBODY)
    assert not may_reject(long, EVERYBODY)


def test_loads_are_no_saturation():
    assert not may_reject(look(a_book()), EVERYBODY)


def test_holding_takes_that_whoever_may_serve_would_have_to_load():
    assert may_hold(warm_on(), EVERYBODY, 0.0)
    assert not may_hold(warm_on(1), EVERYBODY, 0.0)
    assert may_hold(warm_on(1), np.array([True, False, True, True]), 0.0)


def test_nothing_is_held_when_nobody_may_serve_it():
    assert not may_hold(warm_on(), ~EVERYBODY, 0.0)


def test_a_request_is_held_four_times_and_no_more():
    held_s, holds = 0.0, 0
    while may_hold(warm_on(), EVERYBODY, held_s):
        held_s += HOLD_S
        holds += 1

    assert holds == 4
    assert held_s == pytest.approx(MAX_HOLD_S)
