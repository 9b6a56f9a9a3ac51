"""Steps in a thread: in order, again and again, whatever becomes of one of them."""

import threading

import structlog

from ccr import log
from router.repeating import Repeating


def test_a_fault_in_one_step_is_told_and_ends_neither_the_others_nor_itself():
    done, enough = [], threading.Event()

    def fails():
        done.append("fails")
        raise ValueError("planted")

    def works():
        done.append("works")
        if done.count("works") == 3:
            enough.set()

    repeating = Repeating(
        "test", (fails, works), 0.001, log.get("test"), "test.turn_failed",
        first=lambda: done.append("first"), last=lambda: done.append("last"),
    )  # fmt: skip
    with structlog.testing.capture_logs() as logged:
        repeating.start()
        assert enough.wait(10.0)
        repeating.stop()

    assert done[:5] == ["first", "fails", "works", "fails", "works"]
    assert done[-1] == "last"
    assert {(line["event"], line["error"]) for line in logged} == {
        ("test.turn_failed", "ValueError('planted')")
    }


def test_one_that_never_began_stops_at_once():
    Repeating("test", (), 60.0, log.get("test"), "test.turn_failed", last=lambda: None).stop()
