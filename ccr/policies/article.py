"""The score of the founding article: affinity, free memory, requests per second."""

from dataclasses import dataclass

import numpy as np

from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class Article:
    """``100 * resident + 5 * max(0, free GiB - 2) + 0.5 * (100 - QPS)``, weights as published.

    Args:
        affinity: points for a node that has the weights resident.
        per_free_gib: points per free GiB above the buffer.
        buffer_gib: memory kept free.
        per_qps: points lost per request per second.
    """

    affinity: float = 100.0
    per_free_gib: float = 5.0
    buffer_gib: float = 2.0
    per_qps: float = 0.5
    name: str = "article"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Points, shape ``(len(fleet),)``."""
        memory = self.per_free_gib * np.maximum(fleet.gpu_free_gib - self.buffer_gib, 0.0)
        load = self.per_qps * (100.0 - fleet.qps)
        points: Scores = self.affinity * fleet.resident(request.model) + memory + load
        return points
