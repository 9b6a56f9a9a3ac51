"""What a placement is expected to cost: eight terms in seconds, and a policy's weights over them.

Six terms are the request's own latency; *inflicted* is the delay it causes to what is in flight already, *evicted* the
loads it causes later. Leaving the last two out is the selfish rule of latency predictors; charging them is what made
the largest difference of all (``docs/decisions/0008-charge-for-delay-inflicted.md``).
"""

from typing import Final

import numpy as np

from ccr.book import OVERHEAD_S, SPEED, Floats
from ccr.look import (
    BACKLOG_S,
    BUSY,
    EVICT_COST_S,
    KV_WAIT_S,
    LOAD_WAIT_S,
    OUTPUT_TOKENS,
    PREFILL_S,
    RESIDENT,
    STEP_AFTER_S,
    STEP_BEFORE_S,
    TOKENS_LEFT,
    Look,
)

LOAD: Final = 0
BACKLOG: Final = 1
PREFILL: Final = 2
DECODE: Final = 3
KV: Final = 4
INFLICTED: Final = 5
EVICTED: Final = 6
COLD: Final = 7

#: Row -> what it holds.
TERMS: Final = (
    "wait for the weights",
    "prefill of those before it",
    "own prefill",
    "own decode",
    "wait for room in the KV cache",
    "delay inflicted on those in flight",
    "popularity-weighted reload of what is evicted",
    "1 where the weights are not resident",
)

SELFISH: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
"""The request's own predicted completion time and nothing else."""
NAIVE: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
"""Every second counts as a second, whoever waits."""


def terms(look: Look) -> Floats:
    """The terms of every node, shape ``(len(TERMS), n)``; those of a slow node are stretched by its observed speed."""
    load, pairs = look.load, look.pairs
    speed = load[SPEED]
    output_tokens = look.asked[OUTPUT_TOKENS]
    out = np.empty((len(TERMS), load.shape[1]))
    out[LOAD] = pairs[LOAD_WAIT_S]
    out[BACKLOG] = speed * pairs[BACKLOG_S]
    out[PREFILL] = speed * pairs[PREFILL_S] + load[OVERHEAD_S]
    out[DECODE] = speed * pairs[STEP_AFTER_S] * output_tokens
    out[KV] = speed * pairs[KV_WAIT_S]
    # Those in flight wait for its prefill, and each of their rounds takes longer while both are there.
    busy = pairs[BUSY]
    together = np.minimum(pairs[TOKENS_LEFT], busy * output_tokens)
    longer_s = pairs[STEP_AFTER_S] - pairs[STEP_BEFORE_S]
    out[INFLICTED] = speed * (busy * pairs[PREFILL_S] + together * longer_s)
    out[EVICTED] = pairs[EVICT_COST_S]
    out[COLD] = 1.0 - pairs[RESIDENT]
    return out


def latency_s(parts: Floats) -> Floats:
    """When the request itself is expected to be answered, shape ``(n,)``: :func:`total` under :data:`SELFISH`.

    Args:
        parts: of :func:`terms`.
    """
    first = np.maximum(parts[LOAD], parts[BACKLOG])
    seconds: Floats = first + parts[PREFILL] + parts[DECODE] + parts[KV]
    return seconds


def total(parts: Floats, theta: Floats) -> Floats:
    """The weighted sum, shape ``(n,)``; loads and prefill of others run side by side, so the longer of the two counts.

    Args:
        parts: of :func:`terms`.
        theta: one weight per term, shape ``(len(TERMS),)``.
    """
    first = np.maximum(theta[LOAD] * parts[LOAD], theta[BACKLOG] * parts[BACKLOG])
    weighted: Floats = (
        first
        + theta[PREFILL] * parts[PREFILL]
        + theta[DECODE] * parts[DECODE]
        + theta[KV] * parts[KV]
        + theta[INFLICTED] * parts[INFLICTED]
        + theta[EVICTED] * parts[EVICTED]
        + theta[COLD] * parts[COLD]
    )
    return weighted
