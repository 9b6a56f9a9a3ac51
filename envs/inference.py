"""One inference request at a node, from its body to its last byte."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

from ccr.errors import UnknownModelError
from envs.anthropic_dialect import Messages
from envs.asgi import JSON, ClientLeftError, Headers, Receive, Scope, Send, gone, header, read, respond
from envs.conversations import Conversations
from envs.dialect import Ask, BadAskError, Dialect, Refusal, Reply, decode
from envs.driver import Ticket
from envs.life import NodeLife
from envs.openai_dialects import Chat, Completions, Embeddings, Responses
from envs.words import Job, NeverFitsError

#: Path -> API.
DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/v1/embeddings": Embeddings(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}

_SSE: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_JOB_NUMBERS = count(1)
# The names a router reads a session from, in its order; it passes them on.
_SESSION_HEADERS = (b"x-session-id", b"x-session-token", b"x-conversation-id")
_MAX_SESSION = 256


async def hang(life: NodeLife, receive: Receive) -> None:
    """Return when the node answers (again); raise :class:`ClientLeftError` when the client gives up first."""
    if life.answering.is_set():
        return
    leaving = asyncio.ensure_future(gone(receive))
    answering = asyncio.ensure_future(life.answering.wait())
    try:
        await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            raise ClientLeftError
    finally:
        leaving.cancel()
        answering.cancel()


async def infer(
    life: NodeLife, abort: Callable[[Scope], None], scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer one request, and book how it ended.

    Args:
        life: of the node.
        abort: resets the request's connection.
        scope: of the request; its path is in :data:`DIALECTS`.
        receive: of ASGI.
        send: of ASGI.
    """
    ledger, ended = life.ledger, "cancelled"
    ledger.begin()
    try:
        ended = await _Exchange(life, abort, scope, receive, send).run()
    finally:
        ledger.end(ended)


@dataclass(frozen=True, slots=True)
class _Exchange:
    life: NodeLife
    abort: Callable[[Scope], None]
    scope: Scope
    receive: Receive
    send: Send

    async def run(self) -> str:
        """How it ended, as a field of the ledger."""
        dialect = DIALECTS[self.scope["path"]]
        request_id = header(self.scope, b"x-request-id") or uuid4().hex
        named: Headers = [(b"x-request-id", request_id.encode("latin-1"))]
        if self.life.fault.kind == "http":
            return await self._refuse(dialect, self._ordered_refusal(), named + self._retry_after())
        try:
            raw = await read(self.receive)
            await hang(self.life, self.receive)
            ask = dialect.parse(decode(raw))
            ticket = self.life.driver.submit(_job(ask, self.life.conversations, _session(self.scope)))
        except (BadAskError, NeverFitsError, UnknownModelError) as error:
            return await self._refuse(dialect, refusal_of(error), named)
        return await self._follow(dialect, Reply(ask, request_id, int(time.time())), ticket, named)

    async def _follow(self, dialect: Dialect, reply: Reply, ticket: Ticket, named: Headers) -> str:
        driver = self.life.driver
        watcher = asyncio.ensure_future(_watch(self.receive, ticket))
        try:
            if reply.ask.stream:
                await self._stream(dialect, reply, ticket, named)
            else:
                await self._whole(dialect, reply, ticket, named)
        finally:
            watcher.cancel()
            driver.drop(ticket)
        if ticket.failed:
            return "failed"
        return "cancelled" if ticket.gone else "answered"

    async def _whole(self, dialect: Dialect, reply: Reply, ticket: Ticket, named: Headers) -> None:
        await ticket.end()
        if ticket.gone:
            return
        if ticket.failed:
            await self._refuse(dialect, Refusal(503, ticket.failed), named)
        elif self._dies_after(0):
            await self._reset(ticket)
        else:
            await respond(self.send, 200, dialect.answer(reply), [JSON, *named])

    async def _stream(self, dialect: Dialect, reply: Reply, ticket: Ticket, named: Headers) -> None:
        stream = dialect.stream(reply)
        await self.send({"type": "http.response.start", "status": 200, "headers": _SSE + named})
        # Engines send the opening, such as the role, when there is a first token: not a moment before.
        unsent, sent = stream.opening, 0
        while not ticket.gone:
            await ticket.news()
            fresh = self._allowed(ticket.take(), sent)
            # Tokens that fell due together share a write; each is its own event.
            if fresh or ticket.done:
                await self._write(unsent + b"".join(map(stream.token, range(sent, sent + fresh))))
                unsent = b""
            sent += fresh
            if ticket.failed or self._dies_after(sent):
                return await self._reset(ticket)
            if ticket.done and not ticket.fresh:
                return await self._write(stream.closing, more=False)
        return None

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if body or not more:
            await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def _refuse(self, dialect: Dialect, refusal: Refusal, headers: Headers) -> str:
        await respond(self.send, refusal.status, dialect.error(refusal), [JSON, *headers])
        return "failed"

    async def _reset(self, ticket: Ticket) -> None:
        """Reset the connection; what was written before may still arrive."""
        ticket.failed = ticket.failed or "connection reset on purpose"
        await asyncio.sleep(0)  # one turn of the loop, in which the transport writes.
        if not ticket.gone:
            self.abort(self.scope)
            await ticket.left()

    def _allowed(self, fresh: int, sent: int) -> int:
        fault = self.life.fault
        return min(fresh, max(0, fault.chunks - sent)) if fault.kind == "die_after_chunks" else fresh

    def _dies_after(self, sent: int) -> bool:
        return self.life.fault.kind == "die_after_chunks" and sent >= self.life.fault.chunks

    def _ordered_refusal(self) -> Refusal:
        status = self.life.fault.status
        return Refusal(status, f"this node was told to answer {status}", "fault")

    def _retry_after(self) -> Headers:
        fault = self.life.fault
        return [(b"retry-after", b"%d" % fault.retry_after_s)] if fault.status in (429, 503) else []


def refusal_of(error: BadAskError | NeverFitsError | UnknownModelError) -> Refusal:
    """What a client is told."""
    if isinstance(error, UnknownModelError):
        return Refusal(404, f"The model `{error.model}` does not exist.", "model_not_found", "model")
    if isinstance(error, BadAskError):
        return Refusal(error.status, str(error), param=error.param)
    return Refusal(400, str(error), "context_length_exceeded")


def _job(ask: Ask, conversations: Conversations, session: str) -> Job:
    session = session if ask.prompt else ""
    goes_on = bool(session) and conversations.goes_on(ask.model, session, ask.prompt)
    return Job(
        id=str(next(_JOB_NUMBERS)),
        model=ask.model,
        prompt_tokens=ask.prompt_tokens,
        output_tokens=ask.output_tokens,
        priority=ask.priority,
        stream=ask.stream,
        session=session,
        prefix_tokens=ask.prompt_tokens if goes_on else 0,  # of these, what the node still has
    )


def _session(scope: Scope) -> str:
    """The conversation's id, as the router takes it; empty when there is none."""
    return next((found for name in _SESSION_HEADERS if (found := header(scope, name))), "")[:_MAX_SESSION]


async def _watch(receive: Receive, ticket: Ticket) -> None:
    await gone(receive)
    ticket.leave()
