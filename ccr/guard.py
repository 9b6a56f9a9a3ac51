"""The bounded-load guard behind every policy: the policy proposes, the guard disposes."""

import math
from dataclasses import dataclass
from itertools import compress

import numpy as np

from ccr.types import Fleet, Mask, Probabilities, Scores


@dataclass(frozen=True, slots=True)
class BoundedLoad:
    """No eligible node gets above ``factor`` times the mean in-flight of the eligible nodes.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016) applied to any
    policy. A deterministic map on the drawn node, so propensities stay exact.

    Args:
        factor: c of the bound; 2 was the best trade in ``docs/decisions/0003-bounded-load-guard.md``.
        min_inflight: below this many requests a node is never over: with a handful of requests in
            the whole fleet, twice the mean is less than one and would forbid everything.
    """

    factor: float = 2.0
    min_inflight: int = 4

    def bound(self, fleet: Fleet, mask: Mask) -> float:
        """Most requests an eligible node in full rotation may have in flight, the one to be placed included."""
        return self._bound(fleet.inflight.tolist(), mask)

    def executed(
        self, probabilities: Probabilities, scores: Scores, mask: Mask, fleet: Fleet, drawn: int
    ) -> tuple[Probabilities, int]:
        """The distribution after the guard, and the node that is executed.

        A node in slow start is held to its share of the bound, but always to at least one.

        Args:
            probabilities: the policy's, shape ``(n,)``.
            scores: the policy's, shape ``(n,)``.
            mask: who is eligible, shape ``(n,)``.
            fleet: the nodes now.
            drawn: the index that was drawn from ``probabilities``.

        Returns:
            Probabilities of shape ``(n,)`` summing to 1, and the index to execute: ``drawn``, or the
            one that takes what was drawn on nodes over their limit.
        """
        queues: list[float] = fleet.inflight.tolist()
        bound = self._bound(queues, mask)
        # The usual case first: the busiest node would fit even at the smallest share.
        if max(queues) + 1.0 <= max(bound * min(fleet.ramp.tolist()), 1.0):
            return probabilities, drawn
        inflight, ramp = fleet.inflight, fleet.ramp
        fits = inflight + 1.0 <= np.maximum(bound * ramp, 1.0)
        over = (probabilities > 0.0) & ~fits
        if not np.count_nonzero(over):
            return probabilities, drawn
        within = mask & fits
        if np.count_nonzero(within):
            preferred = np.where(within, scores, -np.inf)
            target = int(preferred.argmax())
            if preferred[target] == -np.inf:  # the policy wants none of them
                target = int(np.where(within, -fleet.inflight, -np.inf).argmax())
        else:  # only possible while nodes ramp up: the least loaded for its share
            target = int(np.where(mask, -fleet.inflight / fleet.ramp, -np.inf).argmax())
        executed = np.where(over, 0.0, probabilities)
        executed[target] += probabilities[over].sum()
        return executed, target if over[drawn] else drawn

    def _bound(self, queues: list[float], mask: Mask) -> float:
        may: list[bool] = mask.tolist()
        total = sum(compress(queues, may)) + 1.0
        return float(max(math.ceil(self.factor * total / may.count(True)), self.min_inflight))
