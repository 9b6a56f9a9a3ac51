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
        ramps: list[float] = fleet.ramp.tolist()
        bound = self._bound(queues, mask)
        # The usual cases first: the busiest node would fit even at the smallest share, or those that may be drawn do.
        if max(queues) + 1.0 <= max(bound * min(ramps), 1.0):
            return probabilities, drawn
        # In lists: of a few dozen nodes numpy takes longer to begin than these take to finish.
        shares: list[float] = probabilities.tolist()
        fits = [queue + 1.0 <= max(bound * ramp, 1.0) for queue, ramp in zip(queues, ramps, strict=True)]
        over = [i for i, share in enumerate(shares) if share > 0.0 and not fits[i]]
        if not over:
            return probabilities, drawn
        target = _instead(
            scores.tolist(), [i for i, may in enumerate(mask.tolist()) if may], fits, queues, ramps
        )
        moved = sum(shares[i] for i in over)
        for i in over:
            shares[i] = 0.0
        shares[target] += moved
        return np.array(shares), target if drawn in over else drawn

    def _bound(self, queues: list[float], mask: Mask) -> float:
        may: list[bool] = mask.tolist()
        total = sum(compress(queues, may)) + 1.0
        return float(max(math.ceil(self.factor * total / may.count(True)), self.min_inflight))


def _instead(
    scores: list[float], eligible: list[int], fits: list[bool], queues: list[float], ramps: list[float]
) -> int:
    """The node that takes what was drawn on nodes over their limit: the policy's best of those that fit."""
    within = [i for i in eligible if fits[i]]
    if not within:  # only possible while nodes ramp up: the least loaded for its share
        return min(eligible, key=lambda i: queues[i] / ramps[i])
    target = max(within, key=scores.__getitem__)
    if scores[target] == -math.inf:  # the policy wants none of them
        return min(within, key=queues.__getitem__)
    return target
