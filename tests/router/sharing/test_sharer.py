"""Routers that exchange what they have in flight: heard within a turn, gone when no longer told, and never in the way."""

from itertools import count

import numpy as np
import pytest
import structlog.testing

from ccr import shared
from ccr.fleet import FleetRules
from ccr.ledger import Ledger
from ccr.prices import PriceList
from router.sharing.fleet import SharedFleet
from router.sharing.sharer import FAMILY, Sharer
from router.store.backoff import Backoff
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from router.store.store import StoreDownError
from tests.factories import a_request, a_spec

EXPIRES_S = 2.0


class Router:
    """A fleet, its ledger and its sharer, which take turns when the test says so."""

    def __init__(self, bench, nodes, store=None, key=b""):
        self.bench = bench
        self.fleet = SharedFleet(FleetRules(), 2, bench.now_s, PriceList(), EXPIRES_S)
        self.fleet.replace([a_spec(node) for node in nodes], bench.now_s)
        self.fleet.expect(bench.now_s)
        self.ledger = Ledger(self.fleet)
        self.sharer = Sharer(
            store or EmbeddedStore(bench.directory, wall=lambda: 1.7e9 + bench.now_s),
            self, key, expires_s=EXPIRES_S, clock=lambda: bench.now_s, backoff=Backoff(draw=lambda: 0.0),
        )  # fmt: skip

    def own(self):
        return self.fleet.own(self.bench.now_s)

    def hear(self, heard):
        self.fleet.hear(heard, self.bench.now_s)

    def turn(self):
        self.sharer.turn()
        return self

    def lease(self, node, model="llama"):
        request = a_request(model, seq=next(self.bench.numbers), prompt_tokens=500)
        return self.ledger.lease(self.fleet.state(node), request, self.bench.now_s)

    def sees(self, node):
        """Requests in flight there, whoever sent them."""
        fleet = self.fleet.at(self.bench.now_s)
        return fleet.inflight[self.fleet.state(node).index]


class Bench:
    """Routers around one store."""

    def __init__(self, directory):
        self.directory = directory
        self.now_s = 100.0
        self.numbers = count()

    def router(self, nodes="abc", **more):
        return Router(self, nodes, **more)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "store")


@pytest.fixture
def pair(bench):
    return bench.router(), bench.router()


def exchange(*routers):
    for _ in range(2):
        for router in routers:
            router.turn()


def leaks(*routers):
    """What is left in any of them, of others or of its own; 0 when nothing is in flight."""
    found = 0.0
    for router in routers:
        router.fleet.at(router.bench.now_s)
        book, part = router.fleet.expected.book, router.own().part
        found += router.ledger.in_flight + sum(state.elsewhere for state in router.fleet.states)
        found += np.abs(book.load[list(shared.ADDED)]).sum() + np.abs(book.inflight).sum()
        found += np.abs(part.load).sum() + part.inflight.sum()
        found += np.abs(router.fleet.at(router.bench.now_s).inflight).sum()
    return found


# -- what is heard


def test_what_one_sends_the_other_counts(pair):
    one, other = pair
    for _ in range(3):
        one.lease("b")

    exchange(one, other)

    assert (other.sees("b"), other.sees("a")) == (3.0, 0.0)
    assert other.fleet.state("b").inflight == 0
    assert other.fleet.state("b").elsewhere == 3
    assert (other.fleet.peers, other.fleet.coverage) == (1, 1.0)


def test_nobody_counts_his_own_twice(pair):
    one, other = pair
    one.lease("b")
    other.lease("b")

    for _ in range(5):
        exchange(one, other)

    assert one.sees("b") == other.sees("b") == 2.0


def test_nodes_and_models_may_stand_in_another_order(bench):
    one, other = bench.router("abc"), bench.router("cb")
    one.lease("a", "llama")
    one.lease("c", "qwen")
    other.lease("c", "mistral")
    other.lease("b", "qwen")

    exchange(one, other)

    assert [one.sees(node) for node in "abc"] == [1.0, 1.0, 2.0]
    assert [other.sees(node) for node in "cb"] == [2.0, 1.0]
    book = other.fleet.expected
    assert book.book.inflight[book.rows.index("qwen")].tolist() == [1, 1]


def test_what_others_have_in_flight_is_resident_or_on_its_way(pair):
    one, other = pair
    other.lease("a", "qwen").release()
    one.lease("b", "qwen")

    exchange(one, other)

    assert other.fleet.at(other.bench.now_s).resident("qwen").tolist() == [False, True, False]


def test_rates_are_of_all_for_policies_and_of_one_for_its_metric(pair):
    one, other = pair
    for router in (one, other):
        for _ in range(5):
            router.lease("b")

    exchange(one, other)

    now_s = one.bench.now_s
    assert one.fleet.at(now_s).qps[1] == pytest.approx(2.0)
    assert one.fleet.sent_per_s(now_s)[1] == pytest.approx(1.0)


# -- what is over


@pytest.mark.parametrize("ended", ["first token", "none"])
def test_what_has_ended_is_gone(pair, ended):
    one, other = pair
    leases = [one.lease(node, model) for node in "abc" for model in ("llama", "qwen")]
    exchange(one, other)
    for lease in leases:
        if ended == "first token":
            lease.first_token(one.bench.now_s)
        lease.release()

    exchange(one, other)

    assert leaks(one, other) == 0.0


def test_the_leak_test_finds_an_exchange_that_forgets_what_it_entered(pair, monkeypatch):
    """Planted: what was heard before is not taken off again."""
    monkeypatch.setattr(shared, "put", lambda into, part: None)
    one, other = pair
    lease = one.lease("b")
    exchange(one, other)
    lease.release()
    exchange(one, other)

    assert leaks(one, other) > 0.0


def test_a_router_that_is_no_longer_heard_is_taken_out(pair):
    one, other = pair
    one.lease("b")
    exchange(one, other)

    other.bench.now_s += EXPIRES_S + 0.1  # it was killed
    other.turn()

    assert other.sees("b") == 0.0
    assert (other.fleet.peers, other.fleet.coverage) == (0, 1.0)
    assert leaks(other) == 0.0


def test_a_router_that_ends_takes_back_what_it_told(pair):
    one, other = pair
    one.lease("b")
    exchange(one, other)

    one.sharer.start()
    one.sharer.stop()
    other.turn()

    assert other.sees("b") == 0.0


def test_without_a_store_a_router_is_alone_after_a_while(pair):
    one, other = pair
    own = other.lease("a")
    one.lease("b")
    exchange(one, other)

    other.bench.now_s += EXPIRES_S
    held = other.fleet.expire(other.bench.now_s), other.sees("b")
    other.bench.now_s += 0.1
    let_go = other.fleet.expire(other.bench.now_s), other.sees("b")

    assert (held, let_go) == ((False, 1.0), (True, 0.0))
    assert other.fleet.coverage == other.fleet.expected.coverage == 0.5
    assert other.sees("a") == 1.0
    own.release()
    assert leaks(other) == 0.0


def test_it_shares_again_when_the_store_is_back(pair):
    one, other = pair
    one.lease("b")
    exchange(one, other)
    other.bench.now_s += EXPIRES_S + 0.1
    other.fleet.expire(other.bench.now_s)

    exchange(one, other)

    assert (other.sees("b"), other.fleet.coverage) == (1.0, 1.0)


# -- nodes that change


def test_a_node_that_restarts_takes_what_was_on_it_along(pair):
    one, other = pair
    lease = one.lease("b")
    exchange(one, other)
    for router in (one, other):
        router.fleet._reincarnate(router.fleet.state("b"), router.bench.now_s)

    exchange(one, other)
    lease.release()
    exchange(one, other)

    assert leaks(one, other) == 0.0


def test_a_fleet_that_changes_keeps_what_is_in_flight_on_the_nodes_that_stay(pair):
    one, other = pair
    leases = [one.lease("b"), one.lease("c")]
    exchange(one, other)
    other.fleet.replace([a_spec(node) for node in "dc"], other.bench.now_s)
    before = other.sees("c")

    exchange(one, other)

    assert before == other.sees("c") == 1.0
    assert other.sees("d") == 0.0
    for lease in leases:
        lease.release()
    exchange(one, other)
    assert leaks(one, other) == 0.0


def test_what_was_heard_for_a_fleet_that_has_changed_is_dropped(pair):
    one, other = pair
    one.lease("b")
    one.turn()
    before = other.own()
    other.own = lambda: before  # the serving thread changed the fleet in between
    other.fleet.replace([a_spec(node) for node in "ba"], other.bench.now_s)

    other.turn()

    assert other.sees("a") == other.sees("b") == 0.0
    del other.own
    other.turn()
    assert (other.sees("a"), other.sees("b")) == (0.0, 1.0)


# -- what must not be believed


def test_what_makes_no_sense_is_refused_counted_and_told_once(pair):
    one, other = pair
    one.lease("b")
    one.turn()
    other.sharer._store.put(FAMILY, "evil", b"nonsense", 60.0)

    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            other.turn()

    assert other.sees("b") == 1.0
    assert other.sharer.counts.refused == {"unreadable": 3}
    assert [event["event"] for event in logged] == ["ledger.part_refused"]


def test_with_a_key_only_those_who_have_it_are_heard(bench):
    one, other, evil = (bench.router(key=key) for key in (b"key", b"key", b"another"))
    one.lease("a")
    evil.lease("b")

    exchange(one, other, evil)

    assert (other.sees("a"), other.sees("b"), other.fleet.peers) == (1.0, 0.0, 1)
    assert other.sharer.counts.refused["unsigned"] > 0


# -- what must not get in the way


def test_a_store_that_is_away_is_asked_less_and_less_often(bench):
    router = bench.router(store=RedisStore("unix:///nowhere.sock"))
    router.sharer._backoff = Backoff(draw=lambda: 1.0)

    asked = 0
    for _ in range(100):
        before = router.sharer._backoff._failures
        router.turn()
        asked += router.sharer._backoff._failures > before
        bench.now_s += 0.1

    assert asked < 12
    assert router.fleet.heard_s is None
    with pytest.raises(StoreDownError):
        router.sharer._store.values(FAMILY)


def test_a_router_that_has_no_time_tells_nothing(bench):
    router = bench.router()
    router.own = lambda: None

    router.turn()

    assert router.sharer.counts.told == 0
    assert not router.sharer._store.values(FAMILY)
