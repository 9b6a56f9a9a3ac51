"""The figures of a comparison: what they are called, which way is better, how their ratio is taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of an episode.

    Args:
        label: for people, with its unit.
        short: for the head of a column.
        higher_is_better: otherwise lower is.
        positive: it is never 0, so paired ratios per episode exist; otherwise the means are divided.
    """

    label: str
    short: str
    higher_is_better: bool = False
    positive: bool = False


#: A line for each key of :meth:`envs.episode.Episode.metrics`, in its order.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "cost": Metric("cost", "cost", positive=True),
        "mean_s": Metric("mean latency, s", "mean s", positive=True),
        "p50_s": Metric("P50 latency, s", "p50 s", positive=True),
        "p99_s": Metric("P99 latency, s", "p99 s", positive=True),
        "ttft_p99_s": Metric("P99 time to first token, s", "ttft p99 s", positive=True),
        "slo": Metric("SLO kept, share", "slo", higher_is_better=True),
        "throughput": Metric("served, per second", "served/s", higher_is_better=True),
        "goodput": Metric("served in time, per second", "goodput/s", higher_is_better=True),
        "cold_starts": Metric("cold starts", "cold"),
        "evictions": Metric("evictions", "evicted"),
        "loads": Metric("weight loads", "loads"),
        "peak_gib": Metric("peak GPU memory, GiB", "peak GiB"),
        "reject_rate": Metric("rejected, share", "rejects"),
        "failures": Metric("failures", "failures"),
        "guard_overrides": Metric("guard overrides", "overrides"),
        "decision_us": Metric("decision time, us", "decision us"),
    }
)
