"""The plain case of ``/v1/*`` without a task: decide, write to the node, pass its answer on as it comes in.

A task, its scope and its messages cost more than deciding does. So a request whose answer comes whole and small is
begun by the client's protocol and ended by the node's. Whatever is not so plain (no idle connection, a stream, a
failure, a client that sends its next request already) is handed over, at any moment, to the ASGI way of
:mod:`router.routes.proxied`, which goes on from there; it alone knows how to retry, to stream, and to tell of a failure.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ccr.errors import HeldError
from ccr.types import Outcome
from router.dispatch import Attempt, headers_of
from router.routes.exchange import TAIL_BYTES, WHOLE_BYTES, Exchange, outcome_of, relayed
from router.upstream import StartedAnswer
from router.watchdog import Interrupt, Receive, Watch

Send = Callable[[dict[str, Any]], Awaitable[None]]
GoOn = Callable[[Receive, Send], Awaitable[None]]


class Door(Protocol):
    """The client's connection, as an exchange without a task needs it."""

    @property
    def is_clogged(self) -> bool:
        """Whether the client does not take in what was written."""

    def deliver_soon(self, direct: "Direct") -> None:
        """Have it delivered when all that has arrived was read."""

    def deliver(self, status: int, head: bytes, body: bytes) -> None:
        """Write a whole answer; ``head`` is header lines, each with its end."""

    def hand_over(self, go_on: GoOn) -> asyncio.Task[None]:
        """Let the ASGI way end the request."""


class Way(Protocol):
    """What :class:`router.routes.proxied.Proxied` does for an exchange, with or without a task."""

    def now_s(self) -> float:
        """The moment."""

    def first_attempt(self, exchange: Exchange) -> Attempt:
        """Decide, and take the lease."""

    def start(self, exchange: Exchange, attempt: Attempt) -> StartedAnswer | None:
        """Make it ready for the node, if a connection idles."""

    def end(self, exchange: Exchange, attempt: Attempt, outcome: Outcome) -> None:
        """Say how it ended, and release the lease."""

    def forget(self, exchange: Exchange) -> None:
        """Stop watching it."""

    async def go_on(
        self, exchange: Exchange, attempt: Attempt | None, answer: StartedAnswer | None, receive: Receive
    ) -> None:
        """The rest of it, in a task."""


class Direct:
    """One exchange under way without a task.

    Args:
        way: does what both ways do alike.
        door: to the client.
        exchange: admitted.
        deadline_s: when its node must have begun to answer.
    """

    __slots__ = ("_answer", "_attempt", "_door", "_exchange", "_way")

    def __init__(self, way: Way, door: Door, exchange: Exchange, deadline_s: float) -> None:
        self._way = way
        self._door = door
        self._exchange = exchange
        self._attempt: Attempt | None = None
        self._answer: StartedAnswer | None = None
        exchange.watch = Watch(None, exchange.arrived_s, deadline_s, self.hand_over)

    def start(self) -> None:
        """Choose a node and make ready what goes there.

        Raises:
            Refusal: 503 if no node may serve it now.
        """
        try:
            self._attempt = attempt = self._way.first_attempt(self._exchange)
        except HeldError:
            self.hand_over()  # a task can wait
            return
        try:
            self._answer = answer = self._way.start(self._exchange, attempt)
        except Exception:
            attempt.end(Outcome.REJECTED)  # the fault is not the node's
            attempt.close()
            raise
        if answer is None:
            self.hand_over()
        else:
            answer.on_news = self._look

    def send(self) -> None:
        """Send it; the answer will be delivered."""
        if self._answer is not None:
            self._answer.send()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for here any more."""
        return self._exchange.is_over or self._exchange.watch.task is not None

    @property
    def is_handed_over(self) -> bool:
        """Whether a task has it."""
        return self._exchange.watch.task is not None

    def hand_over(self) -> asyncio.Task[None]:
        """Go on in a task, from here."""
        if self._answer is not None:
            self._answer.on_news = None
            self._answer.send()
        task = self._door.hand_over(self._go_on)
        self._exchange.watch.task = task
        return task

    def client_left(self) -> None:
        """Nobody waits any more: let go of the node."""
        self._exchange.watch.interrupt = Interrupt.CLIENT_GONE
        self._exchange.status = 499
        self._end(Outcome.CLIENT_CLOSED)

    async def _go_on(self, receive: Receive, send: Send) -> None:
        self._exchange.watch.is_running = True
        self._exchange.send = send
        await self._way.go_on(self._exchange, self._attempt, self._answer, receive)

    def _look(self) -> None:
        """There is more of the answer: deliver it when it is whole; what cannot come to that, a task takes on."""
        answer = self._answer
        if answer is None or not (answer.status or answer.broken):
            return
        length = answer.content_length
        is_plain = (
            length is not None and length <= WHOLE_BYTES and answer.status < 500 and answer.status != 429
        )
        if answer.broken or not is_plain:
            self.hand_over()
        elif answer.is_whole:
            self._door.deliver_soon(self)

    def deliver(self) -> None:
        """Write the answer, which is whole; :meth:`end` is for afterwards."""
        exchange, attempt, answer = self._exchange, self._attempt, self._answer
        if self.is_over or answer is None:
            return
        head = b"" if attempt is None else _lines(relayed(answer) + headers_of(attempt))
        if not head or self._door.is_clogged:
            self.hand_over()
            return
        body = answer.whole()
        exchange.started = True
        exchange.status = answer.status
        exchange.first_byte_s = self._way.now_s()
        exchange.tail = body[-TAIL_BYTES:]
        self._door.deliver(answer.status, head, body)

    def end(self) -> None:
        """What nobody waits for any more: the lease, the counts, the connection."""
        if not self.is_over:
            self._end(outcome_of(self._exchange.status))

    def _end(self, outcome: Outcome) -> None:
        answer = self._answer
        if answer is not None:
            answer.on_news = None
        try:
            if self._attempt is not None:
                self._way.end(self._exchange, self._attempt, outcome)
        finally:
            if answer is not None:
                answer.close()
            self._way.forget(self._exchange)


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The header lines; empty if one would not be one line: what comes after it could be read as another answer."""
    head = b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
    if head.count(b"\n") != len(headers) or head.count(b"\r") != len(headers) or b"\0" in head:
        return b""
    return head
