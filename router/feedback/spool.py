"""Records that wait on the disk until the store is there again: in order, bounded, whole, and still there after a kill."""

import fcntl
import os
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Final, NamedTuple

from router.store.frames import FrameLog, frames, locked
from router.store.store import Entry
from router.store.stored import decoded, encoded

BATCH: Final = 256


class Waiting(NamedTuple):
    """The oldest records that wait, all of one producer.

    Args:
        producer: whose.
        entries: in order.
        end: segment and offset behind the last of them.
    """

    producer: str
    entries: list[Entry]
    end: tuple[int, int]


class Spool:
    """The records on disk.

    Args:
        directory: made if need be; one router at a time may use it.
        max_bytes: of everything that waits; the oldest give way.

    Raises:
        BlockingIOError: if another router uses it.
        OSError: if it cannot be used.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._lock = locked(directory / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._directory = directory
        self._log = FrameLog(directory, max_bytes)
        self._left: dict[int, int] = {}
        self._place = (0, 0)
        for frame in frames(directory):
            self._left[frame.segment] = self._left.get(frame.segment, 0) + 1

    def __len__(self) -> int:
        return sum(self._left.values())

    def append(self, producer: str, entries: Sequence[Entry]) -> int:
        """Add records; returns how many of the oldest gave way.

        Raises:
            OSError: if the disk does not take them; none of them is there then.
        """
        gone = self._log.append([encoded(producer, entry) for entry in entries])
        newest = self._log.newest
        self._left[newest] = self._left.get(newest, 0) + len(entries)
        return sum(self._left.pop(segment, 0) for segment in gone)

    def oldest(self, most: int = BATCH) -> Waiting | None:
        """The records that have waited longest; ``None`` when no more can be read.

        Raises:
            OSError: if the disk does not give them.
        """
        found = list(islice(frames(self._directory, *self._place), most))
        if not found:
            return None
        producer = decoded(found[0].data).producer
        same = list(
            takewhile(lambda pair: pair[1].producer == producer, ((one, decoded(one.data)) for one in found))
        )
        last = same[-1][0]
        return Waiting(producer, [Entry(one.number, one.data) for _, one in same], (last.segment, last.end))

    def forget(self, waiting: Waiting) -> None:
        """These are in the store; files of which nothing is left are deleted."""
        segment, _ = self._place = waiting.end
        counted = len(waiting.entries)
        for number in sorted(self._left):
            taken = min(self._left[number], counted)
            self._left[number] -= taken
            counted -= taken
            if self._left[number] == 0 and number <= segment:
                self._drop(number)

    def clear(self) -> int:
        """Delete what is left, which cannot be read; returns how many records that were."""
        lost = len(self)
        for number in list(self._left):
            self._drop(number)
        self._place = (0, 0)
        return lost

    def close(self) -> None:
        """Let go of the files; what waits stays."""
        self._log.close()
        os.close(self._lock)

    def _drop(self, segment: int) -> None:
        self._log.remove(segment)
        del self._left[segment]
