"""The rules that look: higher is better, one finite number per node, and what each of them minds."""

import numpy as np
import pytest
from hypothesis import given

from ccr import book as b
from ccr import look as k
from ccr import scoring
from ccr.cost import NAIVE, terms, total
from tests.looks import LOOKS, NODES, a_book, look, place

RULES = {
    scoring.least_cost: NAIVE,
    scoring.least_work: (1.0,),
    scoring.fastest_drain: (1.0,),
    scoring.lowest_curve: (1.0,),
    scoring.lowest_prediction: (1.0, 1.0),
    scoring.prefix_and_load: (3.0, 8.0),
}
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def scores(rule, seen, *theta):
    return rule(seen, np.array(theta or RULES[rule]))


def warm(book, *nodes):
    book.resident[0, list(nodes or range(NODES))] = True
    return book


@every_rule
@given(seen=LOOKS)
def test_there_is_one_finite_score_per_node(rule, seen):
    given_ = scores(rule, seen)

    assert given_.shape == (NODES,)
    assert np.isfinite(given_).all()


@every_rule
@given(seen=LOOKS)
def test_a_rule_changes_nothing_of_what_it_sees(rule, seen):
    before = [array.copy() for array in seen]

    scores(rule, seen)[:] = 99.0

    for array, as_it_was in zip(seen, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


@every_rule
def test_the_node_with_the_weights_is_preferred_when_all_are_idle(rule):
    assert scores(rule, look(warm(a_book(), 2))).argmax() == 2


@every_rule
@given(seen=LOOKS)
def test_a_longer_load_is_never_better(rule, seen):
    before = scores(rule, seen)
    seen.pairs[k.LOAD_WAIT_S, 0] += 5.0

    assert scores(rule, seen)[0] <= before[0] + 1e-9


def test_least_cost_is_minus_the_cost():
    seen = look(a_book())

    np.testing.assert_array_equal(scores(scoring.least_cost, seen), -total(terms(seen), np.array(NAIVE)))


def test_least_work_counts_tokens_at_the_pace_of_the_batch():
    book = warm(a_book())
    placed = [place(book, output=100.0) for _ in range(2)]
    for each in placed:
        b.first_token(book, each, 0.0)

    given_ = scores(scoring.least_work, look(book))

    # Two requests with 50 tokens left each run side by side: 50 rounds.
    assert given_[0] == pytest.approx(-50 * b.round_s(book, 0))
    assert given_[1:].tolist() == [0.0, 0.0, 0.0]


def test_least_work_minds_what_other_routers_sent():
    given_ = scores(scoring.least_work, look(warm(a_book()), running=[4.0, 0.0, 0.0, 0.0]))

    assert given_[0] < given_[1]


def test_a_node_that_finishes_more_drains_faster():
    book = warm(a_book())
    book.costs[:] = book.costs[:, :, :1]
    for node in (0, 1):
        for _ in range(4):
            b.first_token(book, place(book, node=node, output=400.0), 0.0)
    book.load[b.DONE_PER_S, :2] = (0.5, 2.0)

    given_ = scores(scoring.fastest_drain, look(book, output=400.0))

    assert given_[0] == pytest.approx(-5.0 / 0.5)
    assert given_[1] == pytest.approx(-5.0 / 2.0)


def test_a_node_that_has_stopped_finishing_is_left_alone():
    """Its last rate must not speak for it for ever."""
    book = warm(a_book())
    book.load[b.DONE_PER_S, 0] = 4.0
    place(book, output=2000.0)

    soon, late = (
        scores(scoring.fastest_drain, look(book, now_s=now_s, output=2000.0))[0] for now_s in (0.0, 60.0)
    )

    assert late < soon


def test_a_curve_that_was_seen_replaces_the_guess():
    book = warm(a_book())
    placed = place(book)._replace(inflight=0.0, was_cold=False)
    b.leave(book, placed, False, 0.0)
    b.learn(book, placed, 0.9, 1.5, 20.0, 0.0, True)

    seen = look(book, observed=True)

    given_ = scores(scoring.lowest_curve, seen)
    assert given_[0] == pytest.approx(-0.9)
    assert given_[1] == pytest.approx(-seen.pairs[k.PREFILL_S, 1])


def test_a_prediction_below_zero_is_no_reward():
    book = warm(a_book())
    book.weights[:, 0] = -5.0

    assert scores(scoring.lowest_prediction, look(book, observed=True)).tolist() == [0.0] * NODES


def test_a_cached_prompt_is_worth_its_points_in_requests():
    book = warm(a_book())
    seen = look(book, prompt=101.0, session_node=1, session_tokens=100.0, running=[0.0, 2.0, 0.0, 0.0])

    given_ = scores(scoring.prefix_and_load, seen, 3.0, 8.0)

    assert given_.tolist() == pytest.approx([0.0, 3.0 * 100 / 101 - 2.0, 0.0, 0.0])
