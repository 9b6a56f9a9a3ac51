"""Weights files as bytes, and somebody who is told of published ones."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ccr.cost import TERMS
from ccr.policies.network import blank
from ccr.weights import save
from tests.weights import a_network, some_weights

KEY = b"a key of the tests"


@cache
def weights_file(name, seed=1):
    """The bytes of a file whose weights are called ``name``."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.npz"
        save(some_weights(a_network(seed), version=name), path)
        return path.read_bytes()


class Told:
    """Remembers what it is told: names of weights with their place, ``None`` for letting go."""

    def __init__(self):
        self.said = []

    def take(self, policy, fence):
        self.said.append((policy.version, fence.version))

    def let_go(self):
        self.said.append(None)

    def fall_back(self):
        self.said.append(None)

    @property
    def names(self):
        return [one if one is None else one[0] for one in self.said]


def file_of(tmp_path, network):
    save(some_weights(network, version="bad"), tmp_path / "bad.npz")
    return (tmp_path / "bad.npz").read_bytes()


def the_worst():
    """A network that drowns the heuristic."""
    net = blank(np.zeros(len(TERMS)), seed=4)
    return net._replace(out=np.random.default_rng(4).normal(0.0, 3.0, net.out.shape))
