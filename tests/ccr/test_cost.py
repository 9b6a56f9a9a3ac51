"""The cost of a placement: finite, not negative, and more where there is more to wait for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import book as b
from ccr import cost as c
from ccr import look as k
from tests.looks import LOOKS, a_book, look, place

WEIGHTS = st.lists(st.floats(0.0, 10.0), min_size=len(c.TERMS), max_size=len(c.TERMS)).map(np.array)


def total(seen, theta=c.NAIVE):
    return c.total(c.terms(seen), np.array(theta))


def test_every_term_has_a_meaning_and_a_weight():
    assert len(c.TERMS) == c.COLD + 1 == len(c.SELFISH) == len(c.NAIVE)


def test_the_selfish_weights_leave_out_what_others_pay():
    parts = dict(zip(c.TERMS, c.SELFISH, strict=True))

    assert {name for name, weight in parts.items() if weight == 0.0} == {
        c.TERMS[c.INFLICTED], c.TERMS[c.EVICTED], c.TERMS[c.COLD],
    }  # fmt: skip


@given(LOOKS)
def test_every_term_is_finite_and_not_negative(seen):
    parts = c.terms(seen)

    assert parts.shape == (len(c.TERMS), seen.load.shape[1])
    assert np.isfinite(parts).all()
    assert (parts >= 0.0).all()


@given(LOOKS, WEIGHTS)
def test_the_total_is_finite_and_not_negative_under_any_weights(seen, theta):
    cost = c.total(c.terms(seen), theta)

    assert np.isfinite(cost).all()
    assert (cost >= 0.0).all()


def test_an_idle_warm_node_costs_the_request_and_nothing_else():
    book = a_book()
    book.resident[:] = True
    book.load[b.OVERHEAD_S] = 0.02

    parts = c.terms(look(book, prompt=300.0, output=40.0))

    placed = place(book, prompt=300.0, output=40.0)
    assert parts[:, 0].tolist() == pytest.approx(
        [0.0, 0.0, placed.prefill_s + 0.02, 40 * placed.step_s, 0.0, 0.0, 0.0, 0.0]
    )


def test_loads_and_the_prefill_of_others_run_side_by_side():
    book = a_book()
    seen = look(book)
    alone = total(seen)
    seen.pairs[k.BACKLOG_S, 0] = 4.0  # shorter than the load

    np.testing.assert_allclose(total(seen), alone)

    seen.pairs[k.BACKLOG_S, 0] = 7.0
    assert total(seen)[0] - alone[0] == pytest.approx(2.0)


@given(
    LOOKS,
    st.sampled_from([k.BACKLOG_S, k.LOAD_WAIT_S, k.PREFILL_S, k.KV_WAIT_S, k.EVICT_COST_S, k.STEP_AFTER_S]),
    st.floats(0.0, 50.0),
)
def test_more_to_wait_for_never_costs_less(seen, row, more_s):
    before = total(seen)
    seen.pairs[row, 0] += more_s

    after = total(seen)

    assert after[0] >= before[0] - 1e-9
    np.testing.assert_array_equal(after[1:], before[1:])


@given(LOOKS, st.floats(1.0, 5.0))
def test_a_node_that_was_seen_to_be_slower_never_costs_less(seen, factor):
    before = total(seen)
    seen.load[b.SPEED, 0] *= factor

    assert total(seen)[0] >= before[0] - 1e-9


def test_a_slower_card_costs_more():
    """The steps of the same model, stretched as by a lower bandwidth."""
    book = a_book()
    book.resident[:] = True
    book.costs[:, :, 1] = book.costs[:, :, 0]
    book.costs[b.DECODE_FIXED_S, :, 1] *= 2.0
    book.costs[b.DECODE_CONTEXT_S, :, 1] *= 2.0

    cost = total(look(book))

    assert cost[1] > cost[0]


def test_company_is_charged_for_the_delay_it_suffers():
    book = a_book()
    book.resident[:] = True
    for node, output in ((0, 10.0), (1, 400.0)):
        b.first_token(book, place(book, 1, node, output=output), 0.0)

    inflicted = c.terms(look(book, 0, prompt=1000.0, output=100.0))[c.INFLICTED]

    assert inflicted[1] > inflicted[0] > 0.0  # who stays longer suffers longer
    assert inflicted[2] == 0.0


def test_those_of_the_same_model_suffer_less_than_those_of_another():
    """Another model adds its own pass over its weights to every round."""
    book = a_book()
    book.resident[:] = True
    book.costs[:] = book.costs[:, :1, :1]
    for node, model in ((0, 0), (1, 1)):
        b.first_token(book, place(book, model, node, output=200.0), 0.0)

    inflicted = c.terms(look(book, 0))[c.INFLICTED]

    assert inflicted[0] < 0.5 * inflicted[1]


def test_those_whom_other_routers_sent_suffer_as_well():
    book = a_book()
    book.resident[:] = True

    inflicted = c.terms(look(book, running=[6.0, 2.0, 0.0, 0.0], output=50.0))[c.INFLICTED]

    own_prefill_s = look(book, output=50.0).pairs[k.PREFILL_S]
    assert inflicted[0] > inflicted[1] > 2 * own_prefill_s[1]
    assert inflicted[2] == 0.0
