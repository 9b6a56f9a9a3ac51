import numpy as np
import pytest

from ccr.policies.bounded_hash import BoundedHash
from tests.factories import a_fleet, a_node, a_request

MODELS = [f"model-{i}" for i in range(2000)]
TEN = [f"node-{i}" for i in range(10)]


def home(fleet, model, policy=BoundedHash()):  # noqa: B008 - a value
    return fleet.specs[policy.scores(a_request(model), fleet).argmax()].id


def homes(ids):
    fleet = a_fleet(*(a_node(id_) for id_ in ids))
    return np.array([home(fleet, model) for model in MODELS])


def test_a_node_that_leaves_moves_its_own_models_and_no_other():
    before, after = homes(TEN), homes([id_ for id_ in TEN if id_ != "node-3"])

    moved = before != after
    assert moved.any()
    assert (before[moved] == "node-3").all()
    assert len(set(after[moved])) == 1  # clockwise, to the next one on the ring


def test_a_full_node_spills_to_the_next_one_on_the_ring():
    calm = a_fleet(*(a_node(id_) for id_ in TEN))
    first = home(calm, "llama")
    after = home(a_fleet(*(a_node(id_) for id_ in TEN if id_ != first)), "llama")

    busy = a_fleet(*(a_node(id_, inflight=9.0 if id_ == first else 1.0) for id_ in TEN))

    assert home(busy, "llama") == after


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
def test_no_node_gets_more_than_its_bound(factor):
    """The theorem: placed one after the other, none has more than the bound, however popular a model is."""
    inflight = np.zeros(5)
    for seq in range(200):
        fleet = a_fleet(*(a_node(f"n{i}", inflight=inflight[i]) for i in range(5)))
        inflight[BoundedHash(factor).scores(a_request("llama", seq=seq), fleet).argmax()] += 1

        assert inflight.max() <= np.ceil(factor * inflight.sum() / 5)


def test_a_generous_bound_keeps_a_model_on_one_node():
    fleet = a_fleet(a_node("a", inflight=30.0), a_node("b", inflight=0.0))

    assert {home(fleet, f"model-{i}", BoundedHash(factor=9.0)) for i in range(40)} == {"a", "b"}


def test_when_all_are_full_the_least_loaded_is_best():
    fleet = a_fleet(a_node("a", inflight=9.0), a_node("b", inflight=7.0), a_node("c", inflight=8.0))

    assert BoundedHash(factor=0.1).scores(a_request(), fleet).tolist() == [-10.0, -8.0, -9.0]
