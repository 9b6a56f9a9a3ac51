"""Records to learn from, and a store that a test can switch off."""

import numpy as np

from ccr.lesson import OUTCOMES, Flag, Lesson, as_numbers
from ccr.types import COLUMNS, Outcome
from router.store.store import Delivered, StoreDownError


def a_lesson(outcome=Outcome.OK, *, n=2, **fields):
    """A request that ended well after a second, at the first of ``n`` nodes."""
    shares = np.full(n, 1.0 / n)
    given = {
        "at_s": 1000.0, "outcome": OUTCOMES.index(outcome), "total_s": 1.0, "charged_s": 1.0, "ttft_s": 0.2,
        "chosen": 0, "drawn": 0, "u": 0.25, "propensity": 1.0 / n, "drawn_propensity": 1.0 / n,
        "nodes": np.arange(n, dtype="<u8").tobytes(), "mask": b"\1" * n, "probabilities": shares.tobytes(),
        "columns": as_numbers(np.ones((len(COLUMNS), n))), "flags": int(Flag.COLD), "after": (1.0, 0.0, 0.5, 2.0, 0.9),
    }  # fmt: skip
    return Lesson(**(given | fields))


class Memory:
    """A stream in memory; ``fails`` raises instead, ``takes_but_fails`` does both."""

    def __init__(self):
        self.entries = []
        self.fails = None
        self.takes_but_fails = False
        self.calls = 0

    def append(self, stream, producer, entries):
        self.calls += 1
        if self.fails is not None:
            raise self.fails
        known = {(one.producer, one.number) for one in self.entries}
        new = [entry for entry in entries if (producer, entry.number) not in known]
        self.entries += [Delivered("", producer, *entry) for entry in new]
        if self.takes_but_fails:
            raise StoreDownError("no answer")
        return len(new)

    def numbers(self):
        return [one.number for one in self.entries]
