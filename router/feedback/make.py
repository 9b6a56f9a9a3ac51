"""Makes a record of what the router remembers of a request; in the feeding thread, where it holds nobody up."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from ccr.fleet import NodeState
from ccr.hashing import hash64
from ccr.lesson import LONGEST_S, OUTCOMES, Flag, Lesson, as_numbers
from ccr.types import NodeSpec, Outcome, Reading, Request
from router.recording.rows import Attempted, Timed, hashed

_NUMBER_OF: Final = {outcome: number for number, outcome in enumerate(OUTCOMES)}
_UNKNOWN: Final = -1.0
_COLD, _RETRY, _WENT_ON, _FALLBACK, _GUARDED, _REPORTED, _LOOKED = map(int, Flag)
_FLEETS: Final = 64
"""Fleets whose hashes are remembered: requests of a while ago end with the nodes of then."""


class Seen(Attempted, Protocol):
    """A request at a node, with what was seen when it was decided; see :class:`router.dispatch.Attempt`."""

    @property
    def seen(self) -> bytes: ...  # noqa: D102
    @property
    def state(self) -> NodeState: ...  # noqa: D102
    @property
    def is_reported(self) -> bool: ...  # noqa: D102


class Ended(NamedTuple):
    """A request that a node had, when it ended.

    Args:
        attempt: the one that ended.
        outcome: how.
        times: measured.
        reading: the latest of the node.
        age_s: of the reading.
        went_on: whether another node got the request.
    """

    attempt: Seen
    outcome: Outcome
    times: Timed
    reading: Reading
    age_s: float
    went_on: bool = False


class Refused(NamedTuple):
    """A request that ended in the router.

    Args:
        outcome: how.
        arrived_s: when it came.
        now_s: when it ended.
        request: as far as it was understood.
    """

    outcome: Outcome
    arrived_s: float
    now_s: float
    request: Request | None


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes records.

    Args:
        since_1970: turns a moment of the router's clock into seconds since 1970.
        penalty_s: what a failure is charged with, at least.
        published: epoch and version of the published weights behind a policy epoch; zeros where there are none.
    """

    since_1970: Callable[[float], float]
    penalty_s: float
    published: Callable[[int], tuple[int, int]] = lambda _: (0, 0)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _fleets: dict[int, tuple[Sequence[NodeSpec], bytes]] = field(default_factory=dict, repr=False)

    def lesson(self, event: "Ended | Refused") -> Lesson:
        """The record."""
        return self._of_ended(event) if isinstance(event, Ended) else self._of_refused(event)

    def _of_refused(self, event: Refused) -> Lesson:
        total_s = max(event.now_s - event.arrived_s, 0.0)
        return Lesson(
            at_s=self.since_1970(event.arrived_s), outcome=_NUMBER_OF[event.outcome], total_s=total_s,
            charged_s=total_s, **self._asked_for(event.request),
        )  # fmt: skip

    def _of_ended(self, event: Ended) -> Lesson:
        attempt, times, decision = event.attempt, event.times, event.attempt.decision
        total_s = max(times.total_s, 0.0)
        weights_epoch, weights_version = self.published(attempt.epoch)
        return Lesson(
            at_s=self.since_1970(attempt.arrived_s), outcome=_NUMBER_OF[event.outcome], flags=_flags(event),
            queue_s=max(times.queue_s, 0.0), total_s=total_s, ttft_s=times.ttft_s,
            charged_s=max(total_s, self.penalty_s) if event.outcome.is_node_failure else total_s,
            prompt_tokens=times.prompt_tokens, output_tokens=times.output_tokens,
            policy=_hash(decision.policy), policy_epoch=attempt.epoch, weights_epoch=weights_epoch, weights_version=weights_version,
            chosen=decision.index, drawn=_place(decision.drawn_id, decision.index, attempt.specs), u=decision.u,
            propensity=decision.propensity, drawn_propensity=decision.drawn_propensity,
            nodes=self._nodes(attempt.specs), mask=decision.mask.tobytes(),
            probabilities=decision.probabilities.astype("<f8").tobytes(),
            columns=as_numbers(np.frombuffer(attempt.seen)), after=_after(event.reading), after_age_s=min(event.age_s, LONGEST_S),
            **_look(decision), **self._asked_for(attempt.request),
        )  # fmt: skip

    def _asked_for(self, request: Request | None) -> dict[str, Any]:
        if request is None:
            return {}
        return {
            "prompt_estimate": request.prompt_tokens, "output_limit": request.output_tokens, "priority": request.priority,
            "model": _hash(request.model), "session": int(hashed(request.session, self._key) or "0", 16),
        }  # fmt: skip

    def _nodes(self, specs: Sequence[NodeSpec]) -> bytes:
        """Hashes of the nodes; remembered by the identity of the fleet's tuple, as hashing it would take longer."""
        known = self._fleets.get(id(specs))
        if known is None or known[0] is not specs:
            if len(self._fleets) >= _FLEETS:
                self._fleets.clear()
            hashes = np.array([hash64(spec.id) for spec in specs], dtype="<u8").tobytes()
            known = self._fleets[id(specs)] = specs, hashes
        return known[1]


def _flags(event: Ended) -> int:
    # On whole numbers: six unions of an enumeration take a third of the time of a record.
    attempt, decision = event.attempt, event.attempt.decision
    return (
        _COLD * bool(attempt.is_cold)
        + _RETRY * bool(attempt.parent_id)
        + _WENT_ON * event.went_on
        + _FALLBACK * bool(decision.fallback)
        + _GUARDED * bool(decision.guard_reason)
        + _REPORTED * attempt.is_reported
        + _LOOKED * (decision.look is not None)
    )


def _look(decision: Any) -> dict[str, Any]:
    look = decision.look
    if look is None:
        return {}
    return {name: as_numbers(getattr(look, name)) for name in ("load", "pairs", "asked")}


def _after(reading: Reading) -> tuple[float, ...]:
    told = (reading.running, reading.waiting, reading.kv_used, reading.gpu_free_gib, reading.gpu_util)
    return tuple(_UNKNOWN if number is None else float(number) for number in told)


def _place(drawn_id: str, chosen: int, specs: Any) -> int:
    if specs[chosen].id == drawn_id:
        return chosen
    return next(index for index, spec in enumerate(specs) if spec.id == drawn_id)


@lru_cache(maxsize=4096)
def _hash(name: str) -> int:
    return hash64(name)
