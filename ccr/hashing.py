"""Hashes that agree between processes and replicas, unlike the built-in ``hash``."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def hash64(text: str) -> int:
    """A 64-bit hash of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: a draw that replicas agree on."""
    return (hash64(text) >> 11) / float(1 << 53)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
