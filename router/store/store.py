"""What the processes of one deployment share: a stream, blobs, pointers under a lease, small keys that expire.

Everything here blocks for a moment and may fail: it is called from threads of its own, and no request ever waits for
it. Nothing is tried again in here; whoever calls backs off (:mod:`router.store.backoff`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ccr.errors import CCRError

#: Names of streams, groups, producers, pointers, families and keys: they become file names and parts of Redis keys.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class StoreError(CCRError):
    """The store did not do what was asked."""


class StoreDownError(StoreError):
    """It cannot be reached, or not in time; whether the call took effect is not known."""


class StoreFullError(StoreError):
    """It takes nothing more; the call had no effect."""


class FencedError(StoreError):
    """The lease is over, or the pointer is not where the caller left it: somebody else acts. The call had no effect."""


class Entry(NamedTuple):
    """Something for a stream.

    Args:
        number: grows from entry to entry of one producer; gaps are fine.
        data: not looked at.
    """

    number: int
    data: bytes


class Delivered(NamedTuple):
    """An entry as a consumer gets it.

    Args:
        position: what :meth:`Store.acknowledge` takes.
        producer: who appended it.
        number: as the producer gave it; the two together are the entry's id.
        data: as appended.
    """

    position: str
    producer: str
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move a pointer, for a while.

    Args:
        name: of the lease.
        owner: who has it; a name that no other process uses.
        token: grows with every new holder: the fencing token.
    """

    name: str
    owner: str
    token: int


class Store(Protocol):
    """The seam; every method raises :class:`StoreDownError` when the store cannot be reached in time."""

    @property
    def is_up(self) -> bool:
        """Whether the latest call reached it."""

    # The stream

    def append(self, stream: str, producer: str, entries: Sequence[Entry]) -> int:
        """Append entries in order: all, or none.

        What the producer appended before, by number, is left out: a call whose end is unknown can be made again.

        Returns:
            How many were new.

        Raises:
            StoreFullError: if there is no room.
        """

    def read(self, stream: str, group: str, consumer: str, most: int, idle_s: float) -> list[Delivered]:
        """The next entries for a consumer, oldest first; each goes to one consumer of the group.

        Args:
            stream: to read from; an unknown one is empty.
            group: of consumers; begins with the oldest entry there is.
            consumer: who reads.
            most: entries at once.
            idle_s: entries delivered longer ago than this and never acknowledged are delivered again, to whoever asks.
        """

    def acknowledge(self, stream: str, group: str, positions: Sequence[str]) -> None:
        """These need not be delivered to the group again."""

    # Blobs and pointers

    def put_blob(self, data: bytes) -> str:
        """Keep the bytes under their SHA-256, which is returned.

        Raises:
            StoreFullError: if there is no room.
        """

    def blob(self, sha256: str) -> bytes | None:
        """The bytes that are kept under the name; the caller checks that they are those."""

    def drop_blob(self, sha256: str) -> None:
        """Forget it."""

    def pointer(self, name: str) -> bytes | None:
        """Where the pointer points; ``None`` if it was never set."""

    def point(self, name: str, expected: bytes | None, value: bytes, lease: Lease) -> None:
        """Move the pointer from ``expected`` to ``value`` in one step.

        Raises:
            FencedError: if it does not point to ``expected``, or the lease is not held any more.
            StoreFullError: if there is no room.
        """

    def lease(self, name: str, owner: str, length_s: float) -> Lease | None:
        """Take the lease, or hold it for longer; ``None`` while somebody else has it.

        A new holder's token is above all earlier ones, and at least the seconds since 1970: it grows even where
        the store has lost its memory.
        """

    def release(self, lease: Lease) -> None:
        """Give it back; nothing happens if it is not held any more."""

    def hint(self, name: str) -> None:
        """Tell whoever looks that the pointer has moved; it may get lost."""

    def hinted(self, name: str) -> bool:
        """Whether there was a hint since the last time; returns at once and raises nothing."""

    # Small keys

    def put(self, family: str, key: str, value: bytes, expires_s: float) -> None:
        """Keep a small value for a while."""

    def values(self, family: str) -> Mapping[str, bytes]:
        """All values of a family that have not expired."""

    def drop(self, family: str, key: str) -> None:
        """Forget a small value, whether or not it is there."""

    def close(self) -> None:
        """Let go of connections and files."""


def checked(*names: str) -> None:
    """Refuse a name that is none.

    Raises:
        ValueError: naming it.
    """
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for something in a store; it must match {NAME.pattern}")
