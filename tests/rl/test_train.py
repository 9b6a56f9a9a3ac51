"""Training goes on where it stopped, gives the same twice, and keeps no stage that does not help."""

import dataclasses

import numpy as np
import pytest

from ccr.policies.least_cost import LeastCost
from ccr.policies.network import blank
from rl import train as training
from rl.cli import BUDGETS
from rl.days import Cores, compare, mixed_days
from rl.theta import at_point, to_point
from rl.train import Plan, Progress, train


def test_points_of_the_search_are_networks():
    net = blank(np.array(LeastCost().theta))
    found = at_point(net, to_point(net))

    np.testing.assert_allclose(found.theta, net.theta, rtol=1e-9)


def test_no_two_stages_and_no_two_seeds_share_a_day():
    plans = [Plan(seed=seed) for seed in range(3)]
    blocks = [plan.days(stage, 0, 200) for plan in plans for stage in range(3)] + [
        plan.exam for plan in plans
    ]
    seeds = [day.seed for block in blocks for day in block]

    assert len(seeds) == len(set(seeds))


def test_traces_take_every_second_day():
    days = mixed_days(0, 6, ["trace:a", "trace:b"])

    assert [day.scenario for day in days] == ["", "trace:a", "", "trace:b", "", "trace:a"]


def test_a_network_ties_with_itself_and_a_worse_one_is_seen():
    rng = np.random.default_rng(0)
    regrets = rng.normal(0.0, 0.2, (120, 2))

    assert compare(regrets, regrets).cost == 1.0
    assert not compare(regrets, regrets).is_better
    assert compare(regrets - 0.1, regrets).is_better
    assert not compare(regrets + 0.1, regrets).is_better


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_training_is_the_same_twice_and_goes_on_where_it_stopped(tmp_path):
    plan = Plan(BUDGETS["smoke"])
    with Cores(2) as cores:
        first = train(plan, tmp_path / "a", cores, Progress())
        (tmp_path / "a" / "3-ppo.npz").unlink()
        resumed = train(plan, tmp_path / "a", cores, Progress())
        other = train(dataclasses.replace(plan, seed=1), tmp_path / "a", cores, Progress())

    assert [each.stage for each in first] == list(training.STAGES)
    for name, one, again in zip(
        first[-1].network._fields, first[-1].network, resumed[-1].network, strict=True
    ):
        np.testing.assert_array_equal(one, again, err_msg=name)
    assert any(
        (one != another).any() for one, another in zip(first[-1].network, other[-1].network, strict=True)
    )


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_a_stage_that_harms_is_not_kept(tmp_path, monkeypatch):
    """Planted: PPO that forgets everything."""
    monkeypatch.setattr(training, "_ppo", lambda plan, start, cores, progress: [blank(np.full(8, 0.02))])
    with Cores(2) as cores:
        outcomes = train(Plan(BUDGETS["smoke"]), tmp_path, cores, Progress())

    assert not outcomes[-1].is_kept
    np.testing.assert_array_equal(outcomes[-1].network.theta, outcomes[-2].network.theta)
