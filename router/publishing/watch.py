"""Watches how requests fare under the weights in force: told by the serving thread in one append each, counted in another."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ccr.policy import Policy
from ccr.types import Decision, Outcome
from ccr.watch import Facts, Tally, facts
from router.recording.rows import Timed

MAX_WAITING: Final = 65_536
"""What the serving thread tells and nobody has counted yet; beyond, it is left out."""
MOST: Final = 256
"""Decisions that are looked at in one turn, a tenth of a second; of more traffic than that, a sample."""
_SLICE: Final = 16
_REST_S: Final = 0.0005


class Proposed(Protocol):
    """Of a :class:`ccr.engine.Engine`: whose decision it was."""

    @property
    def policy(self) -> Policy: ...  # noqa: D102


class Watched(Protocol):
    """A request at a node; see :class:`router.dispatch.Attempt`."""

    @property
    def decision(self) -> Decision: ...  # noqa: D102
    @property
    def engine(self) -> Proposed: ...  # noqa: D102
    @property
    def arrived_s(self) -> float: ...  # noqa: D102
    @property
    def is_reported(self) -> bool: ...  # noqa: D102


@dataclass(slots=True)
class _Open:
    """A request under way.

    Args:
        attempt: itself, so that its identity stays its own.
        found: what its decision showed.
        is_late: whether its promise has been counted as missed.
    """

    attempt: Watched
    found: Facts
    is_late: bool = False


class Watch:
    """Counts requests for a :class:`ccr.watch.Judge`.

    :meth:`decided` and :meth:`ended` are for the serving thread, everything else for one other.

    Args:
        rest: called now and then while there is much to count: lets the thread that serves requests go on.
    """

    def __init__(self, rest: Callable[[], object] = lambda: time.sleep(_REST_S)) -> None:
        self._queue: deque[tuple[Any, Outcome | None, float, bool]] = deque()
        self._rest = rest
        self._open: dict[int, _Open] = {}
        self._tally = Tally()

    # For the serving thread

    def decided(self, attempt: Watched) -> None:
        """A node was chosen."""
        if len(self._queue) < MAX_WAITING:
            self._queue.append((attempt, None, 0.0, False))

    def ended(self, attempt: Watched, outcome: Outcome, times: Timed, *, went_on: bool = False) -> None:
        """A request ended at a node, or went on to another one."""
        if len(self._queue) < MAX_WAITING:
            self._queue.append((attempt, outcome, times.total_s, went_on))

    # For the watching thread

    def begin(self) -> None:
        """Other weights are in force: nothing has been seen of them."""
        self._open.clear()
        self._tally = Tally()

    def count(self, policy: Policy | None, now_s: float) -> None:
        """Count what was told of requests that this policy decided, and what is late by now.

        Args:
            policy: in force.
            now_s: the moment, on the clock of the requests.
        """
        looked = 0
        for _ in range(len(self._queue)):
            attempt, outcome, total_s, went_on = self._queue.popleft()
            if outcome is not None:
                self._end(attempt, outcome, total_s, went_on)
            elif attempt.engine.policy is policy and looked < MOST:
                looked += 1
                found = facts(attempt.decision)
                self._tally.decided(found)
                self._open[id(attempt)] = _Open(attempt, found)
                if looked % _SLICE == 0:
                    self._rest()
        for one in self._open.values():
            if (
                not (one.is_late or one.attempt.is_reported)
                and now_s - one.attempt.arrived_s > one.found.promised_s
            ):
                one.is_late = True
                self._tally.ended(one.found.strain, missed=True)

    def interval(self) -> Tally:
        """What was counted since the last time."""
        tally, self._tally = self._tally, Tally()
        return tally

    def _end(self, attempt: Watched, outcome: Outcome, total_s: float, went_on: bool) -> None:
        one = self._open.pop(id(attempt), None)
        if one is None:
            return
        failed = None if outcome.is_censored else outcome.is_node_failure
        missed: bool | None = total_s > one.found.promised_s or outcome.is_node_failure
        if one.is_late or went_on or (outcome.is_censored and not missed):
            missed = None
        self._tally.ended(one.found.strain, missed=missed, failed=failed)
