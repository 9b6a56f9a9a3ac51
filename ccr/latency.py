"""When a request is expected to be answered on each node; compiled where it can be."""

import numpy as np

from ccr import cost
from ccr.book import Floats
from ccr.look import IDEAL_S, Look
from ccr.native import IS_NATIVE, swift
from ccr.reward import slo_s

_SELFISH = np.array(cost.SELFISH)


def expected_s(look: Look) -> Floats:
    """Expected latency on each node, shape ``(n,)``: :func:`ccr.cost.latency_s` of its terms."""
    if not IS_NATIVE:
        return cost.latency_s(cost.terms(look))
    seconds = np.empty(look.load.shape[1])
    swift.costs(look, _SELFISH, seconds)
    return seconds


def promised_s(look: Look) -> float:
    """The latency promised to the request."""
    return float(slo_s(look.asked[IDEAL_S]))
