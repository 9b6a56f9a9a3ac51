import pytest

from ccr.ledger import Ledger
from ccr.policies.prefix_affinity import PrefixAffinity
from ccr.types import Reading
from tests.factories import a_fleet, a_live_fleet, a_node, a_request


def after_a_turn_on(node_id, company=0):
    """Two warm nodes; the session's last turn was answered on one of them, where there is company now."""
    live = a_live_fleet("a", "b")
    for id_ in "ab":
        live.observe(id_, Reading(loaded=frozenset({"llama"})), 0.0)
    live.expect(0.0)
    ledger = Ledger(live)
    ledger.lease(live.state(node_id), a_request("llama", session="s", prompt_tokens=400), 0.0).release()
    for _ in range(company):
        ledger.lease(live.state(node_id), a_request("llama", prompt_tokens=50), 0.0)
    return live.at(0.0)


@pytest.mark.parametrize("node_id", ["a", "b"])
def test_the_next_turn_goes_where_the_last_one_is_cached(node_id):
    fleet = after_a_turn_on(node_id)

    scores = PrefixAffinity().scores(a_request("llama", session="s", prompt_tokens=600), fleet)

    assert fleet.nodes[scores.argmax()].id == node_id


@pytest.mark.parametrize(("company", "stays"), [(2, True), (4, False)])
def test_the_cache_is_worth_as_many_requests_as_it_is_said_to_be(company, stays):
    fleet = after_a_turn_on("a", company)

    scores = PrefixAffinity(cached=3.0).scores(a_request("llama", session="s", prompt_tokens=520), fleet)

    assert (scores[0] > scores[1]) == stays


def test_another_conversation_goes_where_there_is_less_to_do():
    fleet = after_a_turn_on("a", 1)

    assert PrefixAffinity().scores(a_request("llama", session="t", prompt_tokens=600), fleet).argmax() == 1


def test_missing_weights_cost_their_penalty():
    fleet = a_fleet(a_node("cold"), a_node("warm", models="llama", inflight=5.0))

    scores = PrefixAffinity(cold_start_penalty=8.0).scores(a_request("llama"), fleet)

    assert scores.tolist() == [-8.0, -5.0]
