"""First tokens that nobody tells of: of an answer that comes whole, only the end is seen.

Its prefill would stand in the book to that end as work before others, and a fleet that only decodes would look
saturated. So it is taken as done at the moment it was expected at dispatch.
"""

from heapq import heappop, heappush
from typing import Final, Protocol

from ccr import book as books
from ccr.book import PENDING, PENDING_PREFILL_S, SPEED, Book, Floats, Placed
from ccr.look import WAITING

_FEW: Final = 64  # moments that are not worth looking through


def expected_after_s(book: Book, placed: Placed, columns: Floats) -> float:
    """Seconds from its dispatch to the first token of a request that was just placed.

    Args:
        book: with the request in it.
        placed: its dispatch.
        columns: of the fleet, shape ``(C, n)``.
    """
    load, node = book.load, placed.node
    waiting = max(columns.item(WAITING, node) - load.item(PENDING, node) + 1.0, 0.0)
    backlog_s = load.item(PENDING_PREFILL_S, node) + (min(placed.unseen, waiting) - 1.0) * placed.prefill_s
    speed = load.item(SPEED, node)
    load_wait_s = 0.0
    if placed.was_cold:
        load_wait_s = max(book.loading_until_s.item(placed.model, node) - placed.at_s, 0.0)
    # As in `ccr.cost.total`: loads and the prefill of others run side by side.
    return max(load_wait_s, speed * backlog_s) + speed * placed.prefill_s


def presume(book: Book, placed: Placed, now_s: float) -> None:
    """Take off the book what a first token takes off, and claim nothing that only hearing of it would prove."""
    model, node = placed.model, placed.node
    resident, until_s = book.resident[model, node], book.loading_until_s[model, node]
    progress_s, stale = book.progress_s[node], book.stale[node]
    books.first_token(book, placed._replace(load_s=0.0), now_s)  # nor how long the load took
    book.resident[model, node], book.loading_until_s[model, node] = resident, until_s
    book.progress_s[node], book.stale[node] = progress_s, stale


class Awaited(Protocol):
    """A request in flight whose first token nobody tells of."""

    @property
    def is_open(self) -> bool:
        """Whether it is still in flight."""

    def presume_first_token(self, now_s: float) -> None:
        """By now it should have come."""


class Unheard:
    """When the first tokens should have come that nobody tells of."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Awaited]] = []
        self._number = 0
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._due)

    def add(self, due_s: float, awaited: Awaited) -> None:
        """Expect a first token; at most about twice as many are kept as are in flight."""
        if len(self._due) >= self._most:
            self._due = sorted(entry for entry in self._due if entry[2].is_open)
            self._most = 2 * len(self._due) + _FEW
        self._number += 1
        heappush(self._due, (due_s, self._number, awaited))

    def come(self, now_s: float) -> None:
        """Presume those that should have come by now; what has ended meanwhile is over anyway."""
        due = self._due
        while due and due[0][0] <= now_s:
            at_s, _, awaited = heappop(due)
            awaited.presume_first_token(at_s)
