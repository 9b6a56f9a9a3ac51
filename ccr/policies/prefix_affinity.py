"""Prefix affinity and load in one score: where the conversation is cached, unless it is busy there."""

from dataclasses import dataclass

import numpy as np

from ccr.expectations import look_of
from ccr.picker import GREEDY, Picker
from ccr.scoring import prefix_and_load
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class PrefixAffinity:
    """The weighted sum that prefix-aware routers use, in requests in flight.

    Args:
        cached: points for a prompt that is wholly in the prefix cache.
        cold_start_penalty: points lost where the weights are missing.
    """

    cached: float = 3.0
    cold_start_penalty: float = 8.0
    name: str = "prefix_affinity"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Points, shape ``(len(fleet),)``."""
        return prefix_and_load(look_of(request, fleet), np.array([self.cached, self.cold_start_penalty]))
