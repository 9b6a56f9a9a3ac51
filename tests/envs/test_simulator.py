"""The fleet in virtual time: deterministic, nothing lost, nothing left behind, and as the queueing laws have it."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ccr.book import SPEED, WEIGHTS_GIB
from ccr.errors import ConfigError
from ccr.look import SESSION_HERE
from ccr.picker import GREEDY
from ccr.policies import POLICIES
from ccr.policies.least_cost import LeastCost
from ccr.policies.least_request import LeastRequest
from ccr.policies.round_robin import RoundRobin
from ccr.timing import GPUS, LOAD_SOURCES, load_s
from envs.episode import FAILED, OK, REJECTED
from envs.scenario import SHARE_KEPT_S, NodePlan, Trouble
from envs.scenarios import SCENARIOS, clients, plain
from envs.simulator import POLICIES_SIMULATED, Simulator, reading_of, run, simulate
from tests.envs.days import CHAT, CODE, MODELS, SUPPORT, a_day, arrivals, poisson


@dataclass(frozen=True)
class Watch:
    """A policy that notes what it sees, and decides as another."""

    inner: object
    seen: list = field(default_factory=list, compare=False)
    note: object = lambda request, fleet: fleet.inflight.sum()
    name: str = "watch"
    picker: object = GREEDY

    def scores(self, request, fleet):
        self.seen.append((fleet.now_s, self.note(request, fleet)))
        return self.inner.scores(request, fleet)


@dataclass(frozen=True)
class AlwaysFirst:
    """The planted mistake: everything to one node."""

    name: str = "always_first"
    picker: object = GREEDY

    def scores(self, request, fleet):
        return -np.arange(len(fleet), dtype=float)


def reference(scenario, policy=None, seed=1):
    return simulate(scenario, policy or LeastRequest(), seed, engine="reference")


def columns(episode):
    names = ("arrived_s", "total_s", "ttft_s", "ideal_s", "node", "status", "cold", "counted")
    return {name: getattr(episode, name) for name in names}


MIXED = a_day(poisson(1.6, 150, models=3), warm=(CHAT, CODE), load_noise=0.17)


# One request


def test_a_request_alone_on_a_warm_node_takes_its_ideal_time_and_the_nodes_overhead():
    scenario = a_day(arrivals([5.0]))

    episode = reference(scenario)

    assert episode.total_s[0] == pytest.approx(episode.ideal_s[0] + 0.02, rel=0.01)
    assert episode.ttft_s[0] < episode.total_s[0]
    assert (episode.status[0], episode.cold[0], episode.loads) == (OK, False, 0)


def test_a_cold_request_waits_for_the_weights():
    warm, cold = (reference(a_day(arrivals([5.0], model=row))) for row in (0, 1))

    expected_s = load_s(MODELS[CODE], LOAD_SOURCES["engine_swap"])
    assert cold.total_s[0] - cold.ideal_s[0] == pytest.approx(expected_s, rel=0.05)
    assert (warm.cold[0], cold.cold[0], cold.loads) == (False, True, 1)


# Every day


def test_one_seed_is_one_day():
    first, second, other = (reference(MIXED, LeastCost(), seed) for seed in (3, 3, 4))

    for name, column in columns(first).items():
        np.testing.assert_array_equal(column, columns(second)[name], err_msg=name)
    assert (first.evictions, first.loads, first.peak_gib) == (second.evictions, second.loads, second.peak_gib)
    assert not np.array_equal(first.arrived_s, other.arrived_s)


def test_every_policy_meets_the_same_day():
    first, second = reference(MIXED, LeastRequest()), reference(MIXED, RoundRobin())

    np.testing.assert_array_equal(first.arrived_s, second.arrived_s)
    np.testing.assert_array_equal(first.ideal_s, second.ideal_s)
    assert not np.array_equal(first.total_s, second.total_s)


@pytest.mark.parametrize("name", POLICIES_SIMULATED)
def test_every_policy_serves_everybody_and_leaves_nothing_behind(name):
    simulator = Simulator(MIXED, POLICIES[name](), 1)

    episode = simulator.run()

    assert (episode.status == OK).all()
    assert (episode.total_s >= episode.ttft_s).all()
    assert (episode.ttft_s > 0.0).all()
    assert (episode.node >= 0).all()
    assert set(POLICIES_SIMULATED) == set(POLICIES)
    assert_nothing_is_left(simulator)


def assert_nothing_is_left(simulator):
    for replica in simulator.replicas:
        assert replica.ledger.in_flight == 0
        assert (replica.fleet.at(simulator.now_s).inflight == 0.0).all()
        book = replica.fleet.expected.book
        assert (book.inflight == 0).all()
        assert (book.load[:WEIGHTS_GIB] == 0.0).all()  # the rows of what is in flight
    for node in simulator.nodes:
        state = node.state()
        assert (state.running, state.waiting) == (0, 0)
        assert state.submitted == state.finished + state.lost


def test_a_fleet_is_as_full_as_littles_law_says():
    """Poisson arrivals see time averages: what they find in flight is rate times latency."""
    rate = 3.0
    watch = Watch(LeastRequest())

    episode = reference(a_day(poisson(rate, 500)), watch)

    found = np.mean([count for _, count in watch.seen])
    assert found == pytest.approx(rate * episode.total_s.mean(), rel=0.25)


def test_a_better_day_is_a_better_day():
    calm, busy = (reference(a_day(poisson(rate, 150))) for rate in (0.5, 8.0))

    assert busy.metrics()["mean_s"] > calm.metrics()["mean_s"]
    assert busy.metrics()["cost"] > calm.metrics()["cost"]


def test_one_node_for_all_is_worse_than_a_fleet():
    scenario = replace(
        plain("medium", "Shorter.", rate=1.0, duration_s=45.0), warmup_s=5.0
    )  # fmt: skip

    wrong, right = (reference(scenario, policy, 2) for policy in (AlwaysFirst(), LeastRequest()))

    assert wrong.metrics()["cost"] > 1.5 * right.metrics()["cost"]
    assert wrong.guard_overrides > right.guard_overrides


def test_warm_up_is_served_but_not_counted():
    episode = reference(replace(a_day(poisson(2.0, 60)), warmup_s=10.0))

    np.testing.assert_array_equal(episode.counted, episode.arrived_s >= 10.0)
    assert len(episode.costs) == episode.counted.sum() < len(episode) == (episode.status == OK).sum()


# Closed loops and conversations


def test_a_client_waits_for_its_answer_before_it_asks_again():
    scenario = a_day(clients((CHAT,), count=6, requests=20, think_s=0.3, prompt=50, output=20))

    episode = reference(scenario)

    ended_s = episode.arrived_s + episode.total_s
    for at_s in episode.arrived_s:
        assert ((episode.arrived_s <= at_s) & (at_s < ended_s)).sum() <= 6
    asked, answered = episode.arrived_s[6:], ended_s[:-6]  # the next question of a client is six rows on
    np.testing.assert_allclose(asked - answered, scenario.arrivals(1).t[6:])


def test_a_conversation_is_remembered_by_the_router_and_cached_on_the_node():
    turns = arrivals([1.0, 20.0, 40.0], prompt=[500, 1000, 1500], session=0, prefix=[0, 550, 1050])
    sessions = []

    def note(request, fleet):
        seen = fleet.looker(request, fleet.columns, fleet.now_s)
        sessions.append(seen.pairs[SESSION_HERE].tolist())

    stuck = reference(a_day(turns), Watch(POLICIES["prefix_affinity"](), note=note))
    alone = reference(a_day(turns._replace(session=np.full(3, -1), prefix_tokens=np.zeros(3, int))))

    assert len(set(stuck.node)) == 1
    assert sessions == [[0.0, 0.0], *[[float(i == stuck.node[0]) for i in range(2)]] * 2]
    assert (stuck.ttft_s[1:] < 0.8 * alone.ttft_s[1:]).all()


# Replicas and telemetry


def test_replicas_share_the_traffic_and_each_keeps_its_own_ledger():
    watch = Watch(
        LeastRequest(), note=lambda request, fleet: (int(request.id) % 3, request.seq, fleet.inflight.sum())
    )
    scenario = a_day(poisson(4.0, 120), replicas=3)
    simulator = Simulator(scenario, watch, 1)

    episode = simulator.run()

    assert Counter(replica for _, (replica, _, _) in watch.seen) == {0: 40, 1: 40, 2: 40}
    assert [seq for _, (replica, seq, _) in watch.seen if replica == 1] == list(range(40))
    assert [replica.ledger.granted_total for replica in simulator.replicas] == [40, 40, 40]
    assert all(replica.fleet.expected.coverage == pytest.approx(1 / 3) for replica in simulator.replicas)
    # None of them sees in its ledger all that is there.
    ended_s = episode.arrived_s + episode.total_s
    there = [((episode.arrived_s < at_s) & (at_s < ended_s)).sum() for at_s, _ in watch.seen]
    assert np.mean([own for _, (_, _, own) in watch.seen]) < 0.6 * np.mean(there)
    assert_nothing_is_left(simulator)


def seen_by_routers(**fields):
    """What each decision saw in flight, and what there was."""
    watch = Watch(LeastRequest())
    simulator = Simulator(a_day(poisson(4.0, 160), replicas=4, **fields), watch, 1)
    episode = simulator.run()
    ended_s = episode.arrived_s + episode.total_s
    there = [((episode.arrived_s < at_s) & (at_s < ended_s)).sum() for at_s, _ in watch.seen]
    for _ in range(2 * len(simulator.replicas)):
        simulator._exchange(simulator.now_s)
    return simulator, np.array(watch.seen), np.array(there)


def test_routers_that_share_their_ledgers_see_what_all_of_them_sent():
    simulator, seen, there = seen_by_routers(share_s=0.05)

    assert np.abs(seen[:, 1] - there).mean() < 0.1 * there.mean()
    assert all(replica.fleet.expected.coverage == 1.0 for replica in simulator.replicas)
    assert_nothing_is_left(simulator)


def test_when_sharing_breaks_down_each_sees_its_own_again():
    simulator, seen, there = seen_by_routers(share_s=0.05, share_until_s=15.0)
    before, after = seen[:, 0] < 15.0, seen[:, 0] > 15.0 + SHARE_KEPT_S + 0.1

    assert np.abs(seen[before, 1] - there[before]).mean() < 0.1 * there[before].mean()
    assert seen[after, 1].mean() < 0.5 * there[after].mean()
    assert all(replica.fleet.expected.coverage == 0.25 for replica in simulator.replicas)
    assert_nothing_is_left(simulator)


def test_readings_come_late_and_a_router_sees_how_old_they_are():
    ages = Watch(LeastRequest(), note=lambda request, fleet: fleet.telemetry_age_s[0])

    reference(a_day(poisson(4.0, 100), telemetry_period_s=0.4, telemetry_delay_s=0.3), ages)

    seen = [age for at_s, age in ages.seen if at_s > 2.0]
    assert 0.0 <= min(seen) < 0.1
    assert (
        0.3 < max(seen) <= 0.4 + 0.02
    )  # age counts from the arrival of a reading, and columns are made every 10 ms


def test_a_late_reading_shows_the_past():
    """What is running now was sent a moment ago; the reading that has arrived was taken before."""
    burst = arrivals([5.0] * 8 + [5.3, 7.0], output=400)
    told = Watch(LeastRequest(), note=lambda request, fleet: (fleet.running + fleet.waiting).sum())

    reference(a_day(burst, telemetry_period_s=0.5, telemetry_delay_s=0.8), told)

    assert [count for at_s, count in told.seen if at_s > 5.2] == [0.0, 9.0]


def test_frozen_telemetry_grows_old_and_is_masked():
    watch = Watch(
        LeastRequest(), note=lambda request, fleet: (fleet.telemetry_age_s.tolist(), fleet.running.tolist())
    )  # fmt: skip
    scenario = a_day(poisson(6.0, 240), troubles=(Trouble("freeze", 1, 10.0, 25.0),))

    reference(scenario, watch)

    ages = np.array([age for at_s, (age, _) in watch.seen if 14.0 < at_s < 25.0])
    running = np.array([running for at_s, (_, running) in watch.seen if 14.0 < at_s < 25.0])
    after = np.array([age for at_s, (age, _) in watch.seen if at_s > 26.0])
    assert ages[:, 1].min() > 3.0
    assert ages[:, 0].max() < 1.0
    assert (running[:, 1] == 0.0).all()
    assert running[:, 0].max() > 0.0
    assert after.max() < 1.0


def test_a_reading_is_what_a_collector_would_read():
    scenario = a_day(arrivals([1.0]))
    node = Simulator(scenario, LeastRequest(), 1).nodes[0]

    reading = reading_of(node.state(), "0.7")

    assert (reading.loaded, reading.loading, reading.boot_id) == ({CHAT}, frozenset(), "0.7")
    assert reading.gpu_free_gib == pytest.approx(GPUS["A10"].total_gib - node.state().gpu_used_gib)


# Troubles


def test_a_slow_node_is_slow_while_it_is_and_no_longer():
    day = arrivals([5.0, 40.0, 80.0])
    scenario = a_day(day, nodes=1, troubles=(Trouble("slow", 0, 20.0, 60.0, 4.0),))

    before, during, after = reference(scenario).total_s

    assert during == pytest.approx(4 * before, rel=0.05)
    assert after == pytest.approx(before)


def test_a_liar_claims_to_be_idle_and_is_not_believed_about_its_ledger():
    told = Watch(
        RoundRobin(), note=lambda request, fleet: (fleet.running[1], fleet.gpu_free_gib[1], fleet.inflight[1])
    )  # fmt: skip
    scenario = a_day(poisson(6.0, 240), troubles=(Trouble("lie", 1, 15.0, 30.0),))

    reference(scenario, told)

    before, during, after = (
        np.array([note for at_s, note in told.seen if from_s < at_s < until_s])
        for from_s, until_s in ((1.0, 15.0), (16.0, 30.0), (31.0, 99.0))
    )
    assert before[:, 0].max() > 0.0 < after[:, 0].max()
    assert (during[:, 0] == 0.0).all()
    assert (during[:, 1] == GPUS["A10"].total_gib).all()
    assert during[:, 2].max() > 0.0


def test_a_node_that_fails_breaks_what_is_new_and_serves_what_it_has():
    day = arrivals([1.0, 9.0, 11.0, 30.0], output=[900, 50, 50, 50])
    scenario = a_day(day, troubles=(Trouble("fail", 0, 8.0, 20.0),))

    episode = reference(scenario, AlwaysFirst())

    assert (episode.status == OK).all()
    assert episode.total_s[0] > 10.0
    assert episode.node.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("kind", ["lie", "fail", "crash"])
def test_what_the_kernel_does_not_know_it_is_not_given(kind):
    scenario = a_day(poisson(1.0, 5), troubles=(Trouble(kind, 0, 1.0, 2.0),))

    with pytest.raises(ConfigError, match="runs on the reference only"):
        simulate(scenario, LeastRequest(), 1, engine="compiled")


def test_routers_learn_what_they_are_told_and_nobody_waits_for_it():
    scenario = a_day(poisson(2.0, 120))
    honest = Simulator(scenario, RoundRobin(), 1)
    doubled = Simulator(
        scenario, RoundRobin(), 1, told=lambda j, node, ttft_s, latency_s: (ttft_s, 2.0 * latency_s)
    )

    episodes = honest.run(), doubled.run()

    np.testing.assert_array_equal(episodes[0].total_s, episodes[1].total_s)
    speeds = [each.replicas[0].fleet.expected.book.load[SPEED] for each in (honest, doubled)]
    assert (speeds[1] > 1.3 * speeds[0]).all()


def test_nothing_is_lost_silently_when_a_node_dies():
    scenario = a_day(poisson(6.0, 240, output=150), nodes=3, troubles=(Trouble("crash", 1, 12.0, 22.0),))
    simulator = Simulator(scenario, LeastRequest(), 1)

    episode = simulator.run()

    assert np.isin(episode.status, [OK, REJECTED, FAILED]).all()
    assert (np.isnan(episode.total_s) == (episode.status != OK)).all()
    assert (np.isnan(episode.ttft_s) == (episode.status != OK)).all()
    assert ((episode.node >= 0) == (episode.status == OK)).all()
    assert sum(node.state().lost for node in simulator.nodes) > 0
    assert episode.metrics()["failures"] == (episode.status == FAILED).sum() > 0  # those with a first token
    assert_nothing_is_left(simulator)


def test_who_had_no_token_when_the_node_died_is_tried_elsewhere():
    """The router retries before the first byte and never after it."""
    day = arrivals([1.0, 9.99], prompt=2000, output=4000)
    scenario = a_day(day, troubles=(Trouble("crash", 0, 10.0, 500.0),))

    episode = reference(scenario, AlwaysFirst())

    assert episode.status.tolist() == [FAILED, OK]
    assert episode.node.tolist() == [-1, 1]


def test_a_node_that_is_down_gets_nothing_and_comes_back_empty():
    scenario = a_day(poisson(3.0, 240), troubles=(Trouble("crash", 1, 20.0, 40.0),))

    episode = reference(scenario, RoundRobin())

    dispatched = episode.arrived_s[episode.node == 1]
    assert not ((dispatched > 20.0) & (dispatched < 40.0)).any()
    back = (episode.node == 1) & (episode.arrived_s > 40.0)
    assert back.any()
    assert episode.loads == 1


def test_when_nobody_is_left_requests_fail_or_are_refused_and_say_so():
    scenario = a_day(
        poisson(3.0, 60), troubles=(Trouble("crash", 0, 5.0, 400.0), Trouble("crash", 1, 5.0, 400.0))
    )  # fmt: skip

    episode = reference(scenario)

    late = episode.arrived_s > 6.0
    assert (episode.status[late] != OK).all()
    assert (episode.status[late] == REJECTED).any()
    assert episode.metrics()["reject_rate"] > 0.0
    assert episode.costs[late].min() > 2.0


def test_a_closed_loop_goes_on_when_an_answer_fails():
    day = clients((CHAT,), count=4, requests=30, think_s=0.2, prompt=50, output=60)
    scenario = a_day(day, troubles=(Trouble("crash", 0, 3.0, 8.0),))

    episode = reference(scenario)

    assert (episode.status == FAILED).sum() > 0
    assert np.isfinite(episode.arrived_s).all()
    assert (episode.status[-4:] == OK).all()


# Memory


def test_models_that_do_not_fit_take_turns():
    scenario = a_day(poisson(0.5, 60, models=3), nodes=1, warm=(CHAT, CODE))

    episode = reference(scenario)

    assert (episode.status == OK).all()
    assert episode.evictions > 0
    assert episode.loads >= episode.evictions - 2 > 0  # two were warm, and may be the ones that are gone
    assert 0.0 < episode.peak_gib <= GPUS["A10"].total_gib


def test_a_node_told_of_popularity_gives_up_who_is_asked_for_least():
    rows = [0] * 20 + [1] + [2]
    day = arrivals([float(2 * i) for i in range(len(rows))], model=rows)
    lru, popular = (
        Simulator(a_day(day, nodes=1, warm=(CHAT, CODE), eviction=eviction), LeastRequest(), 1)
        for eviction in ("lru", "popularity")
    )

    for simulator in (lru, popular):
        simulator.run()

    assert set(reading_of(lru.nodes[0].state()).loaded) == {CODE, SUPPORT}
    assert set(reading_of(popular.nodes[0].state()).loaded) == {CHAT, SUPPORT}


def test_a_hidden_speed_is_found_out_by_the_ledger():
    plans = tuple(
        NodePlan(f"a10-{i}", warm=(CHAT,), bw_scale=scale, is_hidden=True)
        for i, scale in enumerate((0.5, 1.0))
    )
    simulator = Simulator(a_day(poisson(1.0, 200), plans=plans), RoundRobin(), 1)

    simulator.run()

    slow, plain_ = simulator.replicas[0].fleet.expected.book.load[SPEED]
    assert slow / plain_ == pytest.approx(2.0, rel=0.25)


# By name


def test_a_scenario_and_a_policy_can_be_named():
    episode = run("fleet-2", "least_request", 1, {"cold_start_penalty": 9.0}, engine="reference")

    assert (episode.scenario, episode.policy, episode.seed) == ("fleet-2", "least_request", 1)
    assert len(episode) == len(SCENARIOS["fleet-2"].arrivals(1).t)


@pytest.mark.parametrize(
    ("scenario", "policy", "message"),
    [("no-such-day", "random", "no scenario is called 'no-such-day'; there are steady"),
     ("medium", "best", "no policy is called 'best'; there are random")],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_what_does(scenario, policy, message):
    with pytest.raises(ConfigError, match=message):
        run(scenario, policy, 1)


def test_what_only_the_reference_can_run_is_not_run_as_something_else():
    with pytest.raises(ConfigError, match=r"policy 'watch' .* runs on the reference only"):
        simulate(MIXED, Watch(LeastRequest()), 1, engine="compiled")


def test_an_operators_own_policy_runs_without_being_asked_for_the_reference():
    assert (simulate(MIXED, AlwaysFirst(), 1).status == OK).all()


def test_the_time_of_a_decision_is_measured():
    assert 0.0 < reference(MIXED).metrics()["decision_us"] < 1e5
