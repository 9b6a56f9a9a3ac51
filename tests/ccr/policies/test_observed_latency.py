import pytest

from ccr import book as b
from ccr.ledger import Ledger
from ccr.policies.observed_latency import LatencyCurve, LatencyPredictor
from ccr.types import Reading
from tests.factories import a_fleet, a_live_fleet, a_node, a_request

ASKED = a_request("llama", prompt_tokens=300, load_s=5.0, model_gib=7.0)
both = pytest.mark.parametrize("policy", [LatencyCurve(), LatencyPredictor()], ids=["curve", "predictor"])


def a_day(ttft_s, rounds=60):
    """A live fleet of two warm nodes that answered requests; ``ttft_s`` by node and requests there."""
    live = a_live_fleet("a", "b")
    for id_ in "ab":
        live.observe(id_, Reading(loaded=frozenset({"llama"})), 0.0)
    live.expect(0.0, observed=True)
    ledger = Ledger(live)
    for k in range(rounds):
        for id_ in "ab":
            crowd = [ledger.lease(live.state(id_), ASKED, k) for _ in range(k % 4)]
            lease = ledger.lease(live.state(id_), ASKED, k)
            lease.release()
            seconds = ttft_s(id_, k % 4)
            live.learn(lease.state, lease.placed, seconds, seconds + 1.0, 41, float(k))
            for other in crowd:
                other.release()
    return live


@both
def test_it_asks_the_router_to_observe(policy):
    assert policy.observes


@both
def test_before_anything_was_seen_loads_count(policy):
    fleet = a_fleet(a_node("cold"), a_node("warm", models="llama"))

    assert policy.scores(ASKED, fleet).argmax() == 1


def test_a_node_that_was_slow_to_begin_is_avoided_by_its_curve():
    live = a_day(lambda id_, there: {"a": 2.0, "b": 0.3}[id_])

    scores = LatencyCurve().scores(ASKED, live.at(60.0))

    assert scores.tolist() == pytest.approx([-2.0, -0.3])


def test_the_curve_is_read_where_the_node_is_now():
    live = a_day(lambda id_, there: 0.2 + there)
    ledger = Ledger(live)
    for _ in range(3):
        ledger.lease(live.state("a"), ASKED, 60.0)

    scores = LatencyCurve().scores(ASKED, live.at(60.0))

    assert scores.tolist() == pytest.approx([-3.2, -0.2])


def test_the_predictor_learns_that_company_costs_time():
    live = a_day(lambda id_, there: 0.2 + 0.5 * there, rounds=200)
    ledger = Ledger(live)
    ledger.lease(live.state("a"), ASKED, 200.0)

    scores = LatencyPredictor(token=0.0).scores(ASKED, live.at(200.0))

    assert scores[0] - scores[1] == pytest.approx(-0.5, abs=0.1)


def test_what_is_not_asked_for_is_not_observed():
    live = a_live_fleet("a")
    live.observe("a", Reading(loaded=frozenset({"llama"})), 0.0)
    expected = live.expect(0.0)
    lease = Ledger(live).lease(live.state("a"), ASKED, 0.0)
    lease.release()

    live.learn(lease.state, lease.placed, 0.5, 1.5, 20, 1.0)

    book = expected.book
    assert book.ttft_seen.sum() == 0.0
    assert book.load[b.DONE_PER_S, 0] > 0.0
