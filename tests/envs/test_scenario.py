"""What a scenario tells the nodes, and what it tells the routers."""

import numpy as np
import pytest

from ccr.errors import ConfigError
from ccr.timing import GIB, GPUS, LOAD_SOURCES, PRESETS, decode_s, load_s, prefill_s, step_costs
from envs.scenario import NodePlan, draws
from tests.envs.days import CHAT, CODE, MODELS, a_day, arrivals

A_PLAN = NodePlan("l4-0", gpu="L4", preset="eager", source="disk_fast", overhead_s=0.05, bw_scale=0.8)


def test_a_router_takes_a_node_for_what_it_is():
    settings, prices = A_PLAN.settings(keep_evicted=True), A_PLAN.prices()

    assert (settings.gpu, settings.preset, settings.source) == (prices.gpu, prices.preset, prices.source)
    assert (settings.overhead_s, settings.bw_scale, settings.keep_evicted) == (0.05, 0.8, True)
    assert (prices.overhead_s, prices.bw_scale) == (0.05, 0.8)


def test_of_a_hidden_node_a_router_knows_the_card_only():
    hidden = NodePlan("x", gpu="L4", overhead_s=0.3, bw_scale=0.5, is_hidden=True)

    assert (hidden.prices().overhead_s, hidden.prices().bw_scale) == (0.0, 1.0)
    assert (hidden.settings(keep_evicted=False).overhead_s, hidden.settings(keep_evicted=False).bw_scale) == (
        0.3,
        0.5,
    )
    assert hidden.prices().gpu == GPUS["L4"]


@pytest.mark.parametrize("share_s", [-1.0, np.inf, np.nan])
def test_ledgers_cannot_be_shared_every_so_often(share_s):
    with pytest.raises(ConfigError, match="share_s"):
        a_day(arrivals([]), share_s=share_s)


def test_routers_know_the_nodes_as_they_would_be_configured():
    (spec,) = a_day(arrivals([]), plans=(A_PLAN,)).specs()

    assert (spec.id, spec.gpu_total_gib, dict(spec.labels)) == ("l4-0", 22.05, {"gpu": "L4"})
    assert spec.models == set(MODELS)
    assert spec.loads_on_demand


def test_the_catalogue_tells_size_and_load_of_each_model_in_the_order_of_their_rows():
    facts = a_day(arrivals([])).facts()

    assert [model for model, _, _ in facts] == list(MODELS)
    assert facts[0][1:] == (
        MODELS[CHAT].stored_bytes / GIB, load_s(MODELS[CHAT], LOAD_SOURCES["engine_swap"]),
    )  # fmt: skip


def test_the_noise_of_loads_is_positive_has_mean_one_and_the_stated_spread():
    scenario = a_day(arrivals([]), load_noise=0.17, nodes=4)

    noise = scenario.noise(1, loads=5000)

    assert noise.shape == (4, 5000)
    assert noise.min() > 0.0
    assert noise.mean() == pytest.approx(1.0, abs=0.01)
    assert noise.std() == pytest.approx(0.17, rel=0.05)
    np.testing.assert_array_equal(noise, scenario.noise(1, loads=5000))
    assert not np.array_equal(noise, scenario.noise(2, loads=5000))


def test_without_noise_loads_take_what_they_take():
    np.testing.assert_array_equal(a_day(arrivals([])).noise(7), np.ones((2, 256)))


def test_draws_are_those_of_the_seed_and_not_those_of_the_noise():
    np.testing.assert_array_equal(draws(3, 50), draws(3, 50))
    assert not np.array_equal(draws(3, 50), draws(4, 50))
    assert ((draws(3, 5000) >= 0.0) & (draws(3, 5000) < 1.0)).all()
    assert draws(3, 5000).mean() == pytest.approx(0.5, abs=0.02)


def test_the_ideal_is_the_request_alone_on_a_warm_plain_a10():
    day = arrivals([0.0, 0.0], model=[0, 1], prompt=[300, 40], output=[80, 1])

    ideal = a_day(day, plans=(A_PLAN,)).ideal_s(day)

    chat, code = (step_costs(MODELS[model], GPUS["A10"], PRESETS["graph"]) for model in (CHAT, CODE))
    assert ideal.tolist() == [prefill_s(chat, [300]) + 79 * decode_s(chat, 1, 340), prefill_s(code, [40])]


def test_conversations_are_counted():
    assert arrivals([0.0, 1.0, 2.0], session=[2, -1, 0]).sessions == 3
    assert arrivals([0.0]).sessions == 0
    assert arrivals([]).sessions == 0
