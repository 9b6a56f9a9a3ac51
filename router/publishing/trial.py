"""What weights have to pass before they are published, and again before they serve: the same on both sides."""

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np

from ccr import canary, weights
from ccr.policies.learned import Learned
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import blank
from ccr.publication import PublicationError

LEAST_AGREEMENT: Final = 0.25
"""With the heuristic, on the canary's states. Trained weights had 0.47 and 0.40, drawn networks 0.15 to 0.25, chance is 0.2:
this keeps out what prefers the worse nodes, not what merely learned little."""


def tried(data: bytes, where: str, rest: Callable[[], object] | None = None) -> Learned:
    """The policy of the bytes of a weights file.

    Args:
        data: of the file.
        where: what messages begin with.
        rest: as of :func:`ccr.canary.walk`.

    Raises:
        WeightsError: if they are not what :func:`ccr.weights.load` takes, or do what nobody would.
    """
    found, walk = weights.tried(data, where, rest)
    agreement = canary.agreement(walk, _heuristic())
    if agreement < LEAST_AGREEMENT:
        raise PublicationError(
            "odd",
            f"{where}: they agree with the heuristic on {agreement:.0%} of the canary's states, and {LEAST_AGREEMENT:.0%} is "
            "the least; train them again",
        )
    return Learned(found.network, found.version)


@cache
def _heuristic() -> canary.Walk:
    return canary.walk(blank(np.array(LeastCost().theta)))
