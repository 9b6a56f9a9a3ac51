"""The learner's end: whatever comes twice, late, out of order or broken, each good record is taken once."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ccr.lesson import encode
from router.feedback.feeder import STREAM
from router.feedback.inbox import AHEAD_S, DUPLICATE, FUTURE, GROUP, LATE, LATEST_S, Inbox
from router.store.embedded import EmbeddedStore
from router.store.store import Delivered, Entry
from tests.lessons import a_lesson

NOW_S = 10_000.0


def an_inbox(store=None, **fields):
    return Inbox(store, "c", wall=lambda: NOW_S, **fields)


def delivered(number, at_s=NOW_S - 2.0, producer="p", data=None):
    return Delivered(
        "", producer, number, encode(a_lesson(at_s=at_s, prompt_estimate=number)) if data is None else data
    )


def numbers(lessons):
    return [lesson.prompt_estimate for lesson in lessons]


def test_a_record_is_taken_once():
    inbox = an_inbox()

    assert numbers(inbox.accept([delivered(1), delivered(1), delivered(2)])) == [1, 2]
    assert numbers(inbox.accept([delivered(2), delivered(3)])) == [3]
    assert inbox.left_out == {DUPLICATE: 2}


def test_the_same_number_of_another_router_is_another_record():
    assert len(an_inbox().accept([delivered(1, producer="p"), delivered(1, producer="q")])) == 2


def test_what_ended_ten_minutes_ago_is_left_out():
    inbox = an_inbox()

    accepted = inbox.accept(
        [delivered(1, NOW_S - 1.0 - LATEST_S - 0.1), delivered(2, NOW_S - 1.0 - LATEST_S + 0.1)]
    )

    assert numbers(accepted) == [2]
    assert inbox.left_out == {LATE: 1}


def test_what_has_not_happened_yet_is_left_out():
    inbox = an_inbox()

    inbox.accept([delivered(1, NOW_S + AHEAD_S)])

    assert inbox.left_out == {FUTURE: 1}


def test_what_makes_no_sense_is_left_out_by_reason():
    inbox = an_inbox()
    nan = encode(a_lesson(total_s=float("nan"), charged_s=float("nan")))

    assert inbox.accept([delivered(1, data=b"junk"), delivered(2, data=nan)]) == []
    assert inbox.left_out == {"unreadable": 1, "not_finite": 1}


def test_what_is_remembered_has_an_end():
    inbox = an_inbox(remembered=2)

    inbox.accept([delivered(1), delivered(2), delivered(3)])

    assert numbers(inbox.accept([delivered(3)])) == []
    assert numbers(inbox.accept([delivered(1)])) == [1]


_KINDS = st.sampled_from(["good", "late", "broken"])


@given(st.lists(_KINDS, min_size=1, max_size=20), st.data())
def test_in_whatever_order_and_however_often_they_come_the_same_ones_are_taken(kinds, data):
    whole = [
        delivered(number, NOW_S - 2.0 - 700.0 * (kind == "late"), data=b"junk" if kind == "broken" else None)
        for number, kind in enumerate(kinds)
    ]
    again = data.draw(st.lists(st.sampled_from(whole), max_size=20))
    shuffled = data.draw(st.permutations(whole + again))
    cuts = data.draw(st.lists(st.integers(0, len(shuffled)), max_size=3).map(sorted))
    inbox, taken = an_inbox(), []

    for start, end in zip([0, *cuts], [*cuts, len(shuffled)], strict=True):
        taken += numbers(inbox.accept(shuffled[start:end]))

    assert sorted(taken) == [number for number, kind in enumerate(kinds) if kind == "good"]
    left_out = Counter(inbox.left_out)
    assert len(taken) + left_out.total() == len(shuffled)
    assert left_out[DUPLICATE] == len(again)


def test_records_come_from_the_store_and_are_acknowledged_by_the_next_look(tmp_path):
    store = EmbeddedStore(tmp_path)
    store.append(STREAM, "p", [Entry(one, delivered(one).data) for one in (1, 2, 3)])
    inbox = an_inbox(store)

    assert numbers(inbox.take(2)) == [1, 2]
    assert numbers(inbox.take(2)) == [3]
    assert [one.number for one in store.read(STREAM, GROUP, "other", 10, 0.0)] == [3]
    store.close()


def test_records_of_a_learner_that_died_go_to_the_next(tmp_path):
    store = EmbeddedStore(tmp_path)
    store.append(STREAM, "p", [Entry(1, delivered(1).data)])
    an_inbox(store).take()

    again = store.read(STREAM, GROUP, "next", 10, 0.0)

    assert [one.number for one in again] == [1]
    store.close()
