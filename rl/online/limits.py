"""How far one publication may move the policy: KL(new || current) on recent states, less where little was seen.

A step that is too long is shortened: the weights go only part of the way from the current ones to the new ones, as far as the limits allow, found
by bisection. Between two networks lies another network, so what is published is still one policy that can be gated,
explained and replayed - which is why this comes before the gate, not after it.

Distributions are those the network was trained with: the softmax of its logits over the nodes that may take the request,
refusing and holding. The router serves the best of them, so a small divergence means that few choices change, and
those between nodes that were close.

Where a state lies in a bucket - size of the model, load, nodes that may take it - with fewer than ``least`` others, the data do
not speak for a change, and the policy in force counts (SPIBB, Laroche, Trichelair, Tachet des Combes 2019, arXiv
1712.06924). One function decides in all buckets at once, so the old policy cannot be kept in some of them; instead those
states have a limit of their own, a tenth of the other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from ccr.book import Floats
from ccr.canary import State
from ccr.features import node_features, request_features
from ccr.lesson import Flag, Lesson
from ccr.look import Look
from ccr.policies.network import Network, logits
from ccr.types import Mask

Bucket = tuple[int, int, int]

_GIB: Final = (4.0, 10.0, 24.0)
_BUSY: Final = (1.0, 4.0, 16.0)
_NODES: Final = (1, 2, 4, 8, 16, 64)
#: Where the request's features have the model's size and the load (:func:`ccr.features.request_features`).
_SIZE, _SIZE_DIVISOR = 2, 20.0
_LOAD, _LOAD_DIVISOR = 5, 4.0
_STEPS: Final = 12  # of the bisection: to 0.02 % of the way


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a publication may move the policy.

    Args:
        kl: mean divergence over all states, in nats.
        thin_kl: mean divergence over the states of thin buckets.
        least: states from which on a bucket is not thin.
        shortest: share of the way below which nothing is changed at all: it would not be worth a publication.
    """

    kl: float = 0.05
    thin_kl: float = 0.005
    least: int = 50
    shortest: float = 0.02


class Step(NamedTuple):
    """How far it goes.

    Args:
        network: to publish; the current one where the step would be too short.
        share: of the way from the current weights to the proposed ones.
        kl: mean divergence over all states.
        thin_kl: mean divergence over the states of thin buckets; 0 without any.
        thin: share of the states that lie in thin buckets.
        reason: why it is shorter than proposed, in words; empty where it is not.
    """

    network: Network
    share: float
    kl: float
    thin_kl: float
    thin: float
    reason: str


def limited(
    current: Network, proposed: Network, states: Sequence[State], limits: Limits | None = None
) -> Network:
    """The proposed network, or as much of the way to it as the limits allow; the current one where that is next to nothing."""
    return step(current, proposed, states, limits).network


def step(
    current: Network,
    proposed: Network,
    states: Sequence[State],
    limits: Limits | None = None,
    *,
    is_first: bool = False,
    seen: Mapping[Bucket, int] | None = None,
) -> Step:
    """The longest step within the limits, and what it amounts to.

    Args:
        current: in force.
        proposed: of the same shape.
        states: the fleet was in lately; without any there is nothing that speaks for a change.
        limits: by default those of the design.
        is_first: whether the limits are to be waived, because what is in force is only what the package came with; a person's
            decision, never a default.
        seen: observations of each bucket, where more is known than the states tell.
    """
    limits = limits or Limits()
    if not states:
        reason = "" if is_first else "no states were seen lately: nothing speaks for a change"
        return Step(proposed if is_first else current, float(is_first), 0.0, 0.0, 0.0, reason)
    thin = thinly_seen(states, limits.least, seen)
    before = [_log_shares(state, current) for state in states]

    def measured(share: float) -> tuple[float, float]:
        network = between(current, proposed, share)
        with np.errstate(all="ignore"):
            found = np.array(
                [_divergence(_log_shares(s, network), b) for s, b in zip(states, before, strict=True)]
            )
        return float(found.mean()), float(found[thin].mean()) if thin.any() else 0.0

    def is_within(kls: tuple[float, float]) -> bool:
        return kls[0] <= limits.kl and kls[1] <= limits.thin_kl  # false for NaN, too

    whole = measured(1.0)
    if is_first or is_within(whole):
        return Step(proposed, 1.0, *whole, float(thin.mean()), "")
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_within(measured(middle)) else (low, middle)
    reason = f"KL {whole[0]:.3g} of {limits.kl:g} over all states, {whole[1]:.3g} of {limits.thin_kl:g} over the {thin.mean():.0%} seldom seen"
    if low < limits.shortest:
        return Step(
            current,
            0.0,
            0.0,
            0.0,
            float(thin.mean()),
            f"{reason}: less than {limits.shortest:.0%} of the step would be left",
        )
    return Step(between(current, proposed, low), low, *measured(low), float(thin.mean()), reason)


def between(current: Network, proposed: Network, share: float) -> Network:
    """The network on the way from one to the other: part by part, numbers in proportion."""
    return Network(
        *[(1.0 - share) * one + share * other for one, other in zip(current, proposed, strict=True)]
    )


def thinly_seen(states: Sequence[State], least: int, seen: Mapping[Bucket, int] | None = None) -> Mask:
    """Which states lie in buckets with fewer observations than that, shape ``(len(states),)``.

    Args:
        states: to look at.
        least: observations of a bucket that is not thin.
        seen: observations of each; by default the states themselves.
    """
    buckets = [bucket(state) for state in states]
    count = Counter(buckets) if seen is None else seen
    return np.array([count.get(one, 0) < least for one in buckets], dtype=np.bool_)


def bucket(state: State) -> Bucket:
    """What kind of situation it is: size of the model, load of the fleet, nodes that may take the request."""
    gib = state.request[_SIZE] * _SIZE_DIVISOR
    busy = np.expm1(state.request[_LOAD] * _LOAD_DIVISOR)
    return (
        int(np.searchsorted(_GIB, gib, side="right")),
        int(np.searchsorted(_BUSY, busy, side="right")),
        int(np.searchsorted(_NODES, int(state.mask.sum()))),
    )


def state_of(lesson: Lesson) -> State | None:
    """What the network saw when the request was decided; ``None`` where no policy looked."""
    if not lesson.flags & Flag.LOOKED or lesson.chosen < 0:
        return None
    asked = np.frombuffer(lesson.asked, "<f4").astype(np.float64)
    columns, load, pairs = (lesson.rows(name).astype(np.float64) for name in ("columns", "load", "pairs"))
    look = Look(columns, load, pairs, asked)
    return State(node_features(look), request_features(look), lesson.eligible())


def _log_shares(state: State, network: Network) -> Floats:
    """Logarithms of the shares of nodes, refusing and holding; minus infinity where a node may not take it."""
    found = logits(state.nodes, state.request, state.mask, network)
    found = np.where(np.append(state.mask, [True, True]), found, -np.inf)
    shifted: Floats = found - found.max()
    shares: Floats = shifted - np.log(np.exp(shifted).sum())
    return shares


def _divergence(new: Floats, current: Floats) -> float:
    """KL(new || current) in nats; NaN where a number is none, so that no limit is kept."""
    may = new != -np.inf
    return float(np.sum(np.exp(new[may]) * (new[may] - current[may])))
