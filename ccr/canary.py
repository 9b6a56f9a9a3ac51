"""What a network does on states that never change: stored with the weights, and compared where they are loaded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr.book import Floats
from ccr.cost import TERMS
from ccr.errors import WeightsError
from ccr.features import FEATURES, REQUEST_FEATURES
from ccr.policies.network import Network, logits
from ccr.types import Mask

STATES: Final = 256
TOLERANCE: Final = 1e-6
"""By how much logits may differ between two machines, relative to their size."""
_SEED: Final = 0xCA7A


class State(NamedTuple):
    """A fleet of ``n`` nodes and a request, as the network sees them."""

    nodes: Floats
    request: Floats
    mask: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What a network does on every state.

    Args:
        actions: the best of the nodes that may take the request, refusing and holding, shape ``(256,)``.
        places: of the best node among those that may, counted from 0, shape ``(256,)``.
        sums: of the logits, shape ``(256,)``.
        sizes: of the logits' absolute values: what differences of the sums are relative to.
    """

    actions: NDArray[np.int64]
    places: NDArray[np.int64]
    sums: Floats
    sizes: Floats

    def as_json(self) -> dict[str, Any]:
        """As a manifest keeps it: ten digits, so that the tolerance is all for the arithmetic."""
        return {"actions": self.actions.tolist(), "sums": [float(f"{one:.10g}") for one in self.sums]}


@cache
def states() -> tuple[State, ...]:
    """The states: 2 to 16 nodes each, most of which may be chosen."""
    draws = _Draws(_SEED)
    return tuple(_state(draws, 2 + k % 15) for k in range(STATES))


def walk(network: Network, rest: Callable[[], object] | None = None) -> Walk:
    """The network on every state; takes about ten milliseconds.

    Args:
        network: to try.
        rest: called before each state, a tenth of a millisecond of work; for who must not hold up other threads.
    """
    steps = []
    for state in states():
        if rest is not None:
            rest()
        with np.errstate(all="ignore"):  # what is not finite is reported as that
            steps.append(_step(state, network))
    actions, places, sums, sizes = zip(*steps, strict=True)
    return Walk(np.array(actions), np.array(places), np.array(sums), np.array(sizes))


def check_sane(found: Walk, where: str) -> None:
    """Refuse what is not finite, or does not look at the nodes.

    Args:
        found: of the weights.
        where: what messages begin with.

    Raises:
        WeightsError: saying what is odd.
    """
    finite = np.isfinite(found.sizes)
    if not finite.all():
        raise WeightsError(
            f"{where}: logits are not finite on state {int(finite.argmin())} of the canary; train the weights again"
        )
    if (found.places == found.places[0]).all():
        raise WeightsError(
            f"{where}: on all {STATES} states of the canary the best node is number {found.places[0] + 1} of those that "
            "may be chosen: the weights do not look at the nodes; train them again"
        )


def agreement(one: Walk, other: Walk) -> float:
    """The share of the states on which both prefer the same node, in [0, 1]; by chance it would be 0.2."""
    return float((one.places == other.places).mean())


def check_same(found: Walk, stored: Any, where: str) -> None:
    """Refuse weights that do something else here than where they were made.

    Args:
        found: here.
        stored: there, as :meth:`Walk.as_json` gives it.
        where: what messages begin with.

    Raises:
        WeightsError: saying how far off it is.
    """
    try:
        actions, sums = (
            np.array(stored["actions"], dtype=np.int64),
            np.array(stored["sums"], dtype=np.float64),
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        actions, sums = np.empty(0, dtype=np.int64), np.empty(0)
    if actions.shape != found.actions.shape or sums.shape != found.sums.shape:
        raise WeightsError(f"{where}: its canary is not {STATES} actions and sums; save the weights again")
    other = int((actions != found.actions).sum())
    away = float((np.abs(sums - found.sums) / found.sizes).max())
    if other or not away <= TOLERANCE:
        raise WeightsError(
            f"{where}: the canary is dead: {other} of {STATES} actions are not those of where the weights were made, and "
            f"logits differ by up to {away:.1e} of their size ({TOLERANCE:g} may be); use the release they were made "
            "with, or train again with this one"
        )


class _Draws:
    """Numbers in [0, 1) from the bits of a generator: numpy keeps those the same for ever, its distributions not."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def take(self, *shape: int) -> Floats:
        raw = np.asarray(self._bits.random_raw(math.prod(shape)), dtype=np.uint64)
        return np.asarray((raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53)


def _state(draws: _Draws, n: int) -> State:
    """Costs and other logarithms crowd towards 0, everything else fills [0, 1]."""
    is_log = np.array([feature.is_log for feature in FEATURES.values()])
    drawn = draws.take(n, len(FEATURES))
    nodes = np.where(is_log, 1.5 * drawn**2, drawn)
    nodes[:, : len(TERMS)] = 0.6 * drawn[:, : len(TERMS)] ** 3  # seconds, most of them fractions of one
    mask = draws.take(n) < 0.8
    mask[int(draws.take(1)[0] * n)] = True
    return State(nodes, draws.take(len(REQUEST_FEATURES)), mask)


def _step(state: State, network: Network) -> tuple[int, int, float, float]:
    found, n = logits(*state, network), len(state.mask)
    may = np.where(np.append(state.mask, [True, True]), found, -np.inf)
    best = int(may[:n].argmax())
    return int(may.argmax()), int(state.mask[:best].sum()), float(found.sum()), float(np.abs(found).sum())
