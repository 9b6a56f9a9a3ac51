"""What a recording writes: requests, telemetry and loads as rows of the trace format; no field can hold a prompt."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol

import msgspec
import numpy as np

from ccr.types import Decision, NodeSpec, Outcome, Reading, Request

Status = Literal["ok", "error", "timeout", "rejected"]
#: The trace format's four words; ``outcome`` beside them keeps what they lose: that a client left says nothing of a node.
STATUS: Final[Mapping[Outcome, Status]] = {
    Outcome.OK: "ok",
    Outcome.UPSTREAM_4XX: "error",
    Outcome.UPSTREAM_5XX: "error",
    Outcome.UPSTREAM_RESET: "error",
    Outcome.TIMEOUT: "timeout",
    Outcome.NO_CAPACITY: "rejected",
    Outcome.REJECTED: "rejected",
    Outcome.CLIENT_CLOSED: "error",
    Outcome.ABORTED_DRAIN: "error",
    Outcome.EXPIRED: "error",
}
#: Nodes whose residency is remembered; with more, what changes at their next reading goes unseen once.
MAX_NODES: Final = 4096


class Timed(Protocol):
    """What was measured of a request, in seconds from its arrival; ``None`` where it never got there."""

    @property
    def queue_s(self) -> float: ...  # noqa: D102
    @property
    def total_s(self) -> float: ...  # noqa: D102
    @property
    def ttft_s(self) -> float | None: ...  # noqa: D102
    @property
    def prompt_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def output_tokens(self) -> int | None: ...  # noqa: D102


class Attempted(Protocol):
    """A request at a node: what a row needs of :class:`router.dispatch.Attempt`.

    ``specs`` are the nodes that were decided among, ``epoch`` the policy's version at that moment, ``parent_id``
    the first attempt's id if this one is a retry.
    """

    @property
    def request(self) -> Request: ...  # noqa: D102
    @property
    def decision(self) -> Decision: ...  # noqa: D102
    @property
    def specs(self) -> Sequence[NodeSpec]: ...  # noqa: D102
    @property
    def arrived_s(self) -> float: ...  # noqa: D102
    @property
    def is_cold(self) -> bool: ...  # noqa: D102
    @property
    def parent_id(self) -> str: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102


class Candidate(msgspec.Struct, frozen=True):
    """A node that could have been chosen, and what the policy thought of it; no score where it was not finite."""

    node: str
    score: float | None


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``None`` and the empty text mean unknown.

    The columns up to ``candidates`` are the trace format's. Beside them: ``outcome`` in full; ``retry``, 1 if another
    node failed the request first (then the times count from the first arrival, and the propensity is that of the
    second choice); ``prompt_estimate``, the length in tokens that the policy saw.
    """

    t: float
    model: str = ""
    version: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    session: str = ""
    prefix_blocks: Literal[""] = ""
    priority: int = 0
    node: str = ""
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    cold_start: int | None = None
    status: Status
    policy: str = ""
    propensity: float | None = None
    candidates: tuple[Candidate, ...] = ()
    outcome: Outcome
    retry: int = 0
    prompt_estimate: int | None = None


class TelemetryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one node. ``None`` means that the source does not tell, the empty text that there is none."""

    t: float
    node: str
    gpu_util: float | None
    mem_used_gib: float | None
    mem_total_gib: float | None
    running: int | None
    waiting: int | None
    kv_used_frac: float | None
    loaded: str | None
    loading: str | None


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that came or went, or a process that started; an empty kind is a load from an unknown place."""

    t: float
    node: str
    kind: Literal["", "process", "evict"]
    model: str = ""
    version: str = ""
    bytes: int | None = None
    ms: float | None = None


def request_row(
    attempt: Attempted, outcome: Outcome, times: Timed, start_s: float, session_key: bytes
) -> RequestRow:
    """The row of a request that ended at a node.

    Args:
        attempt: the last one, if there were retries.
        outcome: how it ended.
        times: measured.
        start_s: of the recording, on the clock of the arrival.
        session_key: hashes conversation ids; drawn for this recording and kept nowhere.
    """
    request, decision = attempt.request, attempt.decision
    return RequestRow(
        t=round(attempt.arrived_s - start_s, 6),
        model=request.name or request.model,
        version=request.version,
        prompt_tokens=times.prompt_tokens or None,
        output_tokens=times.output_tokens,
        session=hashed(request.session, session_key),
        priority=request.priority,
        node=decision.node_id,
        queue_ms=_ms(times.queue_s),
        ttft_ms=_ms(times.ttft_s),
        total_ms=_ms(times.total_s),
        cold_start=int(attempt.is_cold),
        status=STATUS[outcome],
        policy=f"{decision.policy}@{attempt.epoch}",
        propensity=min(decision.propensity, 1.0),
        candidates=candidates(decision, attempt.specs),
        outcome=outcome,
        retry=int(bool(attempt.parent_id)),
        prompt_estimate=request.prompt_tokens,
    )


def refused_row(
    outcome: Outcome,
    request: Request | None,
    arrived_s: float,
    total_s: float,
    start_s: float,
    session_key: bytes,
) -> RequestRow:
    """The row of a request that no node had; without a model if it ended before one was settled.

    Args:
        outcome: how it ended.
        request: as far as it was understood.
        arrived_s: when.
        total_s: from arrival to the refusal.
        start_s: of the recording.
        session_key: as in :func:`request_row`.
    """
    t, total_ms = round(arrived_s - start_s, 6), _ms(total_s)
    if request is None:
        return RequestRow(t=t, total_ms=total_ms, status=STATUS[outcome], outcome=outcome)
    return RequestRow(
        t=t,
        model=request.name or request.model,
        version=request.version,
        session=hashed(request.session, session_key),
        priority=request.priority,
        total_ms=total_ms,
        status=STATUS[outcome],
        outcome=outcome,
        prompt_estimate=request.prompt_tokens,
    )


def telemetry_row(node_id: str, reading: Reading, t: float) -> TelemetryRow:
    """The row of a reading taken ``t`` seconds into the recording."""
    total, free = reading.gpu_total_gib, reading.gpu_free_gib
    return TelemetryRow(
        t=round(t, 6),
        node=node_id,
        gpu_util=None if reading.gpu_util is None else round(100.0 * reading.gpu_util, 2),
        mem_used_gib=None if total is None or free is None else round(total - free, 4),
        mem_total_gib=total,
        running=None if reading.running is None else int(reading.running),
        waiting=None if reading.waiting is None else int(reading.waiting),
        kv_used_frac=reading.kv_used,
        loaded=None if reading.loaded is None else " ".join(sorted(reading.loaded)),
        loading=None if reading.loading is None else " ".join(sorted(reading.loading)),
    )


class Residency:
    """What was last read of each node, so that loads and evictions show as differences."""

    def __init__(self) -> None:
        self._last: dict[str, Reading] = {}

    def changes(self, node_id: str, reading: Reading, t: float) -> Iterator[LoadRow]:
        """What happened since the node's last reading; nothing at its first one: that happened before.

        A restart is a row ``process``, and what is resident after it was loaded by the new process.
        """
        before = self._last.get(node_id)
        if before is None and len(self._last) >= MAX_NODES:
            self._last.clear()
        self._last[node_id] = reading
        if before is None:
            return
        t = round(t, 6)
        if reading.boot_id and before.boot_id and reading.boot_id != before.boot_id:
            yield LoadRow(t=t, node=node_id, kind="process")
            before = Reading(loaded=frozenset())
        for model in _loaded(before, reading):
            yield _load_row(t, node_id, "", model, reading.load_s.get(model))
        if before.loaded is not None and reading.loaded is not None:
            for model in sorted(before.loaded - reading.loaded):
                yield _load_row(t, node_id, "evict", model, None)


def _loaded(before: Reading, now: Reading) -> list[str]:
    """Models that became resident, or whose last load took another time than it had.

    Some sources tell the time of a load when it begins: it is a row once, when the model is there.
    """
    came = frozenset[str]()
    if before.loaded is not None and now.loaded is not None:
        came = now.loaded - before.loaded
    timed = {model for model, took_s in now.load_s.items() if before.load_s.get(model) != took_s}
    return sorted(came | (timed if now.loaded is None else timed & now.loaded))


def _load_row(t: float, node: str, kind: Literal["", "evict"], model: str, took_s: float | None) -> LoadRow:
    name, _, version = model.partition("@")
    return LoadRow(t=t, node=node, kind=kind, model=name, version=version, ms=_ms(took_s))


def candidates(decision: Decision, specs: Sequence[NodeSpec]) -> tuple[Candidate, ...]:
    """The eligible nodes with their scores."""
    eligible = np.flatnonzero(decision.mask).tolist()
    scores = decision.scores[eligible].tolist()
    return tuple(
        Candidate(specs[i].id, score if math.isfinite(score) else None)
        for i, score in zip(eligible, scores, strict=True)
    )


def hashed(session: str, key: bytes) -> str:
    """A conversation's id that nobody can turn back: BLAKE2b (RFC 7693) under ``key``, 64 bits; empty stays empty."""
    return hashlib.blake2b(session.encode(), key=key, digest_size=8).hexdigest() if session else ""


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)
