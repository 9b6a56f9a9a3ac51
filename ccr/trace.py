"""Trace records on disk: one JSON object per line, and the replay of a logged decision."""

import msgspec
import numpy as np

from ccr.engine import decide
from ccr.errors import TraceError
from ccr.exploration import Exploration
from ccr.guard import BoundedLoad
from ccr.look import Look
from ccr.policy import Policy
from ccr.types import COLUMNS, Decision, Fleet, Looker, NodeSpec, Outcome, Request, TraceRecord

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(TraceRecord)


def encode(record: TraceRecord) -> bytes:
    """One line, without its newline."""
    return _ENCODER.encode(record)


def decode(line: bytes, number: int = 1) -> TraceRecord:
    """The record on a line.

    Raises:
        TraceError: naming the line and what is wrong with it.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"line {number}: {error}") from error


def record_of(
    request: Request, decision: Decision, fleet: Fleet, *, t: float, status: Outcome, parent_id: str = "",
    queue_ms: float | None = None, ttft_ms: float | None = None, total_ms: float | None = None,
    prompt_tokens: int | None = None, output_tokens: int | None = None,
) -> TraceRecord:  # fmt: skip
    """The record of a request: what was seen, what was decided, how it ended.

    Args:
        request: as decided on.
        decision: the last one, if there were retries.
        fleet: a snapshot from the moment of the decision.
        t: arrival, seconds from the start of the trace.
        status: how it ended.
        parent_id: id of the first attempt, for a retry.
        queue_ms: time in the router before dispatch.
        ttft_ms: arrival to first byte.
        total_ms: arrival to end.
        prompt_tokens: as the engine counted; the router's estimate where it did not tell.
        output_tokens: as the engine counted.
    """
    resident = fleet.resident(request.model)
    return TraceRecord(
        t=t, request_id=request.id, model=request.name or request.model, version=request.version,
        prompt_tokens=request.prompt_tokens if prompt_tokens is None else prompt_tokens,
        output_tokens=output_tokens, session=request.session, priority=request.priority,
        node=decision.node_id, queue_ms=queue_ms, ttft_ms=ttft_ms, total_ms=total_ms,
        cold_start=not bool(resident[decision.index]), status=status,
        policy=decision.policy, propensity=decision.propensity,
        parent_id=parent_id, model_id=request.model, seq=request.seq, load_s=request.load_s, u=decision.u, drawn=decision.drawn_id, drawn_propensity=decision.drawn_propensity,
        guard_reason=decision.guard_reason, exploration=decision.explored.share if decision.explored else 0.0,
        fallback=decision.fallback,
        node_ids=tuple(spec.id for spec in fleet.specs),
        mask=tuple(decision.mask.tolist()), scores=tuple(score if np.isfinite(score) else None for score in decision.scores.tolist()),
        probabilities=tuple(decision.probabilities.tolist()),
        observation={name: tuple(getattr(fleet, name).tolist()) for name in COLUMNS},
        resident=tuple(resident.tolist()), look=_look_as_lists(decision.look),
    )  # fmt: skip


def replay(record: TraceRecord, policy: Policy, guard: BoundedLoad | None = None) -> Decision:
    """Decide again from what the record says was seen.

    Args:
        record: with an observation.
        policy: the one the record names, or another to compare.
        guard: as configured when the record was made.

    Raises:
        TraceError: if the record carries no observation.
    """
    if not record.observation:
        raise TraceError(f"request {record.request_id}: the record carries no observation to replay")
    model = record.model_id
    eligible = np.array(record.mask)
    fleet = Fleet(
        specs=[NodeSpec(id=node_id, url="http://replay") for node_id in record.node_ids],
        columns=np.array([record.observation[name] for name in COLUMNS]),
        available=eligible,
        loaded=[frozenset({model}) if here else frozenset() for here in record.resident],
        looker=_looker(record),
    )
    request = Request(
        id=record.request_id, model=model, name=record.model, version=record.version, seq=record.seq,
        session=record.session, priority=record.priority, prompt_tokens=record.prompt_tokens or 0, load_s=record.load_s,
    )  # fmt: skip
    # What has a record went to a node, perhaps as a second attempt: refusing or holding it was out of the question.
    nobody = np.zeros(len(fleet), dtype=np.bool_)
    exploration = Exploration(record.exploration) if record.exploration else None
    return decide(
        request,
        _all_serving(fleet, model),
        policy,
        guard or BoundedLoad(),
        record.u,
        nobody,
        exploration=exploration,
    )


def _all_serving(fleet: Fleet, model: str) -> Fleet:
    """The mask was recorded whole, as availability; what the nodes could serve is in it already."""
    specs = [
        NodeSpec(id=spec.id, url=spec.url, loads_on_demand=True, models=frozenset({model}))
        for spec in fleet.specs
    ]
    return Fleet(specs, fleet.columns, fleet.available, fleet.loaded, looker=fleet.looker)


def _look_as_lists(look: Look | None) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Its arrays but the columns, which the observation has already."""
    if look is None:
        return {}
    return {
        "load": tuple(map(tuple, look.load.tolist())),
        "pairs": tuple(map(tuple, look.pairs.tolist())),
        "asked": (tuple(look.asked.tolist()),),
    }


def _looker(record: TraceRecord) -> Looker | None:
    """What was seen, whoever looks."""
    if not record.look:
        return None
    load, pairs, asked = (np.array(record.look[name]) for name in ("load", "pairs", "asked"))
    return lambda request, columns, now_s, observed: Look(columns, load, pairs, asked[0])  # noqa: ARG005 - it has been looked
