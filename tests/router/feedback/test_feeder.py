"""Between the serving thread and the store: never in the way, in order, and honest about what was lost."""

import errno
from types import SimpleNamespace

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.lesson import decode
from ccr.types import Outcome
from router.feedback.feeder import (
    ENDED,
    QUEUE_FULL,
    SLICE,
    SPOOL_FAILED,
    SPOOL_FULL,
    UNMADE,
    UNREADABLE,
    Feeder,
)
from router.feedback.make import Maker
from router.feedback.spool import Spool
from router.store.backoff import Backoff
from router.store.frames import path_of
from router.store.store import StoreDownError, StoreFullError
from tests.factories import a_request
from tests.lessons import Memory

DOWN = StoreDownError("away")


class Bench:
    """A feeder that turns when the test says so."""

    def __init__(self, tmp_path=None, spool_bytes=10**6, **fields):
        self.now_s = 0.0
        self.store = Memory()
        spool = Spool(tmp_path / "spool", spool_bytes) if tmp_path else None
        self.feeder = Feeder(
            self.store,
            Maker(lambda moment_s: moment_s, penalty_s=30.0),
            spool,
            clock=lambda: self.now_s,
            backoff=Backoff(draw=lambda: 1.0),
            **fields,
        )

    def take(self, number=1):
        for _ in range(number):
            self.feeder.refused(Outcome.REJECTED, 1.0, 2.0, a_request())

    def turn(self, after_s=10.0):
        self.now_s += after_s
        self.feeder.turn()

    @property
    def counts(self):
        return self.feeder.counts()

    def lost(self):
        return {reason: number for reason, number in self.counts.dropped.items() if number}

    def adds_up(self):
        c = self.counts
        return c.taken + c.recovered == c.waiting + c.stored + c.spooled + c.dropped.total()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.feeder._end()


def test_the_serving_thread_looks_at_nothing(bench):
    class Untouchable:
        state = SimpleNamespace(reading=None, reading_s=0.0)

    bench.feeder.ended(Untouchable(), Outcome.OK, None, 1.0)
    bench.feeder.refused(Outcome.REJECTED, 1.0, 2.0, Untouchable())

    assert bench.counts.waiting == 2


def test_what_happened_is_in_the_store_after_a_turn(bench):
    bench.take(3)

    bench.turn()

    assert bench.store.numbers() == [1, 2, 3]
    assert decode(bench.store.entries[0].data).at_s == 1.0
    assert (bench.counts.stored, bench.counts.waiting) == (3, 0)


def test_records_go_in_batches(bench):
    bench.take(5 * SLICE)

    bench.turn()

    assert bench.store.calls == 5
    assert bench.counts.stored == 5 * SLICE


def test_while_the_store_is_away_they_wait_on_the_disk(bench):
    bench.store.fails = DOWN
    bench.take(3)

    bench.turn()

    assert (bench.counts.spooled, bench.counts.stored) == (3, 0)
    assert bench.adds_up()


def test_when_it_is_back_they_come_in_order(bench):
    bench.store.fails = DOWN
    bench.take(3)
    bench.turn()
    bench.store.fails = None
    bench.take(2)

    bench.turn()

    assert bench.store.numbers() == [1, 2, 3, 4, 5]
    assert bench.counts.spooled == 0
    assert bench.adds_up()


def test_a_store_that_is_away_is_asked_less_and_less_often(bench):
    bench.store.fails = DOWN
    for _ in range(100):
        bench.take()
        bench.turn(after_s=0.1)

    assert bench.store.calls < 10


def test_it_is_told_once_that_the_store_is_away(bench):
    bench.store.fails = DOWN
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            bench.take()
            bench.turn()

    assert [event["event"] for event in logged] == ["feedback.store_down"]


def test_a_call_of_unknown_end_makes_no_duplicate(bench):
    bench.store.takes_but_fails = True
    bench.take(3)
    bench.turn()
    bench.store.takes_but_fails = False

    bench.turn()

    assert bench.store.numbers() == [1, 2, 3]
    assert bench.counts.stored == 3
    assert bench.adds_up()


def test_a_store_that_is_full_is_as_good_as_away(bench):
    bench.store.fails = StoreFullError("full")
    bench.take(3)

    bench.turn()

    assert bench.counts.spooled == 3


def test_without_a_disk_they_wait_in_memory_and_what_does_not_fit_is_counted():
    bench = Bench(max_waiting=100)
    bench.store.fails = DOWN
    bench.take(130)
    bench.turn()
    bench.take(100)
    bench.store.fails = None

    bench.turn()

    # Of the first hundred one batch was in hand, so as many again found room.
    assert bench.counts.stored == 100 + SLICE
    assert bench.lost() == {QUEUE_FULL: 230 - 100 - SLICE}
    assert bench.adds_up()


def test_on_a_disk_that_is_full_the_oldest_give_way_and_are_counted(tmp_path):
    bench = Bench(tmp_path, spool_bytes=20_000)
    bench.store.fails = DOWN
    for _ in range(20):
        bench.take(50)
        bench.turn()
    kept = bench.counts.spooled
    bench.store.fails = None

    bench.turn()

    assert 0 < kept < 1000
    assert bench.lost() == {SPOOL_FULL: 1000 - kept}
    assert bench.store.numbers() == list(range(1001 - kept, 1001))
    assert bench.adds_up()


def test_a_disk_that_refuses_loses_them_counted_and_tells_it_once(bench, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.store.fails = DOWN
    monkeypatch.setattr(bench.feeder._spool._log, "append", refuse)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            bench.take(2)
            bench.turn()

    assert bench.lost() == {SPOOL_FAILED: 6}
    assert [event["event"] for event in logged].count("feedback.spool_failed") == 1
    assert bench.adds_up()


def test_what_the_disk_does_not_give_back_is_counted(bench, tmp_path):
    bench.store.fails = DOWN
    bench.take(3)
    bench.turn()
    path_of(tmp_path / "spool", 1).write_bytes(b"\xff" * 50)
    bench.store.fails = None

    bench.turn()

    assert bench.lost() == {UNREADABLE: 3}
    assert bench.adds_up()


def test_a_record_that_cannot_be_made_holds_up_no_other(bench):
    bench.take()
    bench.feeder.ended(
        SimpleNamespace(state=SimpleNamespace(reading=None, reading_s=0.0)), Outcome.OK, None, 1.0
    )
    bench.take()

    with structlog.testing.capture_logs() as logged:
        bench.turn()

    assert len(bench.store.entries) == 2
    assert bench.lost() == {UNMADE: 1}
    assert [event["event"] for event in logged] == ["feedback.unmade"]


def test_what_an_earlier_process_left_comes_first(tmp_path):
    before = Bench(tmp_path)
    before.store.fails = DOWN
    before.take(2)
    before.turn()
    before.feeder._end()
    after = Bench(tmp_path)
    after.take()

    after.turn()

    assert [one.producer == after.feeder.producer for one in after.store.entries] == [False, False, True]
    assert (after.counts.recovered, after.counts.stored) == (2, 3)
    assert after.adds_up()
    after.feeder._end()


def test_at_the_end_everything_is_brought_away(tmp_path):
    bench = Bench(tmp_path)
    bench.feeder.start()
    bench.take(3)

    bench.feeder.stop()

    assert bench.store.numbers() == [1, 2, 3]


def test_at_the_end_what_has_nowhere_to_go_is_counted():
    bench = Bench()
    bench.store.fails = DOWN
    bench.feeder.start()
    bench.take(3)

    bench.feeder.stop()

    assert bench.lost() == {ENDED: 3}
    assert bench.adds_up()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["up", "down", "half"])), max_size=20))
def test_whatever_the_store_does_nothing_is_twice_and_the_counts_add_up(turns):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), max_waiting=60)
        for number, store in turns:
            bench.store.fails = DOWN if store == "down" else None
            bench.store.takes_but_fails = store == "half"
            bench.take(number)
            bench.turn()
            assert bench.adds_up()
        bench.store.fails, bench.store.takes_but_fails = None, False
        bench.turn()
        bench.feeder._end()

    assert bench.store.numbers() == list(range(1, bench.counts.stored + 1))
    assert bench.counts.stored == sum(number for number, _ in turns)
