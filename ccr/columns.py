"""The columns of a fleet that time alone changes, from what was last seen of each node: one pure function of arrays.

``ccr/native/swift.c`` has the same function; :data:`refreshed` is what this process uses.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from ccr.book import Flags, Floats
from ccr.native import IS_NATIVE, swift
from ccr.types import COLUMNS, UNKNOWN

# Rows of what was last seen. ----------------------------------------------------------------------------------------
QPS: Final = 0
DISPATCHED_S: Final = 1
LATENCY_S: Final = 2
LATENCY_AT_S: Final = 3
READ_S: Final = 4
FREE_GIB: Final = 5
RUNNING: Final = 6
WAITING: Final = 7
KV_USED: Final = 8
HEALTHY_SINCE_S: Final = 9

#: Row -> what it holds.
SEEN: Final = (
    "requests per second at the last dispatch",
    "when that was; -inf where there was none",
    "mean latency at the last answer; 0 where there was none",
    "when that was",
    "when the node was last read; -inf where it never was",
    "free device memory as read; NaN where the source does not tell",
    "sequences in the engine's batch as read; 0 where it does not tell",
    "sequences in the engine's queue as read; likewise",
    "used fraction of the KV cache as read; likewise",
    "when the node came back into rotation",
)

_ROW = {name: row for row, name in enumerate(COLUMNS)}


def refresh(
    seen: Floats, stale_after_s: float, qps_window_s: float, latency_memory_s: float, slow_start_s: float,
    now_s: float, columns: Floats,
) -> float:  # fmt: skip
    """Bring the columns up to date, and return the mean latency of the nodes that answered anything; 0 without any.

    Args:
        seen: rows of :data:`SEEN`, shape ``(len(SEEN), n)``.
        stale_after_s: a reading older than this is masked to a neutral value.
        qps_window_s: time constant of the rate.
        latency_memory_s: time constant with which a node without answers drifts to the mean latency.
        slow_start_s: time over which a returning node's share grows from a tenth to all; 0: at once.
        now_s: the moment.
        columns: rows of :data:`ccr.types.COLUMNS`, shape ``(C, n)``; those that time changes are written.
    """
    age_s = now_s - seen[READ_S]
    is_fresh = age_s <= stale_after_s
    latency_s = seen[LATENCY_S]
    mean_s = _mean(latency_s, latency_s > 0.0)
    kept = np.exp(-np.maximum(now_s - seen[LATENCY_AT_S], 0.0) / latency_memory_s)
    is_told = is_fresh & ~np.isnan(seen[FREE_GIB])
    columns[_ROW["qps"]] = seen[QPS] * np.exp(-np.maximum(now_s - seen[DISPATCHED_S], 0.0) / qps_window_s)
    columns[_ROW["latency_s"]] = np.where(latency_s > 0.0, mean_s + (latency_s - mean_s) * kept, 0.0)
    columns[_ROW["gpu_free_gib"]] = np.where(is_told, seen[FREE_GIB], _mean(seen[FREE_GIB], is_told))
    columns[_ROW["running"]] = np.where(is_fresh, seen[RUNNING], 0.0)
    columns[_ROW["waiting"]] = np.where(is_fresh, seen[WAITING], 0.0)
    columns[_ROW["kv_used"]] = np.where(is_fresh, seen[KV_USED], 0.0)
    columns[_ROW["telemetry_age_s"]] = np.minimum(age_s, UNKNOWN)
    ramp = (now_s - seen[HEALTHY_SINCE_S]) / slow_start_s if slow_start_s > 0.0 else np.ones(len(age_s))
    columns[_ROW["ramp"]] = np.minimum(np.maximum(ramp, 0.1), 1.0)
    return mean_s


def _mean(values: Floats, is_counted: Flags) -> float:
    """One after the other, as the compiled simulator adds."""
    counted = values[is_counted]
    return float(np.cumsum(counted)[-1]) / len(counted) if len(counted) else 0.0


#: :func:`refresh`, compiled where it can be.
refreshed: Callable[..., float] = swift.refresh if IS_NATIVE else refresh
