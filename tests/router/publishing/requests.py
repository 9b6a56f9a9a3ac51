"""Requests as the watch is told of them, without a router."""

from types import SimpleNamespace

import numpy as np

from ccr.look import BACKLOG_S
from ccr.types import Decision, Outcome
from router.dispatch import Times
from tests.looks import NODES, a_book, look

PROMISE_MOST_S = 60.0


def a_look():
    """All nodes have the weights; the last one would be late."""
    book = a_book()
    book.resident[:] = True
    seen = look(book)
    seen.pairs[BACKLOG_S] = (0.0, 0.1, 0.2, 1e3)
    return seen


LOOK = a_look()


def an_attempt(policy, chosen=0, *, arrived_s=0.0, guarded=False, is_reported=False):
    """A request that the policy sent to a node."""
    shares = np.eye(NODES)[chosen]
    decision = Decision(
        "r", f"n{chosen}", chosen, "learned", 1.0, 0.5, "n", 1.0, "bounded_load" if guarded else "", shares, shares,
        np.ones(NODES, dtype=np.bool_), "", LOOK,
    )  # fmt: skip
    return SimpleNamespace(
        decision=decision, engine=SimpleNamespace(policy=policy), arrived_s=arrived_s, is_reported=is_reported
    )


def ends(watch, attempt, outcome=Outcome.OK, total_s=0.5, **fields):
    watch.ended(attempt, outcome, Times(0.0, total_s), **fields)
