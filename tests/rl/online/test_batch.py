"""Records in columns: what is measured is worked out, what is not is NaN."""

import numpy as np
import pytest

from ccr.lesson import OUTCOMES, Flag, Lesson, decode, encode
from ccr.types import Outcome
from rl.online.batch import batch_of
from tests.lessons import a_lesson
from tests.records import OVERHEAD_S, PREFILL, an_answer


def test_the_records_of_the_tests_are_records():
    assert decode(encode(an_answer())) == an_answer()


def test_an_answer_tells_speed_prefill_and_overhead():
    batch = batch_of([an_answer(2, speed=1.5)])

    assert batch.step == pytest.approx([1.5])
    assert batch.node == [102]
    assert batch.first_s == pytest.approx([OVERHEAD_S + 1.5 * PREFILL])
    assert batch.work_s == pytest.approx([PREFILL])
    assert np.isnan(batch.load_s).all()


def test_an_answer_that_came_whole_tells_how_long_all_of_it_took_and_nothing_of_its_tokens():
    batch = batch_of([an_answer(speed=2.0, streamed=False)])

    assert np.isnan(batch.step).all()
    assert np.isnan(batch.first_s).all()
    assert batch.whole == pytest.approx([2.0], rel=0.05)


def test_a_request_that_began_a_load_tells_how_long_it_took():
    batch = batch_of([an_answer(load_s=9.0, overhead_s=0.0)])

    assert batch.load_s == pytest.approx([9.0])
    assert batch.stated_load_s == pytest.approx([6.0])
    assert np.isnan(batch.first_s).all()


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.OK])
def test_what_failed_or_was_cut_short_says_nothing_of_speed(outcome):
    batch = batch_of([an_answer(speed=0.3, outcome=outcome)])

    for column in (batch.step, batch.whole, batch.first_s, batch.load_s, batch.output_tokens):
        assert np.isnan(column).all()
    assert batch.has_failed == [outcome.is_node_failure]


def test_times_that_a_caller_tells_say_nothing_of_speed():
    batch = batch_of([an_answer(speed=0.3, flags=int(Flag.REPORTED))])

    assert np.isnan(batch.step).all()
    assert np.isnan(batch.whole).all()


def test_where_most_wait_for_weights_or_prefill_nothing_is_said_of_speed():
    batch = batch_of([an_answer(pending=3.0), an_answer(pending=1.0)])

    assert np.isfinite(batch.whole).tolist() == [False, True]
    assert np.isfinite(batch.step).tolist() == [False, True]


def test_records_without_nodes_and_fleets_of_several_sizes_stand_side_by_side():
    rejected = OUTCOMES.index(Outcome.REJECTED)
    nobody = Lesson(at_s=1000.0, outcome=rejected, total_s=0.001, charged_s=0.001, model=9)

    batch = batch_of([an_answer(n=3), nobody, an_answer(1, n=5), a_lesson()])

    assert len(batch) == 4
    assert sorted(batch.node.tolist()) == [0, 0, 100, 101]
    assert np.isfinite(batch.step).sum() == 2


def test_no_records_are_an_empty_batch():
    assert len(batch_of([])) == 0


def test_telemetry_is_held_against_what_the_router_has_there():
    batch = batch_of([an_answer(n=2, inflight=6.0, told=2.0), an_answer(n=2, inflight=1.0, told=0.0)])

    assert batch.told.tolist() == [[2.0, 2.0], [7.0, 7.0], [2.0, 2.0]]
    assert batch.told_node.tolist() == [100, 101]
