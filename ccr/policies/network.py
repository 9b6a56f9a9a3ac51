"""The learned policy's arithmetic: analytic cost with trained weights, and a small network beside it.

Every action has a logit. A node's is ``-kappa * log(cost)`` of the eight cost terms under trained weights, plus what a
permutation-equivariant network makes of the node, the request and the mean over the nodes that may take it; with the
network's output at zero, the policy is the tuned heuristic. Refusing and holding are priced in the same seconds:
refusing costs what a missed promise does (:func:`ccr.reward.cost_of_rejection`), holding a share of the best node.

Pure functions of arrays: the router calls them as they stand, the simulator compiles the very same ones. The network's
form is that of Deep Sets (Zaheer et al. 2017, arXiv 1703.06114): shared layers and a mean.
"""

from typing import Final, NamedTuple

import numpy as np

from ccr import cost
from ccr.book import Floats
from ccr.features import FEATURES, PROMISE, PROMISE_DIVISOR, REQUEST_FEATURES, TERM_DIVISOR, TERM_GAIN
from ccr.types import Mask

HIDDEN: Final = 32
"""Width of both layers."""
EXTRA: Final = 2
"""Actions behind the nodes: refuse, then hold."""
REJECT: Final = 0
HOLD: Final = 1

#: Names of :attr:`Network.scalars`, in order.
SCALARS: Final = ("kappa", "reject", "hold", "priority")
KAPPA: Final = 0
REJECT_COST: Final = 1
HOLD_SHARE: Final = 2
PRIORITY: Final = 3
MISS_S: Final = 8.0
"""A missed promise in seconds: two units of four each, see :mod:`ccr.reward`."""
LEAST_S: Final = 1e-3
"""Least cost of a node, so that its logarithm is finite."""


class Network(NamedTuple):
    """Everything that is trained; F node features, Q request features, H hidden units.

    Args:
        theta: weight of each cost term, shape ``(8,)``.
        scalars: inverse temperature; weight of the cost of refusing; cost of holding as a share of the best node's; weight of
            the predicted service time in the priority number sent to engines; shape ``(4,)``.
        node: first layer, of a node's features, shape ``(F, H)``.
        request: first layer, of the request's, shape ``(Q, H)``.
        bias: of the first layer, shape ``(H,)``.
        own: second layer, of the node itself, shape ``(H, H)``.
        pool: second layer, of the mean over the nodes, shape ``(H, H)``.
        second_bias: shape ``(H,)``.
        out: what a node's units add to its logit, shape ``(H,)``.
        extra: what the pooled units add to the logits of refusing and holding, shape ``(H, 2)``.
        extra_bias: shape ``(2,)``.
    """

    theta: Floats
    scalars: Floats
    node: Floats
    request: Floats
    bias: Floats
    own: Floats
    pool: Floats
    second_bias: Floats
    out: Floats
    extra: Floats
    extra_bias: Floats


def blank(theta: Floats, seed: int | None = None) -> Network:
    """The heuristic of these weights: nothing is added to it, refused or held.

    Args:
        theta: shape ``(8,)``.
        seed: of the layers before the output, to train them from; without it they are zero.
    """
    rng = np.random.default_rng(seed)
    widths = {"node": (len(FEATURES), HIDDEN), "request": (len(REQUEST_FEATURES), HIDDEN)}
    widths |= {"own": (HIDDEN, HIDDEN), "pool": (HIDDEN, HIDDEN)}
    layers = {
        name: np.zeros(shape) if seed is None else rng.normal(0.0, shape[0] ** -0.5, shape)
        for name, shape in widths.items()
    }
    return Network(
        theta=np.array(theta, dtype=np.float64), scalars=np.array([8.0, 1e3, 1e3, 0.0]), bias=np.zeros(HIDDEN),
        second_bias=np.zeros(HIDDEN), out=np.zeros(HIDDEN), extra=np.zeros((HIDDEN, EXTRA)),
        extra_bias=np.zeros(EXTRA), **layers,
    )  # fmt: skip


def logits(nodes: Floats, request: Floats, mask: Mask, net: Network) -> Floats:
    """The logit of every action, shape ``(n + 2,)``: nodes, refuse, hold; what is masked has one too.

    Args:
        nodes: of :func:`ccr.features.node_features`, shape ``(n, F)``.
        request: of :func:`ccr.features.request_features`, shape ``(Q,)``.
        mask: the nodes that may take it, at least one, shape ``(n,)``.
        net: what was trained.
    """
    n = nodes.shape[0]
    out = np.empty(n + EXTRA)
    out[:n], out[n:] = residual(nodes, request, mask, net)
    cost_s = costs_s(nodes, net)
    kappa = net.scalars[KAPPA]
    best_s = np.min(np.where(mask, cost_s, np.inf))
    promised_s = np.expm1(PROMISE_DIVISOR * request[PROMISE])
    out[:n] -= kappa * np.log(cost_s)
    out[n + REJECT] -= kappa * np.log(max(net.scalars[REJECT_COST] * (promised_s + MISS_S), LEAST_S))
    out[n + HOLD] -= kappa * np.log(max(net.scalars[HOLD_SHARE] * best_s, LEAST_S))
    return out


def costs_s(nodes: Floats, net: Network) -> Floats:
    """The weighted cost of each node in seconds, at least a millisecond, shape ``(n,)``."""
    return np.maximum(cost.total(terms_of(nodes), net.theta), LEAST_S)


def terms_of(nodes: Floats) -> Floats:
    """The cost terms that the features came from, shape ``(8, n)``; :func:`ccr.cost.terms`."""
    count = len(cost.TERMS)
    terms: Floats = np.expm1(TERM_DIVISOR * nodes[:, :count].T) / TERM_GAIN
    return terms


def residual(nodes: Floats, request: Floats, mask: Mask, net: Network) -> tuple[Floats, Floats]:
    """What the network adds to the logits of the nodes, shape ``(n,)``, and of refusing and holding, shape ``(2,)``."""
    # What is the same for every node is worked out once.
    first = np.maximum(nodes @ net.node + (request @ net.request + net.bias), 0.0)
    shares = mask / np.sum(mask)
    pooled = shares @ first
    second = np.maximum(first @ net.own + (pooled @ net.pool + net.second_bias), 0.0)
    return second @ net.out, pooled @ net.extra + net.extra_bias


def service_s(nodes: Floats, chosen: int) -> float:
    """Expected seconds of prefill and decode at the chosen node: what its priority number is made of."""
    terms = terms_of(nodes)
    seconds: float = terms[cost.PREFILL, chosen] + terms[cost.DECODE, chosen]
    return seconds


def priority(net: Network, arrived_s: float, service_s: float) -> int:
    """The number sent to an engine, lower first: arrival plus weighted service time, in tenths of a second.

    Waiting makes everyone older alike, so a request is overtaken only by those that came at most that weight times
    the difference of their service times later.
    """
    return int(10.0 * (arrived_s + net.scalars[PRIORITY] * service_s))
