import numpy as np

from ccr.policies.random import Random
from tests.factories import a_fleet, a_node, a_request


def test_every_node_is_equally_good_whatever_it_is_doing():
    policy = Random()
    fleet = a_fleet(a_node("busy", inflight=9, latency_s=30.0), a_node("idle", models="llama"))

    scores = policy.scores(a_request("llama"), fleet)

    assert scores.tolist() == [0.0, 0.0]


def test_eligible_nodes_share_evenly():
    policy = Random()
    fleet = a_fleet(*(a_node(id_) for id_ in "abcd"))

    p = policy.picker.probabilities(policy.scores(a_request(), fleet), np.array([True, False, True, True]))

    assert p.tolist() == [1 / 3, 0.0, 1 / 3, 1 / 3]
