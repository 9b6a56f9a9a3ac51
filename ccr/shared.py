"""One ledger from several: each router tells the part that it placed, and enters the sum of the others' into its own book.

What is looked at is then the whole, whoever placed it, and nothing that reads a book has to know of it. Arrays and pure
functions on them, as in :mod:`ccr.book`; the simulator compiles them as they stand. Shapes: ``n`` nodes, ``M`` models.
"""

from typing import Final, NamedTuple

import numpy as np

from ccr.book import (
    ACTIVE_MODELS,
    CONTEXT_S,
    DECODE_FIXED_S,
    DONE_PER_S,
    DONE_WINDOW_S,
    IN_BATCH,
    KV_GIB,
    PASS_S,
    PENDING,
    PENDING_PREFILL_S,
    REMAINING_TOKENS,
    Book,
    Counts,
    Floats,
)

#: Rows of :attr:`ccr.book.Book.load` that add up over routers.
ADDED: Final = (PENDING, PENDING_PREFILL_S, KV_GIB, REMAINING_TOKENS, CONTEXT_S, IN_BATCH)
#: Where the requests in flight are among them.
IN_FLIGHT: Final = ADDED.index(IN_BATCH)
_ROWS: Final = np.array(ADDED)
_OVERDUE_S: Final = 1e-3  # told of a load that should have ended and has not


class Part(NamedTuple):
    """What one router, or several together, have placed.

    Args:
        load: rows of :data:`ADDED`, shape ``(len(ADDED), n)``.
        inflight: requests in flight by model, shape ``(M, n)``.
        loading_s: seconds left of loads that requests in flight wait for; 0 where there is none, shape ``(M, n)``.
        quiet_s: since something was heard of a request in flight; ``inf`` where nothing was, shape ``(n,)``.
        done_per_s: requests finished per second, exponentially decayed, shape ``(n,)``.
        sent_per_s: requests sent per second, likewise, shape ``(n,)``.
    """

    load: Floats
    inflight: Counts
    loading_s: Floats
    quiet_s: Floats
    done_per_s: Floats
    sent_per_s: Floats


class Entered(NamedTuple):
    """What of others is in a book.

    Args:
        part: as entered.
        progress_s: what the book's ``progress_s`` was set to by it, shape ``(n,)``.
        at_s: when it was entered, shape ``(1,)``.
    """

    part: Part
    progress_s: Floats
    at_s: Floats


def nothing(models: int, nodes: int) -> Part:
    """The part of a router that has placed nothing.

    Args:
        models: M.
        nodes: n.
    """
    return Part(
        load=np.zeros((len(ADDED), nodes)),
        inflight=np.zeros((models, nodes), dtype=np.int64),
        loading_s=np.zeros((models, nodes)),
        quiet_s=np.full(nodes, np.inf),
        done_per_s=np.zeros(nodes),
        sent_per_s=np.zeros(nodes),
    )


def none_entered(models: int, nodes: int) -> Entered:
    """Of a book that has nothing of others in it; arguments as of :func:`nothing`."""
    return Entered(nothing(models, nodes), np.full(nodes, -np.inf), np.zeros(1))


def add(total: Part, part: Part) -> None:
    """Add what another router has placed; ``total`` is changed."""
    total.load[:] = total.load + part.load
    total.inflight[:] = total.inflight + part.inflight
    total.loading_s[:] = np.maximum(total.loading_s, part.loading_s)
    total.quiet_s[:] = np.minimum(total.quiet_s, part.quiet_s)
    total.done_per_s[:] = total.done_per_s + part.done_per_s
    total.sent_per_s[:] = total.sent_per_s + part.sent_per_s


def put(into: Part, part: Part) -> None:
    """Make ``into`` equal to ``part``."""
    into.load[:] = part.load
    into.inflight[:] = part.inflight
    into.loading_s[:] = part.loading_s
    into.quiet_s[:] = part.quiet_s
    into.done_per_s[:] = part.done_per_s
    into.sent_per_s[:] = part.sent_per_s


def part_of(book: Book, entered: Entered, sent_per_s: Floats, now_s: float) -> Part:
    """What the owner of a book has placed: all of it but what was entered of others.

    Args:
        book: is read.
        entered: what of others is in it.
        sent_per_s: requests the owner sent per second, shape ``(n,)``.
        now_s: the moment.
    """
    others = entered.part
    inflight = np.maximum(book.inflight - others.inflight, 0)
    load = _own_load(book, others)
    left_s = np.maximum(book.loading_until_s - now_s, _OVERDUE_S)
    waits = (inflight > 0) & ~book.resident & (book.loading_until_s > -np.inf)
    heard = (load[IN_FLIGHT] > 0.5) & (book.progress_s != entered.progress_s)
    return Part(
        load,
        inflight,
        np.where(waits, left_s, 0.0),
        np.where(heard, np.maximum(now_s - book.progress_s, 0.0), np.inf),
        _own_done(book, entered, now_s),
        sent_per_s.copy(),
    )


def enter(book: Book, entered: Entered, others: Part, now_s: float) -> None:
    """Make what others have placed in a book what it is now.

    Args:
        book: changed.
        entered: what of others was in it; changed to what is in it.
        others: what they have placed together.
        now_s: the moment.
    """
    load, was = book.load, entered.part
    own = _own_load(book, was)
    for row in range(len(ADDED)):
        load[ADDED[row]] = own[row] + others.load[row]
    load[DONE_PER_S] = _own_done(book, entered, now_s) + others.done_per_s
    book.done_s[:] = now_s

    before = book.inflight > 0
    inflight = np.maximum(book.inflight - was.inflight, 0) + others.inflight
    active = inflight > 0
    book.used_s[:] = np.where(others.inflight > was.inflight, now_s, book.used_s)
    book.inflight[:] = inflight
    load[ACTIVE_MODELS] = np.where(active, 1.0, 0.0).sum(axis=0)
    load[PASS_S] = np.where(active, book.costs[DECODE_FIXED_S], 0.0).sum(axis=0)

    # A load of others that is over brought the weights; one that nobody waits for any more is not expected.
    others_load = others.loading_s > 0.0
    brought = (was.loading_s > 0.0) & ~others_load & (others.inflight > 0) & ~book.resident
    given_up = before & ~active
    book.resident[:] = book.resident | brought
    until_s = np.where(brought | given_up, -np.inf, book.loading_until_s)
    begun = others_load & ~book.resident & ~(until_s > now_s)
    book.loading_until_s[:] = np.where(begun, now_s + others.loading_s, until_s)
    if begun.any():
        for model in range(len(begun)):
            ends_s = np.where(begun[model], book.loading_until_s[model], -np.inf)
            book.loads_until_s[:] = np.maximum(book.loads_until_s, ends_s)
    changed = np.where((before != active) | brought, 1, 0).sum(axis=0)
    book.stale[:] = book.stale | (changed > 0)

    heard_s = now_s - others.quiet_s
    is_news = heard_s > book.progress_s
    book.progress_s[:] = np.where(is_news, heard_s, book.progress_s)
    entered.progress_s[:] = np.where(is_news, heard_s, entered.progress_s)
    put(was, others)
    entered.at_s[0] = now_s


def own_rate(
    everybody: Floats, at_s: Floats, others: Floats, entered_s: float, now_s: float, window_s: float
) -> Floats:
    """The part of a decayed rate that is not others', now; shape ``(n,)``.

    Args:
        everybody: the rate, shape ``(n,)``.
        at_s: when it was true; ``-inf`` where nothing happened yet, shape ``(n,)``.
        others: what of it is theirs, shape ``(n,)``.
        entered_s: when that was true.
        now_s: the moment.
        window_s: time constant of the decay.
    """
    theirs = others * np.exp(-max(now_s - entered_s, 0.0) / window_s)
    own: Floats = np.maximum(everybody * np.exp(-np.maximum(now_s - at_s, 0.0) / window_s) - theirs, 0.0)
    return own


def left(entered: Entered, node: int) -> None:
    """A node is a new incarnation: what others had placed on the old one is out of the book, with everything else."""
    was = entered.part
    was.load[:, node] = 0.0
    was.inflight[:, node] = 0
    was.loading_s[:, node] = 0.0
    was.quiet_s[node] = np.inf
    was.done_per_s[node] = 0.0
    was.sent_per_s[node] = 0.0
    entered.progress_s[node] = -np.inf


def move(old: Entered, was: int, new: Entered, now: int) -> None:
    """What of others is in a node's column goes with it into another book, which has the same models, or more behind them.

    Args:
        old: of the book in which the node was.
        was: its column there.
        new: of the other; changed.
        now: its column there.
    """
    known = len(old.part.inflight)
    new.part.load[:, now] = old.part.load[:, was]
    new.part.inflight[:known, now] = old.part.inflight[:, was]
    new.part.loading_s[:known, now] = old.part.loading_s[:, was]
    new.part.quiet_s[now] = old.part.quiet_s[was]
    new.part.done_per_s[now] = old.part.done_per_s[was]
    new.part.sent_per_s[now] = old.part.sent_per_s[was]
    new.progress_s[now] = old.progress_s[was]
    new.at_s[0] = old.at_s[0]


def _own_load(book: Book, others: Part) -> Floats:
    """The rows without what others placed; nothing where the owner has nothing in flight, whatever rounding left over."""
    own = np.maximum(book.load[_ROWS] - others.load, 0.0)
    return np.where(own[IN_FLIGHT] > 0.5, own, 0.0)


def _own_done(book: Book, entered: Entered, now_s: float) -> Floats:
    """Requests of the owner finished per second, now."""
    others = entered.part.done_per_s
    return own_rate(book.load[DONE_PER_S], book.done_s, others, entered.at_s[0], now_s, DONE_WINDOW_S)
