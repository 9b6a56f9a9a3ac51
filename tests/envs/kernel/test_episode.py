"""The compiled episode is the readable simulator: same decisions, same times, for every built-in policy."""

from dataclasses import replace

import numpy as np
import pytest

from ccr.picker import Exploring
from ccr.policies import POLICIES
from ccr.policies.learned import Learned
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import HOLD_SHARE, PRIORITY, REJECT_COST, blank
from envs.episode import OK, REJECTED
from envs.kernel.choice import RULES, chooser_of
from envs.kernel.episode import PREFER_S as COMPILED_PREFER_S
from envs.scenario import Scenario, Trouble
from envs.scenarios import MODELS, clients, plain
from envs.simulator import PREFER_S, simulate
from envs.traces.synth import Workload

# The first compilation takes a minute or two; `make test` does it before the tests.
pytestmark = pytest.mark.timeout(600)

BUSY = plain("busy", "Small, crowded, bursty.", nodes=3, rate=1.6, duration_s=40.0, models=MODELS[:5])
TROUBLED = replace(
    plain(
        "troubled", "Everything the kernel knows.", nodes=4, rate=1.2, duration_s=40.0, cards=("A10", "L4")
    ),
    replicas=3,
    keep_evicted=True,
    eviction="popularity",
    troubles=(Trouble("slow", 1, 5.0, 25.0, 3.0), Trouble("freeze", 0, 8.0, 30.0)),
)
CHURN = plain(
    "churning", "New versions.", nodes=3, rate=1.0, duration_s=40.0, models=MODELS[:4],
    workload=Workload(release_every_s=12.0, release_ramp_s=5.0),
)  # fmt: skip
CLOSED = Scenario(
    name="closed",
    about="Clients that wait for their answers.",
    nodes=BUSY.nodes,
    models=BUSY.models,
    arrivals=clients(tuple(BUSY.models), count=12, requests=8, think_s=0.5, prompt=200, output=40),
    warmup_s=0.0,
)
SHARED = replace(
    TROUBLED, name="shared", about="Routers that share their ledgers, until that breaks down.", share_s=0.3,
    share_until_s=25.0,
)  # fmt: skip
every_policy = pytest.mark.parametrize("name", POLICIES)


def both(scenario, policy, seed):
    return (simulate(scenario, policy, seed, engine=engine) for engine in ("reference", "compiled"))


def assert_same(readable, compiled):
    np.testing.assert_array_equal(compiled.node, readable.node)
    np.testing.assert_array_equal(compiled.status, readable.status)
    np.testing.assert_array_equal(compiled.cold, readable.cold)
    np.testing.assert_allclose(compiled.arrived_s, readable.arrived_s, rtol=1e-9)
    np.testing.assert_allclose(compiled.total_s, readable.total_s, rtol=1e-9)
    np.testing.assert_allclose(compiled.ttft_s, readable.ttft_s, rtol=1e-9)
    assert compiled.evictions == readable.evictions
    assert compiled.loads == readable.loads
    assert compiled.guard_overrides == readable.guard_overrides
    assert compiled.peak_gib == pytest.approx(readable.peak_gib)


@every_policy
def test_every_policy_decides_alike_compiled_and_readable(name):
    assert_same(*both(BUSY, POLICIES[name](), seed=3))


@every_policy
def test_replicas_troubles_host_memory_and_preferred_evictions_make_no_difference(name):
    assert_same(*both(TROUBLED, POLICIES[name](), seed=4))


@every_policy
def test_routers_that_share_their_ledgers_make_no_difference(name):
    assert_same(*both(SHARED, POLICIES[name](), seed=4))


def test_sharing_and_its_end_do_make_a_difference_in_these_tests():
    """Planted: routers that never shared, and routers that went on, would fail the test above."""
    shared, never, on = (
        simulate(day, LeastCost(), 4, engine="compiled")
        for day in (SHARED, replace(SHARED, share_s=0.0), replace(SHARED, share_until_s=np.inf))
    )

    assert (shared.node != never.node).any()
    assert (shared.node != on.node).any()


@pytest.mark.parametrize("name", ["least_request", "least_cost"])
@pytest.mark.parametrize("scenario", [CHURN, CLOSED], ids=lambda scenario: scenario.name)
def test_new_versions_and_waiting_clients_make_no_difference(scenario, name):
    assert_same(*both(scenario, POLICIES[name](), seed=5))


def test_exploration_draws_the_same_nodes():
    policy = replace(LeastCost(), picker=Exploring(0.2))

    assert_same(*both(BUSY, policy, seed=6))


def a_learned(seed=0, *, reject=0.6, hold=0.8, priority=0.5):
    """Trained on nothing, but everything it may do it does."""
    net = blank(np.array(LeastCost().theta), seed)
    rng = np.random.default_rng(seed)
    net.out[:] = rng.normal(0.0, 0.3, net.out.shape)
    net.extra[:] = rng.normal(0.0, 0.3, net.extra.shape)
    net.scalars[[REJECT_COST, HOLD_SHARE, PRIORITY]] = reject, hold, priority
    return Learned(net)


@pytest.mark.parametrize("scenario", [BUSY, TROUBLED, CHURN, CLOSED], ids=lambda scenario: scenario.name)
def test_a_network_decides_alike_refusing_holding_and_reordering(scenario):
    assert_same(*both(scenario, a_learned(), seed=5))


def test_the_network_of_these_tests_refuses_and_holds():
    everything, sends_only = (
        simulate(BUSY, a_learned(reject=r, hold=h), 3) for r, h in ((0.3, 0.5), (1e3, 1e3))
    )

    assert (everything.status == REJECTED).any()
    assert (sends_only.status == OK).all()


def test_a_network_that_adds_nothing_is_the_heuristic():
    theta = np.array(LeastCost().theta)
    blank_episode, heuristic = (simulate(BUSY, policy, 3) for policy in (Learned(blank(theta)), LeastCost()))

    np.testing.assert_array_equal(blank_episode.node, heuristic.node)


def test_the_comparison_finds_a_difference_in_one_weight():
    """Planted: a kernel with another price would fail the tests above."""
    readable = simulate(BUSY, LeastCost(), 3, engine="reference")
    compiled = simulate(BUSY, LeastCost(inflicted=1.5, evicted=2.0), 3, engine="compiled")

    assert (compiled.node != readable.node).any()


def test_an_episode_is_the_same_twice_and_another_with_another_seed():
    first, again, other = (simulate(BUSY, LeastCost(), seed, engine="compiled") for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.total_s, again.total_s)
    assert len(other) != len(first) or (other.arrived_s != first.arrived_s).any()


def test_everything_offered_is_answered():
    episode = simulate(BUSY, LeastCost(), 1, engine="compiled")

    assert (episode.status == OK).all()
    assert (episode.total_s >= episode.ttft_s).all()


def test_every_policy_of_the_table_is_compiled():
    assert {type(make()) for make in POLICIES.values()} | {Learned} == set(RULES)
    assert all(chooser_of(make()) is not None for make in POLICIES.values())


def test_constants_of_both_are_the_same():
    assert COMPILED_PREFER_S == PREFER_S
