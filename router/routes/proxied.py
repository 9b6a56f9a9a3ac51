"""``/v1/*``: choose a node, send the client's bytes there, stream the node's bytes back untouched."""

import asyncio
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ccr import log
from ccr.types import Mask, Outcome, Request
from router.auth import Tenant
from router.batching import BatchGate
from router.call import CREDENTIALS, HOP_BY_HOP, Scope, header_map, parse_body, with_model
from router.dispatch import BYTES_PER_TOKEN, Attempt, Dispatch, Times, headers_of
from router.limits import RetryBudget
from router.refusals import Refusal
from router.routes.body import Limits, answer, read_body
from router.upstream import RawHeaders, Upstream, UpstreamAnswer, UpstreamError
from router.watchdog import Interrupt, Receive, Watch, Watchdog

Send = Callable[[dict[str, Any]], Awaitable[None]]
_log = log.get("proxied")

#: Time a client gets to take in how its request failed: one that does not read must not hold anything up.
TELL_S: Final = 1.0
#: Answers up to this size are sent in one piece.
WHOLE_BYTES: Final = 64 * 2**10
_TAIL_BYTES: Final = 4096
#: The request id is ours to write, in both directions.
_NOT_RELAYED: Final = HOP_BY_HOP | {b"x-request-id"}
_NOT_RELAYED_WITH_KEYS: Final = _NOT_RELAYED | CREDENTIALS
_PROMPT_TOKENS = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,9})')
_OUTPUT_TOKENS = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,9})')


class _TryAnotherError(Exception):
    """The attempt failed before the first byte; another node may do better."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Exchange:
    """One request on its way through: what changes while it does."""

    __slots__ = (
        "anthropic", "arrived_s", "body", "fields_model", "first_byte_s", "headers", "is_over", "is_sending",
        "is_stream", "request", "request_id", "scope", "send", "started", "status", "tail", "tenant", "watch",
    )  # fmt: skip

    def __init__(self, scope: Scope, send: Send, watch: Watch, arrived_s: float) -> None:
        self.scope = scope
        self.send = send
        self.watch = watch
        self.arrived_s = arrived_s
        self.anthropic = scope["path"] == "/v1/messages"
        self.headers: Mapping[bytes, bytes] = {}
        self.body = b""
        self.fields_model: str | None = None
        self.is_over = False
        self.is_sending = False
        self.is_stream = False
        self.request_id = ""
        self.request: Request
        self.tenant: Tenant
        self.started = False
        self.status = 0
        self.first_byte_s: float | None = None
        self.tail = b""


class Proxied:
    """The handler of the proxied surface.

    Args:
        dispatch: decides and leases.
        upstream: reaches the nodes.
        watchdog: ends what lasts too long, and what nobody waits for.
        batching: holds same-model requests together, where that is on.
        limits: of body and headers, and the timeouts.
        node_keys: credentials of nodes that want some, by node id.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        upstream: Upstream,
        watchdog: Watchdog,
        batching: BatchGate,
        limits: Limits,
        node_keys: Mapping[str, bytes],
    ) -> None:
        self._dispatch = dispatch
        self._upstream = upstream
        self._watchdog = watchdog
        self._batching = batching
        self._limits = limits
        self._node_keys = node_keys
        self._retries: RetryBudget = dispatch.retries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; it ends with exactly one outcome on every path."""
        arrived_s = self._dispatch.clock()
        watch = self._watchdog.begin(arrived_s, self._limits.body_timeout_s)
        exchange = Exchange(scope, send, watch, arrived_s)
        try:
            await self._serve(exchange, receive)
        except Refusal as refusal:
            await self._refuse(exchange, refusal)
        except asyncio.CancelledError:
            # The watchdog or the server ended it before a node had it.
            _accept_cancellation()
            await self._refuse(exchange, _early(watch.interrupt))
        except Exception as error:
            # Only the kind and the place: the text of an exception may quote the request.
            _log.error("request.crashed", error=type(error).__name__, place=_place(error))
            await self._refuse(exchange, Refusal(500, "internal_error", "the router failed; see its log"))
        finally:
            self._watchdog.end(watch)

    async def _serve(self, exchange: Exchange, receive: Receive) -> None:
        dispatch, limits, watch = self._dispatch, self._limits, exchange.watch
        exchange.headers = headers = header_map(
            exchange.scope["headers"], limits.max_headers, limits.max_header_bytes
        )
        exchange.request_id = dispatch.new_id(headers)
        exchange.tenant = dispatch.keys.tenant(headers)
        exchange.body = await read_body(headers, receive, limits.max_body_bytes)
        watch.receive = receive
        exchange.request = self._resolve(exchange)
        patience_s = limits.ttft_timeout_s if exchange.is_stream else limits.answer_timeout_s
        watch.deadline_s = dispatch.clock() + patience_s
        dispatch.admit(exchange.request, exchange.tenant)
        await self._batching.wait(exchange.request)
        await self._forward(exchange)

    def _resolve(self, exchange: Exchange) -> Request:
        fields = parse_body(exchange.body)
        exchange.fields_model = fields.model
        exchange.is_stream = bool(fields.stream)
        limit = fields.max_completion_tokens or fields.max_tokens or fields.max_output_tokens or 0
        return self._dispatch.resolve(
            exchange.headers,
            fields.model,
            exchange.tenant,
            request_id=exchange.request_id,
            prompt_tokens=len(exchange.body) // BYTES_PER_TOKEN,
            output_tokens=max(limit, 0),
        )

    async def _forward(self, exchange: Exchange) -> None:
        """Try nodes until one answers, within the retry budget."""
        tried: Mask | None = None
        parent_id = ""
        failure: Refusal | None = None
        retries_left = self._limits.retries
        while True:
            try:
                attempt = self._dispatch.attempt(
                    exchange.request, exchange.tenant, exchange.arrived_s, tried=tried, parent_id=parent_id
                )
            except Refusal as refusal:
                raise failure or refusal from None
            with attempt:
                try:
                    await self._attempt(exchange, attempt, may_retry=retries_left > 0)
                    return
                except _TryAnotherError as again:
                    failure = again.refusal
                    tried = attempt.tried(tried)
            parent_id = exchange.request.id
            retries_left -= 1
            self._dispatch.stats.retries += 1

    async def _attempt(self, exchange: Exchange, attempt: Attempt, *, may_retry: bool) -> None:
        """One node: send, deliver, and say how it ended; a client is told of a failure when nothing is held any more."""
        reply: UpstreamAnswer | None = None
        try:
            reply = await self._upstream.send(
                attempt.node,
                exchange.scope["method"],
                _target(exchange.scope),
                self._request_headers(exchange, attempt),
                with_model(exchange.body, exchange.fields_model, exchange.request.model),
            )
            exchange.status = reply.status
            self._consider_retry(exchange, attempt, reply, may_retry=may_retry)
            await self._deliver(exchange, attempt, reply)
            self._end(exchange, attempt, _outcome_of(reply.status))
            return
        except UpstreamError as error:
            failure = self._broke(exchange, attempt, error, may_retry=may_retry)
        except asyncio.CancelledError:
            _accept_cancellation()
            failure = _interrupted(exchange, attempt)
        except Exception:
            attempt.end(Outcome.REJECTED)  # unless it said before how it ended, the fault is not the node's
            raise
        finally:
            if reply is not None:
                reply.close()
        exchange.status = exchange.status if exchange.started else failure.status
        self._end(exchange, attempt, failure.outcome)
        await self._tell(exchange, failure, headers_of(attempt))

    def _consider_retry(
        self, exchange: Exchange, attempt: Attempt, reply: UpstreamAnswer, *, may_retry: bool
    ) -> None:
        """Leave a node that is overloaded or broken for another, if there is one and the budget allows."""
        if reply.status == 429:
            retry_after_s = _seconds(_header(reply.headers, b"retry-after"))
            self._dispatch.fleet.back_off(attempt.state, retry_after_s, self._dispatch.clock())
        if reply.status < 500 and reply.status != 429:
            return
        if self._may_retry(exchange, attempt, may_retry=may_retry):
            attempt.end(_outcome_of(reply.status))
            raise _TryAnotherError(
                Refusal(
                    502,
                    "upstream_error",
                    f"node {attempt.node.id!r} answered {reply.status}",
                    Outcome.UPSTREAM_5XX,
                )
            )

    def _may_retry(self, exchange: Exchange, attempt: Attempt, *, may_retry: bool) -> bool:
        if not may_retry or exchange.started:
            return False
        is_worthwhile = self._dispatch.has_alternative(exchange.request, attempt.tried(None))
        return is_worthwhile and self._retries.take(self._dispatch.clock())

    async def _deliver(self, exchange: Exchange, attempt: Attempt, reply: UpstreamAnswer) -> None:
        """The node's bytes to the client, as they come; nothing is sent before the first of them is here."""
        clock, watch, silence_s = self._dispatch.clock, exchange.watch, self._limits.stream_idle_timeout_s
        if reply.content_length is not None and reply.content_length <= WHOLE_BYTES:
            body = await reply.read()
            exchange.first_byte_s = clock()
            await self._start(exchange, attempt, reply)
            exchange.tail = body[-_TAIL_BYTES:]
            await _send(exchange, body, more=False)
            return
        async for chunk in reply.chunks():
            now_s = clock()
            if not exchange.started:
                exchange.first_byte_s = now_s
                await self._start(exchange, attempt, reply)
            watch.deadline_s = now_s + silence_s
            exchange.tail = chunk if len(chunk) >= _TAIL_BYTES else exchange.tail[-_TAIL_BYTES:] + chunk
            await _send(exchange, chunk, more=True)
            watch.deadline_s = clock() + silence_s  # a client that reads slowly is not the node's silence
        if not exchange.started:
            await self._start(exchange, attempt, reply)
        await _send(exchange, b"", more=False)

    async def _start(self, exchange: Exchange, attempt: Attempt, reply: UpstreamAnswer) -> None:
        exchange.started = True
        headers = [item for item in reply.headers if item[0] not in _NOT_RELAYED]
        if reply.content_length is not None:
            headers.append((b"content-length", b"%d" % reply.content_length))
        headers += headers_of(attempt)
        await exchange.send({"type": "http.response.start", "status": reply.status, "headers": headers})

    def _request_headers(self, exchange: Exchange, attempt: Attempt) -> RawHeaders:
        """What the node sees: the client's headers without hop-by-hop ones and, where we check keys, without its key."""
        drop = _NOT_RELAYED
        node_key = self._node_keys.get(attempt.node.id)
        if self._dispatch.keys.are_required or node_key:
            drop = _NOT_RELAYED_WITH_KEYS
        listed = exchange.headers.get(b"connection")
        if listed is not None and listed not in {b"keep-alive", b"close"}:
            drop = drop | {name.strip().lower() for name in listed.split(b",")}
        headers = [item for item in exchange.scope["headers"] if item[0] not in drop]
        headers.append((b"x-request-id", exchange.request.id.encode("latin-1")))
        if node_key:
            headers.append((b"authorization", b"Bearer " + node_key))
        return headers

    # Endings that are not the node's last byte

    def _broke(
        self, exchange: Exchange, attempt: Attempt, error: UpstreamError, *, may_retry: bool
    ) -> Refusal:
        attempt.end(Outcome.UPSTREAM_RESET, refused=error.refused)
        refusal = Refusal(
            502,
            "upstream_unreachable" if error.refused else "upstream_reset",
            f"node {attempt.node.id!r} {'cannot be reached' if error.refused else 'broke off'}; the request may be repeated",
            Outcome.UPSTREAM_RESET,
            retry_after_s=1.0,
        )
        if self._may_retry(exchange, attempt, may_retry=may_retry):
            raise _TryAnotherError(refusal) from error
        return refusal

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """End a request that no node has; one that ended before stays as it ended."""
        if exchange.is_over:
            return
        exchange.is_over = True
        exchange.request_id = exchange.request_id or self._dispatch.fresh_id()
        self._dispatch.refused(refusal, exchange.request_id, exchange.scope["path"], exchange.arrived_s)
        await self._tell(exchange, refusal)

    async def _tell(
        self, exchange: Exchange, refusal: Refusal, more: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Tell the client, if it is still there: an error answer, or in a stream an error event and no clean end."""
        if refusal.outcome is Outcome.CLIENT_CLOSED or exchange.is_sending:
            return  # it left, or does not read
        try:
            async with asyncio.timeout(TELL_S):
                if not exchange.started:
                    await answer(
                        exchange.send, refusal, exchange.request_id, anthropic=exchange.anthropic, more=more
                    )
                elif exchange.is_stream:
                    await _send(exchange, _error_event(exchange, refusal), more=True)
        except TimeoutError:
            return
        except asyncio.CancelledError:
            _accept_cancellation()

    def _end(self, exchange: Exchange, attempt: Attempt, outcome: Outcome) -> None:
        now_s = self._dispatch.clock()
        first = exchange.first_byte_s
        attempt.times = times = Times(
            queue_s=attempt.since_s - exchange.arrived_s,
            total_s=now_s - exchange.arrived_s,
            ttft_s=None if first is None else first - exchange.arrived_s,
            prompt_tokens=_last_number(_PROMPT_TOKENS, exchange.tail),
            output_tokens=_last_number(_OUTPUT_TOKENS, exchange.tail),
        )
        exchange.is_over = True
        attempt.end(outcome)
        attempt.close()
        self._dispatch.ended(attempt, outcome, exchange.status, times)


def _accept_cancellation() -> None:
    """A cancellation by the watchdog is an answer, not the end of the task: the client is told first."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def _early(why: Interrupt) -> Refusal:
    """How a request ends that was interrupted before a node had it."""
    if why is Interrupt.TIMEOUT:
        return Refusal(408, "body_timeout", "the request did not arrive in time")
    if why is Interrupt.CLIENT_GONE:
        return _CLIENT_LEFT
    return Refusal(503, "draining", "the router is shutting down", Outcome.ABORTED_DRAIN, 1.0)


def _interrupted(exchange: Exchange, attempt: Attempt) -> Refusal:
    """How a request ends that the watchdog or the server interrupted while a node had it."""
    why = exchange.watch.interrupt
    if why is not Interrupt.TIMEOUT:
        return _early(why)
    if exchange.is_sending:  # the client stopped reading: nothing the node could do about
        return _CLIENT_LEFT
    what = (
        "went silent in the middle of its answer" if exchange.started else "did not begin to answer in time"
    )
    return Refusal(504, "upstream_timeout", f"node {attempt.node.id!r} {what}", Outcome.TIMEOUT)


_CLIENT_LEFT: Final = Refusal(
    499, "client_closed", "the client left, or stopped reading", Outcome.CLIENT_CLOSED
)


async def _send(exchange: Exchange, body: bytes, *, more: bool) -> None:
    exchange.is_sending = True
    await exchange.send({"type": "http.response.body", "body": body, "more_body": more})
    exchange.is_sending = False


def _error_event(exchange: Exchange, refusal: Refusal) -> bytes:
    """The last event of a stream that broke; the empty line before it ends whatever event was cut in two."""
    name = b"event: error\n" if exchange.anthropic else b""
    return (
        b"\n\n" + name + b"data: " + refusal.body(exchange.request_id, anthropic=exchange.anthropic) + b"\n\n"
    )


def _place(error: Exception) -> str:
    """File and line of the innermost frame."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"


def _outcome_of(status: int) -> Outcome:
    if status < 400:
        return Outcome.OK
    return Outcome.UPSTREAM_4XX if status < 500 else Outcome.UPSTREAM_5XX


def _target(scope: Scope) -> str:
    path: str = scope["raw_path"].decode("ascii")
    query: bytes = scope["query_string"]
    return f"{path}?{query.decode('ascii')}" if query else path


def _header(headers: RawHeaders, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)


def _seconds(value: bytes | None) -> float:
    """``Retry-After`` in seconds; 1 when it is missing or a date."""
    try:
        return float(value) if value is not None else 1.0
    except ValueError:
        return 1.0


def _last_number(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    """The last count in the end of an answer: engines put usage there, in JSON and in the final event."""
    found = pattern.findall(tail)
    return int(found[-1]) if found else None
