"""Consistent hashing with bounded loads: a model stays on its node, and spills clockwise when that is full."""

from dataclasses import dataclass

import numpy as np

from ccr.hashing import hash64
from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class BoundedHash:
    """A ring of nodes, each at the hash of its id; a model goes to the first node after its own hash with room.

    Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads" (2016).

    Args:
        factor: bound on requests in flight, in means of the fleet.
    """

    factor: float = 1.25
    name: str = "bounded_hash"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the way along the ring in (-1, 0], minus 1 and the load for full nodes; shape ``(len(fleet),)``."""
        here = np.uint64(hash64(request.model))
        way = (fleet.id_hashes - here) / 2.0**64  # unsigned: wraps around the ring
        bound = np.ceil(self.factor * (fleet.inflight.sum() + 1.0) / len(fleet))
        scores: Scores = np.where(fleet.inflight + 1.0 > bound, -1.0 - fleet.inflight, -way)
        return scores
