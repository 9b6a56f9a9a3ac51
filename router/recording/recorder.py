"""Takes what happens from the serving thread in one append each; another thread makes rows of it and writes them."""

import secrets
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ccr import log
from ccr.segments import KINDS
from ccr.types import Outcome, Reading, Request
from router.recording.rows import (
    Attempted,
    RequestRow,
    Residency,
    Timed,
    refused_row,
    request_row,
    telemetry_row,
)
from router.recording.writer import Writer

#: Events that wait to be written; at 3 KB each (a decision among 8 nodes, with what was seen) about 25 MB.
MAX_QUEUED: Final = 8192
#: Time between two writes, and so the most that is lost when the process is killed.
PERIOD_S: Final = 0.1
#: Rows made in one go: about a millisecond, after which the serving thread gets the interpreter again.
SLICE: Final = 64
SLICE_BYTES: Final = 256 * 2**10

QUEUE_FULL: Final = "queue_full"
BEFORE_START: Final = "before_start"
FAILED: Final = "failed"
_log = log.get("record")
_ENCODE = msgspec.json.Encoder().encode
_Row = tuple[str, msgspec.Struct]


@dataclass(slots=True)
class Counts:
    """What became of the rows: by kind, and by reason if they were not written.

    ``queue_full``: the disk was too slow. ``before_start``: the request arrived before the recording began, so it
    belongs to no complete picture. ``failed``: the recording had ended with an error.
    """

    rows: "Counter[str]" = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    dropped: "Counter[str]" = field(
        default_factory=lambda: Counter({QUEUE_FULL: 0, BEFORE_START: 0, FAILED: 0})
    )
    bytes: int = 0
    deleted: int = 0
    failures: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Both together; of the bytes on disk, the other's."""
        both = Counts()
        for one in (self, other):
            for kind, number in one.rows.items():
                both.rows[kind] += number
            for reason, number in one.dropped.items():
                both.dropped[reason] += number
        both.bytes = other.bytes
        both.deleted = self.deleted + other.deleted
        both.failures = self.failures + other.failures
        return both


class Recorder:
    """One recording under way.

    :meth:`ended`, :meth:`refused` and :meth:`read` are for the serving thread: they append references to a bounded
    queue and return. What they are given must not change afterwards.

    Args:
        writer: of the segments.
        start_s: the moment of the start, on the clock of arrivals and readings.
        kinds: what to record.
        max_queued: events that may wait.
    """

    def __init__(
        self,
        writer: Writer,
        start_s: float,
        kinds: frozenset[str] = frozenset(KINDS),
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self.writer = writer
        self.start_s = start_s
        self.kinds = kinds
        self.error = ""
        self._max_queued = max_queued
        self._queue: deque[tuple[Any, ...]] = deque()
        self._rows: Counter[str] = Counter(dict.fromkeys(KINDS, 0))  # only the writing thread changes these
        self._left_out = {BEFORE_START: 0, FAILED: 0}
        self._refused = {QUEUE_FULL: 0, FAILED: 0}  # only the serving thread changes these
        self._wants_requests = "requests" in kinds
        self._wants_readings = not kinds.isdisjoint({"telemetry", "loads"})
        self._residency = Residency()
        self._session_key = secrets.token_bytes(32)
        self._finish = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    # For the serving thread

    def ended(self, attempt: Attempted, outcome: Outcome, times: Timed) -> None:
        """A request ended at a node."""
        if self._wants_requests:
            self._put((self._ended, attempt, outcome, times))

    def refused(
        self, outcome: Outcome, arrived_s: float, now_s: float, request: Request | None = None
    ) -> None:
        """A request ended in the router; ``request`` as far as it was understood."""
        if self._wants_requests:
            self._put((self._was_refused, outcome, arrived_s, now_s, request))

    def read(self, node_id: str, reading: Reading, now_s: float) -> None:
        """A node was read."""
        if self._wants_readings:
            self._put((self._was_read, node_id, reading, now_s))

    def _put(self, event: tuple[Any, ...]) -> None:
        if self.error:
            self._refused[FAILED] += 1
        elif len(self._queue) >= self._max_queued:
            self._refused[QUEUE_FULL] += 1
        else:
            self._queue.append(event)

    # From outside

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def finish(self) -> None:
        """Write what waits, seal the segments, end; returns at once."""
        self._finish.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; returns whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether rows are still being written."""
        return self._thread.is_alive()

    def counts(self) -> Counts:
        """What became of the rows so far."""
        counts = Counts(bytes=self.writer.held_bytes, deleted=self.writer.deleted, failures=bool(self.error))
        counts.rows.update(self._rows)
        for part in (self._left_out, self._refused):
            counts.dropped.update(part)
        return counts

    # The writing thread

    def _run(self) -> None:
        try:
            self.writer.recover()
            while not self._finish.wait(PERIOD_S):
                self._drain()
            self._drain()
            self.writer.close({reason: n for reason, n in self.counts().dropped.items() if n})
        except Exception as error:
            self._fail(error)

    def _drain(self) -> None:
        while self._queue:
            self._write_slice()

    def _write_slice(self) -> None:
        lines: dict[str, list[bytes]] = {}
        in_hand = size = 0
        try:
            while self._queue and in_hand < SLICE and size < SLICE_BYTES:
                make, *event = self._queue.popleft()
                in_hand += 1
                for kind, row in make(*event):
                    line = _ENCODE(row)
                    lines.setdefault(kind, []).append(line)
                    size += len(line)
            in_hand = sum(map(len, lines.values()))
            while lines:
                kind, batch = lines.popitem()
                self.writer.append(kind, batch)
                self._rows[kind] += len(batch)
                in_hand -= len(batch)
        except BaseException:
            self._left_out[FAILED] += in_hand
            raise

    def _fail(self, error: Exception) -> None:
        what = (error.strerror or str(error)) if isinstance(error, OSError) else repr(error)
        self.error = f"cannot write to {self.writer.directory}: {what}"
        self._left_out[FAILED] += len(self._queue)
        self._queue.clear()
        self.writer.abandon()
        _log.error("record.failed", directory=str(self.writer.directory), error=what, rows=dict(self._rows))

    def _ended(self, attempt: Attempted, outcome: Outcome, times: Timed) -> Iterator[_Row]:
        return self._if_begun(request_row(attempt, outcome, times, self.start_s, self._session_key))

    def _was_refused(
        self, outcome: Outcome, arrived_s: float, now_s: float, request: Request | None
    ) -> Iterator[_Row]:
        total_s = now_s - arrived_s
        return self._if_begun(
            refused_row(outcome, request, arrived_s, total_s, self.start_s, self._session_key)
        )

    def _if_begun(self, row: RequestRow) -> Iterator[_Row]:
        if row.t < 0.0:
            self._left_out[BEFORE_START] += 1
        else:
            yield "requests", row

    def _was_read(self, node_id: str, reading: Reading, now_s: float) -> Iterator[_Row]:
        t = now_s - self.start_s
        if "telemetry" in self.kinds:
            yield "telemetry", telemetry_row(node_id, reading, t)
        if "loads" in self.kinds:
            for row in self._residency.changes(node_id, reading, t):
                yield "loads", row
