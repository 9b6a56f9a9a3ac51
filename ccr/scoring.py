"""Scores of the policies that look at the router's own expectations: pure functions of a look and a few weights.

One function per rule, compiled by the simulator as it stands; the policies of :mod:`ccr.policies` put names and
documented weights on them. Higher is better; shape ``(n,)``.
"""

from typing import Final

import numpy as np

from ccr.book import DONE_PER_S, OVERHEAD_S, SPEED, Floats
from ccr.cost import terms, total
from ccr.look import (
    BACKLOG_S,
    BUSY,
    CACHED_TOKENS,
    CURVE_TTFT_S,
    LOAD_WAIT_S,
    OUTPUT_TOKENS,
    PREDICTED_TOKEN_S,
    PREDICTED_TTFT_S,
    PREFILL_S,
    PROMPT_TOKENS,
    RESIDENT,
    STEP_AFTER_S,
    STEP_BEFORE_S,
    TOKENS_LEFT,
    Look,
)

_SLOWEST_DRAIN_PER_S: Final = 0.05


def least_cost(look: Look, theta: Floats) -> Floats:
    """Minus the weighted sum of the cost terms; ``theta`` as in :func:`ccr.cost.total`."""
    return -total(terms(look), theta)


def least_work(look: Look, theta: Floats) -> Floats:
    """Minus the seconds of work a node has before it: loads, prefill, and its tokens at the pace of its batch.

    Args:
        look: the request on every node.
        theta: one weight, of the seconds until the weights are there.
    """
    load, pairs = look.load, look.pairs
    decode_s = pairs[TOKENS_LEFT] * pairs[STEP_BEFORE_S] / np.maximum(pairs[BUSY], 1.0)
    return -(theta[0] * pairs[LOAD_WAIT_S] + load[SPEED] * (pairs[BACKLOG_S] + decode_s))


def fastest_drain(look: Look, theta: Floats) -> Floats:
    """Minus the seconds a node takes to finish what it has and this, at the rate it has been finishing.

    Args:
        look: the request on every node.
        theta: one weight, of the seconds until the weights are there.
    """
    rate = np.maximum(look.load[DONE_PER_S], _SLOWEST_DRAIN_PER_S)
    # An idle node's rate has decayed: it drains at least as fast as one request alone.
    alone_s = look.pairs[PREFILL_S] + look.asked[OUTPUT_TOKENS] * look.pairs[STEP_AFTER_S]
    rate = np.maximum(rate, 1.0 / np.maximum(alone_s, 1e-3))
    return -(theta[0] * look.pairs[LOAD_WAIT_S] + (look.pairs[BUSY] + 1.0) / rate)


def lowest_curve(look: Look, theta: Floats) -> Floats:
    """Minus the time to first token this node showed at this many requests in flight, and the wait for its weights.

    Args:
        look: the request on every node.
        theta: one weight, of the seconds until the weights are there.
    """
    pairs = look.pairs
    guess_s = pairs[BACKLOG_S] + pairs[PREFILL_S] + look.load[OVERHEAD_S]
    seen_s = np.where(pairs[CURVE_TTFT_S] > 0.0, pairs[CURVE_TTFT_S], guess_s)
    return -(theta[0] * pairs[LOAD_WAIT_S] + seen_s)


def lowest_prediction(look: Look, theta: Floats) -> Floats:
    """Minus the latency regressed from what was observed, and the wait for the weights.

    Args:
        look: the request on every node.
        theta: two weights: of the seconds until the weights are there, of the seconds per token.
    """
    pairs = look.pairs
    ttft_s = np.maximum(pairs[PREDICTED_TTFT_S], 0.0)
    token_s = np.maximum(pairs[PREDICTED_TOKEN_S], 0.0)
    return -(theta[0] * pairs[LOAD_WAIT_S] + ttft_s + theta[1] * look.asked[OUTPUT_TOKENS] * token_s)


def prefix_and_load(look: Look, theta: Floats) -> Floats:
    """Points for the prompt's share in the prefix cache, minus requests in flight and a penalty for a cold node.

    Args:
        look: the request on every node.
        theta: points for a wholly cached prompt, and for missing weights, each in requests in flight.
    """
    pairs = look.pairs
    cached = pairs[CACHED_TOKENS] / max(look.asked[PROMPT_TOKENS], 1.0)
    return theta[0] * cached - pairs[BUSY] - theta[1] * (1.0 - pairs[RESIDENT])
