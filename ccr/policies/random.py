"""Any eligible node, all equally likely."""

from dataclasses import dataclass

import numpy as np

from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class Random:
    """Equal scores: ties share, and the decision's draw picks."""

    name: str = "random"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:  # noqa: ARG002 - blind on purpose
        """Zeros, shape ``(len(fleet),)``."""
        return np.zeros(len(fleet))
