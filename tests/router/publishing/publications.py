"""Weights files as bytes, and somebody who is told of published ones."""

import tempfile
from functools import cache
from pathlib import Path

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

    @property
    def names(self):
        return [one if one is None else one[0] for one in self.said]
