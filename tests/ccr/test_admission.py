"""Refusing and holding are masked until the fleet's state asks for them."""

import numpy as np
import pytest

from ccr.admission import HOLD_S, MAX_HOLD_S, SATURATED_S, may_hold, may_reject
from ccr.look import BACKLOG_S, KV_WAIT_S
from tests.looks import NODES, a_book, look

EVERYBODY = np.ones(NODES, dtype=bool)


def warm_on(*nodes):
    book = a_book()
    book.resident[0, list(nodes)] = True
    return look(book)


@pytest.mark.parametrize("row", [BACKLOG_S, KV_WAIT_S])
@pytest.mark.parametrize(
    ("waits_s", "saturated"),
    [
        pytest.param([0.0, 0.0, 0.0, 0.0], False, id="idle"),
        pytest.param([7.0, 0.0, 0.0, 0.0], False, id="one busy node is no saturated fleet"),
        pytest.param([9.0, 3.0, 0.0, 0.0], True, id="on average it is"),
    ],
)
def test_refusing_takes_a_saturated_fleet(row, waits_s, saturated):
    seen = look(a_book())
    seen.pairs[row] = waits_s

    assert may_reject(seen) is saturated
    assert (sum(waits_s) / NODES > SATURATED_S) is saturated


def test_loads_are_no_saturation():
    assert not may_reject(look(a_book()))


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
