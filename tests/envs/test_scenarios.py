"""The table of scenarios: each is what its name says, can be drawn, and fits its fleet."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from ccr.errors import ConfigError, TraceError
from ccr.timing import GPUS, kv_bytes
from envs.scenarios import MODELS, SCENARIOS, SUITES, arrivals_of, clients, fleet, of_trace, scenario_of
from envs.traces.synth import Workload, draw
from envs.traces.trace import write
from envs.work import nodes_for

SMALL = {name: scenario for name, scenario in SCENARIOS.items() if len(scenario.nodes) <= 16}
every_scenario = pytest.mark.parametrize("name", SCENARIOS)
every_small_scenario = pytest.mark.parametrize("name", SMALL)


@every_scenario
def test_a_scenario_is_known_by_its_name_and_says_what_it_is(name):
    assert SCENARIOS[name].name == name
    assert SCENARIOS[name].about.endswith(".")


@every_scenario
def test_what_is_warm_at_the_start_fits_on_its_card(name):
    scenario = SCENARIOS[name]

    for node in scenario.nodes:
        assert len(set(node.warm)) == len(node.warm)
        assert kv_bytes(GPUS[node.gpu], [scenario.models[model] for model in node.warm]) > 0


@every_scenario
def test_troubles_are_of_nodes_there_are_and_end(name):
    scenario = SCENARIOS[name]

    for trouble in scenario.troubles:
        assert 0 <= trouble.node < len(scenario.nodes)
        assert 0.0 <= trouble.from_s < trouble.until_s


@every_small_scenario
def test_its_traffic_can_be_drawn_again_and_is_for_its_models(name):
    scenario = SMALL[name]

    first, second = scenario.arrivals(1), scenario.arrivals(1)

    for column, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(column, again)
        assert len(column) == len(first.t)
    assert ((first.model >= 0) & (first.model < len(scenario.models))).all()
    assert first.prompt_tokens.min() >= 1
    assert first.output_tokens.min() >= 1
    assert (first.t[1:] >= first.t[:-1]).all() or (first.after >= 0).any()


@every_small_scenario
def test_every_request_fits_beside_its_weights_on_every_card(name):
    """Otherwise a node refuses it, and the scenario is about something else."""
    scenario = SMALL[name]
    arrivals = scenario.arrivals(1)
    tokens = arrivals.prompt_tokens + arrivals.output_tokens

    for row, spec in enumerate(scenario.models.values()):
        longest = int(tokens[arrivals.model == row].max(initial=0))
        for gpu in {node.gpu for node in scenario.nodes}:
            assert longest * spec.kv_bytes_per_token < kv_bytes(GPUS[gpu], [spec])


@pytest.mark.parametrize(
    ("name", "per_node"),
    [("steady", 1.5), ("medium", 1.0), ("overload-2.8", 2.8), ("overload-4.2", 4.2)],
)
def test_rates_are_as_stated(name, per_node):
    scenario = SCENARIOS[name]

    offered = np.mean([len(scenario.arrivals(seed).t) for seed in range(3)])

    assert offered / 240.0 / len(scenario.nodes) == pytest.approx(per_node, rel=0.25)


def test_suites_name_scenarios_and_training_keeps_to_its_own():
    named = {name for suite in SUITES.values() for name in suite}

    assert named == set(SCENARIOS)
    assert set(SUITES["smoke"]) <= set(SUITES["full"])
    assert not set(SUITES["train"]) & set(SUITES["full"])
    assert all(name.startswith("train-") for name in SUITES["train"])


# Fleets


@pytest.mark.parametrize("count", [2, 3, 8, 32, 128])
def test_each_node_begins_with_two_models_and_the_popular_have_more_copies(count):
    models = MODELS[:3] if count == 2 else MODELS

    nodes = fleet(count, models)

    copies = Counter(model for node in nodes for model in node.warm)
    assert [len(set(node.warm)) for node in nodes] == [2] * count
    assert len({node.id for node in nodes}) == count
    ranked = [copies[model] for model in models]
    assert ranked == sorted(ranked, reverse=True)


def test_cards_are_dealt_in_turn():
    assert [node.gpu for node in fleet(4, MODELS, cards=("A10", "L4"))] == ["A10", "L4", "A10", "L4"]


# Traffic


def test_a_client_asks_its_next_question_after_its_last():
    traffic = clients(("a", "b"), count=3, requests=4, think_s=0.5, prompt=30, output=8)(1)

    assert traffic.after.tolist() == [-1, -1, -1, *range(9)]
    assert len(traffic.t) == 12


def test_the_means_of_clients_are_as_stated():
    traffic = clients(("a", "b"), count=50, requests=100, think_s=0.25, prompt=32, output=8, zipf=1.0)(1)

    assert traffic.t.mean() == pytest.approx(0.25, rel=0.05)
    assert np.median(traffic.prompt_tokens) == pytest.approx(32, rel=0.05)
    assert (traffic.model == 0).mean() == pytest.approx(2 / 3, abs=0.02)


def test_a_trace_for_models_the_fleet_lacks_is_refused():
    trace = draw(Workload(models=("chat-7b@1",), duration_s=20.0), 1)

    with pytest.raises(ConfigError, match=r"the trace asks for chat-7b@1; the fleet has code-7b@1"):
        arrivals_of(trace, ("code-7b@1",))


def test_a_trace_becomes_a_scenario_with_the_nodes_it_needs(tmp_path):
    trace = draw(Workload(models=MODELS[:4], rate=6.0, duration_s=60.0), 1)
    path = tmp_path / "day.csv"
    write(trace, path)

    scenario = scenario_of(f"trace:{path}")

    arrivals = scenario.arrivals(5)
    ids = list(scenario.models)
    np.testing.assert_array_equal(arrivals.t, trace.t)
    assert [ids[row] for row in arrivals.model[:20]] == [trace.models[row] for row in trace.model[:20]]
    assert len(scenario.nodes) == nodes_for(arrivals, scenario.models)
    assert len(of_trace(path, nodes=5).nodes) == 5


def test_a_trace_with_a_request_that_no_node_can_hold_is_refused(tmp_path):
    """Neither engine could ever end such an episode."""
    trace = draw(Workload(models=("chat-7b@1",), rate=1.0, duration_s=30.0), 1)
    longest = np.array(trace.prompt_tokens)
    longest[3] = 120_000
    path = tmp_path / "long.csv"
    write(dataclasses.replace(trace, prompt_tokens=longest), path)

    with pytest.raises(
        TraceError, match=rf"1 of {len(trace)} requests are longer .* --most-tokens 1\d{{5}}`"
    ):
        of_trace(path)


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match="no scenario is called 'sunday'; there are steady, medium"):
        scenario_of("sunday")
