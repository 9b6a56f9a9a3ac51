"""Prequal's rule: among nodes that are not hot the fastest, else the least loaded."""

import math
from dataclasses import dataclass

import numpy as np

from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class HotCold:
    """Hot/cold lexicographic rule of Prequal (Wydrowski et al., NSDI 2024, arXiv 2312.10172).

    A node is hot when its requests in flight exceed a quantile of those of the nodes in rotation. Cold nodes are ordered
    by latency, to which a node without the weights adds the time to load them; hot ones come after
    all cold ones, ordered by requests in flight.

    Args:
        quantile: of requests in flight, above which a node is hot; in [0, 1]. Prequal reports 0.6-0.9 as good.
        default_load_s: price of a load when the catalogue does not tell (A10, 7B int8 from disk).
    """

    quantile: float = 0.75
    default_load_s: float = 5.0
    name: str = "hot_cold"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus expected seconds for cold nodes, far below them minus requests in flight; shape ``(n,)``."""
        cold_start_s = (request.load_s or self.default_load_s) * ~fleet.resident(request.model)
        expected_s = fleet.latency_s + cold_start_s
        hot = fleet.inflight > self._threshold(fleet)
        if not np.count_nonzero(hot):
            return -expected_s
        return -np.where(hot, _FAR + fleet.inflight + expected_s / _FAR, expected_s)

    def _threshold(self, fleet: Fleet) -> float:
        """The quantile of requests in flight over the nodes in rotation: the value at rank ``ceil(q * n)``, from 1."""
        counted: list[float] = fleet.inflight.tolist()
        if np.count_nonzero(fleet.available) not in {0, len(counted)}:
            counted = fleet.inflight[fleet.available].tolist()
        counted.sort()
        return counted[max(math.ceil(self.quantile * len(counted)) - 1, 0)]


# Larger than any latency in seconds, small enough that float64 still tells requests apart beside it.
_FAR = 1e6
