"""Takes what happened from the serving thread in one append each; another thread makes records and brings them away."""

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from ccr import log
from ccr.lesson import encode
from ccr.types import Outcome, Request
from router.feedback.make import Ended, Maker, Refused, Seen
from router.feedback.spool import Spool
from router.recording.rows import Timed
from router.repeating import Repeating
from router.store.backoff import Backoff
from router.store.store import Entry, Store, StoreError

STREAM: Final = "feedback"
#: Requests that wait to be made into records; at 3 KB each (a decision among 8 nodes, with what was seen) about 25 MB.
MAX_WAITING: Final = 8192
#: Time between two turns, and so the most that is lost when the process is killed.
PERIOD_S: Final = 0.1
#: Records made in one go: a millisecond or two, after which the serving thread gets the interpreter again.
SLICE: Final = 64
#: Time to bring the last ones away before the process ends.
LAST_S: Final = 1.0

QUEUE_FULL: Final = "queue_full"
SPOOL_FULL: Final = "spool_full"
SPOOL_FAILED: Final = "spool_failed"
UNMADE: Final = "unmade"
UNREADABLE: Final = "unreadable"
ENDED: Final = "ended"
_log = log.get("feedback")


@dataclass(slots=True)
class Counts:
    """What became of the records: ``taken + recovered = waiting + stored + spooled + all dropped``.

    Dropped with reason ``queue_full``: they came faster than they could be brought away, or there was nowhere to bring them;
    ``spool_full``: the oldest on the disk gave way; ``spool_failed``: the disk refused them; ``unreadable``: the disk
    did not give them back; ``unmade``: a fault of ours; ``ended``: the process ended and there was nowhere to leave them.

    Args:
        taken: given by the serving thread.
        recovered: found on the disk at the start.
        waiting: in memory.
        stored: in the store.
        spooled: on the disk.
        dropped: by reason.
    """

    taken: int = 0
    recovered: int = 0
    waiting: int = 0
    stored: int = 0
    spooled: int = 0
    dropped: "Counter[str]" = field(
        default_factory=lambda: Counter(
            dict.fromkeys((QUEUE_FULL, SPOOL_FULL, SPOOL_FAILED, UNREADABLE, UNMADE, ENDED), 0)
        )
    )


class Feeder:
    """Brings records to the store; to the disk while the store is away.

    :meth:`ended` and :meth:`refused` are for the serving thread: they append references to a bounded queue and return.

    Args:
        store: where they belong.
        maker: makes them.
        spool: where they wait meanwhile; without one they wait in memory.
        max_waiting: requests that may wait in memory.
        clock: monotonic seconds of the wall, for backing off.
        backoff: from the store.
    """

    def __init__(
        self,
        store: Store,
        maker: Maker,
        spool: Spool | None = None,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.producer = secrets.token_hex(8)
        self._store = store
        self._maker = maker
        self._spool = spool
        self._max_waiting = max_waiting
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._queue: deque[Ended | Refused] = deque()
        self._in_hand: list[Entry] = []
        self._numbers = count(1)
        self._taken = self._full = 0  # only the serving thread changes these two
        self._stored = 0
        self._recovered = len(spool) if spool is not None else 0
        self._dropped: Counter[str] = Counter()
        self._store_works = self._spool_works = True
        self._repeating = Repeating(
            "feeder",
            (self.turn,),
            PERIOD_S,
            _log,
            "feedback.turn_failed",
            last=self._finish,
            patience_s=2.0 * LAST_S,
        )

    # For the serving thread

    def ended(
        self, attempt: Seen, outcome: Outcome, times: Timed, now_s: float, *, went_on: bool = False
    ) -> None:
        """A request ended at a node, or went on to another one."""
        state = attempt.state
        self._put(Ended(attempt, outcome, times, state.reading, now_s - state.reading_s, went_on))

    def refused(self, outcome: Outcome, arrived_s: float, now_s: float, request: Request | None) -> None:
        """A request ended in the router."""
        self._put(Refused(outcome, arrived_s, now_s, request))

    def _put(self, event: Ended | Refused) -> None:
        self._taken += 1
        if len(self._queue) >= self._max_waiting:
            self._full += 1
        else:
            self._queue.append(event)

    # From outside

    def start(self) -> None:
        """Begin to bring records away."""
        self._repeating.start()

    def stop(self) -> None:
        """Bring away what waits, and end."""
        self._repeating.stop()

    def counts(self) -> Counts:
        """What became of the records so far; exact while nothing is under way."""
        counts = Counts(
            taken=self._taken,
            recovered=self._recovered,
            waiting=len(self._queue) + len(self._in_hand),
            stored=self._stored,
            spooled=len(self._spool) if self._spool is not None else 0,
        )
        counts.dropped.update(self._dropped)
        counts.dropped[QUEUE_FULL] += self._full
        return counts

    # The feeding thread

    def _finish(self) -> None:
        self._repeating.guarded(self.turn)
        self._end()

    def turn(self) -> None:
        """Bring away what waits, oldest first, as far as there is somewhere to bring it."""
        self._replay()
        while self._in_hand or self._queue:
            self._in_hand = self._in_hand or self._made()
            if not (self._sent() or self._put_aside()):
                return
            self._in_hand = []

    def _made(self) -> list[Entry]:
        """The next records; what cannot be made is a fault of ours, and must not hold up the others."""
        entries: list[Entry] = []
        while self._queue and len(entries) < SLICE:
            event = self._queue.popleft()
            try:
                entries.append(Entry(next(self._numbers), encode(self._maker.lesson(event))))
            except Exception as error:
                self._dropped[UNMADE] += 1
                _log.error("feedback.unmade", error=repr(error))
        return entries

    def _sent(self) -> bool:
        """Whether the records in hand are in the store; not while older ones wait on the disk."""
        if self._spool:
            return False
        return self._append(self.producer, self._in_hand)

    def _append(self, producer: str, entries: list[Entry]) -> bool:
        """Whether the store has them now. What it had before, after a call of unknown end, counts just the same."""
        if not self._backoff.is_due(self._clock()):
            return False
        try:
            self._store.append(STREAM, producer, entries)
        except StoreError as error:
            if self._store_works:
                _log.warning("feedback.store_down", error=str(error))
            self._store_works = False
            self._backoff.failed(self._clock())
            return False
        self._store_works = True
        self._backoff.succeeded()
        self._stored += len(entries)
        return True

    def _put_aside(self) -> bool:
        """Whether the records in hand need no more care: they are on the disk, or it refused them."""
        if self._spool is None:
            return False
        try:
            self._dropped[SPOOL_FULL] += self._spool.append(self.producer, self._in_hand)
        except OSError as error:
            self._dropped[SPOOL_FAILED] += len(self._in_hand)
            self._tell_of_spool(error)
        else:
            self._spool_works = True
        return True

    def _replay(self) -> None:
        """Bring away what waits on the disk, oldest first."""
        while self._spool:
            try:
                waiting = self._spool.oldest()
            except OSError as error:
                self._tell_of_spool(error)
                return
            if waiting is None:  # damaged on the disk
                self._dropped[UNREADABLE] += self._spool.clear()
            elif self._append(waiting.producer, waiting.entries):
                self._spool.forget(waiting)
            else:
                return

    def _tell_of_spool(self, error: OSError) -> None:
        """Once, until it works again."""
        if self._spool_works:
            _log.error("feedback.spool_failed", error=error.strerror or str(error))
        self._spool_works = False

    def _end(self) -> None:
        lost = len(self._in_hand) + len(self._queue)
        self._dropped[ENDED] += lost
        self._in_hand = []
        self._queue.clear()
        if self._spool is not None:
            self._spool.close()
        if lost:
            _log.warning("feedback.lost", records=lost)
