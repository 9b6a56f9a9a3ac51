"""What comes whole keeps no prefill in the book to its end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import book as b
from ccr.admission import may_reject
from ccr.expectations import look_of
from ccr.first_tokens import Unheard
from ccr.ledger import Ledger
from ccr.look import BACKLOG_S, RESIDENT
from ccr.types import Reading
from tests.factories import a_live_fleet, a_request

LONG = {"prompt_tokens": 4000, "output_tokens": 1000}
IN_FLIGHT = (b.PENDING, b.PENDING_PREFILL_S, b.KV_GIB, b.REMAINING_TOKENS, b.ACTIVE_MODELS, b.PASS_S, b.CONTEXT_S, b.IN_BATCH)  # fmt: skip


class Sent:
    """A fleet that keeps a book, and what was sent to its first node."""

    def __init__(self, *nodes, warm=("llama",)):
        self.live = a_live_fleet(*nodes or "a")
        self.live.expect(0.0)
        for node in nodes or "a":
            self.live.observe(node, Reading(loaded=frozenset(warm)), 0.0)
        self.ledger = Ledger(self.live)

    @property
    def book(self):
        return self.live.expected.book

    def send(self, now_s=0.0, model="llama", *, comes_whole=True):
        request = a_request(model, **LONG)
        return self.ledger.lease(self.live.states[0], request, now_s, comes_whole=comes_whole)

    def look(self, now_s):
        return look_of(a_request("llama", **LONG), self.live.at(now_s))

    def backlog_s(self, now_s):
        return self.look(now_s).pairs[BACKLOG_S, 0]


def test_its_prefill_is_work_before_others_until_it_should_be_done():
    sent = Sent()
    own_s = sent.send().placed.prefill_s

    assert own_s > 0.3
    assert sent.backlog_s(0.9 * own_s) == own_s
    assert sent.backlog_s(1.1 * own_s) == 0.0
    assert sent.book.load[b.IN_BATCH, 0] == 1.0


def test_each_waits_for_those_before_it():
    sent = Sent()
    own_s, *_ = [sent.send().placed.prefill_s for _ in range(3)]

    left = [sent.backlog_s(rounds * own_s) / own_s for rounds in (0.9, 1.1, 1.9, 2.1, 2.9, 3.1)]

    assert left == pytest.approx([3.0, 2.0, 2.0, 1.0, 1.0, 0.0])


def test_one_for_which_weights_have_to_come_waits_for_them():
    sent = Sent(warm=())
    lease = sent.send()
    load_s, own_s = sent.book.load_s[lease.placed.model, 0], lease.placed.prefill_s

    assert sent.backlog_s(load_s + 0.9 * own_s) == own_s
    assert sent.backlog_s(load_s + 1.1 * own_s) == 0.0


def test_a_node_that_is_slow_gets_more_time():
    sent = Sent()
    sent.book.load[b.SPEED, 0] = 2.0
    own_s = sent.send().placed.prefill_s

    assert sent.backlog_s(1.9 * own_s) == own_s
    assert sent.backlog_s(2.1 * own_s) == 0.0


def test_what_others_have_waiting_there_comes_first():
    sent = Sent()
    sent.live.observe("a", Reading(running=0.0, waiting=2.0, loaded=frozenset({"llama"})), 0.0)
    own_s = sent.send().placed.prefill_s

    sent.look(2.9 * own_s)
    before = sent.book.load[b.PENDING, 0]
    sent.look(3.1 * own_s)

    assert (before, sent.book.load[b.PENDING, 0]) == (1.0, 0.0)


def test_the_next_dispatch_finds_it_done_without_a_look():
    sent = Sent()
    own_s = sent.send().placed.prefill_s

    sent.send(2.0 * own_s)

    assert sent.book.load[b.PENDING, 0] == 1.0


def test_a_guess_claims_neither_weights_nor_a_sign_of_life():
    sent = Sent(warm=())
    lease = sent.send(1.0)
    until_s = sent.book.loading_until_s[lease.placed.model, 0]

    look = sent.look(1000.0)

    assert sent.book.load[b.PENDING, 0] == 0.0
    assert look.pairs[RESIDENT, 0] == 0.0
    assert sent.book.loading_until_s[lease.placed.model, 0] == until_s
    assert sent.book.progress_s[0] == 1.0
    assert not lease.has_first_token


def test_what_is_known_to_be_there_stays_there():
    sent = Sent()
    sent.send()

    assert sent.look(1000.0).pairs[RESIDENT, 0] == 1.0


def test_a_stream_waits_for_its_first_token_however_long_that_takes():
    sent = Sent()
    lease = sent.send(comes_whole=False)

    assert sent.backlog_s(1000.0) == lease.placed.prefill_s


def test_a_first_token_that_is_heard_of_after_all_takes_nothing_off_twice():
    sent = Sent()
    lease, other = sent.send(), sent.send(comes_whole=False)
    sent.look(1.5 * lease.placed.prefill_s)

    lease.first_token(2.0)

    assert sent.book.load[b.PENDING, 0] == 1.0
    assert sent.backlog_s(2.0) == pytest.approx(other.placed.prefill_s)


def test_it_follows_its_node_to_another_column():
    sent = Sent("b", "c")
    lease = sent.send()
    specs = [state.spec for state in sent.live.states]

    sent.live.replace(specs[::-1], 0.0)
    sent.look(1000.0)

    assert sent.book.load[b.PENDING].tolist() == [0.0, 0.0]
    assert sent.book.load[b.IN_BATCH].tolist() == [0.0, 1.0]
    lease.release()
    assert (sent.book.load[list(IN_FLIGHT)] == 0.0).all()


def test_a_fleet_of_whole_answers_that_only_decodes_is_not_saturated():
    """Eight long prompts keep a node busy for seconds, their answers for minutes."""
    sent = Sent()
    backlog_s = sum(sent.send().placed.prefill_s for _ in range(8))

    looks = [sent.look(now_s) for now_s in (0.0, backlog_s + 0.1)]
    saturated = [may_reject(seen, np.ones(seen.pairs.shape[1], bool)) for seen in looks]

    assert saturated == [True, False]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1), st.booleans(), st.sampled_from(["llama", "mistral"])),
        st.tuples(st.just("speak"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0.0, 20.0)),
        st.tuples(st.just("look")),
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_the_order_of_events_the_book_returns_to_zero(events):
    sent = Sent("a", "b", warm=())
    now_s, boots, leases = 0.0, 0, []
    for name, *how in events:
        if name == "send":
            node, whole, model = how
            request = a_request(model, **LONG)
            leases.append(sent.ledger.lease(sent.live.states[node], request, now_s, comes_whole=whole))
        elif name == "wait":
            now_s += how[0]
        elif name == "look":
            sent.look(now_s)
        elif name == "restart":
            boots += 1
            sent.live.observe("ab"[how[0]], Reading(boot_id=str(boots)), now_s)
        elif leases:
            lease = leases[how[0] % len(leases)]
            lease.release() if name == "end" else lease.first_token(now_s)
        assert (sent.book.load[list(IN_FLIGHT)] >= -1e-9).all()
    for lease in leases:
        lease.release()
    sent.look(now_s + 1e6)

    assert sent.ledger.in_flight == 0
    assert (sent.book.load[list(IN_FLIGHT)] == 0.0).all()
    assert (sent.book.inflight == 0).all()


# -- how much is remembered


class Flight:
    def __init__(self):
        self.is_open = True
        self.presumed_s = []

    def presume_first_token(self, now_s):
        self.presumed_s.append(now_s)


def test_each_comes_once_and_in_order_of_its_moment():
    unheard, flights = Unheard(), [Flight() for _ in range(3)]
    for due_s, flight in zip((3.0, 1.0, 1.0), flights, strict=True):
        unheard.add(due_s, flight)

    unheard.come(2.0)
    unheard.come(2.5)

    assert [flight.presumed_s for flight in flights] == [[], [1.0], [1.0]]
    assert len(unheard) == 1


def test_what_has_ended_does_not_pile_up():
    unheard, held = Unheard(), [Flight() for _ in range(10)]
    for flight in held:
        unheard.add(1e6, flight)
    for _ in range(10_000):
        flight = Flight()
        unheard.add(1e6, flight)
        flight.is_open = False

    assert len(unheard) <= 2 * len(held) + 64 + 1
    unheard.come(1e6)
    assert all(flight.presumed_s == [1e6] for flight in held)


def test_a_thousand_open_ones_are_all_kept():
    unheard, rng = Unheard(), np.random.default_rng(1)
    flights = [Flight() for _ in range(1000)]
    for flight in flights:
        unheard.add(float(rng.random()), flight)

    unheard.come(1.0)

    assert all(len(flight.presumed_s) == 1 for flight in flights)
