"""Whether the callers of ``/route`` say how it went; where they do not, a decision is over when it was expected to be.

A lease that nobody ends counts as a request in flight until it expires. With callers that never report, the ledger would
hold minutes of traffic, and a policy that refuses when the fleet is saturated would refuse everybody.
"""

from collections import deque
from collections.abc import Container
from typing import Final

from ccr import log

_SAMPLED: Final = 16  # decisions per expectation: one takes about as long as a score
_WEIGHT: Final = 0.1  # of a new expectation
_MEMORY: Final = 1 / 50  # decisions
_PATIENCE: Final = 3.0
"""Times what was expected; whoever reports has done so by then, mostly."""
_LEAST_PATIENCE_S: Final = 5.0
_LEAST_S: Final = 0.5
_SILENT: Final = 0.5
_log = log.get("sidecar")


class Hearing:
    """Watches decisions until their feedback should have come.

    Args:
        lease_s: after which a decision ends in any case.

    Attributes:
        share: of the latest decisions that were reported in time; begins with trust.
    """

    __slots__ = ("_expected_s", "_lease_s", "_number", "_waiting", "share")

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._expected_s = 0.0
        self._number = 0
        self._waiting: deque[tuple[float, str]] = deque()
        self.share = 1.0

    @property
    def wants(self) -> bool:
        """Whether to tell how long the next decision is expected to take."""
        return self._number % _SAMPLED == 0

    @property
    def is_silent(self) -> bool:
        """Whether most decisions are not reported."""
        return self.share < _SILENT

    @property
    def lease_s(self) -> float:
        """After which a decision is taken as over."""
        if not self.is_silent or not self._expected_s:
            return self._lease_s
        return min(max(self._expected_s, _LEAST_S), self._lease_s)

    def expect(self, seconds: float) -> None:
        """A decision is expected to take so long."""
        known_s = self._expected_s
        self._expected_s = known_s + _WEIGHT * (seconds - known_s) if known_s else seconds

    def decided(self, decision_id: str, now_s: float, unreported: Container[str]) -> None:
        """A decision was made; those before it whose feedback should have come by now are looked through, two at a time.

        Args:
            decision_id: of it.
            now_s: the moment.
            unreported: decisions that nobody reported and that have not expired.
        """
        self._number += 1
        if not self._expected_s:
            return
        waiting = self._waiting
        waiting.append((now_s, decision_id))
        due_s = now_s - min(max(_PATIENCE * self._expected_s, _LEAST_PATIENCE_S), self._lease_s)
        for _ in range(2):
            if not waiting or waiting[0][0] > due_s:
                return
            _, earlier = waiting.popleft()
            if earlier in unreported:
                self.missed()

    def heard(self) -> None:
        """Somebody reported."""
        self._count(1.0)

    def missed(self) -> None:
        """Somebody did not."""
        self._count(0.0)

    def _count(self, value: float) -> None:
        was_silent = self.is_silent
        self.share += _MEMORY * (value - self.share)
        if self.is_silent and not was_silent:
            _log.warning(
                "sidecar.silent", reported=round(self.share, 2), lease_s=round(self.lease_s, 2),
                remedy="have callers of /route send POST /feedback; until then a decision counts as over when it should be",
            )  # fmt: skip
