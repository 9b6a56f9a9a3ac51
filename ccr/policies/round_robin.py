"""Each node in its turn."""

from dataclasses import dataclass

import numpy as np

from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """The request carries its number, so there is no cursor to keep or to share."""

    name: str = "round_robin"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Zero for the node whose turn it is, then -1, -2, ...; shape ``(len(fleet),)``."""
        n = len(fleet)
        return -((np.arange(n) - request.seq) % n).astype(np.float64)
