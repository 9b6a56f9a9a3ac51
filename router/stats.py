"""What the router counts: plain numbers while it runs, turned into metrics when somebody asks."""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

#: Seconds; from the quickest decision in question to the slowest answer.
DECISION_BUCKETS_S: Final = (10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3)
LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TPOT_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
MAX_LABELS: Final = 500
OTHER: Final = "other"


class Histogram:
    """Counts per bucket.

    Args:
        bounds: upper bounds, ascending, without infinity.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class ByModel:
    """One histogram per model, at most :data:`MAX_LABELS` of them; the rest share ``other``.

    Args:
        bounds: of each.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.histograms: dict[str, Histogram] = {}

    def observe(self, model: str, value: float) -> None:
        """Count one value for the model."""
        histogram = self.histograms.get(model)
        if histogram is None:
            model = model if len(self.histograms) < MAX_LABELS else OTHER
            histogram = self.histograms.setdefault(model, Histogram(self._bounds))
        histogram.observe(value)


class Stats:
    """Everything counted since the start."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()  # model, version, outcome
        self.by_tenant: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # code
        self.decisions: Counter[str] = Counter()  # policy
        self.fallbacks: Counter[str] = Counter()  # policy that failed
        self.feedback: Counter[str] = Counter()  # result
        self.telemetry_errors: Counter[tuple[str, str]] = Counter()  # node, reason
        self.guard_overrides = 0
        self.cold_starts: Counter[str] = Counter()  # model
        self.attempts = 0
        self.retries = 0
        self.holds = 0
        self.batches_held = 0
        self.requests_held = 0
        self.policy_reloads: Counter[str] = Counter()  # result
        self.decision_s = Histogram(DECISION_BUCKETS_S)
        self.duration_s = ByModel(LATENCY_BUCKETS_S)
        self.ttft_s = ByModel(LATENCY_BUCKETS_S)
        self.tpot_s = ByModel(TPOT_BUCKETS_S)
        self.tokens: Counter[tuple[str, str]] = Counter()  # model, prompt or output
        self._slow: deque[tuple[float, float]] = deque(maxlen=4096)

    def decided(self, took_s: float, now_s: float) -> None:
        """Count a decision's time; the slow ones are remembered a while for ``router_score_duration``."""
        self.decision_s.observe(took_s)
        if not self._slow or took_s >= self._slow[-1][1] or now_s - self._slow[-1][0] > 1.0:
            self._slow.append((now_s, took_s))

    def slowest_decision_s(self, now_s: float, window_s: float = 15.0) -> float:
        """The slowest recent decision."""
        return max((took for at, took in self._slow if now_s - at <= window_s), default=0.0)

    def ended(self, model: str, version: str, outcome: str) -> None:
        """Count how a request ended; model and version come from the catalogue or the fleet, so they are bounded."""
        key = (model, version, outcome)
        if key not in self.outcomes and len(self.outcomes) >= 10 * MAX_LABELS:
            key = (OTHER, "", outcome)
        self.outcomes[key] += 1
