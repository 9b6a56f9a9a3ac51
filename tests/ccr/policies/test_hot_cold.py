import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.policies.hot_cold import HotCold
from tests.factories import FLEETS, a_fleet, a_node, a_request


def ranking(policy, fleet, **request):
    scores = policy.scores(a_request("llama", **request), fleet)
    return "".join(fleet.specs[i].id for i in np.argsort(-scores, kind="stable"))


def warm(id_, **columns):
    return a_node(id_, models="llama", **columns)


def test_among_nodes_that_are_not_hot_the_fastest_comes_first():
    fleet = a_fleet(
        warm("a", inflight=2, latency_s=0.9),
        warm("b", inflight=2, latency_s=0.3),
        warm("c", inflight=2, latency_s=0.6),
        warm("d", inflight=0, latency_s=1.2),
    )

    assert ranking(HotCold(), fleet) == "bcad"


def test_a_hot_node_comes_after_all_others_however_fast():
    fleet = a_fleet(
        warm("a", inflight=1, latency_s=29.0),
        warm("b", inflight=1, latency_s=20.0),
        warm("c", inflight=1, latency_s=25.0),
        warm("d", inflight=2, latency_s=0.1),
    )

    assert ranking(HotCold(), fleet) == "bcad"


def test_hot_nodes_are_ordered_by_requests_in_flight_and_then_by_latency():
    fleet = a_fleet(
        warm("a", inflight=1, latency_s=9.0),
        warm("b", inflight=7, latency_s=0.1),
        warm("c", inflight=5, latency_s=0.9),
        warm("d", inflight=5, latency_s=0.3),
    )

    assert ranking(HotCold(quantile=0.25), fleet) == "adcb"


@pytest.mark.parametrize(
    ("request_", "preferred"),
    [
        pytest.param({"load_s": 2.0}, "cold", id="a load of 2 s is shorter than the wait"),
        pytest.param({"load_s": 4.0}, "warm", id="a load of 4 s is longer"),
        pytest.param({}, "warm", id="a load of unknown length counts as 5 s"),
    ],
)
def test_a_node_without_the_weights_pays_for_the_load(request_, preferred):
    fleet = a_fleet(warm("warm", latency_s=3.0), a_node("cold", latency_s=0.5))

    scores = HotCold(default_load_s=5.0).scores(a_request("llama", **request_), fleet)

    assert fleet.specs[scores.argmax()].id == preferred


def test_an_idle_fleet_has_no_hot_nodes():
    fleet = a_fleet(warm("a", latency_s=0.2), warm("b", latency_s=0.1))

    assert HotCold().scores(a_request("llama"), fleet).tolist() == [-0.2, -0.1]


@given(fleet=FLEETS, quantile=st.floats(0.0, 1.0))
def test_hot_is_above_the_quantile_of_requests_in_flight(fleet, quantile):
    scores = HotCold(quantile).scores(a_request("llama"), fleet)

    is_hot = scores < -1000.0
    counted = sorted(fleet.inflight[fleet.available] if fleet.available.any() else fleet.inflight)
    threshold = counted[max(math.ceil(quantile * len(counted)) - 1, 0)]
    np.testing.assert_array_equal(is_hot, fleet.inflight > threshold)
