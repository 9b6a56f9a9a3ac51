"""When a node leaves rotation and how it comes back: one state machine per node, without a clock.

    healthy --failures in a row, or refused--> ejected --time--> probing --success--> healthy (slow start)
                                                  ^                  |
                                                  +-----failure------+

*Hard* evidence (nothing listens there) always ejects. *Soft* evidence (errors, timeouts) ejects at most
half of the fleet: beyond that the fault is probably not the nodes' (Envoy calls it panic).
"""

from dataclasses import dataclass
from enum import StrEnum

from ccr.types import Outcome


@dataclass(frozen=True, slots=True)
class OutlierRules:
    """When to eject and for how long.

    Args:
        failures: consecutive failed requests that eject.
        timeouts: consecutive timeouts that eject.
        base_s: first ejection; doubled for each further one.
        cap_s: longest ejection.
        forget_s: time in good health after which earlier ejections no longer count.
        soft_share: largest share of the fleet that soft evidence may eject.
        slow_start_s: time over which a returning node's share grows to full.
    """

    failures: int = 5
    timeouts: int = 2
    base_s: float = 5.0
    cap_s: float = 300.0
    forget_s: float = 300.0
    soft_share: float = 0.5
    slow_start_s: float = 30.0


class Phase(StrEnum):
    """Where a node is in the cycle."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    PROBING = "probing"


@dataclass(slots=True)
class Health:
    """One node's record; mutable, owned by the live fleet.

    Args:
        rules: when to eject.
    """

    rules: OutlierRules
    phase: Phase = Phase.HEALTHY
    failures: int = 0
    failing_since_s: float = 0.0
    timeouts: int = 0
    ejections: int = 0
    until_s: float = 0.0
    healthy_since_s: float = -1e18
    hard: bool = False
    why: str = ""

    def record(
        self,
        outcome: Outcome,
        now_s: float,
        u: float,
        *,
        refused: bool = False,
        may_eject_softly: bool = True,
        sent_s: float | None = None,
    ) -> None:
        """Take in how a request ended.

        Args:
            outcome: of a request that reached, or tried to reach, the node.
            now_s: the moment.
            u: jitter draw, in [0, 1).
            refused: nothing listened: hard evidence.
            may_eject_softly: false while too much of the fleet is out already.
            sent_s: when the request was sent; ``None``: now.
        """
        if outcome.is_censored:
            return
        if not outcome.is_node_failure:
            self._succeed(now_s, now_s if sent_s is None else sent_s)
            return
        if not self.failures:
            self.failing_since_s = now_s
        self.failures += 1
        self.timeouts = self.timeouts + 1 if outcome is Outcome.TIMEOUT else 0
        if refused:
            self._eject("connection refused", now_s, u, hard=True)
        elif self.phase is Phase.PROBING:
            self._eject("failed its probe", now_s, u, hard=self.hard)
        elif self.phase is Phase.HEALTHY and may_eject_softly:
            if self.timeouts >= self.rules.timeouts:
                self._eject(f"{self.timeouts} timeouts in a row", now_s, u, hard=False)
            elif self.failures >= self.rules.failures:
                self._eject(f"{self.failures} errors in a row", now_s, u, hard=False)

    def inherit(self, before: "Health") -> None:
        """Begin where an earlier incarnation of the node left off: a node that keeps crashing earns no fresh start."""
        self.ejections = before.ejections
        if before.phase is not Phase.HEALTHY:
            self.phase = Phase.PROBING
            self.until_s = min(before.until_s, self.healthy_since_s)
            self.hard, self.why = before.hard, before.why

    def advance(self, now_s: float) -> None:
        """Let an ejection end: the node may then take one probe."""
        if self.phase is Phase.EJECTED and now_s >= self.until_s:
            self.phase = Phase.PROBING

    def ramp(self, now_s: float) -> float:
        """Slow-start share, in [0.1, 1]: linear over ``slow_start_s`` since the node came back."""
        if self.rules.slow_start_s <= 0.0:
            return 1.0
        return min(max((now_s - self.healthy_since_s) / self.rules.slow_start_s, 0.1), 1.0)

    def _succeed(self, now_s: float, sent_s: float) -> None:
        self.timeouts = 0
        # What was under way before the first failure may well end: a node can fail all that is new.
        if sent_s >= self.failing_since_s or not self.failures or self.phase is Phase.PROBING:
            self.failures = 0
        if self.phase is Phase.PROBING:
            self.phase = Phase.HEALTHY
            self.healthy_since_s = now_s
            self.hard = False
            self.why = ""
        elif self.phase is Phase.HEALTHY and now_s - self.healthy_since_s > self.rules.forget_s:
            self.ejections = 0

    def _eject(self, why: str, now_s: float, u: float, *, hard: bool) -> None:
        if self.phase is Phase.EJECTED:
            return  # late failures of requests sent before the ejection prove nothing new
        length_s = min(self.rules.base_s * 2.0**self.ejections, self.rules.cap_s)
        # Jitter over the upper half: replicas do not probe in step, and no ejection is over at once.
        self.until_s = now_s + length_s * (0.5 + 0.5 * u)
        self.phase = Phase.EJECTED
        self.ejections += 1
        self.hard = hard
        self.why = why
