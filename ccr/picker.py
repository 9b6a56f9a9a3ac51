"""From scores to one node: the only place that knows the propensity."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from ccr.errors import PolicyError
from ccr.types import Mask, Probabilities, Scores


class Picker(Protocol):
    """Turns scores into a distribution over the eligible nodes."""

    def probabilities(self, scores: Scores, mask: Mask) -> Probabilities:
        """Probability of each node; zero where ``mask`` is false or the score is ``-inf``.

        Args:
            scores: one per node, higher preferred, shape ``(n,)``.
            mask: true where the node may be chosen, shape ``(n,)``, not all false.

        Returns:
            Shape ``(n,)``, sums to 1.

        Raises:
            PolicyError: if no eligible node has a finite score, or one is NaN or ``+inf``.
        """


@dataclass(frozen=True, slots=True)
class Greedy:
    """The best score; equal best scores share."""

    def probabilities(self, scores: Scores, mask: Mask) -> Probabilities:
        """Uniform over the best eligible nodes; read-only where there is only one."""
        eligible, top = _eligible(scores, mask)
        values: list[float] = eligible.tolist()
        ties = values.count(top)
        if ties == 1:
            return _certain(len(values), values.index(top))
        return np.array([1.0 / ties if value == top else 0.0 for value in values])


GREEDY = Greedy()


@dataclass(frozen=True, slots=True)
class Exploring:
    """Another picker, but with probability ``epsilon`` any eligible node.

    Args:
        epsilon: share of exploration, in [0, 1].
        inner: how the rest is picked.
    """

    epsilon: float
    inner: Picker = GREEDY

    def probabilities(self, scores: Scores, mask: Mask) -> Probabilities:
        """Every eligible node not scored ``-inf`` gets at least ``epsilon / m``, m the number of those."""
        exploit = self.inner.probabilities(scores, mask)
        allowed = mask & (scores > -np.inf)
        explore = allowed / np.count_nonzero(allowed)
        mixed: Probabilities = self.epsilon * explore + (1.0 - self.epsilon) * exploit
        return mixed


@dataclass(frozen=True, slots=True)
class BestOfTwo:
    """The better of two distinct eligible nodes taken at random: power of two choices, exactly.

    Nobody rolls two dice here: of the m(m-1)/2 pairs, a node wins those with a worse partner and half
    of those with an equal one, so its probability follows from its rank.
    """

    def probabilities(self, scores: Scores, mask: Mask) -> Probabilities:
        """Wins over pairs, shape ``(n,)``; certain where only one node may be taken."""
        eligible, _ = _eligible(scores, mask)
        allowed = eligible > -np.inf
        m = np.count_nonzero(allowed)
        if m == 1:
            return allowed.astype(np.float64)
        candidates = eligible[allowed]
        better = (candidates[:, None] > candidates[None, :]).sum(axis=1)
        equal = (candidates[:, None] == candidates[None, :]).sum(axis=1) - 1
        probabilities = np.zeros(len(mask))
        probabilities[allowed] = (better + 0.5 * equal) / (m * (m - 1) / 2)
        return probabilities


BEST_OF_TWO = BestOfTwo()


def draw(probabilities: Probabilities, u: float) -> int:
    """The node at quantile ``u`` of the distribution.

    Args:
        probabilities: shape ``(n,)``, non-negative, not all zero.
        u: in [0, 1).

    Returns:
        An index with positive probability.
    """
    # In lists: of a few dozen nodes numpy takes longer to begin than these take to finish.
    shares: list[float] = probabilities.tolist()
    if 1.0 in shares:
        return shares.index(1.0)
    cumulative = list(accumulate(shares))
    chosen = bisect_right(cumulative, u * cumulative[-1])
    if chosen == len(shares):  # u so close to 1 that the product rounded up to the total
        chosen = int(np.flatnonzero(probabilities)[-1])
    return chosen


@lru_cache(maxsize=4096)
def _certain(n: int, chosen: int) -> Probabilities:
    """All of the probability on one of ``n`` nodes: the usual answer, so it is made once."""
    probabilities = np.zeros(n)
    probabilities[chosen] = 1.0
    probabilities.flags.writeable = False
    return probabilities


def _eligible(scores: Scores, mask: Mask) -> tuple[Scores, float]:
    """Scores with ``-inf`` where ``mask`` is false, and the best of them.

    ``argmax`` finds a NaN too, and costs a third of ``max``.
    """
    eligible = scores if False not in mask.tolist() else np.where(mask, scores, -np.inf)
    best: float = eligible.item(eligible.argmax())
    if not -np.inf < best < np.inf:
        raise PolicyError(f"no usable score: the best of the eligible nodes is {best}")
    return eligible, best
