from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from ccr.types import COLUMNS, Fleet, NodeSpec, Outcome, Request
from tests.factories import a_fleet, a_live_fleet, a_node, a_request, a_spec


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_is_an_attribute_of_the_fleet_and_of_its_nodes(column):
    fleet = a_fleet(a_node("a", **{column: 0.25}), a_node("b", **{column: 0.75}))

    np.testing.assert_array_equal(getattr(fleet, column), [0.25, 0.75])
    assert [getattr(node, column) for node in fleet.nodes] == [0.25, 0.75]


def test_every_column_is_annotated():
    assert set(COLUMNS) <= set(Fleet.__annotations__)


def test_what_is_left_out_of_a_row_is_idle_and_healthy():
    fleet = Fleet.of([{"spec": a_spec(gpu_total_gib=24.0)}])

    (node,) = fleet.nodes
    assert (node.inflight, node.ramp, node.gpu_free_gib, node.room_gib) == (0.0, 1.0, 24.0, 24.0)
    assert node.available


@pytest.mark.parametrize("array", ["columns", "available", "inflight", "qps"])
def test_a_fleet_is_read_only(array):
    fleet = a_fleet(a_node())

    with pytest.raises(ValueError, match="read-only"):
        getattr(fleet, array)[...] = 1


def test_a_mask_is_read_only_because_it_is_shared():
    fleet = a_fleet(a_node(models="llama"))

    for mask in (
        fleet.resident("llama"),
        fleet.serving("llama"),
        fleet.capable("llama", 7.9),
        fleet.candidates("llama", 7.9),
        fleet.tagged(frozenset()),
    ):
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = False


def test_a_node_refuses_to_be_changed():
    (node,) = a_fleet(a_node()).nodes

    with pytest.raises(AttributeError, match=r"a node is read-only.*'inflight'"):
        node.inflight = 0.0


def test_a_node_says_what_it_has_when_asked_for_what_it_has_not():
    (node,) = a_fleet(a_node()).nodes

    with pytest.raises(AttributeError, match=r"no 'gpu_free'; it has .*gpu_free_gib.*loaded_models"):
        _ = node.gpu_free


def test_a_node_tells_its_configured_facts():
    spec = a_spec("a10-1", tags="canary eu", labels={"gpu": "A10"}, url="http://10.0.0.1:8000/")
    (node,) = a_fleet(a_node(spec=spec, models="llama", available=False, why="draining")).nodes

    assert (node.id, node.address, node.labels) == ("a10-1", "10.0.0.1:8000", {"gpu": "A10"})
    assert node.tags == {"canary", "eu"}
    assert node.loaded_models == {"llama"}
    assert (node.available, node.why_unavailable) == (False, "draining")
    assert repr(node) == "<Node a10-1 inflight=0>"


@pytest.mark.parametrize(
    ("spec", "loaded", "serves"),
    [
        pytest.param(a_spec(serves=""), {"llama"}, True, id="loaded: whatever the config says"),
        pytest.param(a_spec(serves="llama"), set(), True, id="configured, and loads on demand"),
        pytest.param(a_spec(serves="llama", loads_on_demand=False), set(), False, id="configured, but cannot load it"),
        pytest.param(a_spec(serves="qwen"), {"qwen"}, False, id="another model"),
    ],
)  # fmt: skip
def test_a_node_serves_what_it_has_or_may_load(spec, loaded, serves):
    fleet = Fleet.of([{"spec": spec, "loaded": loaded}])

    assert fleet.serving("llama").tolist() == [serves]
    assert fleet.resident("llama").tolist() == ["llama" in loaded]


@pytest.mark.parametrize(
    ("ask", "kept"),
    [
        pytest.param(lambda fleet, i: fleet.resident(f"model-{i}"), "_loaded_masks", id="resident"),
        pytest.param(lambda fleet, i: fleet.serving(f"model-{i}"), "_serving_masks", id="serving"),
        pytest.param(lambda fleet, i: fleet.capable("llama", float(i)), "_capable_masks", id="capable"),
        pytest.param(
            lambda fleet, i: fleet.candidates("llama", float(i)), "_candidate_masks", id="candidates"
        ),
        pytest.param(lambda fleet, i: fleet.tagged(frozenset({f"tag-{i}"})), "_tag_masks", id="tagged"),
    ],
)
def test_clients_cannot_fill_the_memory_with_names(ask, kept):
    fleet = a_fleet(a_node())

    for i in range(3000):
        ask(fleet, i)

    assert 0 < len(getattr(fleet, kept)) <= 1024


@pytest.mark.parametrize(
    ("node", "is_capable"),
    [
        pytest.param(a_node(models="llama", room_gib=1.0), True, id="resident"),
        pytest.param(a_node(room_gib=8.0), True, id="has room"),
        pytest.param(a_node(room_gib=7.0), False, id="has not enough room"),
        pytest.param(a_node(spec=a_spec(serves="qwen"), room_gib=80.0), False, id="does not serve it"),
    ],
)
def test_a_capable_node_has_the_model_or_room_for_it(node, is_capable):
    assert a_fleet(node).capable("llama", 8.0).tolist() == [is_capable]


def test_a_tagged_node_carries_every_tag():
    fleet = a_fleet(a_node(spec=a_spec("a", tags="eu canary")), a_node(spec=a_spec("b", tags="eu")))

    assert fleet.tagged(frozenset({"eu"})).tolist() == [True, True]
    assert fleet.tagged(frozenset({"eu", "canary"})).tolist() == [True, False]


def test_a_snapshot_stays_while_the_fleet_moves_on():
    live = a_live_fleet("a")
    before = live.at(0.0).snapshot()

    live.dispatched(live.state("a"), a_request("llama"), 0.0)
    live.drain("a", draining=True, now_s=0.0)

    assert (before.inflight[0], before.available[0], before.why_unavailable[0]) == (0.0, True, "")
    assert not before.resident("llama")[0]
    assert live.at(0.0).inflight[0] == 1.0


def test_no_outcome_is_both_the_nodes_fault_and_unknown():
    assert not any(outcome.is_node_failure and outcome.is_censored for outcome in Outcome)
    assert not Outcome.OK.is_node_failure
    assert not Outcome.OK.is_censored


@pytest.mark.parametrize("url", ["http://n:8000", "https://n:8000/", "http://n:8000//"])
def test_an_address_is_host_and_port(url):
    assert NodeSpec("n", url).address == "n:8000"


def test_a_request_made_quickly_is_like_any_other():
    given = a_request("llama@2", seq=7, tags="eu", session="s", prompt_tokens=3)

    quick = Request.quick(*(getattr(given, field.name) for field in fields(Request)))

    assert quick == given
    assert type(quick) is Request
    with pytest.raises(FrozenInstanceError):
        quick.model = "another"
