"""Tells the other routers what this one has in flight, a few times a second, and takes in what they tell."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from ccr import log
from ccr.hashing import hash64
from ccr.shared import Part
from router.repeating import Repeating
from router.sharing.told import Ids, PartError, Told, decode, encode, summed
from router.store.backoff import Backoff
from router.store.store import Store, StoreError

FAMILY: Final = "ledger"
INTERVAL_S: Final = 0.1
EXPIRES_S: Final = 2.0
_log = log.get("ledger")


class Own(NamedTuple):
    """What this router has placed.

    Args:
        part: of its ledger.
        models: ids of its rows.
        nodes: ids of its columns.
    """

    part: Part
    models: tuple[str, ...]
    nodes: tuple[str, ...]


class Heard(NamedTuple):
    """What others have placed.

    Args:
        part: together, by the rows and columns of ``own``.
        own: of the same turn.
        peers: how many they are.
    """

    part: Part
    own: Own
    peers: int


class Ledger(Protocol):
    """The router's side; called in the sharer's thread."""

    def own(self) -> Own | None:
        """What this router has placed, now; ``None`` if it has no time to say."""

    def hear(self, heard: Heard) -> None:
        """This is what others have placed."""


@dataclass(slots=True)
class Counts:
    """What came of it so far.

    Args:
        refused: parts of others, by reason.
        told: how often this router told its part.
    """

    refused: "Counter[str]" = field(default_factory=Counter)
    told: int = 0


class Sharer:
    """Exchanges parts through the store.

    Args:
        store: where the parts lie.
        ledger: of this router.
        key: signs them; the same for all routers, empty: they are not signed.
        interval_s: between two turns.
        expires_s: after which a part that was not told again is gone.
        clock: monotonic seconds of the wall.
        backoff: from the store.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        key: bytes = b"",
        interval_s: float = INTERVAL_S,
        expires_s: float = EXPIRES_S,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.process = secrets.token_hex(8)
        self.counts = Counts()
        self._store = store
        self._ledger = ledger
        self._key = key
        self._expires_s = expires_s
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._ids: dict[str, int] = {}
        self._complained: frozenset[str] = frozenset()
        self._repeating = Repeating(
            "sharer", (self.turn,), interval_s, _log, "ledger.turn_failed", last=self._take_back
        )

    def start(self) -> None:
        """Begin to tell."""
        self._repeating.start()

    def stop(self) -> None:
        """Tell no more, and take back what was told."""
        self._repeating.stop()

    def turn(self) -> None:
        """Tell what this router has placed, and take in what the others told last."""
        if not self._backoff.is_due(self._clock()):
            return
        own = self._ledger.own()
        if own is None:
            return
        data = encode(own.part, self._hashes(own.models), self._hashes(own.nodes), self._key)
        try:
            self._store.put(FAMILY, self.process, data, self._expires_s)
            found = self._store.values(FAMILY)
        except StoreError as error:
            self._backoff.failed(self._clock())
            _log.debug("ledger.store_down", error=str(error))
            return
        self._backoff.succeeded()
        self.counts.told += 1
        parts = self._read({process: raw for process, raw in found.items() if process != self.process})
        rows, columns = (
            {self._ids[name]: k for k, name in enumerate(names)} for names in (own.models, own.nodes)
        )
        self._ledger.hear(Heard(summed(parts, rows, columns), own, len(parts)))

    def _read(self, found: dict[str, bytes]) -> list[Told]:
        """Those that make sense; of the others the log tells once."""
        parts, refused = [], set()
        for process, raw in found.items():
            try:
                parts.append(decode(raw, self._key))
            except PartError as error:
                self.counts.refused[error.reason] += 1
                refused.add(process)
                if process not in self._complained:
                    _log.warning("ledger.part_refused", process=process, reason=error.reason)
        self._complained = frozenset(refused)
        return parts

    def _hashes(self, names: Sequence[str]) -> Ids:
        ids = self._ids
        for name in names:
            if name not in ids:
                ids[name] = hash64(name)
        return np.array([ids[name] for name in names], dtype=np.uint64)

    def _take_back(self) -> None:
        if not self._store.is_up:
            return
        try:
            self._store.drop(FAMILY, self.process)
        except StoreError as error:
            _log.debug("ledger.store_down", error=str(error))
