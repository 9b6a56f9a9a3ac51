"""What one run of one policy on one scenario gave: an outcome for each request, and the fleet's counters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ccr.reward import cost, cost_of_rejection, slo_s

OK: Final = 0
REJECTED: Final = 1
FAILED: Final = 2

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Episode:
    """One run, request by request; all columns have shape ``(r,)``, r the requests offered.

    Args:
        scenario: its name.
        policy: its name.
        seed: of arrivals, node noise and draws; equal seeds mean equal arrivals under every policy.
        arrived_s: arrival, non-decreasing.
        total_s: from arrival to the last token; NaN where refused or failed.
        ttft_s: from arrival to the first token; NaN where there was none.
        ideal_s: latency alone on a warm A10.
        node: index of the node that served it; -1 where refused.
        status: :data:`OK`, :data:`REJECTED` or :data:`FAILED`.
        cold: whether the weights were not resident when it was dispatched.
        counted: requests that count; false during warm-up.
        evictions: models that left a GPU.
        loads: weights brought in, waited for or not.
        peak_gib: most GPU memory in use on any node.
        span_s: time from the first counted arrival to the last answer.
        decision_s: mean time of a decision on this machine; 0 where it was not measured.
        guard_overrides: decisions the guard changed.
    """

    scenario: str
    policy: str
    seed: int
    arrived_s: Floats
    total_s: Floats
    ttft_s: Floats
    ideal_s: Floats
    node: NDArray[np.int64]
    status: NDArray[np.int64]
    cold: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    evictions: int
    loads: int
    peak_gib: float
    span_s: float
    decision_s: float = 0.0
    guard_overrides: int = 0

    def __len__(self) -> int:
        return len(self.arrived_s)

    @property
    def costs(self) -> Floats:
        """The cost of each counted request, see :mod:`ccr.reward`."""
        latency_s = np.where(self.status == OK, self.total_s, np.inf)
        each = np.where(
            self.status == REJECTED, cost_of_rejection(self.ideal_s), cost(latency_s, self.ideal_s)
        )
        return each[self.counted]

    def metrics(self) -> dict[str, float]:
        """The figures policies are compared by; latencies are of the requests that were served.

        ``slo`` and ``goodput`` count every offered request: refusing one is a promise missed.
        """
        counted = self.counted
        served = counted & (self.status == OK)
        total_s, ttft_s = self.total_s[served], self.ttft_s[served]
        kept = served & (self.total_s <= slo_s(self.ideal_s))
        offered = max(int(counted.sum()), 1)
        return {
            "cost": float(self.costs.mean()),
            "mean_s": _or_nan(total_s, np.mean),
            "p50_s": _or_nan(total_s, np.median),
            "p99_s": _quantile(total_s, 0.99),
            "ttft_p99_s": _quantile(ttft_s, 0.99),
            "slo": float(kept.sum()) / offered,
            "throughput": float(served.sum() / self.span_s),
            "goodput": float(kept.sum() / self.span_s),
            "cold_starts": float((self.cold & counted).sum()),
            "evictions": float(self.evictions),
            "loads": float(self.loads),
            "peak_gib": self.peak_gib,
            "reject_rate": float((counted & (self.status == REJECTED)).sum()) / offered,
            "failures": float((counted & (self.status == FAILED)).sum()),
            "guard_overrides": float(self.guard_overrides),
            "decision_us": 1e6 * self.decision_s,
        }


def span_of(arrived_s: Floats, total_s: Floats, counted: NDArray[np.bool_]) -> float:
    """Seconds from the first counted arrival to the last answer, above 0."""
    if not counted.any() or np.isnan(total_s).all():
        return 1e-9
    return max(float(np.nanmax(arrived_s + total_s) - arrived_s[counted].min()), 1e-9)


def _or_nan(values: Floats, statistic: Callable[[Floats], "np.floating[Any]"]) -> float:
    return float(statistic(values)) if len(values) else float("nan")


def _quantile(values: Floats, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else float("nan")
