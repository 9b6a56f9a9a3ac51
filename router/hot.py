"""uvicorn's protocol with the hot paths served inside it: no task, no ASGI messages, one write.

A decision takes less time than the machinery around it: a task, an event, a scope, two messages and their
checks. So a complete, plain request for one of the ``instant`` paths is handed to a function and answered
at once, and one for a proxied path is begun at once (:mod:`router.routes.direct`). Anything unusual about it
(HTTP/1.0, ``Expect``, a pipeline, an upgrade) takes the ASGI way, which serves the same paths with the same
functions behind them.

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
from router.routes.body import CLOSE
from router.routes.direct import Direct, GoOn
from router.turn import JSON_HEADERS, Instant, Reply, Turn
from router.watchdog import SWEEP_S

_JSON_200: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class InstantRoutes(NamedTuple):
    """What is served inside the protocol.

    Args:
        by_path: path -> what serves it.
        max_body_bytes: larger bodies are refused with 413.
        body_timeout_s: time a body may take to arrive.
        refused: counts a request for a path that ended before it was served; what to answer.
    """

    by_path: Mapping[bytes, Instant]
    max_body_bytes: int
    body_timeout_s: float
    refused: Callable[[Refusal, bytes], Reply]


_TOO_LARGE: Final = Refusal(413, "body_too_large", "the body is too large")
LEFT_EARLY: Final = Refusal(
    499, "client_closed", "the client left before its body arrived", Outcome.CLIENT_CLOSED
)


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
        self._direct: Direct | None = None
        self._rests_since_s = 0.0
        self._rest_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        """Begin a request; without the scope, which only the ASGI way needs."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Take the request, if it is a plain one for an instant path; else leave it to uvicorn."""
        if self._awaits_answer:  # a pipelined request must not overtake
            self.turn.answer()
        if self._direct is not None:
            self._direct.hand_over()
        instant = self.routes.by_path.get(self.url)
        if instant is None or not self._is_plain():
            self._begin_scope()
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
            self._refuse_and_close(_TOO_LARGE)
            return
        self._awaits_answer = True
        self.turn.add(self, instant, self.headers, b"".join(self._parts))

    def served(self, reply: Reply | Direct | None) -> None:
        """Write the answer, or wait for what is under way."""
        self._awaits_answer = False
        if isinstance(reply, Direct):
            if self.raw_transport.is_closing():
                reply.client_left()
            elif not reply.is_over:
                self._direct = reply
                reply.send()
        elif reply is not None and not self.raw_transport.is_closing():
            self._write(reply)
            if CLOSE in reply.headers:
                self.transport.close()
            self._rest()

    # As a request under way needs it

    @property
    def is_clogged(self) -> bool:
        """Whether the client does not take in what was written."""
        return self.flow.write_paused

    def deliver_soon(self, direct: Direct) -> None:
        """Have it delivered when all that has arrived was read."""
        self.turn.add_whole(direct)

    def deliver(self, status: int, head: bytes, body: bytes) -> None:
        """Write a whole answer."""
        self._direct = None
        if not self.raw_transport.is_closing():
            self.raw_transport.write(b"".join((STATUS_LINE[status], head, b"\r\n", body)))
            self._rest()

    def hand_over(self, go_on: GoOn) -> asyncio.Task[None]:
        """Let uvicorn's cycle end the request, as if it had begun it."""
        self._direct = None
        self.cycle = cycle = RequestResponseCycle(
            scope={"type": "http", "method": "POST"},  # type: ignore[typeddict-item]  # it uses no more of it
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        cycle.disconnected = self.transport.is_closing()

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await go_on(receive, send)

        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return task

    def shutdown(self) -> None:
        """Close when what is under way is over."""
        if self._awaits_answer:
            self.turn.answer()
        if self._direct is not None:
            self._direct.hand_over()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse; an instant request that is not complete yet gets a deadline."""
        super().data_received(data)
        if self._instant is not None and self._deadline is None:
            if max(self._size, self._declared()) > self.routes.max_body_bytes:
                self._refuse_and_close(_TOO_LARGE)
                return
            self._deadline = self.loop.call_later(self.routes.body_timeout_s + SWEEP_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was under way."""
        self._disarm()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        if self._instant is not None:
            self._instant = None
            self.routes.refused(LEFT_EARLY, self.url)
        if self._direct is not None:
            direct, self._direct = self._direct, None
            direct.client_left()
        super().connection_lost(exc)

    def _declared(self) -> int:
        """How long the body is going to be, as the client says; the parser has seen that it is one number."""
        return next((int(value) for name, value in self.headers if name == b"content-length"), 0)

    def _begin_scope(self) -> None:
        """What uvicorn does at the first byte of a request, made up for before it reads on."""
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect_100_continue
        self.headers += headers

    def _rest(self) -> None:
        """An answer is out: if nothing comes for long, close. One timer sees to many answers; uvicorn makes one for each."""
        self.server_state.total_requests += 1
        self._rests_since_s = self.loop.time()
        if self._rest_timer is None:
            self._rest_timer = self.loop.call_later(self.timeout_keep_alive, self._end_rest)

    def _end_rest(self) -> None:
        self._rest_timer = None
        if not self._is_idle():
            return  # whoever answers next sets the timer again
        left_s = self._rests_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0.0:
            self._rest_timer = self.loop.call_later(left_s, self._end_rest)
        else:
            self.transport.close()

    def _is_idle(self) -> bool:
        """Whether no request is under way, as far as one can be seen."""
        cycle: RequestResponseCycle | None = self.cycle
        is_answered = cycle is None or cycle.response_complete
        is_served = self._instant is None and not self._awaits_answer and self._direct is None
        return is_answered and is_served

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
        self._write(self.routes.refused(refusal, self.url))
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
