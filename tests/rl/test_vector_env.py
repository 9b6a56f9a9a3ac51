"""Many fleets at once are the same fleets, and stable-baselines3 trains on them."""

from dataclasses import replace

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_checker import check_env

from ccr.errors import ConfigError
from envs.routing_env import RoutingEnv
from envs.scenario import Scenario
from envs.scenarios import plain
from rl.vector_env import FleetVecEnv

# Compiled code is kept on disk; the first run on a machine makes it.
# Slow only when nothing is compiled yet: the stepped kernel takes minutes.
pytestmark = [pytest.mark.prove, pytest.mark.timeout(1200)]


def a_day(rate: float = 1.2, nodes: int = 3) -> Scenario:
    """A short scenario with a few nodes."""
    scenario = plain(
        "short", "Short.", nodes=nodes, rate=rate, models=("chat-7b@1", "code-7b@1"), duration_s=20.0
    )
    return replace(scenario, warmup_s=0.0)


def played(envs: FleetVecEnv, steps: int) -> tuple[list[dict], list[np.ndarray], list[list[dict]]]:
    """Some steps of the least busy node."""
    observations = envs.reset()
    observed, rewards, infos = [observations], [], []
    for _ in range(steps):
        action = np.where(envs.action_masks()[:, :3], observations["nodes"][:, :3, 13], np.inf).argmin(axis=1)
        observations, reward, _, info = envs.step(action)
        observed.append(observations)
        rewards.append(reward)
        infos.append(info)
    return observed, rewards, infos


def test_stable_baselines_accepts_the_environment():
    check_env(RoutingEnv(scenario=a_day(), max_nodes=4), warn=False)


def test_masked_ppo_learns_on_it():
    envs = FleetVecEnv([a_day()], num_envs=2, seed=1, max_nodes=4)
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=64, batch_size=32, n_epochs=1, seed=1)
    before = [value.clone() for value in model.policy.parameters()]

    model.learn(256)

    assert len(model.ep_info_buffer) > 0
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))


def test_each_environment_goes_its_way_whatever_the_others_do():
    alone, _, _ = played(FleetVecEnv([a_day()], num_envs=1, seed=5, max_nodes=4), 120)
    together, _, _ = played(FleetVecEnv([a_day()], num_envs=3, seed=5, max_nodes=4), 120)

    for one, three in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["nodes"][0], three["nodes"][0])
        np.testing.assert_array_equal(one["action_mask"][0], three["action_mask"][0])


def test_an_episode_that_ends_begins_again_and_leaves_its_figures():
    envs = FleetVecEnv([a_day()], num_envs=2, seed=3, max_nodes=4)

    observed, rewards, infos = played(envs, 200)

    step, k = next((t, k) for t, info in enumerate(infos) for k in range(2) if "episode" in info[k])
    ended = infos[step][k]
    assert ended["episode"]["r"] == pytest.approx(
        sum(float(reward[k]) for reward in rewards[: step + 1]), rel=1e-5
    )
    assert ended["episode"]["l"] == step + 1
    assert ended["metrics"]["cost"] > 0.0
    assert not ended["terminal_observation"]["action_mask"].any()
    assert observed[step + 1]["action_mask"][k].any()


def test_fleets_of_different_sizes_share_the_observation():
    sizes = iter([4, 2])
    envs = FleetVecEnv(lambda _: a_day(nodes=next(sizes)), num_envs=2, seed=0, max_nodes=4)

    observed = envs.reset()

    assert observed["action_mask"][:, :4].sum(axis=1).tolist() == [4, 2]
    assert not observed["nodes"][1, 2:].any()


def test_what_environments_share_cannot_be_set_on_one():
    envs = FleetVecEnv([a_day()], num_envs=1, max_nodes=4)

    with pytest.raises(ConfigError, match="FleetVecEnv with it"):
        envs.set_attr("reward_scale", 2.0)
    with pytest.raises(ConfigError, match="no method 'fly'"):
        envs.env_method("fly")


def test_no_scenario_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        FleetVecEnv([], num_envs=1)
