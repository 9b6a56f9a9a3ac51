"""Work is seconds of a node, whatever the requests look like; fleets are sized by it."""

import numpy as np
import pytest

from ccr.timing import GPUS, PRESETS, decode_s, prefill_s, step_costs
from envs.catalogue import catalogue
from envs.scenario import Arrivals
from envs.scenarios import SCENARIOS
from envs.work import BATCH, busiest, nodes_for, work_s

CHAT = catalogue(["chat-7b@1"])


def traffic(*, count=60, every_s=1.0, prompt=500, output=100, prefix=0, session=0):
    def column(value):
        return np.full(count, value, dtype=np.int64)

    return Arrivals(
        t=every_s * np.arange(count), model=column(0), prompt_tokens=column(prompt), output_tokens=column(output),
        session=column(session), prefix_tokens=column(prefix), priority=column(0), after=column(-1),
    )  # fmt: skip


def test_a_full_batch_takes_as_long_as_its_requests_together():
    costs = step_costs(CHAT["chat-7b@1"], GPUS["A10"], PRESETS["graph"])
    rounds_s = 100 * decode_s(costs, BATCH, BATCH * 550)

    found = work_s(traffic(count=BATCH), list(CHAT.values()))

    assert found.sum() == pytest.approx(BATCH * prefill_s(costs, [500]) + rounds_s)


@pytest.mark.parametrize("longer", [{"prompt": 1000}, {"output": 101}])
def test_longer_requests_are_more_work_and_what_is_cached_is_less(longer):
    specs = list(CHAT.values())

    assert (work_s(traffic(**longer), specs) > work_s(traffic(), specs)).all()
    assert (work_s(traffic(prefix=400), specs) < work_s(traffic(), specs)).all()
    assert (work_s(traffic(prefix=400, session=-1), specs) == work_s(traffic(), specs)).all()


def test_the_busiest_tenth_is_not_the_mean():
    t = np.concatenate((np.arange(0.0, 100.0), np.arange(80.0, 100.0, 0.1)))

    assert busiest(t, np.ones(len(t))) == pytest.approx(11.0, rel=0.1)
    assert busiest(np.empty(0), np.empty(0)) == 0.0


def test_ten_times_the_traffic_needs_ten_times_the_nodes():
    few = nodes_for(traffic(every_s=0.1, count=600), CHAT)
    many = nodes_for(traffic(every_s=0.01, count=6000), CHAT)

    assert few > 2
    assert many == pytest.approx(10 * few, rel=0.3)


def test_every_model_has_room_once():
    models = {f"model-{k}": CHAT["chat-7b@1"] for k in range(13)}

    assert nodes_for(traffic(every_s=10.0), models) == 7


@pytest.mark.parametrize("name", ["medium", "high"])
def test_the_sizes_are_those_of_the_scenarios(name):
    """What is sized by its work is about as busy as what policies are compared on."""
    scenario = SCENARIOS[name]

    counts = [nodes_for(scenario.arrivals(seed), scenario.models) for seed in range(4)]

    assert np.mean(counts) == pytest.approx(len(scenario.nodes), rel=0.25)
