"""Rows as the trace format wants them: every column, nothing made up, nothing that could be text of a prompt."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.engine import decide
from ccr.guard import BoundedLoad
from ccr.types import Outcome, Reading
from router.dispatch import Times
from router.recording.rows import (
    MAX_NODES,
    STATUS,
    LoadRow,
    RequestRow,
    Residency,
    TelemetryRow,
    hashed,
    refused_row,
    request_row,
    telemetry_row,
)
from tests.factories import FLEETS, Fixed, a_fleet, a_node, a_request

KEY = b"k" * 32
REQUESTS = "t model version prompt_tokens output_tokens session prefix_blocks priority node queue_ms ttft_ms total_ms cold_start status"
TELEMETRY = "t node gpu_util mem_used_gib mem_total_gib running waiting kv_used_frac loaded loading"
LOADS = "t node kind model version bytes ms"


class Attempt:
    """What the router tells of a request at a node."""

    def __init__(self, fleet=None, scores=(1.0, 2.0), parent_id="", **request):
        fleet = fleet or a_fleet(a_node("warm", models="llama@2"), a_node("cold"))
        self.request = a_request("llama@2", **request)
        self.decision = decide(self.request, fleet, Fixed(scores), BoundedLoad(), 0.5)
        self.specs = fleet.specs
        self.arrived_s = 103.5
        self.is_cold = self.decision.node_id == "cold"
        self.parent_id = parent_id
        self.epoch = 7


MEASURED = Times(0.001, 2.0, 0.25, 11, 22)


def row_of(attempt, outcome=Outcome.OK, times=MEASURED):
    return request_row(attempt, outcome, times, 100.0, KEY)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (RequestRow, REQUESTS + " policy propensity candidates"),
        (TelemetryRow, TELEMETRY),
        (LoadRow, LOADS),
    ],
)
def test_the_columns_are_those_of_the_trace_format_and_t_is_first(row, columns):
    fields = [field.name for field in msgspec.structs.fields(row)]

    assert fields[: len(columns.split())] == columns.split()


def test_a_request_is_told_in_full():
    row = row_of(Attempt(session="s", priority=-1, prompt_tokens=9))

    assert json.loads(msgspec.json.encode(row)) == {
        "t": 3.5,
        "model": "llama",
        "version": "2",
        "prompt_tokens": 11,
        "output_tokens": 22,
        "session": hashed("s", KEY),
        "prefix_blocks": "",
        "priority": -1,
        "node": "cold",
        "queue_ms": 1.0,
        "ttft_ms": 250.0,
        "total_ms": 2000.0,
        "cold_start": 1,
        "status": "ok",
        "policy": "fixed@7",
        "propensity": 1.0,
        "candidates": [{"node": "warm", "score": 1.0}, {"node": "cold", "score": 2.0}],
        "outcome": "ok",
        "retry": 0,
        "prompt_estimate": 9,
    }


def test_what_the_engine_did_not_tell_stays_unknown():
    row = row_of(Attempt(prompt_tokens=9, output_tokens=50), times=Times(0.0, 2.0))

    assert (row.prompt_tokens, row.output_tokens, row.ttft_ms, row.session) == (None, None, None, "")


def test_a_prompt_of_no_tokens_is_an_unknown_one():
    assert row_of(Attempt(), times=Times(0.0, 2.0, 0.1, 0, 0)).prompt_tokens is None


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_status_and_is_kept_beside_it(outcome):
    row = row_of(Attempt(), outcome)

    assert (row.status, row.outcome) == (STATUS[outcome], outcome)
    assert (row.status == "ok") == (outcome is Outcome.OK)


def test_only_eligible_nodes_are_candidates():
    fleet = a_fleet(a_node("a"), a_node("gone", available=False), a_node("b"))

    row = row_of(Attempt(fleet, scores=(1.0, 9.0, -np.inf)))

    assert [(one.node, one.score) for one in row.candidates] == [("a", 1.0), ("b", None)]


@given(FLEETS)
def test_the_chosen_node_is_a_candidate_with_a_propensity_in_0_1(fleet):
    row = row_of(Attempt(fleet, scores=np.zeros(len(fleet))))

    assert row.node in {one.node for one in row.candidates}
    assert 0.0 < row.propensity <= 1.0


def test_a_retry_is_marked():
    assert row_of(Attempt(parent_id="r0")).retry == 1


def test_a_refusal_tells_what_was_understood_and_no_more():
    unknown = refused_row(Outcome.REJECTED, None, 103.5, 0.002, 100.0, KEY)
    known = refused_row(Outcome.NO_CAPACITY, a_request("llama@2", session="s"), 103.5, 0.002, 100.0, KEY)

    assert (unknown.t, unknown.model, unknown.status, unknown.total_ms) == (3.5, "", "rejected", 2.0)
    assert (known.model, known.version, known.session) == ("llama", "2", hashed("s", KEY))
    assert (known.node, known.propensity, known.candidates, known.cold_start) == ("", None, (), None)


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_session_is_the_same_word_each_time_and_another_under_another_key(one, other):
    assert hashed(one, KEY) == hashed(one, KEY) != hashed(one, b"another key")
    assert (hashed(one, KEY) == hashed(other, KEY)) == (one == other)
    assert len(hashed(one, KEY)) == 16


def test_a_reading_is_told_in_the_units_of_the_trace_format():
    reading = Reading(
        running=2.0, waiting=1.0, kv_used=0.25, gpu_free_gib=6.0, gpu_total_gib=24.0, gpu_util=0.875,
        loaded=frozenset({"b@1", "a@1"}), loading=frozenset(),
    )  # fmt: skip

    assert telemetry_row("n", reading, 1.5) == TelemetryRow(
        t=1.5, node="n", gpu_util=87.5, mem_used_gib=18.0, mem_total_gib=24.0, running=2, waiting=1,
        kv_used_frac=0.25, loaded="a@1 b@1", loading="",
    )  # fmt: skip


def test_what_a_node_does_not_tell_stays_unknown():
    row = telemetry_row("n", Reading(), 1.5)

    assert set(msgspec.structs.asdict(row).values()) == {1.5, "n", None}


# -- loads


def changes(*readings):
    residency = Residency()
    return [
        (row.kind, row.model, row.version, row.ms)
        for t, reading in enumerate(readings)
        for row in residency.changes("n", reading, float(t))
    ]


def loaded(*models, **fields):
    return Reading(loaded=frozenset(models), **fields)


def test_the_first_reading_of_a_node_tells_of_no_load():
    assert changes(loaded("a@1", load_s={"a@1": 3.0})) == []


@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [
        pytest.param(loaded(), loaded("a@1"), [("", "a", "1", None)], id="came"),
        pytest.param(loaded(), loaded("a@1", load_s={"a@1": 3.0}), [("", "a", "1", 3000.0)], id="came, timed"),
        pytest.param(loaded("a"), loaded(), [("evict", "a", "", None)], id="went"),
        pytest.param(loaded("a"), loaded("b"), [("", "b", "", None), ("evict", "a", "", None)], id="gave way"),
        pytest.param(loaded("a", load_s={"a": 3.0}), loaded("a", load_s={"a": 2.0}), [("", "a", "", 2000.0)],
                     id="went and came between two readings"),
        pytest.param(loaded("a", load_s={"a": 3.0}), loaded("a", load_s={"a": 3.0}), [], id="nothing"),
        pytest.param(loaded(), loaded(load_s={"a": 3.0}), [], id="its time is told before it is there"),
        pytest.param(loaded(load_s={"a": 3.0}), loaded("a", load_s={"a": 3.0}), [("", "a", "", 3000.0)],
                     id="came, its time was told before"),
        pytest.param(Reading(load_s={"a": 3.0}), Reading(load_s={"a": 2.0}), [("", "a", "", 2000.0)],
                     id="timed by a source that does not tell what is resident"),
        pytest.param(loaded("a"), Reading(), [], id="not told"),
        pytest.param(loaded("a", boot_id="1"), loaded("a", boot_id="2"),
                     [("process", "", "", None), ("", "a", "", None)], id="restarted"),
    ],
)  # fmt: skip
def test_a_load_is_what_changed_between_two_readings(before, after, rows):
    assert changes(before, after) == rows


def test_the_memory_of_nodes_has_an_end():
    residency = Residency()

    for number in range(MAX_NODES + 10):
        list(residency.changes(f"n{number}", loaded(), 0.0))

    assert len(residency._last) <= MAX_NODES
