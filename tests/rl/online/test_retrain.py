"""The slow loop: days of the live fleet, a search on them, a gate on others, and what is left for the learner."""

import json

import numpy as np
import pytest

from ccr import canary, weights
from ccr.hashing import hash64
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import blank
from ccr.weights import load
from envs.simulator import simulate
from rl.days import TRAINING_SEEDS as OTHER_SEEDS
from rl.online import live, retrain
from rl.online.batch import batch_of
from rl.online.calibration import Calibrator, ModelState, NodeState
from rl.online.limits import Limits, state_of, step
from rl.online.retrain import Job, OneCore, Verdict, judged, prepare, result, retrained
from rl.online.traffic import Traffic
from tests.records import an_answer, answers
from tests.rl.online.fleet import MODELS, NODES, settings_of
from tests.weights import a_network, some_weights

RNG = np.random.default_rng
KEYS = [hash64(name) for name in NODES]


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Short days, and few of them: what is tried here is the way, not its end."""
    monkeypatch.setattr(live, "DAY_S", 30.0)
    for name, value in (("_GENERATIONS", (1, 1)), ("_POPULATION", 4), ("_DAYS", 2)):
        monkeypatch.setattr(retrain, name, value)


def rows_of(lessons):
    traffic = Traffic(most=10_000)
    traffic.add(batch_of(lessons))
    return traffic.latest(0.0)


def recorded(count=400, **fields):
    ids = [hash64(name) for name in MODELS]
    rng = RNG(1)
    lessons = [
        an_answer(k % 4, at_s=1000.0 + k / 3.0, model=ids[int(rng.integers(3))], output=int(rng.integers(10, 60)), **fields)
        for k in range(count)
    ]  # fmt: skip
    return rows_of(lessons)


def a_fleet(tmp_path, calibrator=None, rows=None, coverage=1.0):
    return live.seen(
        settings_of(tmp_path),
        recorded() if rows is None else rows,
        calibrator or Calibrator(),
        KEYS,
        coverage,
    )


def current(tmp_path):
    path = tmp_path / "serves.npz"
    weights.save(some_weights(blank(np.array(LeastCost().theta)), version="serves"), path)
    return path.read_bytes()


def a_job(tmp_path, seen=None, **fields):
    directory = tmp_path / "job"
    seen = list(canary.states()[:60]) if seen is None else seen
    prepare(
        directory,
        Job(3, search_s=0.01, version="found", why="the test", **fields),
        a_fleet(tmp_path),
        recorded(),
        current(tmp_path),
        seen,
    )
    return directory


def test_the_fleet_is_what_config_and_calibration_say(tmp_path):
    calibrator = Calibrator(
        nodes={KEYS[1]: NodeState(speed=np.log(2.0), overhead_s=0.09, answers=50)},
        models={hash64(MODELS[0]): ModelState(load_s=12.0)},
    )

    fleet = a_fleet(tmp_path, calibrator, coverage=0.25)

    assert [node.id for node in fleet.nodes] == list(NODES)
    assert (fleet.nodes[1].speed, fleet.nodes[1].overhead_s) == (pytest.approx(2.0), 0.09)
    assert {name for name, _ in fleet.models} == set(MODELS)
    assert fleet.replicas == 4
    assert fleet.load_times > 1.5


def test_nodes_and_models_that_no_config_names_are_trained_on_all_the_same(tmp_path):
    fleet = live.seen(settings_of(tmp_path), rows_of(answers(RNG(2), 200)), Calibrator(), [1, 2], 1.0)

    assert [node.id for node in fleet.nodes] == ["node-0", "node-1"]
    assert all(name.startswith("unknown-") for name, _ in fleet.models)
    assert (
        simulate(
            live.drawn(fleet, rows_of(answers(RNG(2), 200)), 1), LeastCost(), 1, engine="compiled"
        ).metrics()["cost"]
        > 0.0
    )


def test_a_day_is_a_cut_of_the_recorded_traffic_and_no_two_are_alike(tmp_path):
    fleet, rows = a_fleet(tmp_path), recorded()

    days = [live.drawn(fleet, rows, seed) for seed in (1, 1, 2)]
    arrivals = [day.arrivals(0) for day in days]

    np.testing.assert_array_equal(arrivals[0].t, arrivals[1].t)
    assert len(arrivals[0].t) != len(arrivals[2].t) or not np.allclose(arrivals[0].t, arrivals[2].t)
    assert (np.diff(arrivals[0].t) >= 0.0).all()
    assert arrivals[0].t[-1] <= live.DAY_S
    per_s = len(arrivals[0].t) / live.DAY_S
    assert 0.7 * 3.0 <= per_s <= 1.4 * 3.0
    assert days[0].nodes[0].bw_scale != days[2].nodes[0].bw_scale


def test_traffic_of_a_minute_is_enough_for_a_day(tmp_path):
    rows = recorded(120)

    assert live.drawn(a_fleet(tmp_path, rows=rows), rows, 1).arrivals(0).t[-1] > 0.9 * live.DAY_S


def test_requests_that_no_card_could_hold_are_cut_to_what_it_holds(tmp_path):
    rows = recorded(200, prompt_tokens=10_000_000)

    day = live.drawn(a_fleet(tmp_path, rows=rows), rows, 1)

    assert day.arrivals(0).prompt_tokens.max() < 100_000


def test_times_are_those_of_the_routers_clock(tmp_path):
    fleet, rows = a_fleet(tmp_path), recorded()
    faster = live.LiveFleet(fleet.nodes, fleet.models, fleet.keys, clock_speed=10.0)

    slow, fast = (len(live.drawn(one, rows, 1).arrivals(0).t) for one in (fleet, faster))

    assert fast == pytest.approx(slow / 10.0, rel=0.3)


def test_no_seed_of_live_days_is_one_of_the_others():
    assert OTHER_SEEDS < live.TRAINING_SEEDS < live.EXAM_SEEDS


def test_a_retraining_leaves_weights_that_can_be_published_and_a_verdict(tmp_path):
    directory = a_job(tmp_path)

    verdict = retrained(directory)

    found = result(directory)
    assert found is not None
    assert found[0] == verdict
    assert verdict.episodes >= 40
    loaded = load(found[1])
    assert loaded.version == "found"
    assert loaded.manifest["training"]["stages"][0]["why"] == "the test"
    assert retrain.far(directory) == {"words": "judging", "share": pytest.approx(1.0, abs=0.7)}


@pytest.fixture
def far(monkeypatch):
    """The search ends far away, whatever the days are."""
    monkeypatch.setattr(
        retrain, "searched", lambda _directory, _job, start, *_: (start._replace(theta=-start.theta), 1)
    )


def test_a_step_that_is_too_long_is_shortened_and_what_is_left_is_what_is_judged(tmp_path, monkeypatch, far):
    directory, played = a_job(tmp_path), []
    gate = retrain.judged
    monkeypatch.setattr(
        retrain, "judged", lambda days, one, *rest: played.append(one) or gate(days, one, *rest)
    )

    verdict = retrained(directory, Limits(kl=1e-3, thin_kl=1e-3, shortest=0.0))

    start = load(directory / "current.npz").network
    (network,) = played
    assert 0.0 < verdict.share < 1.0
    assert 0.0 < verdict.kl <= 1e-3
    assert step(start, network, retrain.states(directory)).kl == pytest.approx(verdict.kl)
    np.testing.assert_allclose(network.theta, (1.0 - 2.0 * verdict.share) * start.theta)
    saved = load(directory / "found.npz")
    np.testing.assert_array_equal(saved.network.theta, network.theta)
    assert saved.manifest["training"]["limit"]["share"] == pytest.approx(verdict.share, abs=1e-3)
    assert "of the step" in str(verdict)


def test_where_next_to_nothing_is_left_of_a_step_nothing_is_played(tmp_path, monkeypatch, far):
    directory = a_job(tmp_path)
    monkeypatch.setattr(retrain, "judged", None)

    verdict = retrained(directory, Limits(kl=1e-9, shortest=0.6))

    assert (verdict.has_passed, verdict.share, verdict.episodes) == (False, 0.0, 0)
    assert "less than 60% of the step" in str(verdict)
    assert result(directory)[0] == verdict


def test_states_are_kept_as_they_were_of_fleets_of_any_size(tmp_path):
    seen = [state_of(an_answer(n=n)) for n in (4, 2, 7)]

    found = retrain.states(a_job(tmp_path, seen))

    assert len(found) == 3
    for one, other in zip(found, seen, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)
    assert retrain.states(a_job(tmp_path, [])) == []


def test_the_gate_passes_what_is_better_and_no_tie(tmp_path):
    directory = a_job(tmp_path)
    days = live.days(directory, live.EXAM_SEEDS, 100)
    heuristic = blank(np.array(LeastCost().theta))
    bad = heuristic._replace(theta=heuristic.theta * np.array([0.1, 0.1, 1, 1, 1, 0, 0, 0]))

    better = judged(days, heuristic, bad, lambda *_: None, OneCore())
    tie = judged(days, heuristic, heuristic, lambda *_: None, OneCore())

    assert better.cost < 1.0
    assert not tie.has_passed


def test_what_can_only_lose_is_not_played_to_the_end(tmp_path):
    directory = a_job(tmp_path)
    days = live.days(directory, live.EXAM_SEEDS, 100)
    heuristic, silly = blank(np.array(LeastCost().theta)), a_network(1)._replace(theta=np.zeros(8))

    verdict = judged(days, silly, heuristic, lambda *_: None, OneCore())

    assert verdict.episodes < 100
    assert not verdict.has_passed


def test_fewer_episodes_than_a_hundred_pass_nothing(tmp_path):
    directory = a_job(tmp_path)
    days = live.days(directory, live.EXAM_SEEDS, 20)
    heuristic, silly = blank(np.array(LeastCost().theta)), a_network(1)._replace(theta=np.zeros(8))

    assert not judged(days, heuristic, silly, lambda *_: None, OneCore()).has_passed


def test_a_result_that_is_not_whole_is_none(tmp_path):
    directory = a_job(tmp_path)

    assert result(directory) is None
    (directory / "done.json").write_text(json.dumps({"has_passed": True}))
    assert result(directory) is None


def test_a_verdict_says_what_it_rests_on():
    verdict = Verdict(True, 0.9, 0.85, 0.95, 0.97, 1.01, 0.8, 120, 10.0)

    assert str(verdict) == "passed: cost 0.900 [0.850, 0.950], P99 0.970 (to 1.010), 120 episodes"


def test_traffic_keeps_the_latest_and_each_request_once():
    traffic = Traffic(most=50)
    went_on = an_answer(at_s=1.0, flags=4)
    traffic.add(batch_of([went_on]))
    traffic.add(batch_of(answers(RNG(3), 80)))

    rows = traffic.latest(0.0)

    assert len(rows) == 50
    assert rows["at_s"][0] == pytest.approx(1003.0)
    assert (np.diff(rows["at_s"]) >= 0.0).all()
    assert len(traffic.latest(1007.0)) == 10
