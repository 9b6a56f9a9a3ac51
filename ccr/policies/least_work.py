"""Least residual work: the node with the fewest seconds of work before it."""

from dataclasses import dataclass

import numpy as np

from ccr.expectations import look_of
from ccr.picker import GREEDY, Picker
from ccr.scoring import fastest_drain, least_work
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class LeastWork:
    """Seconds of loads, prefill and decoding a node still has to do, by the router's ledger.

    Args:
        load: weight of the wait for the model's weights.
    """

    load: float = 1.0
    name: str = "least_work"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the seconds, shape ``(len(fleet),)``."""
        return least_work(look_of(request, fleet), np.array([self.load]))


@dataclass(frozen=True, slots=True)
class FastestDrain:
    """Requests in flight over the rate at which the node has been finishing them.

    Args:
        load: weight of the wait for the model's weights.
    """

    load: float = 1.0
    name: str = "fastest_drain"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the seconds, shape ``(len(fleet),)``."""
        return fastest_drain(look_of(request, fleet), np.array([self.load]))
