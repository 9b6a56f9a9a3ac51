"""Which weights of which policies may be tuned, and where they may lie."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Range(NamedTuple):
    """Where a weight may lie.

    Args:
        low: smallest value.
        high: largest value.
        log: whether factors matter rather than differences.
    """

    low: float
    high: float
    log: bool = False


_SECONDS = Range(0.1, 10.0, log=True)

#: Policy -> option -> range.
TUNABLE: Mapping[str, Mapping[str, Range]] = MappingProxyType(
    {
        "least_request": {"cold_start_penalty": Range(0.0, 40.0)},
        "power_of_two": {"cold_start_penalty": Range(0.0, 40.0)},
        "hot_cold": {"quantile": Range(0.0, 1.0), "default_load_s": Range(0.5, 60.0, log=True)},
        "article": {
            "affinity": Range(0.0, 300.0), "per_free_gib": Range(0.0, 20.0), "per_qps": Range(0.1, 200.0, log=True),
        },
        "session_affinity": {"factor": Range(1.0, 4.0)},
        "bounded_hash": {"factor": Range(1.0, 4.0)},
        "prefix_affinity": {"cached": Range(0.0, 20.0), "cold_start_penalty": Range(0.0, 60.0)},
        "least_work": {"load": _SECONDS},
        "fastest_drain": {"load": _SECONDS},
        "latency_curve": {"load": _SECONDS},
        "latency_predictor": {"load": _SECONDS, "token": Range(0.0, 3.0)},
        "least_cost": {
            "load": _SECONDS,
            "backlog": _SECONDS,
            "prefill": Range(0.0, 5.0),
            "decode": Range(0.0, 3.0),
            "kv": Range(0.0, 10.0),
            "inflicted": Range(0.0, 5.0),
            "evicted": Range(0.1, 100.0, log=True),
            "cold": Range(0.0, 20.0),
        },
    }
)  # fmt: skip
