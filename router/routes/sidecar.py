"""``POST /route`` and ``POST /feedback``: the caller reaches the node itself and says how it went."""

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from typing import Annotated, Any, Final, Literal

import msgspec

from ccr import log
from ccr.latency import expected_s
from ccr.types import Outcome
from router.call import Scope, header_map
from router.dispatch import Attempt, Dispatch, Times
from router.refusals import Refusal
from router.routes.body import Limits, Send, answer, answer_json, read_body
from router.routes.direct import Door
from router.routes.hearing import Hearing
from router.turn import JSON_HEADERS, Headers, Reply
from router.watchdog import Interrupt, Receive, Watchdog, accept_cancellation

_log = log.get("sidecar")

REMEMBERED: Final = 20_000
"""Reported decisions remembered, so that feedback given twice is recognised."""
LATEST_S: Final = 600.0
"""Feedback later than this is dropped and counted."""
SLACK_S: Final = 0.050
"""A caller's clock may be this much ahead when it reports a latency."""


class RouteBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``/route`` takes."""

    model: str | None = None
    headers: dict[str, str] = {}
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    output_tokens: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0


class RouteAnswer(msgspec.Struct, gc=False):
    """What ``/route`` answers."""

    target: str
    node: str
    request_id: str
    policy: str
    decision_token: str
    model: str
    expires_in_s: float


Milliseconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400_000.0)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``/feedback`` takes; times in milliseconds, as the caller measured them."""

    decision_token: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    status: Literal["ok", "upstream_4xx", "upstream_5xx", "upstream_reset", "timeout", "client_closed"] = "ok"
    latency_ms: Milliseconds | None = None
    ttft_ms: Milliseconds | None = None
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class DecisionToken(msgspec.Struct, array_like=True, gc=False):
    """What a decision token says, signed."""

    decision_id: str
    node: str
    at_s: float
    epoch: int
    propensity: float


_MAC_BYTES: Final = 16
_PACK = msgspec.msgpack.Encoder().encode


class Signer:
    """Signs decision tokens and reads them back.

    Args:
        secret: shared by the replicas that may see each other's tokens; ``None`` makes one.
    """

    def __init__(self, secret: bytes | None) -> None:
        self._key = hashlib.sha256(secret).digest() if secret else secrets.token_bytes(32)

    def sign(self, content: DecisionToken) -> str:
        """The token: a keyed BLAKE2 digest (RFC 7693) and what it covers, in hexadecimal."""
        payload = _PACK(content)
        return self._mac(payload).hex() + payload.hex()

    def read(self, token: str) -> DecisionToken | None:
        """What the token says; ``None`` if it was not signed here."""
        try:
            raw = bytes.fromhex(token)
            mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
            if not hmac.compare_digest(mac, self._mac(payload)):
                return None
            return msgspec.msgpack.decode(payload, type=DecisionToken)
        except (ValueError, msgspec.DecodeError):
            return None

    def _mac(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, key=self._key, digest_size=_MAC_BYTES).digest()


_DECODE_ROUTE = msgspec.json.Decoder(RouteBody).decode
_DECODE_FEEDBACK = msgspec.json.Decoder(FeedbackBody).decode
_ENCODE = msgspec.json.Encoder().encode


class Sidecar:
    """Both handlers, and the decisions that still wait for feedback.

    Args:
        dispatch: decides and leases.
        watchdog: ends a request whose body never comes.
        signer: of decision tokens.
        limits: of body and headers.
        lease_s: time a decision waits for its feedback.

    Attributes:
        hearing: whether feedback comes at all.
    """

    def __init__(
        self, dispatch: Dispatch, watchdog: Watchdog, signer: Signer, limits: Limits, lease_s: float
    ) -> None:
        self._dispatch = dispatch
        self._watchdog = watchdog
        self._signer = signer
        self._limits = limits
        self._lease_s = lease_s
        self.hearing = Hearing(lease_s)
        self._open: OrderedDict[str, Attempt] = OrderedDict()
        self._reported: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def routed(self, _door: Door | None, raw_headers: Headers, body: bytes) -> Reply:
        """Decide, lease, and the whole answer with the target; never raises."""
        arrived_s = self._dispatch.clock()
        request_id = self._dispatch.fresh_id()
        try:
            headers = header_map(raw_headers, self._limits.max_headers, self._limits.max_header_bytes)
            reply = self._decide(headers, body, request_id, arrived_s)
        except Refusal as refusal:
            self._dispatch.refused(refusal, request_id, "/route", arrived_s)
            return Reply(refusal.status, refusal.headers(request_id), refusal.body(request_id))
        return Reply(200, JSON_HEADERS, _ENCODE(reply))

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same as an ASGI handler, for requests that the protocol does not answer itself."""
        arrived_s = self._dispatch.clock()
        try:
            _, body = await self._read(scope, receive, arrived_s)
        except Refusal as refusal:
            self._dispatch.refused(refusal, "", "/route", arrived_s)
            await answer(send, refusal, "")
            return
        reply = self.routed(None, scope["headers"], body)
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Close a decision; saying it twice changes nothing."""
        arrived_s = self._dispatch.clock()
        try:
            headers, body = await self._read(scope, receive, arrived_s)
            self._dispatch.keys.tenant(headers)
            result = self._close(_decoded(_DECODE_FEEDBACK, body), arrived_s)
        except Refusal as refusal:
            self._dispatch.stats.feedback[refusal.code] += 1
            await answer(send, refusal, "")
            return
        self._dispatch.stats.feedback[result] += 1
        await answer_json(send, _ENCODE({"result": result}))

    def expire(self, now_s: float, most: int = 1000) -> None:
        """End the decisions whose feedback never came; at any moment all leases last equally long, so the oldest are first.

        Args:
            now_s: the moment.
            most: to end now; each decision ends two as well, so that they do not pile up for one long turn.
        """
        due_s = now_s - self.hearing.lease_s
        while self._open and most:
            most -= 1
            attempt = next(iter(self._open.values()))
            if attempt.since_s > due_s:
                return
            self._open.popitem(last=False)
            self._finish(attempt, Outcome.EXPIRED, None)

    def abort_all(self) -> int:
        """End every open decision because the process goes away; returns how many there were."""
        ended = len(self._open)
        while self._open:
            _, attempt = self._open.popitem()
            self._finish(attempt, Outcome.ABORTED_DRAIN, None)
        return ended

    def _decide(
        self, headers: dict[bytes, bytes], body: bytes, request_id: str, arrived_s: float
    ) -> RouteAnswer:
        dispatch = self._dispatch
        tenant = dispatch.keys.tenant(headers)
        asked = _decoded(_DECODE_ROUTE, body)
        if asked.headers:  # of the request that is to be routed; the sidecar's own carry nothing but its key
            headers = {_latin(name.lower()): _latin(value) for name, value in asked.headers.items()}
        request = dispatch.resolve(
            headers,
            asked.model,
            tenant,
            request_id=request_id,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
        )
        self.expire(arrived_s, most=2)
        dispatch.admit(request, tenant)
        attempt = dispatch.attempt(request, tenant, arrived_s, lifetime_s=self._lease_s)
        attempt.forget_headers()
        attempt.is_reported = True
        self._open[request_id] = attempt
        self._expect(attempt)
        decision, node_id = attempt.decision, attempt.decision.node_id
        token = DecisionToken(request_id, node_id, attempt.since_s, attempt.epoch, decision.propensity)
        return RouteAnswer(
            attempt.node.address, node_id, request_id, decision.policy, self._signer.sign(token),
            request.model, dispatch.time.on_the_wall_s(self._lease_s),
        )  # fmt: skip

    def _close(self, body: FeedbackBody, now_s: float) -> str:
        token = self._signer.read(body.decision_token)
        if token is None:
            raise Refusal(403, "bad_token", "this decision token was not signed here", param="decision_token")
        if token.decision_id in self._reported:
            return "duplicate"
        attempt = self._open.get(token.decision_id)
        if attempt is None:
            # Of what was decided here, what is neither open nor reported has expired: that need not be remembered.
            if self._dispatch.is_own(token.decision_id):
                self._remember(token.decision_id)
                return "late"
            if now_s - token.at_s >= LATEST_S:
                return "late"
            raise Refusal(
                403, "unknown_decision", "no such decision is open in this replica", param="decision_token"
            )
        longest_s = self._dispatch.time.on_the_wall_s(now_s - attempt.since_s) + SLACK_S
        for name in ("latency_ms", "ttft_ms"):
            value = getattr(body, name)
            if value is not None and value / 1e3 > longest_s:
                raise Refusal(
                    400,
                    "impossible_latency",
                    f"{name} is longer than the decision is old ({longest_s:.3f} s)",
                    param=name,
                )
        del self._open[token.decision_id]
        self._remember(token.decision_id)
        self._finish(attempt, Outcome(body.status), body)
        return "recorded"

    def _remember(self, decision_id: str) -> None:
        """It was reported."""
        self.hearing.heard()
        self._reported[decision_id] = None
        if len(self._reported) > REMEMBERED:
            self._reported.popitem(last=False)

    def _finish(self, attempt: Attempt, outcome: Outcome, body: FeedbackBody | None) -> None:
        queue_s, total_s = attempt.since_s - attempt.arrived_s, self._dispatch.clock() - attempt.arrived_s
        if body is None:
            times = Times(queue_s, total_s)
        else:
            times = Times(
                queue_s=queue_s,
                total_s=total_s if body.latency_ms is None else self._seconds(body.latency_ms),
                ttft_s=None if body.ttft_ms is None else self._seconds(body.ttft_ms),
                prompt_tokens=body.prompt_tokens,
                output_tokens=body.output_tokens,
            )
        attempt.times = times
        attempt.end(outcome)
        attempt.close()
        self._dispatch.ended(attempt, outcome, 200, times)

    def _expect(self, attempt: Attempt) -> None:
        """Tell now and then how long a decision should take; policies that do not look at expectations tell nothing."""
        look = attempt.decision.look
        if look is not None and self.hearing.wants:
            self.hearing.expect(expected_s(look).item(attempt.decision.index))
        self.hearing.decided(attempt.request.id, attempt.since_s, self._open)

    def _seconds(self, milliseconds: float) -> float:
        """Of the router's clock; the caller measures by the wall."""
        return self._dispatch.time.from_the_wall_s(milliseconds / 1e3)

    async def _read(
        self, scope: Scope, receive: Receive, arrived_s: float
    ) -> tuple[dict[bytes, bytes], bytes]:
        limits = self._limits
        headers = header_map(scope["headers"], limits.max_headers, limits.max_header_bytes)
        watch = self._watchdog.begin(arrived_s, limits.body_timeout_s)
        try:
            return headers, await read_body(headers, receive, limits.max_body_bytes)
        except asyncio.CancelledError:
            accept_cancellation()
            if watch.interrupt is Interrupt.TIMEOUT:
                raise Refusal(408, "body_timeout", "the request did not arrive in time") from None
            raise Refusal(
                503, "draining", "the router is shutting down", Outcome.ABORTED_DRAIN, 1.0
            ) from None
        finally:
            self._watchdog.end(watch)


def _decoded(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(400, "invalid_body", f"the body is not what this call takes: {error}") from None


def _latin(value: str) -> bytes:
    return value.encode("latin-1", "replace")
