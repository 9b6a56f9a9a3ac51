import numpy as np
import pytest
from hypothesis import given

from ccr.picker import BEST_OF_TWO
from ccr.policies.least_request import LeastRequest, PowerOfTwo
from tests.factories import FLEETS, a_fleet, a_node, a_request


@pytest.mark.parametrize(
    "policy", [LeastRequest(cold_start_penalty=4.0), PowerOfTwo(cold_start_penalty=4.0)], ids=type
)
@pytest.mark.parametrize(
    ("warm_inflight", "preferred"),
    [
        pytest.param(3, "warm", id="queue shorter than a load: stay warm"),
        pytest.param(5, "cold", id="queue longer than a load: go cold"),
    ],
)
def test_cold_start_is_worth_a_queue_of_four(policy, warm_inflight, preferred):
    fleet = a_fleet(a_node("warm", models="llama", inflight=warm_inflight), a_node("cold"))

    scores = policy.scores(a_request("llama"), fleet)

    assert fleet.nodes[scores.argmax()].id == preferred


def test_without_a_penalty_it_does_not_matter_what_is_loaded():
    fleet = a_fleet(a_node("warm", models="llama", inflight=1), a_node("cold", inflight=1))

    warm, cold = LeastRequest(cold_start_penalty=0.0).scores(a_request("llama"), fleet)

    assert warm == cold


def test_another_version_of_the_model_is_cold():
    fleet = a_fleet(a_node("old", models="llama@1"), a_node("new", models="llama@2"))

    assert LeastRequest().scores(a_request("llama@2"), fleet).tolist() == [-4.0, 0.0]


@given(FLEETS)
def test_power_of_two_counts_as_least_request_and_differs_in_how_it_picks(fleet):
    two, least = PowerOfTwo(), LeastRequest()

    np.testing.assert_array_equal(
        two.scores(a_request("llama"), fleet), least.scores(a_request("llama"), fleet)
    )
    assert two.picker == BEST_OF_TWO != least.picker
