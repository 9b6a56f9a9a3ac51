from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.engine import Engine, decide
from ccr.errors import TraceError
from ccr.guard import BoundedLoad
from ccr.picker import BEST_OF_TWO, Exploring
from ccr.policies import POLICIES
from ccr.policies.least_request import LeastRequest
from ccr.trace import decode, encode, record_of, replay
from ccr.types import Outcome, TraceRecord
from tests.factories import DRAWS, FLEETS, MODELS, SEQS, Fixed, a_fleet, a_node, a_request, a_spec

every_policy = pytest.mark.parametrize("policy", [make() for make in POLICIES.values()], ids=list(POLICIES))
REQUESTS = st.builds(
    a_request,
    st.sampled_from(MODELS),
    # The resolved id need not look like name and version: the config may give any.
    name=st.sampled_from(["llama", "chat"]),
    seq=SEQS,
    session=st.sampled_from(["", "s1", "s2"]),
    load_s=st.sampled_from([0.0, 2.5]),
    model_gib=st.sampled_from([0.0, 7.9]),
)


def a_record(decision, request, fleet, **more):
    return record_of(request, decision, fleet, t=1.5, status=Outcome.OK, **more)


def assert_same(replayed, decision):
    assert (replayed.node_id, replayed.drawn_id, replayed.index) == (
        decision.node_id,
        decision.drawn_id,
        decision.index,
    )
    assert (replayed.propensity, replayed.guard_reason) == (decision.propensity, decision.guard_reason)
    np.testing.assert_array_equal(replayed.scores, decision.scores)
    np.testing.assert_array_equal(replayed.probabilities, decision.probabilities)
    np.testing.assert_array_equal(replayed.mask, decision.mask)


def replayed_from_disk(record, policy, guard=None):
    return replay(decode(encode(record)), policy, guard)


@every_policy
@given(fleet=FLEETS, request_=REQUESTS, u=DRAWS)
def test_a_logged_decision_replays_exactly(policy, fleet, request_, u):
    decision = decide(request_, fleet, policy, BoundedLoad(), u)

    assert_same(replayed_from_disk(a_record(decision, request_, fleet), policy), decision)


@given(fleet=FLEETS, u=DRAWS, data=st.data())
def test_a_decision_with_infinite_scores_and_any_picker_replays_exactly(fleet, u, data):
    n = len(fleet)
    scores = data.draw(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=n, max_size=n))
    scores[int(np.flatnonzero(fleet.available)[0])] = 0.5
    picker = data.draw(st.sampled_from([BEST_OF_TWO, Exploring(0.25)]))
    policy = Fixed(scores, picker=picker)
    decision = decide(a_request(), fleet, policy, BoundedLoad(), u)

    assert_same(replayed_from_disk(a_record(decision, a_request(), fleet), policy), decision)


def test_a_decision_that_the_guard_moved_replays_exactly():
    policy, fleet = Fixed([3, 2, 1]), a_fleet(a_node("a", inflight=9), a_node("b"), a_node("c"))
    decision = decide(a_request(), fleet, policy, BoundedLoad(), 0.5)

    record = a_record(decision, a_request(), fleet)

    assert (record.drawn, record.node, record.guard_reason) == ("a", "b", "bounded_load")
    assert_same(replayed_from_disk(record, policy), decision)


def test_another_guard_is_replayed_when_it_is_given():
    policy, fleet = Fixed([3, 2, 1]), a_fleet(a_node("a", inflight=9), a_node("b"), a_node("c"))
    lenient = BoundedLoad(factor=9.0)
    record = a_record(decide(a_request(), fleet, policy, lenient, 0.5), a_request(), fleet)

    assert replay(record, policy, lenient).node_id == "a"
    assert replay(record, policy).node_id == "b"


def test_a_fallback_is_replayed_by_the_policy_that_decided():
    fleet = a_fleet(a_node("a", inflight=2), a_node("b"))
    decision = Engine(Fixed([np.nan, np.nan]), LeastRequest()).decide(a_request(), fleet, 0.5)

    record = a_record(decision, a_request(), fleet)

    assert (record.policy, record.fallback) == ("least_request", decision.fallback)
    assert_same(replayed_from_disk(record, LeastRequest()), decision)


def test_why_a_node_was_out_need_not_be_known_to_replay():
    fleet = a_fleet(
        a_node("ejected", available=False),
        a_node("tagless"),
        a_node(spec=a_spec("small", tags="eu"), room_gib=1.0),
        a_node(spec=a_spec("b", tags="eu"), inflight=2),
        a_node(spec=a_spec("c", tags="eu")),
        a_node(spec=a_spec("tried", tags="eu")),
    )
    request = a_request("llama", tags="eu", model_gib=7.9)
    tried = np.array([spec.id == "tried" for spec in fleet.specs])
    decision = decide(request, fleet, LeastRequest(), BoundedLoad(), 0.5, tried)

    record = a_record(decision, request, fleet)

    assert record.mask == (False, False, False, True, True, False)
    assert_same(replayed_from_disk(record, LeastRequest()), decision)


def test_a_record_without_an_observation_cannot_be_replayed():
    with pytest.raises(TraceError, match="request r7: the record carries no observation"):
        replay(TraceRecord(t=0.0, request_id="r7", model="llama"), LeastRequest())


def test_a_record_says_what_was_seen_decided_and_measured():
    fleet = a_fleet(a_node("a", models="llama@2", inflight=1), a_node("b", inflight=2))
    request = a_request("llama@2", seq=9, session="s", priority=1, prompt_tokens=70, load_s=2.5)
    decision = decide(request, fleet, LeastRequest(), BoundedLoad(), 0.25)

    record = record_of(
        request, decision, fleet,
        t=12.5, status=Outcome.TIMEOUT, parent_id="r8", queue_ms=0.5, ttft_ms=None, total_ms=900.0,
        output_tokens=3,
    )  # fmt: skip

    assert (record.t, record.request_id, record.parent_id, record.seq) == (12.5, "r9", "r8", 9)
    assert (record.model, record.version, record.model_id) == ("llama", "2", "llama@2")
    assert (record.session, record.priority, record.load_s) == ("s", 1, 2.5)
    assert (record.prompt_tokens, record.output_tokens) == (70, 3)
    assert (record.queue_ms, record.ttft_ms, record.total_ms) == (0.5, None, 900.0)
    assert (record.node, record.cold_start, record.status) == ("a", False, Outcome.TIMEOUT)
    assert (record.policy, record.propensity, record.u) == ("least_request", 1.0, 0.25)
    assert (record.node_ids, record.resident) == (("a", "b"), (True, False))
    assert (record.scores, record.observation["inflight"]) == ((-1.0, -6.0), (1.0, 2.0))


def test_what_the_engine_counted_wins_over_the_routers_estimate():
    fleet, request = a_fleet(a_node()), a_request(prompt_tokens=70)
    decision = decide(request, fleet, LeastRequest(), BoundedLoad(), 0.5)

    assert a_record(decision, request, fleet, prompt_tokens=64).prompt_tokens == 64
    assert a_record(decision, request, fleet, prompt_tokens=0).prompt_tokens == 0


def test_a_request_sent_to_a_node_without_the_weights_is_a_cold_start():
    fleet = a_fleet(a_node("cold"), a_node("warm", models="llama"))
    decision = decide(a_request("llama"), fleet, Fixed([2, 1]), BoundedLoad(), 0.5)

    assert a_record(decision, a_request("llama"), fleet).cold_start is True


@given(
    st.builds(
        TraceRecord,
        t=st.floats(0, 1e9),
        request_id=st.text(),
        model=st.text(),
        status=st.sampled_from(Outcome),
        propensity=st.none() | st.floats(0, 1),
        ttft_ms=st.none() | st.floats(0, 1e9),
        scores=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        mask=st.lists(st.booleans()).map(tuple),
        observation=st.dictionaries(st.text(), st.lists(st.floats(0, 1e6)).map(tuple)),
    )
)
def test_what_is_written_is_what_is_read(record):
    line = encode(record)

    assert decode(line) == record
    assert b"\n" not in line


@pytest.mark.parametrize(
    ("line", "what"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b'{"t": 1.0, "request_id": "a"', "truncated", id="cut off"),
        pytest.param(b'{"t": 1.0, "request_id": "a"}', "missing required field `model`", id="a field is missing"),
        pytest.param(b'{"t": "soon", "request_id": "a", "model": "m"}', r"Expected `float`.*\$\.t", id="a wrong type"),
        pytest.param(b'{"t": 1, "request_id": "a", "model": "m", "status": "fine"}', "'fine'", id="an unheard-of status"),
        pytest.param(b'{"t": 1, "request_id": "\xff", "model": "m"}', "utf-8", id="not text"),
        pytest.param(b"[1, 2]", "Expected `object`", id="not a record"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named_with_the_reason(line, what):
    with pytest.raises(TraceError, match=f"^line 17: .*{what}"):
        decode(line, 17)


def test_a_record_has_no_place_for_text():
    """Numbers, enumerations and ids: there is nowhere to put a prompt."""
    text = {field.name for field in fields(TraceRecord) if field.type is str}
    ids = {"request_id", "parent_id", "session", "model", "model_id", "version", "node", "drawn", "policy"}
    words_of_ours = {"guard_reason", "fallback"}
    plain = {float, int, float | None, int | None, bool | None, Outcome}
    rows = {"node_ids", "mask", "scores", "probabilities", "observation", "resident", "look"}

    others = {
        field.name for field in fields(TraceRecord) if field.type is not str and field.type not in plain
    }

    assert text == ids | words_of_ours
    assert others == rows
