"""Between the wire and the core: resolve, admit, decide, lease; and at the end, one outcome for each request."""

import math
import random
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import count
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

import numpy as np

from ccr.eligibility import eligible, reasons
from ccr.errors import NoEligibleNodeError, SaturatedError, UnknownModelError
from ccr.explain import Explanation, explain
from ccr.fleet import LiveFleet
from ccr.hashing import unit_hash
from ccr.ledger import Ledger
from ccr.trace import record_of
from ccr.types import Decision, Fleet, Mask, Outcome, Request, TraceRecord
from ccr.versions import Catalogue
from router.auth import Keys, Tenant
from router.call import HeaderView, steering_of
from router.clock import WALL, Clock
from router.limits import Admission, RetryBudget
from router.policies import PolicySwitch
from router.refusals import Refusal
from router.request_log import RequestLog
from router.stats import Stats

BYTES_PER_TOKEN: Final = 4
"""English text in common tokenisers; a prior until the engine reports usage."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Times(NamedTuple):
    """What was measured of a request, in seconds from its arrival; ``None`` where it never got there."""

    queue_s: float
    total_s: float
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class Recorder(Protocol):
    """Is told how every request ended; the values it is given do not change any more."""

    def ended(self, attempt: "Attempt", outcome: Outcome, times: Times) -> None:
        """A request ended at a node."""

    def refused(
        self, outcome: Outcome, arrived_s: float, now_s: float, request: Request | None = None
    ) -> None:
        """A request ended in the router; ``request`` as far as it was understood."""


class Feedback(Protocol):
    """Is told how every request ended, and every try of one; the values it is given do not change any more."""

    def ended(
        self, attempt: "Attempt", outcome: Outcome, times: Times, now_s: float, *, went_on: bool = False
    ) -> None:
        """A request ended at a node, or went on to another one."""

    def refused(self, outcome: Outcome, arrived_s: float, now_s: float, request: Request | None) -> None:
        """A request ended in the router; ``request`` as far as it was understood."""


class Watch(Protocol):
    """Is told of every decision, and how it ended."""

    def decided(self, attempt: "Attempt") -> None:
        """A node was chosen."""

    def ended(self, attempt: "Attempt", outcome: Outcome, times: Times, *, went_on: bool = False) -> None:
        """A request ended at a node, or went on to another one."""


class Dispatch:
    """The one path from a request to a node.

    Args:
        fleet: the nodes.
        policies: the engine in force.
        catalogue: models, versions, canary weights.
        keys: who may ask.
        admission: how much is let in.
        retries: how much may be tried again.
        stats: what is counted.
        request_log: where lines go.
        keep: decisions remembered.
        clock: what counts as time.
        wall: seconds since 1970: what fellow routers agree on.
        seed: for the draws; a fresh one by default.
    """

    def __init__(
        self,
        *,
        fleet: LiveFleet,
        policies: PolicySwitch,
        catalogue: Catalogue,
        keys: Keys,
        admission: Admission,
        retries: RetryBudget,
        stats: Stats,
        request_log: RequestLog,
        keep: int = 1000,
        clock: Clock = WALL,
        wall: Callable[[], float] = time.time,
        seed: int | None = None,
    ) -> None:
        self.fleet = fleet
        self.ledger = Ledger(fleet)
        self.policies = policies
        self.catalogue = catalogue
        self.keys = keys
        self.admission = admission
        self.retries = retries
        self.stats = stats
        self.request_log = request_log
        self.clock = clock.now_s
        self.time = clock
        self._wall = wall
        self.started_s = clock.now_s()
        self.recorder: Recorder | None = None
        self.feedback: Feedback | None = None
        self.watch: Watch | None = None
        self.recent: deque[Attempt] = deque(maxlen=keep)
        self._draw = random.Random(secrets.randbits(64) if seed is None else seed).random
        self._seq = count()
        self._ids = count(1)
        self._prefix = secrets.token_hex(6)

    # Before the decision

    def new_id(self, headers: Mapping[bytes, bytes]) -> str:
        """The client's ``x-request-id`` if it is a sane one, else a fresh id."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("latin-1")
        return self.fresh_id()

    def fresh_id(self) -> str:
        """An id that no other request of this process has, and hardly one of another."""
        return f"{self._prefix}-{next(self._ids):x}"

    def is_own(self, request_id: str) -> bool:
        """Whether :meth:`fresh_id` made it here."""
        return request_id.startswith(f"{self._prefix}-")

    def resolve(
        self,
        headers: Mapping[bytes, bytes],
        model: str | None,
        tenant: Tenant,
        *,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
    ) -> Request:
        """The request as the core knows it, with its model and version settled.

        Args:
            headers: by lower-case name; ``X-Model-Name`` and ``X-Model-Version`` win over the body.
            model: as the body says.
            tenant: who asks.
            request_id: chosen by :meth:`new_id`.
            prompt_tokens: estimated.
            output_tokens: the client's limit; 0 if it gave none.

        Raises:
            Refusal: 400 if no model is named, 404 if there is none of that name for this tenant.
        """
        asked = steering_of(headers)
        wanted = asked.model or model
        if not wanted:
            raise Refusal(
                400, "model_missing", "name a model: field 'model', or header X-Model-Name", param="model"
            )
        draw = unit_hash(asked.session) if asked.session else self._draw()
        try:
            if not tenant.may_use(wanted.partition("@")[0]):
                raise UnknownModelError(wanted)
            found = self.catalogue.resolve(wanted, asked.version, draw, self.is_served)
        except UnknownModelError as error:
            # A model that is not allowed and one that does not exist look the same.
            message = str(error) if not self.keys.are_required else f"unknown model {wanted!r}"
            raise Refusal(404, "model_not_found", message, param="model") from None
        tags = asked.tags | found.tags if found.tags else asked.tags
        # By position, in the order of the fields: sixteen names cost as much as the rest of this function.
        return Request.quick(
            request_id, found.id, found.name, found.version, next(self._seq), asked.session, tags, asked.priority,
            tenant.name, prompt_tokens, output_tokens, asked.slo_ttft_s, asked.slo_tpot_s, found.gib, found.load_s,
            HeaderView(headers),
        )  # fmt: skip

    def is_served(self, model: str) -> bool:
        """Whether some node, in rotation or not, serves the model id."""
        return True in self.fleet.at(self.clock()).serving(model).tolist()

    def admit(self, request: Request, tenant: Tenant) -> None:
        """Let the request in and earn it its share of the retry budget.

        Raises:
            Refusal: 429.
        """
        now_s = self.clock()
        try:
            self.admission.admit(self.ledger.in_flight, request.priority, tenant, now_s)
        except Refusal as refusal:
            refusal.request = request
            raise
        self.retries.deposit(now_s)

    # The decision

    def attempt(
        self,
        request: Request,
        tenant: Tenant,
        arrived_s: float,
        *,
        tried: Mask | None = None,
        parent_id: str = "",
        lifetime_s: float = math.inf,
        held_s: float = math.inf,
        is_stream: bool = False,
    ) -> "Attempt":
        """Decide, and take the lease: the only way to a node.

        Args:
            request: admitted.
            tenant: whose it is.
            arrived_s: when.
            tried: nodes that failed it already.
            parent_id: the first attempt's, for a retry.
            lifetime_s: after which the lease ends by itself.
            held_s: how long the request has been held; by default it may not be.
            is_stream: whether its first token will be seen.

        Raises:
            Refusal: 503 if no node may serve it now, 429 if the fleet is saturated and the policy refuses it.
            HeldError: if the policy would rather decide in a moment.
        """
        started_s = time.perf_counter()
        now_s = self.clock()
        fleet = self.fleet.at(now_s)
        try:
            decision = self.policies.engine.decide(request, fleet, self._draw(), tried, held_s)
        except NoEligibleNodeError as error:
            raise Refusal(
                503, "no_capacity", str(error), Outcome.NO_CAPACITY, retry_after_s=1.0, request=request
            ) from None
        except SaturatedError as error:
            retry_after_s = self.time.on_the_wall_s(error.retry_after_s)
            raise Refusal(
                429, "saturated", str(error), retry_after_s=retry_after_s, request=request
            ) from None
        stats = self.stats
        stats.decided(time.perf_counter() - started_s, now_s)
        stats.decisions[decision.policy] += 1
        stats.attempts += 1
        if decision.fallback:
            stats.fallbacks[self.policies.engine.policy.name] += 1
            self.policies.fell_back(decision.fallback, now_s)
        if decision.guard_reason:
            stats.guard_overrides += 1
        if decision.explored is not None:
            self.policies.explored(decision.explored, now_s)
        attempt = Attempt(
            self, request, tenant, decision, fleet, arrived_s, now_s, parent_id, lifetime_s, is_stream
        )
        if self.watch is not None:
            self.watch.decided(attempt)
        return attempt

    def priority(self, attempt: "Attempt") -> int | None:
        """The request's place in the queue of the node's engine, lower first; ``None`` where the policy does not say.

        Arrival counts from 1970, so that the requests of several routers stand in one order.
        """
        arrived_s = self.time.from_the_wall_s(self._wall()) - (self.clock() - attempt.arrived_s)
        return attempt.engine.priority(attempt.decision, arrived_s)

    def back_off(self, attempt: "Attempt", retry_after_s: float) -> None:
        """Leave alone the node that answered ``429``, for seconds of the wall as it asked for."""
        self.fleet.back_off(attempt.state, self.time.from_the_wall_s(retry_after_s), self.clock())

    def has_alternative(self, request: Request, tried: Mask) -> bool:
        """Whether another node could serve the request."""
        return bool(eligible(request, self.fleet.at(self.clock()), tried).any())

    # The end

    def refused(self, refusal: Refusal, request_id: str, path: str, arrived_s: float) -> None:
        """A request ended in the router."""
        self.stats.refusals[refusal.code] += 1
        self.stats.ended("", "", refusal.outcome)
        if self.recorder is not None:
            self.recorder.refused(refusal.outcome, arrived_s, self.clock(), refusal.request)
        if self.feedback is not None:
            self.feedback.refused(refusal.outcome, arrived_s, self.clock(), refusal.request)
        self.request_log.add(
            {
                "event": "request.refused",
                "request_id": request_id,
                "path": path,
                "status": refusal.status,
                "outcome": refusal.outcome,
                "reason": refusal.code,
                "total_ms": round(1e3 * (self.clock() - arrived_s), 2),
            }
        )

    def ended(self, attempt: "Attempt", outcome: Outcome, status: int, times: Times) -> None:
        """A request ended at a node: its one terminal outcome."""
        request, stats = attempt.request, self.stats
        stats.ended(request.name, request.version, outcome)
        stats.by_tenant[request.tenant] += 1
        if self.recorder is not None:
            self.recorder.ended(attempt, outcome, times)
        if self.feedback is not None:
            self.feedback.ended(attempt, outcome, times, self.clock())
        if self.watch is not None:
            self.watch.ended(attempt, outcome, times)
        if outcome is Outcome.OK:
            stats.duration_s.observe(request.name, times.total_s)
            if times.ttft_s is not None:
                stats.ttft_s.observe(request.name, times.ttft_s)
            if times.output_tokens:
                stats.tokens[request.name, "output"] += times.output_tokens
                stats.tokens[request.name, "prompt"] += times.prompt_tokens or request.prompt_tokens
                if times.ttft_s is not None and times.output_tokens > 1:
                    stats.tpot_s.observe(
                        request.name, (times.total_s - times.ttft_s) / (times.output_tokens - 1)
                    )
        if self.request_log.enabled:
            decision = attempt.decision
            self.request_log.add(
                {
                    "event": "request.ended",
                    "request_id": request.id,
                    "model": request.model,
                    "tenant": request.tenant,
                    "node": decision.node_id,
                    "policy": decision.policy,
                    "guard": decision.guard_reason,
                    "status": status,
                    "outcome": outcome,
                    "queue_ms": round(1e3 * times.queue_s, 2),
                    "ttft_ms": None if times.ttft_s is None else round(1e3 * times.ttft_s, 2),
                    "total_ms": round(1e3 * times.total_s, 2),
                    "cold_start": attempt.is_cold,
                }
            )

    def went_on(self, attempt: "Attempt") -> None:
        """A node failed the request, and another one gets it."""
        self.stats.retries += 1
        if attempt.times is None:
            return
        outcome = attempt.outcome or Outcome.UPSTREAM_RESET
        if self.feedback is not None:
            self.feedback.ended(attempt, outcome, attempt.times, self.clock(), went_on=True)
        if self.watch is not None:
            self.watch.ended(attempt, outcome, attempt.times, went_on=True)

    def decision(self, request_id: str) -> TraceRecord | None:
        """The remembered decision of a request, if it is still remembered."""
        attempt = self._remembered(request_id)
        return None if attempt is None else attempt.record(self.started_s)

    def why(self, request_id: str) -> Explanation | None:
        """The remembered decision of a request, taken apart."""
        attempt = self._remembered(request_id)
        return None if attempt is None else attempt.explain(self.started_s)

    def _remembered(self, request_id: str) -> "Attempt | None":
        """The last attempt of a request that is over."""
        return next((attempt for attempt in reversed(self.recent) if attempt.request.id == request_id), None)

    def decisions(self, limit: int) -> list[TraceRecord]:
        """The latest decisions, newest first."""
        newest = list(self.recent)[-limit:] if limit > 0 else []
        return [attempt.record(self.started_s) for attempt in reversed(newest)]


class Attempt:
    """One try at one node: holds the lease; ends with one outcome, however it ends.

    Leaving the context without :meth:`end` counts as the node's fault only if nothing else explains it.
    Afterwards it is what is remembered of the decision: references, and a copy of what was seen.
    """

    __slots__ = (
        "_dispatch", "_lease", "_outcome", "_resident", "_why", "arrived_s", "decision", "engine", "epoch", "is_cold",
        "is_reported", "node", "parent_id", "refused", "request", "seen", "since_s", "specs", "state", "tenant", "times",
    )  # fmt: skip

    def __init__(
        self, dispatch: Dispatch, request: Request, tenant: Tenant, decision: Decision, fleet: Fleet,
        arrived_s: float, now_s: float, parent_id: str, lifetime_s: float, is_stream: bool,
    ) -> None:  # fmt: skip
        self._dispatch = dispatch
        self.request = request
        self.tenant = tenant
        self.decision = decision
        self.engine = dispatch.policies.engine
        self.epoch = dispatch.policies.epoch
        self.arrived_s = arrived_s
        self.since_s = now_s
        self.parent_id = parent_id
        self.refused = False
        self.is_reported = False
        self.times: Times | None = None
        self._outcome: Outcome | None = None
        self._resident = fleet.resident(request.model)
        # As bytes: one small piece of memory, where an array is two. Thousands may be open.
        is_kept = dispatch.recent.maxlen or dispatch.feedback is not None
        self.seen = fleet.columns.tobytes() if is_kept else b""
        why = fleet.why_unavailable
        self._why = tuple(why) if why.count("") < len(why) else ()
        self.specs = fleet.specs
        self.is_cold = not self._resident.item(decision.index)
        if self.is_cold:
            dispatch.stats.cold_starts[request.name] += 1
        self.state = dispatch.fleet.states[decision.index]
        self.node = self.state.spec
        self._lease = dispatch.ledger.lease(self.state, request, now_s, lifetime_s, comes_whole=not is_stream)
        tenant.inflight += 1

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, once it has."""
        return self._outcome

    @property
    def is_open(self) -> bool:
        """Whether the lease still holds."""
        return self._lease.is_open

    def tried(self, before: Mask | None) -> Mask:
        """``before`` and this node: what a retry must not choose again."""
        now = np.array(
            [spec.id == self.node.id for spec in self._dispatch.fleet.at(self._dispatch.clock()).specs]
        )
        return now if before is None or len(before) != len(now) else before | now

    def forget_headers(self) -> None:
        """Let go of the request's headers, which only deciding needs; an attempt may stay open for long."""
        headers = self.request.headers
        if isinstance(headers, HeaderView):
            headers.forget()

    def end(self, outcome: Outcome, *, refused: bool = False) -> None:
        """Say how it ended; the first word counts."""
        if self._outcome is None:
            self._outcome = outcome
            self.refused = refused

    def close(self) -> None:
        """Release the lease and let the fleet learn from the outcome; a second call changes nothing."""
        if not self._lease.release():
            return
        dispatch = self._dispatch
        outcome = self._outcome = self._outcome or Outcome.UPSTREAM_RESET
        self.tenant.inflight -= 1
        now_s = dispatch.clock()
        times = self.times = self.times or Times(self.since_s - self.arrived_s, now_s - self.arrived_s)
        fleet = dispatch.fleet
        fleet.record(
            self.state,
            outcome,
            times.total_s - times.queue_s,  # of a sidecar's request: as the sidecar measured it
            now_s,
            dispatch._draw(),
            refused=self.refused,
            was_cold=self.is_cold,
        )
        if outcome is Outcome.OK:
            fleet.served(self.state, self.request.model)
            self._teach(times, now_s)
        if dispatch.recent.maxlen:
            dispatch.recent.append(self)

    def first_byte(self, now_s: float) -> None:
        """A stream has begun: the prefill is over."""
        if self._lease.placed is not None:
            self._lease.first_token(now_s)

    def _teach(self, times: Times, now_s: float) -> None:
        lease = self._lease
        if lease.placed is None or not times.output_tokens:
            return
        is_known = lease.has_first_token and times.ttft_s is not None
        ttft_s = (times.ttft_s or 0.0) - times.queue_s if is_known else None
        self._dispatch.fleet.learn(
            self.state, lease.placed, ttft_s, times.total_s - times.queue_s, times.output_tokens, now_s
        )

    def record(self, start_s: float) -> TraceRecord:
        """The full record of an attempt that is over; times count from ``start_s``."""
        times, outcome = self.times, self._outcome
        if times is None or outcome is None:
            raise ValueError("the attempt is not over; close it before it is recorded")
        return record_of(
            self.request,
            self.decision,
            self._fleet(),
            t=self.arrived_s - start_s,
            status=outcome,
            parent_id=self.parent_id,
            queue_ms=1e3 * times.queue_s,
            ttft_ms=None if times.ttft_s is None else 1e3 * times.ttft_s,
            total_ms=1e3 * times.total_s,
            prompt_tokens=times.prompt_tokens,
            output_tokens=times.output_tokens,
        )

    def explain(self, start_s: float) -> Explanation:
        """The decision taken apart, as the policy that made it saw it."""
        engine = self.engine
        policy = engine.fallback if self.decision.fallback else engine.policy
        why_not = reasons(self.request, self._fleet(), ~self.decision.mask)
        return explain(self.record(start_s), policy, why_not)

    def _fleet(self) -> Fleet:
        """The nodes as they were seen, as far as they matter to the request."""
        model, why = self.request.model, self._why or ("",) * len(self.specs)
        loaded = [frozenset({model}) if here else frozenset[str]() for here in self._resident]
        columns = np.frombuffer(self.seen).reshape(-1, len(self.specs))
        available = np.array([not words for words in why], dtype=np.bool_)
        return Fleet(self.specs, columns, available, loaded, why)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def headers_of(attempt: Attempt) -> list[tuple[bytes, bytes]]:
    """Response headers that tell what was decided."""
    request, decision = attempt.request, attempt.decision
    told = _told(decision.node_id, decision.policy, request.model, request.version)
    return [(b"x-request-id", request.id.encode("latin-1")), *told]


@lru_cache(maxsize=4096)
def _told(node: str, policy: str, model: str, version: str) -> tuple[tuple[bytes, bytes], ...]:
    """What is the same for every request that a policy sends to a node for a model."""
    headers = [
        (b"x-ccr-node", node.encode()),
        (b"x-ccr-policy", policy.encode()),
        (b"x-ccr-model", model.encode()),
    ]
    if version:
        headers.append((b"x-ccr-version", version.encode()))
    return tuple(headers)
