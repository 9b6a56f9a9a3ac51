"""Weights to write into files: small, finite, and different for different seeds."""

import numpy as np

from ccr.policies.least_cost import LeastCost
from ccr.policies.network import Network, blank
from ccr.weights import TRAINING, Weights, save

VERSION = "2026-11-23-1"


def a_network(seed=1):
    """The heuristic with a network beside it that does something."""
    rng = np.random.default_rng(seed)
    net = blank(np.array(LeastCost().theta), seed)
    return net._replace(out=rng.normal(0.0, 0.2, net.out.shape), extra_bias=rng.normal(0.0, 0.2, 2))


def training(**facts):
    return dict.fromkeys(TRAINING, "") | {"seeds": [1, 2], "stages": ["theta"], "wall_s": 1.5} | facts


def some_weights(network: Network | None = None, *, version=VERSION, **facts):
    manifest = {"version": version, "created_at": "2026-11-23T10:00:00+00:00", "training": training(**facts)}
    return Weights(network if network is not None else a_network(), manifest)


def weights_that_prefer(action, directory):
    """The path of weights to which refusing (`REJECT_COST`) or holding (`HOLD_SHARE`) costs nothing, the other far too much."""
    net = blank(np.array(LeastCost().theta))
    net.scalars[action] = 0.0
    save(some_weights(net), directory / "weights.npz")
    return str(directory / "weights.npz")
