"""Several ledgers that share look like one, whatever happens in whatever order; and nothing of others stays behind."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ccr import book as b
from ccr import shared
from ccr.look import IS_LOADING, LOAD_WAIT_S, RESIDENT, SINCE_PROGRESS_S
from ccr.shared import IN_FLIGHT
from tests.looks import MODELS, NODES, TOKENS, a_book, look, place

ROUTERS = 3
WHOLE = (*shared.ADDED, b.ACTIVE_MODELS, b.PASS_S)
SENT = np.zeros(NODES)


class Router:
    """A book, what of others is in it, and what it told last."""

    def __init__(self):
        self.book = a_book()
        self.entered = shared.none_entered(MODELS, NODES)
        self.told = shared.nothing(MODELS, NODES)

    def tell(self, now_s):
        self.told = shared.part_of(self.book, self.entered, SENT, now_s)

    def hear(self, others, now_s):
        total = shared.nothing(MODELS, NODES)
        for other in others:
            shared.add(total, other.told)
        shared.enter(self.book, self.entered, total, now_s)


def exchange(routers, now_s=0.0):
    for router in routers:
        router.tell(now_s)
    for router in routers:
        router.hear([other for other in routers if other is not router], now_s)


@pytest.fixture
def routers():
    return [Router(), Router()]


class Shared(RuleBasedStateMachine):
    """Requests come, speak and go through any router; each tells and hears when it likes; nodes restart."""

    def __init__(self):
        super().__init__()
        self.routers = [Router() for _ in range(ROUTERS)]
        self.flights = []
        self.now_s = 0.0

    @rule(
        r=st.integers(0, ROUTERS - 1), model=st.integers(0, MODELS - 1), node=st.integers(0, NODES - 1),
        prompt=TOKENS, output=TOKENS,
    )  # fmt: skip
    def come(self, r, model, node, prompt, output):
        placed = place(self.routers[r].book, model, node, prompt=prompt, output=output, now_s=self.now_s)
        self.flights.append([r, placed, False])

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 10**6))
    def speak(self, which):
        flight = self.flights[which % len(self.flights)]
        if not flight[2]:
            flight[2] = True
            b.first_token(self.routers[flight[0]].book, flight[1], self.now_s)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 10**6))
    def go(self, which):
        r, placed, has_first_token = self.flights.pop(which % len(self.flights))
        b.leave(self.routers[r].book, placed, has_first_token, self.now_s)

    @rule(r=st.integers(0, ROUTERS - 1))
    def tell(self, r):
        self.routers[r].tell(self.now_s)

    @rule(r=st.integers(0, ROUTERS - 1), dead=st.integers(-1, ROUTERS - 1))
    def hear(self, r, dead):
        """One of the others may be away."""
        others = [other for k, other in enumerate(self.routers) if k not in {r, dead}]
        self.routers[r].hear(others, self.now_s)

    @rule(node=st.integers(0, NODES - 1))
    def restart(self, node):
        """Everybody notices; what was in flight there is nobody's any more."""
        for router in self.routers:
            b.forget(router.book, node)
            shared.left(router.entered, node)
        self.flights = [flight for flight in self.flights if flight[1].node != node]

    @rule(length_s=st.floats(0.0, 10.0))
    def wait(self, length_s):
        self.now_s += length_s

    @invariant()
    def nothing_is_negative(self):
        for router in self.routers:
            assert (router.book.load[list(WHOLE)] > -1e-9).all()
            assert (router.book.inflight >= 0).all()

    @invariant()
    def each_tells_what_it_placed_and_nothing_else(self):
        for r, router in enumerate(self.routers):
            alone = a_book()
            alone.resident[:] = router.book.resident
            for whose, placed, has_first_token in self.flights:
                if whose == r:
                    add_again(alone, placed, has_first_token)
            part = shared.part_of(router.book, router.entered, SENT, self.now_s)
            np.testing.assert_allclose(part.load, alone.load[list(shared.ADDED)], rtol=1e-9, atol=1e-6)
            np.testing.assert_array_equal(part.inflight, alone.inflight)

    @invariant()
    def after_an_exchange_all_books_are_the_one_in_which_all_of_it_is(self):
        routers = deepcopy(self.routers)
        exchange(routers, self.now_s)
        one = a_book()
        for _, placed, has_first_token in self.flights:
            add_again(one, placed, has_first_token)
        for router in routers:
            np.testing.assert_allclose(
                router.book.load[list(WHOLE)], one.load[list(WHOLE)], rtol=1e-9, atol=1e-6
            )
            np.testing.assert_array_equal(router.book.inflight, one.inflight)


def add_again(book, placed, has_first_token):
    """Enter a dispatch as it was, whatever is resident now."""
    model, node = placed.model, placed.node
    again = b.place(book, model, node, placed.prompt_tokens, placed.output_tokens, 0.0, 0.0, 0.0)
    book.load[b.PENDING_PREFILL_S, node] += placed.prefill_s - again.prefill_s
    if has_first_token:
        resident = book.resident[model, node]
        b.first_token(book, placed._replace(load_s=0.0), 0.0)
        book.resident[model, node] = resident


Shared.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_ledgers_that_share_are_one_ledger = Shared.TestCase


def test_the_machine_finds_an_exchange_that_counts_itself(monkeypatch):
    """Planted: a router that hears its own part as well."""
    monkeypatch.setattr(Router, "hear", lambda self, others, now_s: hear_all(self, [*others, self], now_s))

    with pytest.raises(AssertionError):
        exchange_of_one_request()


def hear_all(router, others, now_s):
    total = shared.nothing(MODELS, NODES)
    for other in others:
        shared.add(total, other.told)
    shared.enter(router.book, router.entered, total, now_s)


def exchange_of_one_request():
    machine = Shared()
    machine.come(0, 0, 0, 100.0, 20.0)
    machine.after_an_exchange_all_books_are_the_one_in_which_all_of_it_is()


def test_a_look_is_that_of_one_router(routers):
    one = a_book()
    for book in (one, routers[0].book, routers[1].book):  # telemetry tells them all
        b.report(book, 0, np.array([True, True, False]), np.zeros(MODELS, dtype=bool))
        b.report(book, 3, np.array([False, False, True]), np.zeros(MODELS, dtype=bool))
    for k, (model, node) in enumerate([(0, 0), (1, 0), (0, 1), (2, 3)]):
        for book in (one, routers[k % 2].book):
            placed = place(book, model, node, prompt=500.0, output=100.0)
            if k < 2:
                b.first_token(book, placed, 0.0)

    exchange(routers)

    alone = look(one, 0)
    for router in routers:
        np.testing.assert_allclose(look(router.book, 0).pairs, alone.pairs, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(look(router.book, 0).load, alone.load, rtol=1e-9, atol=1e-12)


def test_what_others_sent_is_not_counted_as_unseen(routers):
    place(routers[0].book, 0, 2)
    exchange(routers)

    b.read(routers[1].book, 2, in_engine=3.0)

    assert routers[1].book.load[b.OTHERS, 2] == 2.0


def test_what_a_router_that_died_had_placed_is_taken_out(routers):
    untouched = routers[1].book.load.copy()
    for node in range(NODES):
        place(routers[0].book, node % MODELS, node, prompt=333.3, output=77.7)
    exchange(routers)

    routers[1].hear([], 5.0)

    np.testing.assert_array_equal(routers[1].book.load[list(WHOLE)], untouched[list(WHOLE)])
    assert not routers[1].book.inflight.any()
    assert (routers[1].book.loading_until_s == -np.inf).all()


def test_a_load_that_another_began_is_waited_for_and_not_begun_again(routers):
    began = place(routers[0].book, 1, 0, now_s=10.0)
    exchange(routers, 11.0)

    seen = look(routers[1].book, 1, now_s=11.0)
    joined = place(routers[1].book, 1, 0, now_s=11.0)

    assert seen.pairs[IS_LOADING, 0] == 1.0
    assert seen.pairs[LOAD_WAIT_S, 0] == pytest.approx(began.load_s - 1.0)
    assert joined.load_s == 0.0
    assert routers[1].book.loads_until_s[0] == pytest.approx(10.0 + began.load_s)


def test_weights_that_came_for_another_are_there(routers):
    placed = place(routers[0].book, 1, 0)
    exchange(routers)
    b.first_token(routers[0].book, placed, 6.0)

    exchange(routers, 6.0)

    assert look(routers[1].book, 1, now_s=6.0).pairs[RESIDENT, 0] == 1.0


def test_a_load_that_is_late_is_still_under_way(routers):
    placed = place(routers[0].book, 1, 0)
    for now_s in (0.0, 1.5 * placed.load_s):
        exchange(routers, now_s)

    assert look(routers[1].book, 1, now_s=1.5 * placed.load_s).pairs[IS_LOADING, 0] == 1.0


def test_a_node_at_which_only_others_have_requests_does_not_look_hung(routers):
    place(routers[0].book, 0, 0, now_s=100.0)
    exchange(routers, 100.1)

    assert look(routers[1].book, 0, now_s=101.0).pairs[SINCE_PROGRESS_S, 0] == pytest.approx(1.0)


def test_news_of_progress_does_not_grow_young_by_being_passed_on(routers):
    place(routers[0].book, 0, 0, now_s=100.0)
    place(routers[1].book, 0, 0, now_s=100.0)

    for k in range(1, 51):  # told now, heard half a tenth of a second later
        for router in routers:
            router.tell(100.0 + 0.1 * k)
        for router, other in (routers, routers[::-1]):
            router.hear([other], 100.05 + 0.1 * k)

    assert look(routers[0].book, 0, now_s=105.1).pairs[SINCE_PROGRESS_S, 0] == pytest.approx(5.1, abs=0.06)


def test_rates_add_up_and_decay_alike(routers):
    one = a_book()
    for k in range(10):
        for book in (one, routers[k % 2].book):
            placed = place(book, 0, 0, now_s=float(k))
            b.first_token(book, placed, k + 0.2)
            b.leave(book, placed, True, k + 0.4)
            b.learn(book, placed, 0.2, 0.4, 20.0, k + 0.4, False)
        exchange(routers, k + 0.5)

    for router in routers:
        assert look(router.book, now_s=12.0).load[b.DONE_PER_S, 0] == pytest.approx(
            look(one, now_s=12.0).load[b.DONE_PER_S, 0]
        )


def test_a_restarted_node_has_nothing_of_others(routers):
    place(routers[0].book, 0, 1)
    exchange(routers)
    for router in routers:
        b.forget(router.book, 1)
        shared.left(router.entered, 1)

    exchange(routers)

    assert all(not router.book.load[list(WHOLE), 1].any() for router in routers)
    assert all(not router.told.load[IN_FLIGHT].any() for router in routers)
