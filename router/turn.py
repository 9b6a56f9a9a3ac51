"""What one turn of the loop brings in is served together: all of it is read, then all decided, then all written.

A system call leaves the interpreter with cold caches; decisions in a row cost less than half of decisions between
reads and writes (``docs/speed.md``).
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from ccr import log
from router.routes.direct import Direct, Door

_log = log.get("turn")

Headers = list[tuple[bytes, bytes]]
JSON_HEADERS: Final[Headers] = [(b"content-type", b"application/json")]


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


Instant = Callable[[Door, Headers, bytes], Reply | Direct | None]
"""What serves a request: its answer, or what will deliver one through the door, or ``None`` if a task does. Must not raise."""


class Connection(Door, Protocol):
    """A client's connection."""

    def served(self, reply: Reply | Direct | None) -> None:
        """Write the answer, or wait for what is under way."""


class Turn:
    """The requests and the nodes' answers of one turn of the loop.

    Args:
        loop: whose turn.
    """

    __slots__ = ("_call_soon", "_waiting", "_whole")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._waiting: list[tuple[Connection, Instant, Headers, bytes]] = []
        self._whole: list[Direct] = []

    def add(self, connection: Connection, instant: Instant, headers: Headers, body: bytes) -> None:
        """Answer this one when everything that has arrived was read."""
        if not self._waiting:
            self._call_soon(self.answer)
        self._waiting.append((connection, instant, headers, body))

    def add_whole(self, direct: Direct) -> None:
        """Deliver this one when everything that has arrived was read."""
        if not self._whole:
            self._call_soon(self.deliver)
        self._whole.append(direct)

    def deliver(self) -> None:
        """Write all answers that came from nodes, then end their requests."""
        whole, self._whole = self._whole, []
        for direct in whole:
            try:
                direct.deliver()
            except Exception:
                direct.hand_over()  # there it fails again, and is reported and told
        for direct in whole:
            try:
                direct.end()
            except Exception as error:
                # The others must not stay open for it; its lease is released before anything can fail.
                _log.error("turn.end_failed", error=repr(error))

    def answer(self) -> None:
        """Decide them all, then write everything."""
        waiting, self._waiting = self._waiting, []
        served = [
            (connection, instant(connection, headers, body)) for connection, instant, headers, body in waiting
        ]
        for connection, reply in served:
            connection.served(reply)
