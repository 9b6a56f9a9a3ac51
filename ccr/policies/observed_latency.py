"""Policies that learn latencies from what they observe: a curve per node, or one regression for all."""

from dataclasses import dataclass

import numpy as np

from ccr.expectations import look_of
from ccr.picker import GREEDY, Picker
from ccr.scoring import lowest_curve, lowest_prediction
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Each node's own curve of time to first token over requests in flight, as it was seen.

    Args:
        load: weight of the wait for the model's weights.
    """

    load: float = 1.0
    name: str = "latency_curve"
    picker: Picker = GREEDY
    observes: bool = True

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the seconds, shape ``(len(fleet),)``."""
        return lowest_curve(look_of(request, fleet, observed=True), np.array([self.load]))


@dataclass(frozen=True, slots=True)
class LatencyPredictor:
    """Time to first token and time per token regressed online on load and prompt, used greedily (as llm-d does).

    Args:
        load: weight of the wait for the model's weights.
        token: weight of the predicted time of the tokens.
    """

    load: float = 1.0
    token: float = 1.0
    name: str = "latency_predictor"
    picker: Picker = GREEDY
    observes: bool = True

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the predicted seconds, shape ``(len(fleet),)``."""
        return lowest_prediction(look_of(request, fleet, observed=True), np.array([self.load, self.token]))
