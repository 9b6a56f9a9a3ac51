"""The bounded-load guard behind every policy: the policy proposes, the guard disposes."""

import math
from dataclasses import dataclass

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

    def limits(self, fleet: Fleet, mask: Mask) -> Scores:
        """Most requests each node may have in flight, this one included, shape ``(n,)``.

        A node in slow start is held to its share of the bound, but always to at least one.
        """
        total = float(np.dot(fleet.inflight, mask)) + 1.0
        bound = max(math.ceil(self.factor * total / np.count_nonzero(mask)), self.min_inflight)
        return np.maximum(bound * fleet.ramp, 1.0)

    def executed(
        self, probabilities: Probabilities, scores: Scores, mask: Mask, fleet: Fleet
    ) -> tuple[Probabilities, int | None]:
        """The distribution after the guard, and the node that overloaded draws are moved to.

        Args:
            probabilities: the policy's, shape ``(n,)``.
            scores: the policy's, shape ``(n,)``.
            mask: who is eligible, shape ``(n,)``.
            fleet: the nodes now.

        Returns:
            Probabilities of shape ``(n,)`` summing to 1, and the index that takes what was drawn on
            nodes over their limit; ``None`` when no likely node is over.
        """
        over = fleet.inflight + 1.0 > self.limits(fleet, mask)
        over &= probabilities > 0.0
        if not over.any():
            return probabilities, None
        within = mask & (fleet.inflight + 1.0 <= self.limits(fleet, mask))
        if within.any():
            target = int(np.where(within, scores, -np.inf).argmax())
            if not within[target]:  # every node within its limit has score -inf
                target = int(np.where(within, -fleet.inflight, -np.inf).argmax())
        else:  # only possible while nodes ramp up: the least loaded for its share
            target = int(np.where(mask, -fleet.inflight / fleet.ramp, -np.inf).argmax())
        executed = np.where(over, 0.0, probabilities)
        executed[target] += probabilities[over].sum()
        return executed, target
