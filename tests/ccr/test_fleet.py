import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ccr import book as b
from ccr import look as k
from ccr.ledger import Ledger
from ccr.outlier import Phase
from ccr.types import UNKNOWN, Outcome, Reading
from tests.factories import a_live_fleet, a_request, a_spec

BUSY = Reading(running=4.0, waiting=2.0, kv_used=0.5, gpu_free_gib=6.0, gpu_total_gib=24.0)


def fail(live, node_id, now_s=0.0, times=5, outcome=Outcome.UPSTREAM_5XX, **more):
    """Let requests at the node fail; whether the last one ejected it."""
    state = live.state(node_id)
    return [live.record(state, outcome, 0.01, now_s, 0.999, **more) for _ in range(times)][-1]


def why(live, node_id, now_s):
    fleet = live.at(now_s)
    return fleet.why_unavailable[live.state(node_id).index]


# Readings


def test_a_reading_shows_in_the_columns():
    live = a_live_fleet("a", "b")

    live.observe("b", BUSY, 10.0)

    node = live.at(10.5).nodes[1]
    assert (node.running, node.waiting, node.kv_used, node.gpu_free_gib) == (4.0, 2.0, 0.5, 6.0)
    assert node.telemetry_age_s == 0.5


def test_a_node_that_never_reported_has_an_unknown_age_and_neutral_values():
    (node,) = a_live_fleet("a").at(5.0).nodes

    assert node.telemetry_age_s == UNKNOWN
    assert (node.running, node.waiting, node.kv_used, node.gpu_free_gib) == (0.0, 0.0, 0.0, 0.0)


def test_a_stale_reading_is_masked_until_the_next_one():
    live = a_live_fleet("a", "b", "c")
    for node_id, free_gib in [("a", 6.0), ("b", 10.0), ("c", 20.0)]:
        live.observe(node_id, Reading(waiting=3.0, gpu_free_gib=free_gib), 10.0 if node_id == "a" else 11.0)

    columns = {}
    for now_s in (12.0, 12.5):
        columns[now_s] = (live.at(now_s).waiting.tolist(), live.at(now_s).gpu_free_gib.tolist())
    live.observe("a", Reading(waiting=1.0, gpu_free_gib=7.0), 13.0)

    assert columns[12.0] == ([3.0, 3.0, 3.0], [6.0, 10.0, 20.0])
    assert columns[12.5] == ([0.0, 3.0, 3.0], [15.0, 10.0, 20.0])  # free memory: the mean of the fresh
    assert live.at(13.0).waiting.tolist() == [1.0, 3.0, 3.0]
    assert live.at(13.0).gpu_free_gib[0] == 7.0


def test_what_a_source_does_not_tell_is_neutral():
    live = a_live_fleet("a", "b")
    live.observe("a", BUSY, 10.0)

    live.observe("b", Reading(), 10.0)

    node = live.at(10.0).nodes[1]
    assert (node.running, node.waiting, node.kv_used, node.gpu_free_gib) == (0.0, 0.0, 0.0, 6.0)


def test_telemetry_knows_better_than_the_config_how_large_the_card_is():
    live = a_live_fleet(a_spec("told", gpu_total_gib=24.0), a_spec("unknown", gpu_total_gib=0.0))
    before = live.at(0.0).room_gib.tolist()

    live.observe("unknown", Reading(gpu_total_gib=80.0), 1.0)

    assert before == [24.0, UNKNOWN]
    assert live.at(1.0).gpu_total_gib.tolist() == live.at(1.0).room_gib.tolist() == [24.0, 80.0]


def test_who_is_capable_follows_the_size_of_the_card():
    live = a_live_fleet(a_spec("a", gpu_total_gib=0.0))
    before = live.at(0.0).capable("llama", 30.0).tolist()

    live.observe("a", Reading(gpu_total_gib=24.0), 1.0)

    assert (before, live.at(1.0).capable("llama", 30.0).tolist()) == ([True], [False])


def test_a_reading_for_a_node_that_left_is_dropped():
    live = a_live_fleet("a")

    assert live.observe("gone", BUSY, 1.0) is False
    assert live.at(1.0).nodes[0].telemetry_age_s == UNKNOWN


# Residency


def test_residency_follows_the_readings():
    live = a_live_fleet("a")

    live.observe("a", Reading(loaded=frozenset({"llama"})), 1.0)
    first = live.at(1.0).resident("llama").tolist()
    live.observe("a", Reading(loaded=frozenset({"qwen"})), 2.0)

    assert first == [True]
    assert live.at(2.0).resident("llama").tolist() == [False]
    assert live.at(2.0).resident("qwen").tolist() == [True]


def test_a_model_in_flight_counts_as_resident_until_its_last_request_ends():
    """It is there or being loaded: a second request sent after it waits for no second load."""
    live = a_live_fleet("a", "b")
    ledger = Ledger(live)
    live.at(0.0).resident("llama")

    first, second = (ledger.lease(live.state("a"), a_request("llama"), 0.0) for _ in range(2))
    seen = [live.at(0.0).resident("llama").tolist()]
    for lease in (first, second):
        lease.release()
        seen.append(live.at(0.0).resident("llama").tolist())

    assert seen == [[True, False], [True, False], [False, False]]


def test_a_model_that_was_served_stays_resident_until_a_reading_denies_it():
    live = a_live_fleet("a")

    live.served(live.state("a"), "llama")
    served = live.at(1.0).resident("llama").tolist()
    live.observe("a", Reading(loaded=frozenset()), 2.0)

    assert (served, live.at(2.0).resident("llama").tolist()) == ([True], [False])


def test_a_plain_server_has_what_the_config_says_until_telemetry_tells():
    live = a_live_fleet(a_spec("a", serves="llama", loads_on_demand=False))
    configured = live.at(0.0).resident("llama").tolist()

    live.observe("a", Reading(loaded=frozenset({"qwen"})), 1.0)

    assert configured == [True]
    assert live.at(1.0).serving("llama").tolist() == [False]
    assert live.at(1.0).serving("qwen").tolist() == [True]


def test_load_times_are_remembered_by_model():
    live = a_live_fleet("a")

    live.observe("a", Reading(load_s={"llama": 5.0}), 1.0)
    live.observe("a", Reading(load_s={"qwen": 7.0}, loading=frozenset({"qwen"})), 2.0)

    assert live.state("a").load_s == {"llama": 5.0, "qwen": 7.0}
    assert live.state("a").loading == {"qwen"}


# Incarnations


def test_a_restart_is_a_new_incarnation_with_nothing_in_flight_and_nothing_loaded():
    live = a_live_fleet("a")
    live.observe("a", Reading(boot_id="1", loaded=frozenset({"llama"})), 1.0)
    old = live.state("a")
    Ledger(live).lease(old, a_request("qwen"), 1.0)
    live.record(old, Outcome.OK, 4.0, 1.0, 0.5)

    restarted = live.observe("a", Reading(boot_id="2"), 2.0)

    new, fleet = live.state("a"), live.at(2.0)
    assert restarted
    assert new is not old
    assert (fleet.inflight[0], fleet.latency_s[0], fleet.qps[0]) == (0.0, 0.0, 0.0)
    assert not fleet.resident("llama")[0]
    assert fleet.ramp[0] == 0.1


@pytest.mark.parametrize("boot_ids", [["1", "1"], ["", "1"], ["1", ""], ["", ""], ["1", "", "1"]])
def test_only_a_changed_boot_id_is_a_restart(boot_ids):
    live = a_live_fleet("a")

    restarts = [live.observe("a", Reading(boot_id=boot_id), 1.0) for boot_id in boot_ids]

    assert not any(restarts)


def test_a_silent_reading_does_not_hide_a_restart():
    live = a_live_fleet("a")

    restarts = [live.observe("a", Reading(boot_id=boot_id), 1.0) for boot_id in ["1", "", "2"]]

    assert restarts == [False, False, True]


def test_a_restart_does_not_end_a_drain():
    live = a_live_fleet("a")
    live.drain("a", draining=True, now_s=0.0)

    for boot_id in ("1", "2"):
        live.observe("a", Reading(boot_id=boot_id), 1.0)

    assert why(live, "a", 1.0) == "draining"


# Membership


def test_replacing_the_fleet_keeps_unchanged_nodes_as_they_are():
    live = a_live_fleet("a", "b", "c")
    ledger = Ledger(live)
    kept = live.state("b")
    ledger.lease(kept, a_request("llama"), 1.0)
    live.observe("b", BUSY, 1.0)
    live.record(kept, Outcome.OK, 2.0, 1.0, 0.5)
    fail(live, "c", 1.0)

    joined, left = live.replace([a_spec("c"), a_spec("d"), a_spec("b")], 1.0)

    fleet = live.at(1.0)
    assert (joined, left) == (["d"], ["a"])
    assert live.state("b") is kept
    assert fleet.inflight.tolist() == [0.0, 0.0, 1.0]
    assert live.state("b").latency_s == 2.0
    assert fleet.waiting.tolist() == [0.0, 0.0, 2.0]
    assert fleet.resident("llama").tolist() == [False, False, True]
    assert fleet.available.tolist() == [False, True, True]
    assert live.state("a") is None


def test_a_changed_spec_is_a_new_incarnation():
    live = a_live_fleet("a")
    old = live.state("a")

    joined, left = live.replace([a_spec("a", tags="canary")], 1.0)

    assert (joined, left) == (["a"], ["a"])
    assert live.state("a") is not old
    assert live.at(1.0).tagged(frozenset({"canary"})).all()


def test_a_node_that_joins_a_running_fleet_starts_slowly_and_the_first_ones_do_not():
    live = a_live_fleet()
    live.replace([a_spec("first")], 0.0)
    live.replace([a_spec("first"), a_spec("late")], 100.0)

    assert live.at(100.0).ramp.tolist() == [1.0, 0.1]
    assert live.at(115.0).ramp.tolist() == [1.0, 0.5]
    assert live.at(130.0).ramp.tolist() == [1.0, 1.0]


def test_an_empty_fleet_is_a_fleet():
    live = a_live_fleet()

    assert len(live) == len(live.at(5.0)) == 0


# Rates and latencies


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=20), st.floats(0.02, 30.0))
def test_the_request_rate_is_the_closed_form(gaps_s, later_s):
    live = a_live_fleet("a", qps_window_s=5.0)
    times_s = [sum(gaps_s[: i + 1]) for i in range(len(gaps_s))]

    for now_s in times_s:
        live.dispatched(live.state("a"), a_request(), now_s)

    now_s = times_s[-1] + later_s
    expected = sum(math.exp(-(now_s - then_s) / 5.0) / 5.0 for then_s in times_s)
    assert live.at(now_s).qps[0] == pytest.approx(expected, abs=1e-12)


def test_a_dispatch_shows_in_the_very_next_decision():
    live = a_live_fleet("a")
    fleet = live.at(1.0)

    live.dispatched(live.state("a"), a_request("llama"), 1.0)

    assert (fleet.inflight[0], fleet.qps[0], fleet.resident("llama")[0]) == (1.0, 0.2, True)
    assert live.at(1.0) is fleet


@pytest.mark.parametrize(
    ("outcome", "latency_s", "learned_s"),
    [
        pytest.param(Outcome.OK, 2.0, 2.0, id="a success counts as it was"),
        pytest.param(Outcome.UPSTREAM_5XX, 0.001, 30.0, id="failing fast never looks fast"),
        pytest.param(Outcome.UPSTREAM_RESET, 0.001, 30.0, id="nor does a reset"),
        pytest.param(Outcome.TIMEOUT, 60.0, 60.0, id="failing slowly counts as slow as it was"),
        pytest.param(Outcome.UPSTREAM_4XX, 0.001, 0.0, id="refusing fast is not serving fast"),
        pytest.param(Outcome.CLIENT_CLOSED, 0.001, 0.0, id="the client left: unknown"),
        pytest.param(Outcome.ABORTED_DRAIN, 0.001, 0.0, id="the router left: unknown"),
        pytest.param(Outcome.EXPIRED, 900.0, 0.0, id="nobody told: unknown"),
    ],
)
def test_what_an_outcome_teaches_about_latency(outcome, latency_s, learned_s):
    live = a_live_fleet("a")

    live.record(live.state("a"), outcome, latency_s, 1.0, 0.5)

    assert live.at(1.0).latency_s[0] == learned_s


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0], ids=str)
def test_what_is_no_time_teaches_nothing_about_latency(nonsense):
    """A caller may report anything; that a request failed is so whatever it says of the time."""
    live = a_live_fleet("a")
    live.record(live.state("a"), Outcome.OK, 2.0, 1.0, 0.5)

    live.record(live.state("a"), Outcome.OK, nonsense, 2.0, 0.5)
    learned_s = live.at(2.0).latency_s[0]
    live.record(live.state("a"), Outcome.UPSTREAM_5XX, nonsense, 3.0, 0.5)

    assert learned_s == 2.0
    assert 2.0 < live.at(3.0).latency_s[0] <= 30.0
    assert live.state("a").health.failures == 1


def test_latency_is_a_decayed_mean():
    live = a_live_fleet("a", latency_weight=0.1)

    for latency_s in (2.0, 4.0, 1.0):
        live.record(live.state("a"), Outcome.OK, latency_s, 1.0, 0.5)

    assert live.at(1.0).latency_s[0] == pytest.approx((2.0 * 0.9 + 4.0 * 0.1) * 0.9 + 1.0 * 0.1)


def test_a_node_without_traffic_drifts_to_the_mean_and_is_tried_again_some_day():
    live = a_live_fleet("slow", "fast", "new", latency_memory_s=10.0)
    live.record(live.state("slow"), Outcome.OK, 9.0, 0.0, 0.5)
    live.record(live.state("fast"), Outcome.OK, 1.0, 0.0, 0.5)

    seen_s = [live.at(now_s).latency_s.tolist() for now_s in (0.0, 10.0, 1000.0)]

    left = 4.0 * math.exp(-1.0)
    assert [slow for slow, _, _ in seen_s] == pytest.approx([9.0, 5.0 + left, 5.0])
    assert [fast for _, fast, _ in seen_s] == pytest.approx([1.0, 5.0 - left, 5.0])
    assert [new for _, _, new in seen_s] == [0.0] * 3


def test_what_is_learned_after_a_silence_starts_from_where_the_latency_had_drifted():
    live = a_live_fleet("slow", "fast", latency_memory_s=10.0, latency_weight=0.1)
    live.record(live.state("slow"), Outcome.OK, 9.0, 0.0, 0.5)
    live.record(live.state("fast"), Outcome.OK, 1.0, 0.0, 0.5)

    live.record(live.state("slow"), Outcome.OK, 1.0, 1000.0, 0.5)

    assert live.state("slow").latency_s == pytest.approx(5.0 + 0.1 * (1.0 - 5.0))


# In and out of rotation


def test_a_draining_node_is_out_while_it_finishes():
    live = a_live_fleet("a", "b")
    lease = Ledger(live).lease(live.state("a"), a_request(), 0.0)

    live.drain("a", draining=True, now_s=1.0)
    draining = live.at(1.0).available.tolist(), why(live, "a", 1.0)
    lease.release()
    live.drain("a", draining=False, now_s=2.0)

    assert draining == ([False, True], "draining")
    assert live.at(2.0).available.tolist() == [True, True]


def test_the_candidates_follow_a_node_out_of_rotation_and_back():
    live = a_live_fleet("a", "b")
    seen = [live.at(0.0).candidates("llama", 1.0).tolist()]

    for at_s, draining in ((1.0, True), (2.0, False)):
        live.drain("a", draining=draining, now_s=at_s)
        seen.append(live.at(at_s).candidates("llama", 1.0).tolist())

    assert seen == [[True, True], [False, True], [True, True]]


def test_draining_a_node_there_is_not_is_an_error():
    with pytest.raises(KeyError):
        a_live_fleet("a").drain("b", draining=True, now_s=0.0)


def test_a_full_node_is_out_until_a_request_ends():
    live = a_live_fleet(a_spec("a", max_inflight=2))
    ledger = Ledger(live)

    one, _ = (ledger.lease(live.state("a"), a_request(), 0.0) for _ in range(2))
    full = live.at(0.0).available.tolist(), why(live, "a", 0.0)
    one.release()

    assert full == ([False], "full (2 in flight)")
    assert live.at(0.0).available.tolist() == [True]


@pytest.mark.parametrize(
    ("asked_s", "alone_s"),
    [pytest.param(4.0, 4.0, id="as it asked"), pytest.param(3600.0, 30.0, id="within reason")],
)
def test_a_node_that_answered_429_is_left_alone(asked_s, alone_s):
    live = a_live_fleet("a")

    live.back_off(live.state("a"), asked_s, 100.0)

    assert live.at(100.0 + alone_s - 0.1).available.tolist() == [False]
    assert live.at(100.0 + alone_s).available.tolist() == [True]


def test_a_node_that_asks_for_a_time_in_the_past_is_not_left_alone():
    live = a_live_fleet("a")

    live.back_off(live.state("a"), -5.0, 100.0)

    assert live.at(100.0).available.tolist() == [True]


def test_backing_off_is_told_in_words():
    live = a_live_fleet("a")

    live.back_off(live.state("a"), 4.0, 100.0)

    assert why(live, "a", 101.0) == "asked to be left alone for 3 s (429)"


def test_an_ejected_node_is_out_before_the_next_decision():
    live = a_live_fleet("a", "b")

    ejected = fail(live, "a", now_s=10.0)

    assert ejected
    assert live.at(10.0).available.tolist() == [False, True]
    assert why(live, "a", 11.0) == "ejected for 4 s (5 errors in a row)"
    assert live.ejections_total == 1


def test_only_one_probe_is_under_way_at_a_time():
    live = a_live_fleet("a", "b")
    ledger = Ledger(live)
    fail(live, "a", now_s=0.0)
    may = [live.at(2.0).available[0], live.at(5.0).available[0]]

    probe = ledger.lease(live.state("a"), a_request(), 5.0)
    may.append(live.at(5.0).available[0])
    words = why(live, "a", 5.0)
    probe.release()  # its client left: nothing learned, so the next may try
    may.append(live.at(5.0).available[0])

    assert may == [False, True, False, True]
    assert words == "on probation, one probe under way (5 errors in a row)"


def test_a_node_comes_back_slowly():
    live = a_live_fleet("a", "b")
    fail(live, "a", now_s=0.0)
    live.at(5.0)

    live.record(live.state("a"), Outcome.OK, 0.5, 10.0, 0.5)

    assert live.at(10.0).available.tolist() == [True, True]
    assert [live.at(s).ramp[0] for s in (10.1, 25.0, 40.0)] == [0.1, 0.5, 1.0]


def test_soft_evidence_ejects_at_most_half_of_the_fleet_and_then_says_panic():
    live = a_live_fleet(*(f"node-{i}" for i in range(8)))

    ejected, panic, available = [], [], []
    for i in range(6):
        ejected.append(fail(live, f"node-{i}", now_s=1.0, times=2, outcome=Outcome.TIMEOUT))
        available.append(live.at(1.1 + 0.1 * i).available.sum())
        panic.append(live.panic)

    assert ejected == [True, True, True, True, False, False]
    assert available == [7, 6, 5, 4, 4, 4]
    assert panic == [False, False, False, True, True, True]


def test_the_panic_ends_when_a_node_is_back():
    live = a_live_fleet("a", "b", "c", "d")
    for node_id in "ab":
        fail(live, node_id, now_s=0.0)
    live.at(5.0)
    before = live.panic

    live.record(live.state("a"), Outcome.OK, 0.5, 6.0, 0.5)
    live.at(6.0)

    assert (before, live.panic) == (True, False)


def test_a_single_node_is_not_ejected_by_soft_evidence_and_never_panics():
    live = a_live_fleet("a")

    assert fail(live, "a", now_s=1.0, times=20) is False
    assert live.at(2.0).available.all()
    assert not live.panic


def test_nodes_on_probation_still_count_towards_the_half():
    """Else the other half could go while the first half is being probed, and in the end all were out."""
    live = a_live_fleet("a", "b", "c", "d")
    for node_id in "ab":
        fail(live, node_id, now_s=0.0)
    live.at(6.0)
    phases = [live.state(node_id).health.phase for node_id in "ab"]

    ejected = [fail(live, node_id, now_s=6.0) for node_id in "cd"]

    assert phases == [Phase.PROBING] * 2
    assert ejected == [False, False]


def test_hard_evidence_has_no_limit():
    live = a_live_fleet("a", "b", "c")

    for node_id in "abc":
        fail(live, node_id, times=1, outcome=Outcome.UPSTREAM_RESET, refused=True)

    assert not live.at(0.0).available.any()
    assert not live.panic


def test_a_late_outcome_of_a_node_that_left_touches_nobody_else():
    live = a_live_fleet("a", "b", "c")
    gone = live.state("a")
    live.replace([a_spec("b"), a_spec("c")], 1.0)

    live.record(gone, Outcome.UPSTREAM_RESET, 1.0, 2.0, 0.5, refused=True)
    live.back_off(gone, 10.0, 2.0)

    assert live.at(2.0).available.tolist() == [True, True]
    assert live.at(2.0).latency_s.tolist() == [0.0, 0.0]


class Weather(RuleBasedStateMachine):
    """Some nodes fail, others never do; time passes, probes succeed and fail."""

    good, bad = "ab", "cdefg"

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.live = a_live_fleet(*self.good, *self.bad)

    @rule(node=st.sampled_from(good + bad))
    def succeed(self, node):
        self.live.record(self.live.state(node), Outcome.OK, 0.5, self.now_s, 0.5)

    @rule(
        node=st.sampled_from(bad),
        outcome=st.sampled_from([outcome for outcome in Outcome if outcome.is_node_failure]),
        times=st.integers(1, 5),
        refused=st.booleans(),
        u=st.floats(0.0, 0.99),
    )
    def fail(self, node, outcome, times, refused, u):
        for _ in range(times):
            self.live.record(self.live.state(node), outcome, 0.5, self.now_s, u, refused=refused)

    @rule(passing_s=st.sampled_from([0.1, 3.0, 20.0, 400.0]))
    def wait(self, passing_s):
        self.now_s += passing_s
        self.live.at(self.now_s)

    @invariant()
    def a_node_with_only_successes_stays(self):
        fleet = self.live.at(self.now_s)
        assert fleet.available[: len(self.good)].all()
        assert (fleet.ramp[: len(self.good)] == 1.0).all()

    @invariant()
    def soft_evidence_keeps_out_at_most_half(self):
        out = [s for s in self.live.states if s.health.phase is not Phase.HEALTHY and not s.health.hard]
        assert len(out) <= len(self.live) // 2

    @invariant()
    def who_is_out_is_told_why(self):
        fleet = self.live.at(self.now_s)
        assert [not words for words in fleet.why_unavailable] == fleet.available.tolist()


TestWeather = Weather.TestCase


def test_a_failure_sent_before_the_ejection_ended_is_no_failed_probe():
    live = a_live_fleet("a", "b")
    fail(live, "a", now_s=0.0)
    on_probation = live.at(5.0).available[0]

    live.record(live.state("a"), Outcome.TIMEOUT, 5.5, 5.1, 0.5)

    assert on_probation
    assert live.at(5.1).available[0]
    assert live.state("a").health.phase is Phase.PROBING


def test_a_draining_node_whose_facts_change_goes_on_draining():
    live = a_live_fleet("a", "b")
    live.drain("a", draining=True, now_s=0.0)

    live.replace([a_spec("a", tags="new"), a_spec("b")], 1.0)

    assert live.at(1.0).available.tolist() == [False, True]


def test_a_node_that_crashes_out_of_its_ejection_comes_back_on_probation():
    live = a_live_fleet("a", "b")
    live.observe("a", Reading(boot_id="1"), 0.0)
    fail(live, "a", now_s=0.0)

    live.observe("a", Reading(boot_id="2"), 1.0)

    assert live.state("a").health.phase is Phase.PROBING
    assert live.state("a").health.ejections == 1


# What is expected of the nodes

IN_FLIGHT = (b.PENDING, b.PENDING_PREFILL_S, b.KV_GIB, b.REMAINING_TOKENS, b.ACTIVE_MODELS, b.PASS_S, b.CONTEXT_S, b.IN_BATCH)  # fmt: skip


def in_flight(live):
    """The rows of the book about what is in flight, shape (rows, n)."""
    return live.expected.book.load[list(IN_FLIGHT)]


def look_at(live, now_s, model="llama", **fields):
    fleet = live.at(now_s)
    return fleet.looker(a_request(model, **fields), fleet.columns, now_s)


def test_no_book_is_kept_until_somebody_looks():
    live = a_live_fleet("a")
    lease = Ledger(live).lease(live.state("a"), a_request(), 0.0)

    unasked = (live.expected, lease.placed)
    look_at(live, 0.0)
    lease.release()

    assert unasked == (None, None)
    assert live.expected is not None
    assert (in_flight(live) == 0.0).all()


def test_a_book_begins_with_what_telemetry_told_before():
    live = a_live_fleet("a", "b")
    live.observe("a", Reading(loaded=frozenset({"llama"}), loading=frozenset({"qwen"})), 0.0)

    live.expect(0.0)

    assert look_at(live, 0.0).pairs[k.RESIDENT].tolist() == [1.0, 0.0]
    assert look_at(live, 0.0, "qwen").pairs[k.IS_LOADING].tolist() == [1.0, 0.0]


def test_a_book_that_is_kept_goes_on_when_another_policy_asks_for_it():
    """Leases that are open were entered in it."""
    live = a_live_fleet("a")
    first = live.expect(0.0)
    lease = Ledger(live).lease(live.state("a"), a_request(), 0.0)

    again = live.expect(1.0, coverage=0.25, observed=True)
    lease.release()

    assert again is first
    assert (again.coverage, again.observed) == (0.25, True)
    assert look_at(live, 1.0).asked[k.COVERAGE] == 0.25
    assert (in_flight(live) == 0.0).all()


def test_a_model_nobody_looked_at_can_be_dispatched():
    """A policy that does not look may be in force while the book is kept."""
    live = a_live_fleet("a")
    live.expect(0.0)
    lease = Ledger(live).lease(live.state("a"), a_request("qwen"), 0.0)

    seen = look_at(live, 0.0, "qwen").pairs[k.SAME_MODEL].tolist()
    lease.release()

    assert seen == [1.0]
    assert (in_flight(live) == 0.0).all()


def test_nodes_that_come_and_go_while_requests_are_in_flight_leave_no_residue():
    live = a_live_fleet("a", "b")
    live.expect(0.0)
    ledger = Ledger(live)
    leases = {id_: ledger.lease(live.state(id_), a_request(), 0.0) for id_ in "ab"}

    live.replace([a_spec("c"), a_spec("b")], 1.0)  # b moves to another column
    moved = in_flight(live)[-1].tolist()
    leases["b"].first_token(1.5)
    live.replace([a_spec("a"), a_spec("b")], 2.0)  # a returns as another incarnation
    returned = in_flight(live)[-1].tolist()
    for id_ in "ab":
        leases[id_].release()

    assert moved == returned == [0.0, 1.0]
    assert (in_flight(live) == 0.0).all()
    assert (live.expected.book.inflight == 0).all()


def test_a_node_that_restarts_begins_on_a_blank_page():
    live = a_live_fleet("a")
    live.observe("a", Reading(boot_id="first", loaded=frozenset({"llama"})), 0.0)
    live.expect(0.0)
    ledger = Ledger(live)
    old = ledger.lease(live.state("a"), a_request(), 0.0)

    live.observe("a", Reading(boot_id="second", loaded=frozenset()), 1.0)
    blank = in_flight(live).copy()
    new = ledger.lease(live.state("a"), a_request(), 1.0)
    old.first_token(1.5)
    old.release()
    with_new = in_flight(live)[-1].tolist()
    new.release()

    assert (blank == 0.0).all()
    assert with_new == [1.0]
    assert (in_flight(live) == 0.0).all()
    assert look_at(live, 2.0).pairs[k.RESIDENT].tolist() == [0.0]


def test_what_an_old_incarnation_answered_teaches_nothing_about_the_new_one():
    live = a_live_fleet("a")
    live.observe("a", Reading(boot_id="first"), 0.0)
    live.expect(0.0)
    lease = Ledger(live).lease(live.state("a"), a_request(), 0.0)
    live.observe("a", Reading(boot_id="second"), 1.0)
    lease.release()

    live.learn(lease.state, lease.placed, 0.5, 1.0, 20, 1.0)

    assert live.expected.book.load[b.DONE_PER_S].tolist() == [0.0]


def test_a_look_keeps_the_columns_of_the_fleet_as_they_were():
    live = a_live_fleet("a", "b")
    live.observe("b", BUSY, 0.0)

    seen = look_at(live, 0.5)

    np.testing.assert_array_equal(seen.columns, live.at(0.5).columns)
    assert not np.shares_memory(seen.columns, live.at(0.5).columns)
    assert seen.pairs[k.UNSEEN].tolist() == [0.0, 6.0]
