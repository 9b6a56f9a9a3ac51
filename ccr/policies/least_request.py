"""Prefer the node with the fewest requests in flight."""

from dataclasses import dataclass

from ccr.picker import BEST_OF_TWO, GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class LeastRequest:
    """Fewest outstanding requests first; a cold node also pays for its load.

    Args:
        cold_start_penalty: how many requests in flight a model load is worth.
            At 0 the policy ignores which models are loaded.
    """

    cold_start_penalty: float = 4.0
    name: str = "least_request"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the expected queue, in requests, shape ``(len(fleet),)``."""
        return -expected_queue(request, fleet, self.cold_start_penalty)


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """The better of two random nodes, by the same count as :class:`LeastRequest`.

    Mitzenmacher, "The power of two choices in randomized load balancing" (2001). Less prone to herding
    on a stale view than the minimum of all.

    Args:
        cold_start_penalty: as in :class:`LeastRequest`.
    """

    cold_start_penalty: float = 4.0
    name: str = "power_of_two"
    picker: Picker = BEST_OF_TWO

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Minus the expected queue, in requests, shape ``(len(fleet),)``."""
        return -expected_queue(request, fleet, self.cold_start_penalty)


def expected_queue(request: Request, fleet: Fleet, cold_start_penalty: float) -> Scores:
    """Requests in flight, a load counted as ``cold_start_penalty`` of them, shape ``(len(fleet),)``."""
    cold = ~fleet.resident(request.model)
    queue: Scores = fleet.inflight + cold_start_penalty * cold
    return queue
