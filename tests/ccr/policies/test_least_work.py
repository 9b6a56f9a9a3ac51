import pytest

from ccr.policies.least_work import FastestDrain, LeastWork
from tests.factories import a_fleet, a_node, a_request

ASKED = a_request("llama", prompt_tokens=300, load_s=5.0, model_gib=7.0)


@pytest.mark.parametrize("policy", [LeastWork(), FastestDrain()], ids=["least_work", "fastest_drain"])
def test_the_emptier_of_two_warm_nodes_is_preferred(policy):
    fleet = a_fleet(a_node("a", models="llama", inflight=9.0), a_node("b", models="llama", inflight=2.0))

    assert policy.scores(ASKED, fleet).argmax() == 1


@pytest.mark.parametrize("make", [LeastWork, FastestDrain])
@pytest.mark.parametrize(
    ("load", "preferred"),
    [pytest.param(0.0, "cold", id="loads are free"), pytest.param(10.0, "warm", id="loads are dear")],
)
def test_the_weight_of_a_load_is_the_operators(make, load, preferred):
    fleet = a_fleet(a_node("warm", models="llama", inflight=4.0), a_node("cold"))

    assert fleet.nodes[make(load=load).scores(ASKED, fleet).argmax()].id == preferred


def test_work_is_in_seconds():
    fleet = a_fleet(a_node("warm", models="llama"), a_node("cold"))

    assert LeastWork(load=1.0).scores(ASKED, fleet).tolist() == [0.0, -5.0]
