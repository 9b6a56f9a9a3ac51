"""Exploration that breaks no promise: a share of the decisions, among the nodes that are expected to keep what was promised."""

from dataclasses import dataclass

import numpy as np

from ccr.latency import expected_s, promised_s
from ccr.look import Look
from ccr.types import Explored, Mask, Probabilities, Scores


@dataclass(frozen=True, slots=True)
class Exploration:
    """A share of the decisions goes to any node on which the request is expected to keep its promise.

    Args:
        share: of the decisions, in [0, 1]; at 0 nothing is changed, but what it is to be compared with is told all the same.
    """

    share: float

    def mixed(
        self, probabilities: Probabilities, scores: Scores, mask: Mask, look: Look | None
    ) -> tuple[Probabilities, Explored | None]:
        """The distribution with exploration in it, and what that is expected to cost.

        Nothing is explored where fewer than two nodes are safe, or where the policy does not look at what is expected.

        Args:
            probabilities: the policy's, shape ``(n,)``.
            scores: the policy's, shape ``(n,)``; ``-inf`` means never.
            mask: who is eligible, shape ``(n,)``.
            look: what the policy saw.

        Returns:
            Shape ``(n,)``, sums to 1; every safe node has at least ``share / m``, m the number of those.
        """
        if look is None:
            return probabilities, None
        latency_s = expected_s(look)
        best_s = float(latency_s[mask].min())
        safe = safe_nodes(latency_s, scores, mask, look)
        count = int(np.count_nonzero(safe))
        if self.share == 0.0 or count < 2:
            return probabilities, Explored(0.0, 0.0, best_s)
        mixed: Probabilities = self.share * (safe / count) + (1.0 - self.share) * probabilities
        cost_s = self.share * (float(latency_s[safe].mean()) - best_s)
        return mixed, Explored(self.share, cost_s, best_s)


def safe_nodes(latency_s: Scores, scores: Scores, mask: Mask, look: Look) -> Mask:
    """Where the promise is expected to be kept, shape ``(n,)``, among those that may be chosen.

    Args:
        latency_s: expected on each node, shape ``(n,)``.
        scores: the policy's, shape ``(n,)``.
        mask: who is eligible, shape ``(n,)``.
        look: the request on every node.
    """
    safe: Mask = mask & (scores > -np.inf) & (latency_s <= promised_s(look))
    return safe


class Budget:
    """What exploration may cost: a share of the latency that is expected anyway, over the last minute or so.

    Args:
        share: of the expected latency.
        window_s: over which both are added up; what is older counts less and less.
    """

    def __init__(self, share: float, window_s: float) -> None:
        self.cost_s = 0.0
        self._share = share
        self._window_s = window_s
        self._spent_s = self._expected_s = 0.0
        self._now_s = 0.0

    def spend(self, explored: Explored, now_s: float) -> bool:
        """Count a decision; whether the next one may explore."""
        kept = float(np.exp(-max(now_s - self._now_s, 0.0) / self._window_s))
        self._now_s = now_s
        self._spent_s = kept * self._spent_s + explored.cost_s
        self._expected_s = kept * self._expected_s + explored.best_s
        self.cost_s += explored.cost_s
        return self.used < 1.0

    @property
    def used(self) -> float:
        """Of the budget, as a share; 1 and above: used up."""
        allowed_s = self._share * self._expected_s
        if self._spent_s <= 0.0:
            return 0.0
        return self._spent_s / allowed_s if allowed_s > 0.0 else 1.0
