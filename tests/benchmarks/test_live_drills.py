"""In real time both arms meet the same drift; only one of them forgets what it learns of it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import live_drills
from benchmarks.live_drills import ARMS, Forgetful, Known, Plan, document, drift_of, lived, ordered
from benchmarks.real_time import Run
from ccr.book import ANSWERS, SPEED
from ccr.policies.learned import learned
from envs.emulator import NodeServer
from envs.episode import OK, Episode
from envs.life import Build
from envs.node import EmulatedNode
from rl.drills.drifts import DOUBLED, DRIFTS, Times
from rl.drills.play import FROZEN, ONLINE
from tests.factories import a_live_fleet, a_request

SEED = 57_000_000
SHORT = Times(20.0, 25.0, 60.0)


def a_plan(name="node-slow", pairs=1):
    return Plan(name, range(SEED, SEED + pairs), SHORT, 10.0)


@pytest.mark.timeout(180)  # two runs of 6 s where the machine is free
async def test_after_the_drift_one_router_finds_the_slow_node_and_the_frozen_one_does_not():
    plan = a_plan()
    case = plan.case(SEED)
    slow = case.scenario.troubles[0].node
    runs = {arm: await lived(plan, case, arm, SEED) for arm in ARMS}

    seen = {arm: speeds(run, SHORT.drift_s) for arm, run in runs.items()}

    assert (seen[FROZEN] == seen[FROZEN][0]).all()
    fast = [n for n in range(len(case.scenario.nodes)) if n != slow]
    assert seen[ONLINE][-1, slow] > 1.3 * np.median(seen[ONLINE][-1, fast])
    np.testing.assert_array_equal(runs[FROZEN].episode.arrived_s, runs[ONLINE].episode.arrived_s)
    assert all((run.episode.status == OK).all() for run in runs.values())


def speeds(run, from_s):
    """What each decision later than a second after ``from_s`` took the speeds of the nodes for."""
    late = run.reached_s > from_s + 1.0
    looks = [attempt.decision.look for attempt, is_late in zip(run.asked, late, strict=True) if is_late]
    return np.array([look.load[SPEED] for look in looks])


def test_a_frozen_router_forgets_what_it_learned_and_keeps_its_ledger():
    fleet = a_live_fleet("a", "b")
    book = fleet.expect(0.0, facts=[("llama", 7.5, 5.0)]).book
    policy = Forgetful(learned(), fleet, Known.of(book))
    placed = fleet.placed(fleet.states[0], a_request(), 0.0)
    fleet.learn(fleet.states[0], placed, 1.0, 60.0, 100, 60.0)
    assert book.load[SPEED, 0] > 1.0
    assert book.load[ANSWERS, 0] == 1.0

    policy.scores(a_request(seq=1), fleet.at(60.0))

    assert book.load[[SPEED, ANSWERS], 0].tolist() == [1.0, 0.0]
    assert book.output_tokens[0] == policy.known.output_tokens[0]
    assert book.inflight[0, 0] == 1


async def test_loads_of_one_model_take_twice_as_long_on_every_node():
    case = DRIFTS["load-doubled"].case(SEED, SHORT)
    models = case.scenario.models
    doubled, other = list(models)[DOUBLED], next(iter(models))
    build = Build("node", models, (), 1000.0, lambda: EmulatedNode(models))
    before, *drifted = (NodeServer(build, "127.0.0.1", 0) for _ in range(3))

    drift_of("load-doubled", case)(drifted, None)

    took = [await load_seconds(node, doubled, other) for node in (before, *drifted)]
    for seconds in took[1:]:
        assert seconds[doubled] == pytest.approx(2.0 * took[0][doubled])
        assert seconds[other] == took[0][other]


async def load_seconds(node, *models):
    driver = node.app.life.driver
    for model in models:
        await driver.load(model)
    driver.stop()
    return node.snapshot()["load_s"]


def test_the_order_of_the_arms_is_turned_round_from_day_to_day():
    assert [ordered(pair) for pair in range(3)] == [ARMS, ARMS[::-1], ARMS]


def a_run(total_s, late_p99_s=0.01):
    """A hundred counted requests, each of which took so long."""
    ones, arrived_s = np.ones(100), np.arange(100.0)
    return Run(
        Episode("drill", "learned", 1, arrived_s, total_s * ones, ones, ones, ones.astype(int), np.full(100, OK), ones > 2,
                ones > 0, 0, 0, 1.0, 100.0),
        (), 0.0, late_p99_s, 0.02,
    )  # fmt: skip


def test_what_is_told_is_by_pairs_and_shows_a_late_client():
    found = {
        FROZEN: [a_run(4.0), a_run(8.0, late_p99_s=0.5), a_run(6.0)],
        ONLINE: [a_run(3.0), a_run(6.0), a_run(4.4)],
    }

    told = document(a_plan(pairs=3), found)

    assert told["ratios"]["p99_s"]["value"] == pytest.approx((0.75 * 0.75 * 4.4 / 6.0) ** (1 / 3))
    assert told["ratios"]["p99_s"]["verdict"] == "better"
    assert told["ratios"]["cost"]["value"] < 1.0
    assert told["arms"][FROZEN]["late_p99_s"]["most"] == 0.5
    assert told["arms"][ONLINE]["p99_s"]["each"] == [3.0, 6.0, 4.4]


def test_arms_that_cost_the_same_are_a_tie():
    found = {FROZEN: [a_run(4.0), a_run(8.0)], ONLINE: [a_run(4.4), a_run(7.3)]}

    assert document(a_plan(pairs=2), found)["ratios"]["cost"]["verdict"] == "tie"


def test_the_command_writes_what_it_printed(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    monkeypatch.setattr(live_drills, "played", lambda plan, _: {arm: [a_run(2.0)] for arm in ARMS})

    done = CliRunner().invoke(
        live_drills.main, ["lengths-tripled", "--pairs", "1", "--speed", "20", "--json", str(out)]
    )

    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text())
    assert told["times"] == {"drift_s": 60.0, "counted_s": 120.0, "end_s": 510.0}
    assert told["ratios"]["cost"]["value"] == pytest.approx(1.0)
    assert told["command"].startswith("python -m benchmarks.live_drills")


def test_a_run_of_minutes_is_not_begun_where_its_end_cannot_be_written(tmp_path):
    done = CliRunner().invoke(live_drills.main, ["nothing", "--json", str(tmp_path / "nowhere" / "out.json")])

    assert done.exit_code == 2
    assert "there is no directory" in done.output
