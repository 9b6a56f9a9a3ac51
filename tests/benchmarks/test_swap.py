"""The benchmark of swaps tells near from away, and publishes what a router takes."""

import numpy as np
import pytest

from benchmarks.swap import _KEY, NEAR_S, Publishing, samples
from router.publishing.follower import Follower
from router.store.embedded import EmbeddedStore
from tests.router.publishing.publications import Told


def test_a_delay_at_a_swap_is_found_and_one_elsewhere_is_not_taken_for_one():
    at_s = np.arange(0.0, 30.0, 0.001)
    took_s = np.full(len(at_s), 0.0005)
    swapped_s = np.array([5.0, 15.0])
    held_up = took_s + 0.004 * ((at_s >= 5.2) & (at_s < 5.21))
    elsewhere = took_s + 0.004 * ((at_s >= 9.0) & (at_s < 9.05))

    assert samples(at_s, took_s, swapped_s)["near"]["added_ms"] == pytest.approx(0.0)
    assert samples(at_s, held_up, swapped_s)["near"]["added_ms"] == pytest.approx(4.0)
    assert samples(at_s, elsewhere, swapped_s)["near"]["added_ms"] < 0.0


def test_near_begins_with_the_swap():
    at_s = np.array([0.9, 1.0, 1.0 + NEAR_S - 0.1, 1.0 + NEAR_S + 0.1])

    found = samples(at_s, np.array([9.0, 1.0, 1.0, 9.0]), np.array([1.0]))

    assert (found["near"]["max_ms"], found["away"]["max_ms"]) == (1000.0, 9000.0)


def test_what_it_publishes_is_taken(tmp_path):
    store, told = EmbeddedStore(tmp_path), Told()
    publishing, follower = Publishing(store, 2), Follower(store, _KEY, told)

    while len(publishing):
        publishing.next()
        follower.look()

    assert told.names == ["swap-1", "swap-2"]
