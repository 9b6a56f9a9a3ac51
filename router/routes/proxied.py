"""``/v1/*``: choose a node, send the client's bytes there, stream the node's bytes back untouched."""

import asyncio
import math
import traceback
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from ccr import log
from ccr.errors import HeldError
from ccr.types import Mask, Outcome, Request
from router.batching import BatchGate
from router.call import CREDENTIALS, Scope, header_map, parse_body, with_model, with_priority
from router.dispatch import BYTES_PER_TOKEN, Attempt, Dispatch, Times, headers_of
from router.limits import RetryBudget
from router.refusals import Refusal
from router.routes.body import Limits, answer, closes, read_body
from router.routes.direct import Direct, Door
from router.routes.exchange import NOT_RELAYED, TAIL_BYTES, WHOLE_BYTES, Exchange, Send, outcome_of, relayed
from router.turn import Reply
from router.upstream import RawHeaders, StartedAnswer, Upstream, UpstreamAnswer, UpstreamError
from router.watchdog import Interrupt, Receive, Watchdog, accept_cancellation

_log = log.get("proxied")

#: Time a client gets to take in how its request failed: one that does not read must not hold anything up.
TELL_S: Final = 1.0
_NOT_RELAYED_WITH_KEYS: Final = NOT_RELAYED | CREDENTIALS


class _TryAnotherError(Exception):
    """The attempt failed before the first byte; another node may do better."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


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
        exchange = Exchange(scope["method"], scope["path"], _target(scope), scope["headers"], arrived_s)
        exchange.send = send
        exchange.watch = self._watchdog.begin(arrived_s, self._limits.body_timeout_s)
        await self._guarded(exchange, self._serve(exchange, receive))

    def begin(self, path: str, door: Door, raw_headers: RawHeaders, body: bytes) -> Reply | Direct | None:
        """Serve one request, all of which is here, without a task as far as that goes; never raises.

        Returns:
            The answer where the request ended in the router, what is under way, or ``None`` if a task has it.
        """
        exchange = Exchange("POST", path, path, raw_headers, self._dispatch.clock())
        try:
            self._identify(exchange)
            exchange.body = body
            direct = Direct(self, door, exchange, self._admit(exchange))
            if self._batching.is_open:
                direct.start()
            else:
                direct.hand_over()
            self._watchdog.watch(exchange.watch)
        except Refusal as refusal:
            return self._refused(exchange, refusal)
        except Exception as error:
            return self._refused(exchange, _crashed(error))
        return None if direct.is_handed_over else direct

    async def go_on(
        self, exchange: Exchange, attempt: Attempt | None, answer: StartedAnswer | None, receive: Receive
    ) -> None:
        """What :meth:`begin` began, from wherever it left off."""
        exchange.watch.receive = receive
        await self._guarded(exchange, self._go_on(exchange, attempt, answer))

    async def _go_on(self, exchange: Exchange, attempt: Attempt | None, answer: StartedAnswer | None) -> None:
        if attempt is None:
            if exchange.watch.interrupt:
                raise asyncio.CancelledError
            await self._batching.wait(exchange.request)
        await self._forward(exchange, attempt, answer)

    async def _guarded(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Whatever becomes of it, the request ends once."""
        try:
            await work
        except Refusal as refusal:
            await self._refuse(exchange, refusal)
        except asyncio.CancelledError:
            # The watchdog or the server ended it before a node had it.
            accept_cancellation()
            await self._refuse(exchange, _early(exchange.watch.interrupt))
        except Exception as error:
            await self._refuse(exchange, _crashed(error))
        finally:
            self._watchdog.end(exchange.watch)

    async def _serve(self, exchange: Exchange, receive: Receive) -> None:
        self._identify(exchange)
        exchange.body = await read_body(exchange.headers, receive, self._limits.max_body_bytes)
        exchange.watch.receive = receive
        exchange.watch.deadline_s = self._admit(exchange)
        await self._batching.wait(exchange.request)
        await self._forward(exchange)

    def _identify(self, exchange: Exchange) -> None:
        """What comes before the body: well-formed headers, an id, a key."""
        dispatch, limits = self._dispatch, self._limits
        exchange.headers = headers = header_map(
            exchange.raw_headers, limits.max_headers, limits.max_header_bytes
        )
        exchange.request_id = dispatch.new_id(headers)
        exchange.tenant = dispatch.keys.tenant(headers)

    def _admit(self, exchange: Exchange) -> float:
        """What comes after the body; until when a node has time to begin its answer."""
        exchange.request = self._resolve(exchange)
        limits = self._limits
        patience_s = limits.ttft_timeout_s if exchange.is_stream else limits.answer_timeout_s
        deadline_s = self._dispatch.clock() + patience_s
        self._dispatch.admit(exchange.request, exchange.tenant)
        return deadline_s

    def now_s(self) -> float:
        """The moment."""
        return self._dispatch.clock()

    def first_attempt(self, exchange: Exchange) -> Attempt:
        """Decide, and take the lease."""
        return self._dispatch.attempt(
            exchange.request,
            exchange.tenant,
            exchange.arrived_s,
            held_s=self.now_s() - exchange.arrived_s,
            is_stream=exchange.is_stream,
        )

    def start(self, exchange: Exchange, attempt: Attempt) -> StartedAnswer | None:
        """Send it to the node at once, if a connection idles."""
        return self._upstream.start(attempt.node, *self._sent(exchange, attempt))

    def forget(self, exchange: Exchange) -> None:
        """Stop watching it."""
        self._watchdog.end(exchange.watch)

    def _resolve(self, exchange: Exchange) -> Request:
        fields = parse_body(exchange.body)
        exchange.fields_model = fields.model
        exchange.has_priority = bool(fields.priority)
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

    async def _forward(
        self, exchange: Exchange, attempt: Attempt | None = None, begun: StartedAnswer | None = None
    ) -> None:
        """Try nodes until one answers, within the retry budget; the first try may be under way."""
        tried: Mask | None = None
        parent_id = ""
        failure: Refusal | None = None
        retries_left = self._limits.retries
        while True:
            try:
                attempt = attempt or self._dispatch.attempt(
                    exchange.request, exchange.tenant, exchange.arrived_s, tried=tried, parent_id=parent_id,
                    held_s=self.now_s() - exchange.arrived_s if tried is None else math.inf, is_stream=exchange.is_stream,
                )  # fmt: skip
            except HeldError as held:
                self._dispatch.stats.holds += 1
                await self._dispatch.time.sleep(held.hold_s)
                continue
            except Refusal as refusal:
                raise failure or refusal from None
            with attempt:
                try:
                    await self._attempt(exchange, attempt, begun, may_retry=retries_left > 0)
                    return
                except _TryAnotherError as again:
                    failure = again.refusal
                    tried = attempt.tried(tried)
            self._dispatch.went_on(attempt)
            attempt = begun = None
            parent_id = exchange.request.id
            retries_left -= 1

    async def _attempt(
        self, exchange: Exchange, attempt: Attempt, begun: StartedAnswer | None, *, may_retry: bool
    ) -> None:
        """One node: send, deliver, and say how it ended; a client is told of a failure when nothing is held any more."""
        reply: UpstreamAnswer | None = begun
        try:
            if exchange.watch.interrupt:  # before there was a task to cancel
                raise asyncio.CancelledError
            if begun is not None:
                await begun.begun()
            reply = begun or await self._upstream.send(attempt.node, *self._sent(exchange, attempt))
            exchange.status = reply.status
            self._consider_retry(exchange, attempt, reply, may_retry=may_retry)
            await self._deliver(exchange, attempt, reply)
            self.end(exchange, attempt, outcome_of(reply.status))
            return
        except UpstreamError as error:
            failure = self._broke(exchange, attempt, error, may_retry=may_retry)
        except asyncio.CancelledError:
            accept_cancellation()
            failure = _interrupted(exchange, attempt)
        except Exception:
            attempt.end(Outcome.REJECTED)  # unless it said before how it ended, the fault is not the node's
            raise
        finally:
            if reply is not None:
                reply.close()
        exchange.status = exchange.status if exchange.started else failure.status
        self.end(exchange, attempt, failure.outcome)
        await self._tell(exchange, failure, headers_of(attempt))

    def _consider_retry(
        self, exchange: Exchange, attempt: Attempt, reply: UpstreamAnswer, *, may_retry: bool
    ) -> None:
        """Leave a node that is overloaded or broken for another, if there is one and the budget allows."""
        if reply.status == 429:
            retry_after_s = _seconds(_header(reply.headers, b"retry-after"))
            self._dispatch.back_off(attempt, retry_after_s)
        if reply.status < 500 and reply.status != 429:
            return
        if self._may_retry(exchange, attempt, may_retry=may_retry):
            attempt.end(outcome_of(reply.status))
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
            exchange.tail = body[-TAIL_BYTES:]
            await _send(exchange, body, more=False)
            return
        async for chunk in reply.chunks():
            now_s = clock()
            if not exchange.started:
                exchange.first_byte_s = now_s
                if exchange.is_stream:  # else this is the end of the answer, cut in pieces
                    attempt.first_byte(now_s)
                await self._start(exchange, attempt, reply)
            watch.deadline_s = now_s + silence_s
            exchange.tail = chunk if len(chunk) >= TAIL_BYTES else exchange.tail[-TAIL_BYTES:] + chunk
            await _send(exchange, chunk, more=True)
            watch.deadline_s = clock() + silence_s  # a client that reads slowly is not the node's silence
        if not exchange.started:
            await self._start(exchange, attempt, reply)
        await _send(exchange, b"", more=False)

    async def _start(self, exchange: Exchange, attempt: Attempt, reply: UpstreamAnswer) -> None:
        exchange.started = True
        headers = relayed(reply) + headers_of(attempt)
        await exchange.send({"type": "http.response.start", "status": reply.status, "headers": headers})

    def _sent(self, exchange: Exchange, attempt: Attempt) -> tuple[str, str, RawHeaders, bytes]:
        """What goes to the node: method, target, headers, body."""
        headers = self._request_headers(exchange, attempt)
        body = with_model(exchange.body, exchange.fields_model, exchange.request.model)
        # Anthropic's API has no such field, and a client that gives one knows better.
        if attempt.node.schedules_by_priority and not exchange.has_priority and not exchange.anthropic:
            priority = self._dispatch.priority(attempt)
            body = body if priority is None else with_priority(body, priority)
        return exchange.method, exchange.target, headers, body

    def _request_headers(self, exchange: Exchange, attempt: Attempt) -> RawHeaders:
        """What the node sees: the client's headers without hop-by-hop ones and, where we check keys, without its key."""
        drop = NOT_RELAYED
        node_key = self._node_keys.get(attempt.node.id)
        if self._dispatch.keys.are_required or node_key:
            drop = _NOT_RELAYED_WITH_KEYS
        listed = exchange.headers.get(b"connection")
        if listed is not None and listed not in {b"keep-alive", b"close"}:
            drop = drop | {name.strip().lower() for name in listed.split(b",")}
        headers = [item for item in exchange.raw_headers if item[0] not in drop]
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
        if not exchange.is_over:
            self._count_refused(exchange, refusal)
            await self._tell(exchange, refusal)

    def _refused(self, exchange: Exchange, refusal: Refusal) -> Reply:
        """The same without a task: the answer instead of telling it."""
        self._count_refused(exchange, refusal)
        headers = refusal.headers(exchange.request_id) + closes(refusal)
        return Reply(refusal.status, headers, refusal.body(exchange.request_id, anthropic=exchange.anthropic))

    def _count_refused(self, exchange: Exchange, refusal: Refusal) -> None:
        exchange.is_over = True
        exchange.request_id = exchange.request_id or self._dispatch.fresh_id()
        self._dispatch.refused(refusal, exchange.request_id, exchange.path, exchange.arrived_s)

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
            accept_cancellation()

    def end(self, exchange: Exchange, attempt: Attempt, outcome: Outcome) -> None:
        """Say how it ended, and release the lease."""
        now_s, arrived_s = self._dispatch.clock(), exchange.arrived_s
        first = exchange.first_byte_s
        ttft_s = None if first is None else first - arrived_s
        attempt.times = times = Times(
            attempt.since_s - arrived_s, now_s - arrived_s, ttft_s, *exchange.usage()
        )
        exchange.is_over = True
        attempt.forget_headers()
        attempt.end(outcome)
        attempt.close()
        self._dispatch.ended(attempt, outcome, exchange.status, times)


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


def _crashed(error: Exception) -> Refusal:
    """Only the kind and the place are logged: the text of an exception may quote the request."""
    _log.error("request.crashed", error=type(error).__name__, place=_place(error))
    return Refusal(500, "internal_error", "the router failed; see its log")


def _place(error: Exception) -> str:
    """File and line of the innermost frame."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"


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
