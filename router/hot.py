"""uvicorn's protocol with ``POST /route`` answered inside it: no task, no ASGI messages, one write.

What one turn of the loop brings in is answered together: first every request is read, then all are decided,
then all answers are written. A system call leaves the interpreter with cold caches; decisions in a row
cost less than half of decisions between reads and writes (``docs/speed.md``).

A decision takes less time than the machinery around it: a task, an event, a scope, two messages and their
checks. So a complete, plain request for one of the ``instant`` paths is handed to a function and answered
at once; anything unusual about it (HTTP/1.0, ``Expect``, a pipeline, an upgrade) takes the ASGI way, which
serves the same paths with the same function behind them.

It rests on the method names of :class:`uvicorn.protocols.http.httptools_impl.HttpToolsProtocol`; the
contract in ``tests/router/test_hot.py`` runs against both ways.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from ccr.types import Outcome
from router.coalesce import CoalescingProtocol
from router.refusals import Refusal
from router.watchdog import SWEEP_S

Headers = list[tuple[bytes, bytes]]
JSON_HEADERS: Final[Headers] = [(b"content-type", b"application/json")]
_JSON_200: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


Instant = Callable[[Headers, bytes], Reply]


class InstantRoutes(NamedTuple):
    """What is answered inside the protocol.

    Args:
        by_path: path -> function of headers and body, which must not raise.
        max_body_bytes: larger bodies are refused with 413.
        body_timeout_s: time a body may take to arrive.
        refused: counts a request that ended before its function was asked.
    """

    by_path: Mapping[bytes, Instant]
    max_body_bytes: int
    body_timeout_s: float
    refused: Callable[[Refusal], None]


LEFT_EARLY: Final = Refusal(
    499, "client_closed", "the client left before its body arrived", Outcome.CLIENT_CLOSED
)


class Turn:
    """The instant requests of one turn of the loop.

    Args:
        loop: whose turn.
    """

    __slots__ = ("_call_soon", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._waiting: list[tuple[HotProtocol, Instant, Headers, bytes]] = []

    def add(self, connection: "HotProtocol", instant: Instant, headers: Headers, body: bytes) -> None:
        """Answer this one when everything that has arrived was read."""
        if not self._waiting:
            self._call_soon(self.answer)
        self._waiting.append((connection, instant, headers, body))

    def answer(self) -> None:
        """Decide them all, then write all answers."""
        waiting, self._waiting = self._waiting, []
        replies = [(connection, instant(headers, body)) for connection, instant, headers, body in waiting]
        for connection, reply in replies:
            connection.answered(reply)


class HotProtocol(CoalescingProtocol):
    """One connection; subclassed by :func:`hot_protocol` with the routes it answers itself."""

    routes: InstantRoutes
    turn: Turn

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._instant: Instant | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._awaits_answer = False

    def on_headers_complete(self) -> None:
        """Take the request, if it is a plain one for an instant path; else leave it to uvicorn."""
        if self._awaits_answer:  # a pipelined request must not overtake
            self.turn.answer()
        instant = self.routes.by_path.get(self.url)
        if instant is None or not self._is_plain():
            super().on_headers_complete()
            return
        self._instant = instant
        self._parts.clear()
        self._size = 0

    def on_body(self, body: bytes) -> None:
        """Collect the body of an instant request."""
        if self._instant is None:
            super().on_body(body)
            return
        self._size += len(body)
        if self._size <= self.routes.max_body_bytes:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Answer an instant request."""
        instant = self._instant
        if instant is None:
            super().on_message_complete()
            return
        self._instant = None
        self._disarm()
        if self._size > self.routes.max_body_bytes:
            self._refuse_and_close(Refusal(413, "body_too_large", "the body is too large"))
            return
        self._awaits_answer = True
        self.turn.add(self, instant, self.headers, b"".join(self._parts))

    def answered(self, reply: Reply) -> None:
        """Write the answer of an instant request."""
        self._awaits_answer = False
        if not self.transport.is_closing():
            self._write(reply)
            self.on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Parse; an instant request that is not complete yet gets a deadline."""
        super().data_received(data)
        if self._instant is not None and self._deadline is None:
            if self._size > self.routes.max_body_bytes:
                self._refuse_and_close(Refusal(413, "body_too_large", "the body is too large"))
                return
            self._deadline = self.loop.call_later(self.routes.body_timeout_s + SWEEP_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was under way."""
        self._disarm()
        if self._instant is not None:
            self._instant = None
            self.routes.refused(LEFT_EARLY)
        super().connection_lost(exc)

    def _is_plain(self) -> bool:
        parser = self.parser
        cycle: RequestResponseCycle | None = self.cycle
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and (cycle is None or cycle.response_complete)
            and not self.pipeline
            and (self.limit_concurrency is None or len(self.connections) < self.limit_concurrency)
        )

    def _write(self, reply: Reply) -> None:
        if reply.headers is JSON_HEADERS and reply.status == 200:
            self.raw_transport.write(_JSON_200 % (len(reply.body), reply.body))
            return
        parts = [STATUS_LINE[reply.status]]
        for name, value in reply.headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"content-length: ", b"%d" % len(reply.body), b"\r\n\r\n", reply.body)
        self.raw_transport.write(b"".join(parts))

    def _refuse_and_close(self, refusal: Refusal) -> None:
        self._instant = None
        self._disarm()
        self.routes.refused(refusal)
        self._write(Reply(refusal.status, [*refusal.headers(), (b"connection", b"close")], refusal.body()))
        self.transport.close()

    def _too_slow(self) -> None:
        self._refuse_and_close(Refusal(408, "body_timeout", "the request did not arrive in time"))

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def hot_protocol(routes: InstantRoutes, loop: asyncio.AbstractEventLoop) -> type[HotProtocol]:
    """The protocol class that answers ``routes`` itself, as uvicorn takes it."""
    return type("HotProtocol", (HotProtocol,), {"routes": routes, "turn": Turn(loop)})
