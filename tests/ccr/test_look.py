"""A request on every node: where its weights are, who goes for them, what is before it."""

import math

import numpy as np
import pytest
from hypothesis import given

from ccr import book as b
from ccr import look as k
from ccr.types import COLUMNS
from tests.looks import LOOKS, MODELS, NODES, a_book, look, place


def pair(seen, row):
    return seen.pairs[row].tolist()


def residents(book, *pairs):
    for model, node in pairs:
        book.resident[model, node] = True
    return book


def test_the_rows_read_here_are_those_of_the_fleets_columns():
    names = list(COLUMNS)

    assert (names[k.RUNNING], names[k.WAITING]) == ("running", "waiting")


def test_every_row_has_a_meaning():
    assert len(k.PAIRS) == k.TOKENS_LEFT + 1
    assert len(k.ASKED) == k.IDEAL_S + 1


@given(LOOKS)
def test_whatever_happened_the_look_is_finite_and_not_negative(seen):
    """A record keeps it as JSON, where there is no infinity; a regression alone may say less than nothing."""
    regressed = [k.PREDICTED_TTFT_S, k.PREDICTED_TOKEN_S]

    assert all(np.isfinite(array).all() for array in seen)
    assert all(
        (array >= -1e-9).all()
        for array in (seen.columns, seen.load, np.delete(seen.pairs, regressed, axis=0), seen.asked)
    )


def test_a_look_belongs_to_the_decision():
    """Its record is written later, when the book has gone on."""
    book = a_book()
    seen = look(book)
    before = [array.copy() for array in seen]

    place(book)
    look(book)

    for array, as_it_was in zip(seen, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


def test_looking_changes_nothing():
    book = a_book()
    place(book)
    look(book, now_s=3.0)
    before = [array.copy() for array in book]

    look(book, now_s=3.0, observed=True)

    for array, as_it_was in zip(book, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


# Weights


def test_resident_weights_are_not_waited_for():
    seen = look(residents(a_book(), (0, 1)))

    assert pair(seen, k.LOAD_WAIT_S) == [5.0, 0.0, 5.0, 5.0]
    assert pair(seen, k.LOAD_S) == [5.0, 0.0, 5.0, 5.0]
    assert pair(seen, k.RESIDENT) == [0.0, 1.0, 0.0, 0.0]
    assert seen.asked[k.COPIES] == 0.25


@pytest.mark.parametrize(
    ("now_s", "left_s"),
    [
        pytest.param(2.0, 3.0, id="under way"),
        pytest.param(5.2, 0.5, id="late: a tenth of a load, at a guess"),
    ],
)
def test_a_load_under_way_is_waited_for_as_long_as_is_left_of_it(now_s, left_s):
    book = a_book()
    place(book, 0, 0, now_s=0.0)

    seen = look(book, now_s=now_s)

    assert pair(seen, k.IS_LOADING) == [1.0, 0.0, 0.0, 0.0]
    assert seen.pairs[k.LOAD_WAIT_S, 0] == pytest.approx(left_s)


def test_a_load_waits_for_the_loads_before_it():
    book = a_book()
    place(book, 1, 0, now_s=0.0)  # six seconds

    seen = look(book, 0, now_s=2.0)

    assert pair(seen, k.LOAD_WAIT_S) == [4.0 + 5.0, 5.0, 5.0, 5.0]


def test_weights_in_host_memory_come_sooner_than_from_the_source():
    book = a_book()
    b.report(book, 2, np.zeros(MODELS, dtype=bool), np.array([True, False, False]))

    seen = look(book)

    assert pair(seen, k.LOAD_WAIT_S) == [5.0, 5.0, 0.5, 5.0]
    assert pair(seen, k.IN_HOST) == [0.0, 0.0, 1.0, 0.0]


def test_who_fits_evicts_nobody_and_who_does_not_evicts_as_many_as_it_takes():
    book = residents(a_book(), (1, 1), (1, 2), (2, 2))  # 7 GiB; 7 and 8 of 19

    seen = look(book, 0, prompt=1.0, output=1.0)

    assert pair(seen, k.EVICT_GIB) == pytest.approx([0.0, 0.0, 2.0, 0.0], abs=1e-3)
    assert pair(seen, k.EVICT_COST_S) == pytest.approx([0.0, 0.0, 6.0 / 3.0, 0.0])


def test_one_victim_more_is_charged_when_one_is_not_enough():
    book = residents(a_book(), (1, 0), (2, 0))
    book.used_s[:, 0] = (0.0, 1.0, 2.0)
    book.weights_gib[0] = 11.5  # 7.5 missing: the 7 of the first are too few

    seen = look(book, 0, prompt=1.0, output=1.0)

    assert seen.pairs[k.EVICT_COST_S, 0] == pytest.approx((6.0 + 7.0) / 3.0)


def test_weights_that_are_there_or_coming_evict_nobody():
    book = residents(a_book(), (0, 0), (1, 0), (2, 0))
    place(residents(book, (1, 1), (2, 1)), 0, 1)

    seen = look(book)

    assert pair(seen, k.EVICT_GIB)[:2] == [0.0, 0.0]


# The conversation


def test_the_session_is_cached_where_it_was_last_but_never_the_whole_prompt():
    book = residents(a_book(), (0, 2))

    short, long = (
        look(book, prompt=500.0, session_node=2, session_tokens=tokens) for tokens in (300.0, 900.0)
    )

    assert pair(short, k.CACHED_TOKENS) == [0.0, 0.0, 300.0, 0.0]
    assert pair(long, k.CACHED_TOKENS) == [0.0, 0.0, 499.0, 0.0]
    assert pair(short, k.SESSION_HERE) == [0.0, 0.0, 1.0, 0.0]
    assert short.pairs[k.PREFILL_S, 2] < look(book, prompt=500.0).pairs[k.PREFILL_S, 2]


def test_the_cache_went_with_the_weights():
    seen = look(a_book(), prompt=500.0, session_node=2, session_tokens=300.0)

    assert pair(seen, k.CACHED_TOKENS) == [0.0] * NODES
    assert pair(seen, k.SESSION_HERE) == [0.0, 0.0, 1.0, 0.0]


# Work


def test_a_look_prices_a_placement_as_the_book_does():
    """The round with the request on board is the round the book expects once it is placed, warm or not, alone or not."""
    book = residents(a_book(), (0, 0), (1, 1))
    place(book, 0, 0, prompt=700.0, output=90.0)
    place(book, 1, 1)

    seen = look(book, 0, prompt=300.0, output=40.0)

    for node in range(NODES):
        placed = place(book, 0, node, prompt=300.0, output=40.0)
        assert seen.pairs[k.STEP_AFTER_S, node] == pytest.approx(placed.step_s)
        assert seen.pairs[k.PREFILL_S, node] == pytest.approx(placed.prefill_s)


def test_prefill_before_it_is_of_those_without_a_first_token():
    book = a_book()
    waiting = place(book, prompt=2000.0)
    done = place(book, prompt=1000.0)
    b.first_token(book, done, 1.0)

    assert pair(look(book), k.BACKLOG_S) == pytest.approx([waiting.prefill_s, 0.0, 0.0, 0.0])


def test_telemetry_tells_of_what_others_sent():
    book = a_book()
    placed = place(book)

    seen = look(book, running=[4.0, 3.0, 0.0, 0.0], waiting=[2.0, 5.0, 0.0, 0.0])

    assert pair(seen, k.BUSY) == [6.0, 8.0, 0.0, 0.0]
    assert pair(seen, k.UNSEEN) == [5.0, 8.0, 0.0, 0.0]
    own = seen.pairs[k.PREFILL_S]
    # Of the two that wait on the first node one may be ours.
    assert pair(seen, k.BACKLOG_S) == pytest.approx([placed.prefill_s + own[0], 5 * own[1], 0.0, 0.0])
    assert seen.pairs[k.STEP_BEFORE_S, 1] > seen.pairs[k.STEP_BEFORE_S, 2]
    assert seen.asked[k.FLEET_BUSY] == 14.0 / NODES


def test_what_others_sent_is_taken_for_what_was_sent_there_or_for_this_request():
    book = a_book()
    b.first_token(book, place(book, output=200.0), 0.0)

    seen = look(book, output=60.0, running=[4.0, 4.0, 0.0, 0.0])

    assert pair(seen, k.TOKENS_LEFT) == [4 * 100.0, 4 * 30.0, 0.0, 0.0]


def test_a_ledger_that_knows_more_than_telemetry_is_believed():
    book = a_book()
    for _ in range(5):
        place(book)

    seen = look(book, running=[1.0, 0.0, 0.0, 0.0])

    assert (pair(seen, k.BUSY), pair(seen, k.UNSEEN)) == ([5.0, 0.0, 0.0, 0.0], [0.0] * NODES)


def test_a_full_kv_cache_is_waited_for():
    book = residents(a_book(), (0, 0))
    for _ in range(40):
        b.first_token(book, place(book, prompt=3000.0, output=500.0), 0.0)  # 0.325 GiB each, of 13

    seen = look(book, prompt=3000.0, output=500.0)

    assert seen.pairs[k.KV_OVERFLOW, 0] == pytest.approx((40 * 0.325 + 0.35) / 13.0 - 1.0)
    assert seen.pairs[k.KV_WAIT_S, 0] > 0.0
    assert pair(seen, k.KV_OVERFLOW)[1:] == [0.0, 0.0, 0.0]


def test_progress_counts_only_while_something_is_in_flight():
    book = a_book()
    placed = place(book, now_s=2.0)

    busy = look(book, now_s=5.0).pairs[k.SINCE_PROGRESS_S].tolist()
    b.leave(book, placed, False, 5.0)

    assert busy == [3.0, 0.0, 0.0, 0.0]
    assert pair(look(book, now_s=9.0), k.SINCE_PROGRESS_S) == [0.0] * NODES


def test_the_rate_of_finished_requests_decays_while_none_finishes():
    book = a_book()
    placed = place(book)
    b.leave(book, placed, False, 1.0)
    b.learn(book, placed, 0.1, 1.0, 10.0, 1.0, False)

    now, later = (look(book, now_s=now_s).load[b.DONE_PER_S, 0] for now_s in (1.0, 1.0 + b.DONE_WINDOW_S))

    assert later == pytest.approx(now / math.e)
    assert look(book, now_s=1.0).load[b.DONE_PER_S, 0] == now


# What was observed


def test_the_curve_between_two_points_is_stretched_from_the_lower_one():
    book = residents(a_book(), (0, 0))
    placed = place(book)._replace(inflight=1.0, was_cold=False)
    b.learn(book, placed, 0.4, 1.0, 20.0, 0.0, True)

    seen = [
        look(book, observed=True, running=[busy, 0, 0, 0]).pairs[k.CURVE_TTFT_S, 0]
        for busy in (1.0, 3.0, 500.0)
    ]

    assert seen == pytest.approx([0.4, 0.4 * 4 / 2, 0.4 * b.CURVE / 2])


def test_below_everything_that_was_seen_the_curve_says_nothing():
    book = residents(a_book(), (0, 0))
    placed = place(book)._replace(inflight=5.0, was_cold=False)
    b.learn(book, placed, 0.4, 1.0, 20.0, 0.0, True)

    seen = look(book, observed=True, running=[4.0, 0, 0, 0])

    assert pair(seen, k.CURVE_TTFT_S) == [0.0] * NODES


def test_the_regressions_are_read_with_the_inputs_they_were_taught_with():
    book = residents(a_book(), (0, 0))
    book.weights[0] = np.arange(1.0, 8.0)
    book.weights[1] = 0.1 * np.arange(1.0, 8.0)

    seen = look(book, prompt=700.0, output=30.0, observed=True)

    inputs = b.predictor_inputs(place(book, prompt=700.0, output=30.0))
    assert seen.pairs[k.PREDICTED_TTFT_S, 0] == pytest.approx(book.weights[0] @ inputs)
    assert seen.pairs[k.PREDICTED_TOKEN_S, 0] == pytest.approx(book.weights[1] @ inputs)


def test_nobody_pays_for_observations_that_nobody_reads():
    book = residents(a_book(), (0, 0))
    book.weights[:] = 1.0

    seen = look(book)

    assert (seen.pairs[k.CURVE_TTFT_S : k.PREDICTED_TOKEN_S + 1] == 0.0).all()
