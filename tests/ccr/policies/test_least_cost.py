from dataclasses import fields, replace

import numpy as np

from ccr.cost import NAIVE, TERMS
from ccr.policies.least_cost import LeastCost, LeastLatency
from tests.factories import a_fleet, a_node, a_request

EQUAL = LeastCost(**dict(zip([field.name for field in fields(LeastCost)], NAIVE, strict=False)))
"""Every second counts as a second; the shipped weights come from tuning and may change."""
ASKED = a_request("llama", prompt_tokens=300, load_s=5.0, model_gib=7.0)


def preferred(policy, *nodes, request=ASKED):
    fleet = a_fleet(*nodes)
    return fleet.nodes[policy.scores(request, fleet).argmax()].id


def test_there_is_one_weight_for_each_term_in_its_order():
    weights = [field.name for field in fields(LeastCost)][: len(TERMS)]
    odd = LeastCost(**{name: float(i) for i, name in enumerate(weights)})

    assert odd.theta == tuple(float(i) for i in range(len(TERMS)))
    assert len(LeastCost().theta) == len(TERMS)


def test_selfish_is_all_the_cost_but_what_others_pay():
    fleet = a_fleet(a_node("a", models="llama", inflight=3.0), a_node("b", models="qwen"), a_node("c"))
    selfish = LeastCost(load=1, backlog=1, prefill=1, decode=1, kv=1, inflicted=0, evicted=0, cold=0)

    np.testing.assert_array_equal(LeastLatency().scores(ASKED, fleet), selfish.scores(ASKED, fleet))
    assert sum(NAIVE) > sum(selfish.theta)


def test_a_short_queue_beats_a_load_and_a_long_one_does_not():
    for policy in (EQUAL, LeastLatency()):
        assert preferred(policy, a_node("warm", models="llama", inflight=2.0), a_node("cold")) == "warm"
    assert preferred(EQUAL, a_node("warm", models="llama", inflight=60.0), a_node("cold")) == "cold"


def test_the_selfish_rule_joins_company_that_the_charge_for_delay_avoids():
    """A crowd costs the request little, and the request costs the crowd much."""
    nodes = a_node("crowd", models="llama", inflight=40.0), a_node("cold")
    quick = a_request("llama", prompt_tokens=300, load_s=2.0, model_gib=7.0)

    assert preferred(LeastLatency(), *nodes, request=quick) == "crowd"
    assert preferred(EQUAL, *nodes, request=quick) == "cold"


def test_a_constant_for_missing_weights_keeps_requests_where_they_are():
    warm, cold = a_node("warm", models="llama", inflight=60.0), a_node("cold")

    assert preferred(EQUAL, warm, cold) == "cold"
    assert preferred(replace(EQUAL, cold=1000.0), warm, cold) == "warm"
