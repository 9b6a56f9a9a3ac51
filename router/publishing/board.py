"""Keeps the state of things the same in the store and in a process: read every second, changed under a lease, put back when lost."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ccr import log
from ccr.control import Change, Control, ControlError, opened, refusing, signed
from router.publishing.memory import Memory
from router.store.backoff import Backoff
from router.store.store import FencedError, Store, StoreError

#: The pointer and its lease.
NAME: Final = "control"
_LEASE_S: Final = 5.0
_log = log.get("publication")


class Board:
    """One process's end; :meth:`change` and :attr:`control` are for any thread.

    What was changed here holds here at once, and everywhere as soon as the store can be reached. A store that lost it, or
    holds what nobody of ours signed, gets it back.

    Args:
        store: where it is kept.
        key: it is signed with.
        owner: a name that no other process uses.
        memory: of it, over restarts.
        clock: monotonic seconds of the wall, for backing off.
        backoff: from the store.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        owner: str,
        memory: Memory | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.control = Control()
        self._store = store
        self._key = key
        self._owner = owner
        self._memory = memory
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._pending: list[Change] = []
        self._told = b""
        self._lock = threading.Lock()

    @property
    def is_told(self) -> bool:
        """Whether all that was changed here is in the store."""
        return not self._pending

    def change(self, change: Change) -> None:
        """Change it here at once, and in the store with the next :meth:`turn`."""
        with self._lock:
            self._pending.append(change)
            self._keep(change(self.control))

    def recall(self) -> None:
        """What this process's disk remembers."""
        found = None if self._memory is None else self._memory.control()
        if found is None:
            return
        try:
            self.control = opened(found, self._key)
            # The process before this one may have had no time to tell the store.
            self._pending = [refusing(veto) for veto in self.control.vetoes]
        except ControlError as error:
            _log.warning("control.not_recalled", error=str(error))

    def turn(self) -> None:
        """Look, and tell; a store that is away is left alone for a while."""
        if not self._backoff.is_due(self._clock()):
            return
        try:
            with self._lock:
                self._turn()
        except FencedError:  # somebody else changed it at the same moment: the next turn sees it
            return
        except StoreError as error:
            self._backoff.failed(self._clock())
            _log.debug("control.store_down", error=str(error))
            return
        self._backoff.succeeded()

    def _turn(self) -> None:
        data = self._store.pointer(NAME)
        found = self._found(data)
        if found is not None and found.serial > self.control.serial:
            self._adopt(found)
        is_lost = self.control.serial > (found.serial if found is not None else 0)
        if self._pending or is_lost:
            self._write(data)

    def _found(self, data: bytes | None) -> Control | None:
        if data is None:
            return None
        try:
            return opened(data, self._key)
        except ControlError as error:
            if data != self._told:
                _log.error("control.refused", error=str(error))
            self._told = data
            return None

    def _adopt(self, found: Control) -> None:
        for change in self._pending:
            found = change(found)
        self._keep(found)

    def _write(self, expected: bytes | None) -> None:
        lease = self._store.lease(NAME, self._owner, _LEASE_S)
        if lease is None:
            return
        serial = max(lease.token, self.control.serial + 1)
        after = replace(self.control, serial=serial)
        data = signed(after, self._key)
        try:
            self._store.point(NAME, expected, data, lease)
        finally:
            self._store.release(lease)
        self._pending.clear()
        self._keep(after)

    def _keep(self, control: Control) -> None:
        if control != self.control:
            _log.info(
                "control.changed",
                paused=control.is_paused,
                stopped=control.is_stopped,
                vetoes=len(control.vetoes),
                why=control.why,
            )
        self.control = control
        if self._memory is not None:
            self._memory.remember_control(signed(control, self._key))
