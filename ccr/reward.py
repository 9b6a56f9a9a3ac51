"""The one cost that everything tunes, learns and is compared by; the reward is its negative.

P99 is not additive over requests: it is a gate of every comparison, never a reward.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

LATENCY_CAP_S: Final = 60.0
"""Beyond a minute it no longer matters how late; what failed counts as this late."""

_SECONDS_PER_UNIT: Final = 4.0
_MISS: Final = 2.0
_SLO_FACTOR: Final = 2.5
_SLO_SLACK_S: Final = 2.0


def slo_s(ideal_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The latency promised to a request: 2.5 times what an idle, warm node would take, and 2 s.

    Args:
        ideal_s: latency alone on a warm node, any shape.
    """
    return _SLO_FACTOR * ideal_s + _SLO_SLACK_S


def cost(latency_s: NDArray[np.float64], ideal_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a request cost: a quarter per second, and two for a missed promise; same shape as the arguments.

    Args:
        latency_s: from arrival to the last token; ``inf`` where it failed.
        ideal_s: latency alone on a warm node.
    """
    late = latency_s > slo_s(ideal_s)
    return np.minimum(latency_s, LATENCY_CAP_S) / _SECONDS_PER_UNIT + _MISS * late


def cost_of_rejection(ideal_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a refused request cost: a missed promise, known at once, and the wait until it would have been due."""
    return np.minimum(slo_s(ideal_s), LATENCY_CAP_S) / _SECONDS_PER_UNIT + _MISS
