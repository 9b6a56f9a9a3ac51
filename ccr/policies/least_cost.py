"""Least expected cost: the request's own latency and, where it is charged, the delay it causes to others."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ccr.book import Floats
from ccr.cost import SELFISH
from ccr.expectations import look_of
from ccr.native import IS_NATIVE, swift
from ccr.picker import GREEDY, Picker
from ccr.scoring import least_cost
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class LeastCost:
    """Weights over the cost terms of :mod:`ccr.cost`, all in seconds but the last.

    The defaults were found by ``ccr tune least_cost`` (``docs/baselines.md``).

    Args:
        load: of the wait for the weights.
        backlog: of the prefill of those before it.
        prefill: of its own prefill.
        decode: of its own decode.
        kv: of the wait for room in the KV cache.
        inflicted: of the delay inflicted on those in flight.
        evicted: of the popularity-weighted reload of what it evicts.
        cold: for a node without the weights, in seconds.
    """

    load: float = 9.42
    backlog: float = 1.8
    prefill: float = 3.12
    decode: float = 1.09
    kv: float = 1.16
    inflicted: float = 2.56
    evicted: float = 0.425
    cold: float = 12.6
    name: str = "least_cost"
    picker: Picker = GREEDY

    @property
    def theta(self) -> tuple[float, ...]:
        """The weights in the order of :data:`ccr.cost.TERMS`."""
        return (
            self.load, self.backlog, self.prefill, self.decode, self.kv, self.inflicted, self.evicted, self.cold,
        )  # fmt: skip

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the weighted seconds, shape ``(len(fleet),)``."""
        return _scores(request, fleet, self.theta)


@dataclass(frozen=True, slots=True)
class LeastLatency:
    """Least predicted completion time of the request alone: load, queue, prefill, decode, wait for KV cache."""

    name: str = "least_latency"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the predicted seconds, shape ``(len(fleet),)``."""
        return _scores(request, fleet, SELFISH)


def _scores(request: Request, fleet: Fleet, theta: tuple[float, ...]) -> Scores:
    look, weights = look_of(request, fleet), _array(theta)
    if not IS_NATIVE:
        return least_cost(look, weights)
    cost_s = np.empty(len(fleet))
    swift.costs(look, weights, cost_s)
    return np.negative(cost_s, cost_s)


@lru_cache(maxsize=64)
def _array(theta: tuple[float, ...]) -> Floats:
    return np.array(theta)
