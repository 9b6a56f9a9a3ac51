"""Records that wait on the disk: in order, bounded, whole, still there after a restart."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.feedback.spool import Spool
from router.store.frames import path_of, segments
from router.store.store import Entry

BIG = 10**6


def entries(*numbers, size=10):
    return [Entry(number, b"x" * size) for number in numbers]


def drained(spool, most=256):
    found = []
    while (waiting := spool.oldest(most)) is not None:
        found += [(waiting.producer, one.number) for one in waiting.entries]
        spool.forget(waiting)
    return found


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path, BIG)
    yield spool
    spool.close()


def test_records_come_back_in_order(spool):
    spool.append("p", entries(1, 2))
    spool.append("p", entries(3))

    assert len(spool) == 3
    assert drained(spool) == [("p", 1), ("p", 2), ("p", 3)]
    assert len(spool) == 0


def test_records_that_are_not_forgotten_come_again(spool):
    spool.append("p", entries(1))
    spool.oldest()

    assert drained(spool) == [("p", 1)]


def test_files_of_which_nothing_is_left_are_deleted(spool, tmp_path):
    spool.append("p", entries(1, 2))

    drained(spool)

    assert segments(tmp_path) == []


def test_it_goes_on_after_it_was_empty(spool):
    spool.append("p", entries(1))
    drained(spool)

    spool.append("p", entries(2))

    assert drained(spool) == [("p", 2)]


def test_records_of_an_earlier_process_are_there(tmp_path):
    before = Spool(tmp_path, BIG)
    before.append("old", entries(1, 2))
    before.close()
    after = Spool(tmp_path, BIG)
    after.append("new", entries(1))

    assert len(after) == 3
    assert drained(after) == [("old", 1), ("old", 2), ("new", 1)]
    after.close()


def test_one_answer_has_records_of_one_producer(tmp_path):
    before = Spool(tmp_path, BIG)
    before.append("old", entries(1))
    before.close()
    after = Spool(tmp_path, BIG)
    after.append("new", entries(1))

    assert after.oldest().producer == "old"
    after.close()


def test_a_torn_record_is_left_out(tmp_path):
    before = Spool(tmp_path, BIG)
    before.append("p", entries(1, 2))
    before.close()
    path = path_of(tmp_path, 1)
    os.truncate(path, path.stat().st_size - 3)

    after = Spool(tmp_path, BIG)

    assert len(after) == 1
    assert drained(after) == [("p", 1)]
    after.close()


def test_two_routers_do_not_share_one(spool, tmp_path):
    with pytest.raises(BlockingIOError):
        Spool(tmp_path, BIG)


def test_what_cannot_be_read_any_more_is_counted_and_deleted(spool, tmp_path):
    spool.append("p", entries(1, 2))
    path_of(tmp_path, 1).write_bytes(b"\xff" * 100)

    assert spool.oldest() is None
    assert spool.clear() == 2
    assert len(spool) == 0


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60)), max_size=20),
    st.integers(300, 3000),
    st.lists(st.integers(0, 19), max_size=6),
)
def test_whatever_happens_the_order_holds_and_the_counts_add_up(batches, max_bytes, drains):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        spool, number, gone, found = Spool(Path(directory), max_bytes), 0, 0, []
        for turn, (size, bytes_each) in enumerate(batches):
            gone += spool.append("p", entries(*range(number, number + size), size=bytes_each))
            number += size
            if turn in drains:
                found += drained(spool, 3)
        found += drained(spool, 3)
        spool.close()

    numbers = [one for _, one in found]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + gone == number
