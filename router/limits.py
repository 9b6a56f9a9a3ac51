"""How much is let in, and how much may be tried again."""

from dataclasses import dataclass

from ccr.settings import AdmissionSettings
from ccr.types import Outcome
from router.auth import Tenant
from router.refusals import Refusal


@dataclass(slots=True)
class TokenBucket:
    """``rate`` tokens per second, at most ``burst`` kept.

    Args:
        rate: tokens per second.
        burst: most that can be kept.
    """

    rate: float
    burst: float
    tokens: float = -1.0
    at_s: float = 0.0

    def take(self, now_s: float) -> bool:
        """Take one token if there is one."""
        if self.tokens < 0.0:
            self.tokens, self.at_s = self.burst, now_s
        self.tokens = min(self.burst, self.tokens + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Admission:
    """Bounded work in progress: above the bound a request is refused at once, low priority first.

    Args:
        settings: the bounds.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._low_bound = int(settings.max_inflight * settings.low_priority_share)
        self._bucket = TokenBucket(settings.max_qps, max(settings.max_qps, 1.0)) if settings.max_qps else None

    def admit(self, in_flight: int, priority: int, tenant: Tenant, now_s: float) -> None:
        """Let the request in, or refuse it.

        Args:
            in_flight: requests in flight in this router.
            priority: negative gives way earlier.
            tenant: who asks.
            now_s: the moment.

        Raises:
            Refusal: 429 with the reason and when to come back.
        """
        if in_flight >= self._settings.max_inflight:
            raise self._refusal(
                "overloaded", f"{in_flight} requests are in flight here, the most there may be"
            )
        if priority < 0 and in_flight >= self._low_bound:
            raise self._refusal("low_priority_shed", "the router is busy and low priority gives way first")
        if tenant.max_inflight and tenant.inflight >= tenant.max_inflight:
            raise self._refusal(
                "tenant_limit", f"{tenant.name!r} has {tenant.inflight} requests in flight, its limit"
            )
        if self._bucket is not None and not self._bucket.take(now_s):
            raise self._refusal("rate_limited", f"more than {self._settings.max_qps:g} requests per second")

    def _refusal(self, code: str, message: str) -> Refusal:
        return Refusal(429, code, message, Outcome.REJECTED, self._settings.retry_after_s)


class RetryBudget:
    """Retries are a share of requests plus a trickle, so that an outage is not amplified.

    The form is Finagle's and Linkerd's: ``ratio`` per request deposited, ``per_s`` on top, over a window.

    Args:
        ratio: retries earned per request.
        per_s: retries per second on top.
        window_s: what was earned longer ago is worth nothing.
    """

    def __init__(self, ratio: float, per_s: float, window_s: float = 10.0) -> None:
        self._ratio = ratio
        self._trickle = TokenBucket(per_s, max(per_s, 1.0))
        self._cap = ratio * 1000.0
        self._decay_per_s = 1.0 / window_s
        self._earned = 0.0
        self._at_s = 0.0
        self.exhausted_total = 0

    def deposit(self, now_s: float) -> None:
        """A request arrived."""
        self._fade(now_s)
        self._earned = min(self._earned + self._ratio, self._cap)

    def take(self, now_s: float) -> bool:
        """Whether a retry may be made now; takes it from the budget."""
        self._fade(now_s)
        if self._earned >= 1.0:
            self._earned -= 1.0
            return True
        if self._trickle.rate > 0.0 and self._trickle.take(now_s):
            return True
        self.exhausted_total += 1
        return False

    def _fade(self, now_s: float) -> None:
        self._earned *= max(0.0, 1.0 - (now_s - self._at_s) * self._decay_per_s)
        self._at_s = now_s
