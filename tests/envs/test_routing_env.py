"""The environment plays the episodes that the simulator plays, shows what the core shows, and costs what it costs."""

from dataclasses import dataclass, field, replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ccr.admission import HOLD_S, MAX_HOLD_S
from ccr.errors import ConfigError
from ccr.expectations import look_of
from ccr.features import node_features, request_features
from ccr.picker import GREEDY
from ccr.policies.least_cost import LeastCost
from ccr.reward import cost_of_rejection
from ccr.types import Fleet, Request, Scores
from envs.routing_env import WORST_COST, RoutingEnv
from envs.scenario import NodePlan, Scenario, Trouble
from envs.scenarios import clients, plain
from envs.simulator import Simulator
from envs.traces.synth import Workload

# Compiled code is kept on disk; the first run on a machine makes it.
# Slow only when nothing is compiled yet: the stepped kernel takes minutes.
pytestmark = [pytest.mark.prove, pytest.mark.timeout(1200)]

MODELS = ("chat-7b@1", "code-7b@1", "support-8b@1")


def a_day(*, nodes: int = 3, rate: float = 1.2, duration_s: float = 40.0, **fields: object) -> Scenario:
    """A short scenario with a few nodes."""
    scenario = plain("short", "Short.", nodes=nodes, rate=rate, models=MODELS, duration_s=duration_s)
    return replace(scenario, **{"warmup_s": 5.0, **fields})


def a_lonely_request() -> RoutingEnv:
    """Two cold nodes and a request every ten seconds."""
    cold = (NodePlan(id="a10-0"), NodePlan(id="a10-1"))
    return RoutingEnv(Workload(models=("chat-7b@1",), rate=0.1, duration_s=120.0), cold, max_nodes=2)


@dataclass(frozen=True, slots=True)
class Watched:
    """Least cost, and a record of what it saw."""

    seen: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    name: str = "watched"
    picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        look = look_of(request, fleet)
        self.seen.append((node_features(look), request_features(look)))
        return LeastCost().scores(request, fleet)


def play(env: RoutingEnv, seed: int = 0, options=None, actions=None) -> tuple[list[dict], float, list[dict]]:
    """An episode to its end: what was observed, the return, and the facts of every step."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options=options)
    observed, infos, total = [observation], [], 0.0
    over = False
    while not over:
        allowed = np.flatnonzero(env.action_masks())
        action = rng.choice(allowed) if actions is None else actions[info["asked"]]
        observation, reward, over, _, info = env.step(action)
        total += reward
        observed.append(observation)
        infos.append(info)
    return observed, total, infos


@pytest.mark.filterwarnings("ignore:.*not within the same bounds:UserWarning")
def test_gymnasium_accepts_it():
    env = gymnasium.make("ccr/FleetRouting-v0", scenario=a_day(), max_nodes=4, render_mode="rgb_array")

    check_env(env.unwrapped)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(a_day(replicas=2), id="two routers"),
        pytest.param(
            a_day(
                eviction="popularity",
                troubles=(Trouble("slow", 1, 5.0, 25.0, 3.0), Trouble("freeze", 2, 0.0, 30.0)),
            ),
            id="a straggler, and a node without telemetry",
        ),
        pytest.param(
            a_day(arrivals=clients(MODELS, count=6, requests=12, think_s=0.5, prompt=64, output=20)),
            id="requests that wait for others",
        ),
    ],
)
def test_the_decisions_of_the_reference_give_its_episode_and_its_observations(scenario):
    policy = Watched()
    reference = Simulator(scenario, policy, 7).run()
    env = RoutingEnv(scenario=scenario, max_nodes=4)
    observed, total, infos = play(env, options={"episode": 7}, actions=reference.node)

    metrics, expected = infos[-1]["metrics"], reference.metrics()
    for name in ("cost", "mean_s", "p99_s", "ttft_p99_s", "slo", "cold_starts", "evictions"):
        assert metrics[name] == pytest.approx(expected[name]), name
    assert -total * WORST_COST == pytest.approx(reference.costs.sum())
    assert len(observed) == len(policy.seen) + 1
    for observation, (nodes, request) in zip(observed[:-1], policy.seen, strict=True):
        np.testing.assert_allclose(observation["nodes"][:3], nodes, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(observation["request"], request, rtol=1e-4, atol=1e-5)
        assert not observation["nodes"][3:].any()


def test_equal_seeds_give_equal_episodes():
    first, second = (play(RoutingEnv(scenario=a_day(), max_nodes=4), 3) for _ in range(2))

    assert first[1] == second[1]
    for one, other in zip(first[0], second[0], strict=True):
        np.testing.assert_equal(one, other)


def test_other_seeds_give_other_episodes():
    env = RoutingEnv(scenario=a_day(), max_nodes=4)

    assert play(env, 3)[1] != play(env, 4)[1]


def test_the_return_is_minus_the_cost_of_the_counted_requests():
    env = RoutingEnv(scenario=a_day(), max_nodes=4, reward_scale=1.0)

    _, total, infos = play(env, 5)

    assert -total == pytest.approx(env.sitting.episode().costs.sum())
    assert -total == pytest.approx(sum(info["costs"].sum() for info in infos))


def test_a_masked_action_goes_to_the_least_busy_node_and_costs_a_penalty():
    env = RoutingEnv(scenario=a_day(), max_nodes=4, masked_penalty=3.0)
    env.reset(seed=1)
    env.step(0)

    _, reward, _, _, info = env.step(3)  # a row without a node

    assert info["masked"]
    assert info["node"] == 1
    assert reward == pytest.approx(-3.0 - info["cost"] / WORST_COST)


def test_a_masked_action_is_refused_if_asked_for():
    env = RoutingEnv(scenario=a_day(), max_nodes=4, on_masked="raise")
    env.reset(seed=1)

    with pytest.raises(ConfigError, match="action 3 is masked; allowed now"):
        env.step(3)


def test_the_guard_stands_behind_every_choice():
    env = RoutingEnv(scenario=a_day(rate=3.0), max_nodes=3)
    env.reset(seed=2)

    infos = [env.step(0)[-1] for _ in range(60)]

    moved = [info for info in infos if info["guarded"]]
    assert moved
    assert all(info["node"] != 0 for info in moved)
    assert not any(info["masked"] for info in infos)


def test_a_request_may_be_held_while_every_node_would_have_to_load():
    env = a_lonely_request()
    _, info = env.reset(seed=1)
    job, arrived_s = info["asked"], info["now_s"]
    hold = 3

    holds = 0
    while env.action_masks()[hold]:
        _, reward, _, _, info = env.step(hold)
        holds += 1
        assert (info["asked"], reward) == (job, 0.0)
        assert info["now_s"] == pytest.approx(arrived_s + holds * HOLD_S)

    assert holds == round(MAX_HOLD_S / HOLD_S)
    env.step(0)
    assert not env.action_masks()[hold], "the weights are there or on their way"
    assert env.sitting.sim.due_s[job] == arrived_s, "its latency counts from its arrival"


def test_a_request_may_be_refused_once_the_fleet_is_saturated():
    env = RoutingEnv(scenario=a_day(nodes=1, rate=12.0, warmup_s=0.0), max_nodes=1)
    env.reset(seed=1)
    refuse = 1
    assert not env.action_masks()[refuse]

    while not env.action_masks()[refuse]:
        _, _, _, _, info = env.step(0)
    job = info["asked"]
    _, _, _, _, info = env.step(refuse)

    ideal_s = env.sitting.play.ideal_s[job]
    assert info["node"] == -1
    assert env.sitting.play.cost[job] == pytest.approx(float(cost_of_rejection(ideal_s)))
    assert env.sitting.episode().status[job] == 1


def test_a_fleet_larger_than_the_observation_is_refused():
    with pytest.raises(ConfigError, match="set max_nodes=3"):
        RoutingEnv(scenario=a_day(), max_nodes=2).reset()


def test_a_scenario_with_crashes_is_refused():
    with pytest.raises(ConfigError, match="without crashes"):
        RoutingEnv(fleet="crash").reset()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scenario": "medium", "fleet": 4}, "a scenario has its own"),
        ({"fleet": 0}, "at least 1"),
        ({"fleet": ()}, "empty"),
        ({"fleet": "nowhere"}, "no scenario is called"),
        ({"fleet": (NodePlan(id="a", warm=("other@1",)),)}, "other@1 warm"),
        ({"replicas": 0}, "replicas is 0"),
        ({"on_masked": "ignore"}, "on_masked"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        RoutingEnv(**arguments)


def test_stepping_needs_a_reset():
    with pytest.raises(gymnasium.error.ResetNeeded):
        RoutingEnv(scenario=a_day()).step(0)


def test_both_pictures_show_every_node_and_the_last_choice():
    env = RoutingEnv(scenario=a_day(), max_nodes=4, render_mode="ansi")
    env.reset(seed=1)
    env.step(1)

    text = env.render()
    env.render_mode = "rgb_array"
    picture = env.render()

    assert next(line for line in text.splitlines() if "<-" in line).startswith("a10-1")
    assert all(f"a10-{i}" in text for i in range(3))
    assert picture.shape == (540, 960, 3)
    assert picture.dtype == np.uint8
