"""The book balances: whatever happens in whatever order, it says what is in flight and nothing else."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ccr import book as b
from ccr import look as looks
from ccr.book import Book, Placed
from ccr.look import look_at
from tests.looks import MODELS, NODES, TOKENS, a_book, columns_of, place


@dataclass
class Flight:
    placed: Placed
    has_first_token: bool = False


IN_FLIGHT_ROWS = (
    b.PENDING, b.PENDING_PREFILL_S, b.KV_GIB, b.REMAINING_TOKENS, b.ACTIVE_MODELS, b.PASS_S, b.CONTEXT_S, b.IN_BATCH,
)  # fmt: skip


def recomputed(book: Book, flights: list[Flight]) -> np.ndarray:
    """The rows of what is in flight, from the flights alone."""
    load = np.zeros_like(book.load)
    for flight in flights:
        placed = flight.placed
        m, n = placed.model, placed.node
        held = placed.prompt_tokens + 0.5 * placed.output_tokens
        load[b.IN_BATCH, n] += 1
        load[b.PENDING, n] += not flight.has_first_token
        load[b.PENDING_PREFILL_S, n] += 0.0 if flight.has_first_token else placed.prefill_s
        load[b.KV_GIB, n] += book.kv_gib[m] * held
        load[b.CONTEXT_S, n] += book.costs[b.DECODE_CONTEXT_S, m, n] * held
        load[b.REMAINING_TOKENS, n] += placed.output_tokens * (0.5 if flight.has_first_token else 1.0)
    for m, n in {(flight.placed.model, flight.placed.node) for flight in flights}:
        load[b.ACTIVE_MODELS, n] += 1
        load[b.PASS_S, n] += book.costs[b.DECODE_FIXED_S, m, n]
    return load[list(IN_FLIGHT_ROWS)]


class InFlight(RuleBasedStateMachine):
    """Requests come, speak and go in any order, on any node, for any model; nodes restart in between."""

    def __init__(self):
        super().__init__()
        self.book = a_book()
        self.flights: list[Flight] = []
        self.now_s = 0.0

    @rule(
        model=st.integers(0, MODELS - 1),
        node=st.integers(0, NODES - 1),
        prompt=TOKENS,
        output=TOKENS,
        cached=TOKENS,
    )
    def place(self, model, node, prompt, output, cached):
        placed = place(
            self.book,
            model,
            node,
            prompt=prompt,
            output=output,
            cached=min(cached, prompt - 1.0),
            now_s=self.now_s,
        )
        self.flights.append(Flight(placed))

    @rule(data=st.data())
    @precondition(lambda self: any(not flight.has_first_token for flight in self.flights))
    def speak(self, data):
        flight = data.draw(st.sampled_from([f for f in self.flights if not f.has_first_token]))
        b.first_token(self.book, flight.placed, self.now_s)
        flight.has_first_token = True

    @rule(data=st.data())
    @precondition(lambda self: self.flights)
    def go(self, data):
        flight = self.flights.pop(data.draw(st.integers(0, len(self.flights) - 1)))
        b.leave(self.book, flight.placed, flight.has_first_token, self.now_s)

    @rule(node=st.integers(0, NODES - 1), resident=st.lists(st.booleans(), min_size=MODELS, max_size=MODELS))
    def report(self, node, resident):
        b.report(self.book, node, np.array(resident), np.zeros(MODELS, dtype=np.bool_))

    @rule(model=st.integers(0, MODELS - 1), node=st.integers(0, NODES - 1))
    def load(self, model, node):
        b.loading(self.book, model, node, self.now_s)

    @rule(node=st.integers(0, NODES - 1))
    def restart(self, node):
        b.forget(self.book, node)
        self.flights = [flight for flight in self.flights if flight.placed.node != node]

    @rule(passing_s=st.floats(0.0, 20.0))
    def time_passes(self, passing_s):
        self.now_s += passing_s

    @invariant()
    def the_sums_are_those_of_what_is_in_flight(self):
        np.testing.assert_allclose(
            self.book.load[list(IN_FLIGHT_ROWS)], recomputed(self.book, self.flights), rtol=1e-9, atol=1e-9
        )
        counted = np.zeros((MODELS, NODES), dtype=int)
        for flight in self.flights:
            counted[flight.placed.model, flight.placed.node] += 1
        np.testing.assert_array_equal(self.book.inflight, counted)

    @invariant()
    def nothing_is_negative(self):
        assert (self.book.load >= -1e-9).all()
        assert (self.book.inflight >= 0).all()

    @invariant()
    def an_idle_node_is_exactly_zero(self):
        idle = self.book.inflight.sum(axis=0) == 0
        assert (self.book.load[list(IN_FLIGHT_ROWS)][:, idle] == 0.0).all()

    def teardown(self):
        for flight in self.flights:
            b.leave(self.book, flight.placed, flight.has_first_token, self.now_s)
        assert (self.book.load[list(IN_FLIGHT_ROWS)] == 0.0).all()
        assert (self.book.inflight == 0).all()


TestInFlight = InFlight.TestCase


# Placements


def test_the_rows_are_as_many_as_their_meanings():
    assert len(b.LOAD) == b.ANSWERS + 1


def test_what_a_dispatch_adds_is_its_own_work():
    book = a_book()

    placed = place(book, model=1, prompt=1000.0, output=50.0)

    costs = book.costs[:, 1, 0]
    arithmetic = costs[b.PREFILL_TOKEN_S] * 1000.0 + costs[b.PREFILL_SQUARE_S] * 1e6
    assert placed.prefill_s == pytest.approx(costs[b.PREFILL_FIXED_S] + arithmetic)
    assert book.load[b.PENDING_PREFILL_S, 0] == placed.prefill_s
    assert book.load[b.REMAINING_TOKENS, 0] == 50.0
    assert book.load[b.KV_GIB, 0] == pytest.approx(2e-4 * 1025.0)
    assert placed.step_s == pytest.approx(
        costs[b.DECODE_FIXED_S] + costs[b.DECODE_SEQUENCE_S] + costs[b.DECODE_CONTEXT_S] * 1025.0
    )
    assert (book.load[: b.BUDGET_GIB, 1] == 0.0).all()


def test_a_short_prompt_pays_one_pass_over_the_weights():
    book = a_book()

    assert b.prefill_alone_s(book, 0, 0, 1.0, 0.0) == pytest.approx(0.01 + 0.015)


def test_cached_tokens_shorten_the_prefill_where_the_weights_are():
    book = a_book()
    book.resident[0, 0] = True

    warm, cold = (place(book, node=n, prompt=2000.0, cached=1900.0).prefill_s for n in (0, 1))

    assert warm < 0.3 * cold
    assert cold == b.prefill_alone_s(book, 0, 1, 2000.0, 0.0)  # the cache went with the weights


def test_requests_of_one_model_share_its_pass_over_the_weights():
    book = a_book()

    for model in (0, 0, 1):
        place(book, model)

    assert book.load[b.ACTIVE_MODELS, 0] == 2
    assert book.load[b.PASS_S, 0] == pytest.approx(book.costs[b.DECODE_FIXED_S, :2, 0].sum())


# Loads


def test_the_first_request_for_missing_weights_begins_a_load_and_the_next_waits_for_the_same():
    book = a_book()

    first, second = place(book, now_s=1.0), place(book, now_s=2.0)

    assert book.loading_until_s[0, 0] == book.loads_until_s[0] == 6.0
    assert (first.was_cold, second.was_cold) == (True, True)


def test_loads_of_a_node_run_one_after_the_other():
    book = a_book()

    place(book, 0)
    place(book, 1)

    assert book.loading_until_s[:2, 0].tolist() == [5.0, 11.0]
    assert book.loads_until_s[:2].tolist() == [11.0, -math.inf]


def test_weights_in_host_memory_come_sooner():
    book = a_book()
    b.report(book, 0, np.zeros(MODELS, dtype=bool), np.array([True, False, False]))

    place(book)

    assert book.loading_until_s[0, 0] == 0.5


def test_a_first_token_proves_that_the_weights_are_there():
    book = a_book()
    placed = place(book)

    b.first_token(book, placed, 4.0)

    assert book.resident[0, 0]
    assert book.loading_until_s[0, 0] == -math.inf
    assert not place(book, now_s=5.0).was_cold


def test_a_reported_load_that_nobody_expected_is_still_wholly_to_come():
    book = a_book()

    b.loading(book, 0, 0, 10.0)
    b.loading(book, 0, 0, 11.0)

    assert book.loading_until_s[0, 0] == book.loads_until_s[0] == 15.0


def test_a_load_that_is_a_little_late_does_not_begin_again():
    """Half of all loads take longer than expected; each reading meanwhile says that they are on their way."""
    book = a_book()
    place(book, now_s=0.0)

    b.loading(book, 0, 0, 5.5)
    late = book.loading_until_s[0, 0]
    b.loading(book, 0, 0, 10.5)

    assert late == 5.0
    assert book.loading_until_s[0, 0] == 15.5  # more than a whole load late: it is another one


def test_a_load_of_what_is_there_is_not_expected():
    book = a_book()
    book.resident[0, 0] = True

    b.loading(book, 0, 0, 1.0)

    assert book.loading_until_s[0, 0] == -math.inf


# Victims


def victims(book, node=0):
    b.refresh(book, node)
    return book.victim_gib[:, node].tolist(), book.victim_cost_s[:, node].tolist()


def test_victims_are_idle_models_least_recently_used_first():
    book = a_book(4, 1)
    book.load[b.BUDGET_GIB] = 40.0
    book.resident[:, 0] = True
    book.share[:] = (0.4, 0.3, 0.2, 0.1)
    book.used_s[:, 0] = (30.0, 10.0, 20.0, 40.0)

    gib, cost_s = victims(book)

    assert gib == [0.0, 7.0, 7.0 + 8.0, 7.0 + 8.0 + 6.0, 30.0]
    assert cost_s == pytest.approx(np.cumsum([0.0, 0.3 * 6.0, 0.2 * 7.0, 0.4 * 5.0, 0.1 * 8.0]))


def test_weights_that_what_comes_pushes_out_are_counted_no_more():
    """Telemetry tells of an eviction late; until then the node would look too full for anything."""
    book = a_book(3, 1)  # 6, 7 and 8 GiB on a card for 19
    book.resident[:2, 0] = True
    book.used_s[:, 0] = (10.0, 20.0, 0.0)

    place(book, 2, now_s=30.0)

    gib, _ = victims(book)
    assert book.load[b.WEIGHTS_GIB, 0] == 7.0 + 8.0
    assert gib == [0.0, 7.0, 7.0, 7.0, 7.0]


def test_a_busy_model_is_no_victim_but_its_weights_count():
    book = a_book()
    book.load[b.BUDGET_GIB] = 40.0
    book.resident[:, 0] = True
    place(book, 1)

    gib, _ = victims(book)

    assert gib[-1] == 6.0 + 8.0
    assert book.load[b.WEIGHTS_GIB, 0] == 6.0 + 7.0 + 8.0


def test_weights_on_their_way_for_a_request_take_room_already():
    book = a_book()
    place(book, 2)

    b.refresh(book, 0)

    assert book.load[b.WEIGHTS_GIB, 0] == 8.0


@given(st.lists(st.floats(-100.0, 100.0), min_size=0, max_size=9), st.data())
def test_of_many_idle_models_the_first_few_are_those_a_sort_would_give(used_s, data):
    book = a_book(len(used_s), 1)
    book.load[b.BUDGET_GIB] = 200.0
    book.resident[:, 0] = True
    book.used_s[:, 0] = used_s
    book.inflight[:, 0] = data.draw(st.lists(st.integers(0, 1), min_size=len(used_s), max_size=len(used_s)))

    gib, _ = victims(book)

    idle = [m for m in np.argsort(used_s, kind="stable") if not book.inflight[m, 0]][: b.VICTIMS]
    expected = np.cumsum([0.0, *book.weights_gib[idle]]).tolist()
    assert gib == pytest.approx(expected + [expected[-1]] * (b.VICTIMS + 1 - len(expected)))


def test_what_changes_residency_makes_the_row_stale():
    book = a_book()
    for change in (
        lambda: place(book),
        lambda: b.report(book, 0, np.array([False, True, False]), np.zeros(MODELS, dtype=bool)),
        lambda: b.forget(book, 0),
    ):
        b.refresh(book, 0)
        assert not book.stale[0]

        change()

        assert book.stale[0]


# What is learned


def test_shares_are_a_distribution_and_follow_what_is_asked_for():
    book = a_book()

    for _ in range(1000):
        b.asked_for(book, 2)

    assert book.share.sum() == pytest.approx(1.0)
    assert book.share[2] > 0.95


def answered(book, *, ttft_s=0.1, total_s=1.1, tokens=51.0, now_s=1.0, observed=False, **where):
    placed = place(book, **where)
    b.first_token(book, placed, now_s)
    b.leave(book, placed, True, now_s)
    b.learn(book, placed, ttft_s, total_s, tokens, now_s, observed)
    return placed


def test_predicted_lengths_follow_what_was_generated():
    book = a_book()

    for _ in range(500):
        answered(book, tokens=40.0)

    assert book.output_tokens.tolist() == [pytest.approx(40.0, rel=0.01), 128.0, 128.0]


def test_a_node_that_takes_three_times_as_long_is_found_out():
    book = a_book()
    expected_s = place(a_book()).step_s

    for k in range(200):
        answered(book, ttft_s=0.1, total_s=0.1 + 50 * 3.0 * expected_s, now_s=float(k))

    assert book.load[b.SPEED, 0] == pytest.approx(3.0, rel=0.01)
    assert book.load[b.SPEED, 1] == 1.0


@pytest.mark.parametrize("token_s", [0.0, 1e-9, 1e6])
def test_one_odd_answer_moves_the_speed_little(token_s):
    book = a_book()

    answered(book, ttft_s=0.1, total_s=0.1 + 50 * token_s)

    assert 0.9 <= book.load[b.SPEED, 0] <= 1.3


def test_the_rate_of_finished_requests_is_that_of_the_last_seconds():
    book = a_book()

    for k in range(400):
        answered(book, now_s=0.25 * k)

    assert book.load[b.DONE_PER_S, 0] == pytest.approx(4.0, rel=0.05)


def test_progress_never_goes_back():
    """The time of an end may be that of the last look, a moment before the last token."""
    book = a_book()
    first, other = place(book), place(book)
    b.first_token(book, first, 3.0)

    b.leave(book, other, False, 2.9)

    assert book.progress_s[0] == 3.0


# What is observed: the curve and the regressions


def test_the_curve_has_the_mean_of_what_was_seen_at_each_number_in_flight():
    book = a_book()
    book.resident[:] = True
    crowd = [place(book) for _ in range(2)]
    for ttft_s in (0.2, 0.4):
        answered(book, ttft_s=ttft_s, observed=True)
    for placed in crowd:
        b.leave(book, placed, False, 1.0)
    answered(book, ttft_s=0.05, observed=True, unseen=30.0)

    assert book.ttft_curve[2, 0] == pytest.approx(0.3)
    assert book.ttft_curve[b.CURVE - 1, 0] == 0.05  # the last step is open
    assert book.ttft_seen[:, 0].sum() == 3
    assert book.ttft_seen[:, 1].sum() == 0


def test_a_cold_start_teaches_nothing_about_latency():
    book = a_book()

    answered(book, ttft_s=9.0, observed=True)

    assert book.ttft_seen.sum() == 0
    assert (book.weights == 0.0).all()


def test_nothing_is_observed_unless_it_is_asked_for():
    book = a_book()
    book.resident[:] = True

    answered(book)

    assert book.ttft_seen.sum() == 0
    assert (book.weights == 0.0).all()


def test_the_regression_recovers_a_linear_law():
    rng = np.random.default_rng(5)
    law = np.array([0.05, 0.8, 0.3, 1.2, 0.4, 0.1, 0.05])
    book = a_book()
    book.resident[:] = True
    for _ in range(600):
        placed = Placed(
            0, 0, rng.uniform(10, 4000), 50.0, rng.uniform(0.01, 1.0), rng.uniform(0.01, 0.1), rng.integers(0, 20), 0.0,
            False, 0.0, 0.0, 0.0,
        )  # fmt: skip
        x = b.predictor_inputs(placed)
        ttft_s = float(law @ x)
        b.learn(book, placed, ttft_s, ttft_s + 50 * float(0.5 * law @ x), 51.0, 0.0, True)

    np.testing.assert_allclose(book.weights[0], law, atol=0.02)
    np.testing.assert_allclose(book.weights[1], 0.5 * law, atol=0.02)


def test_the_regression_stays_finite_when_the_same_thing_happens_for_ever():
    """Forgetting without news winds the uncertainty up until it blows."""
    book = a_book()
    book.resident[:] = True
    placed = place(book)

    for _ in range(20_000):
        b.learn(book, placed, 0.3, 1.3, 51.0, 0.0, True)

    assert np.isfinite(book.precision).all()
    assert book.weights[0] @ b.predictor_inputs(placed) == pytest.approx(0.3, rel=1e-3)


def test_a_load_that_was_seen_is_expected_of_its_model_and_its_node():
    book = a_book()  # loads of 5, 6 and 7 s
    before = book.load_s.copy()
    placed = place(book, 1, 2, now_s=10.0)

    b.first_token(book, placed, 10.0 + 2.0 * 6.0 + placed.prefill_s)

    factor = 2.0**0.25
    np.testing.assert_allclose(book.load_s[1, [0, 1, 3]], factor * before[1, [0, 1, 3]])
    np.testing.assert_allclose(book.load_s[[0, 2], 2], factor * before[[0, 2], 2])
    assert book.load_s[1, 2] == pytest.approx(factor**2 * before[1, 2])
    np.testing.assert_array_equal(book.load_s[0, [0, 1, 3]], before[0, [0, 1, 3]])


def test_a_load_that_waited_for_another_is_not_taken_for_a_slow_one():
    book = a_book()
    first, second = place(book, 0, 0), place(book, 1, 0)

    b.first_token(book, second, 5.0 + 6.0 + second.prefill_s)

    assert (second.load_s, second.wait_s) == (6.0, 5.0)
    np.testing.assert_allclose(book.load_s[:, 0], [5.0, 6.0, 7.0])
    assert first.wait_s == 0.0


@pytest.mark.parametrize("kind", ["in host memory", "resident", "under way"])
def test_only_a_load_from_the_source_that_the_request_began_teaches(kind):
    book = a_book()
    book.in_host[0, 0], book.resident[0, 0] = kind == "in host memory", kind == "resident"
    if kind == "under way":
        place(book)

    assert place(book).load_s == 0.0


def test_what_others_sent_stands_until_telemetry_tells_again():
    book = a_book()
    place(book, 0, 0)

    b.read(book, 0, 4.0)
    place(book, 0, 0)

    columns = columns_of(book, running=4.0)
    seen = look_at(book, columns, 0, 100.0, 20.0, -1, 0.0, 1.0, 0.0, False)
    assert seen.pairs[looks.UNSEEN].tolist() == [3.0, 0.0, 0.0, 0.0]
    assert seen.pairs[looks.BUSY].tolist() == [5.0, 0.0, 0.0, 0.0]


def test_the_first_answers_tell_most_of_a_nodes_speed():
    book = a_book()
    book.resident[:] = True
    speeds = []
    for _ in range(40):
        placed = place(book)
        b.leave(book, placed, False, 0.0)
        expected_s = 0.5 * (placed.step_s + b._round_with(book, placed))
        b.learn(book, placed, 0.1, 0.1 + 50 * 1.9 * expected_s, 51.0, 0.0, False)
        speeds.append(book.load[b.SPEED, 0])

    assert speeds[3] > 1.35
    assert speeds[-1] == pytest.approx(1.9, abs=0.1)


def test_a_new_incarnation_is_a_blank_page_at_the_same_prices():
    book = a_book()
    for model in range(MODELS):
        placed = place(book, model)
        b.first_token(book, placed._replace(load_s=0.0), 1.0)
    answered(book, observed=True)
    fresh = a_book()

    b.forget(book, 0)
    b.refresh(book, 0)
    b.refresh(fresh, 0)

    for name in ("load", "resident", "in_host", "inflight", "loading_until_s", "used_s", "loads_until_s", "victim_gib",
                 "victim_cost_s", "costs", "load_s", "ttft_curve", "ttft_seen"):  # fmt: skip
        np.testing.assert_array_equal(
            np.asarray(getattr(book, name))[..., 0], np.asarray(getattr(fresh, name))[..., 0], err_msg=name
        )
