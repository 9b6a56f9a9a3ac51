from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.book import LOAD
from ccr.engine import Engine, decide
from ccr.errors import TraceError
from ccr.guard import BoundedLoad
from ccr.ledger import Ledger
from ccr.look import ASKED, PAIRS
from ccr.picker import BEST_OF_TWO, Exploring
from ccr.policies import POLICIES
from ccr.policies.least_request import LeastRequest
from ccr.trace import decode, encode, record_of, replay
from ccr.types import Outcome, Reading, TraceRecord
from tests.factories import (
    DRAWS,
    FLEETS,
    MODELS,
    SEQS,
    Fixed,
    a_fleet,
    a_live_fleet,
    a_node,
    a_request,
    a_spec,
)

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


def to_a_node(request_, fleet, policy, u):
    """As for a second attempt: a policy that would refuse the request may not."""
    return decide(request_, fleet, policy, BoundedLoad(), u, np.zeros(len(fleet), dtype=np.bool_))


def replayed_from_disk(record, policy, guard=None):
    return replay(decode(encode(record)), policy, guard)


@every_policy
@given(fleet=FLEETS, request_=REQUESTS, u=DRAWS)
def test_a_logged_decision_replays_exactly(policy, fleet, request_, u):
    decision = to_a_node(request_, fleet, policy, u)

    assert_same(replayed_from_disk(a_record(decision, request_, fleet), policy), decision)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["dispatch", "dispatch", "speak", "end", "read"]),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=20,
)


def a_day(events, observed):
    """A live fleet whose router has kept a book through these events."""
    live, now_s = a_live_fleet("a", "b", "c"), 0.0
    live.expect(0.0, coverage=0.5, observed=observed)
    ledger = Ledger(live)
    for kind, node, which in events:
        now_s += 0.3
        live.at(now_s)
        state, leases = live.states[node], ledger.open_leases()
        if kind == "dispatch":
            ledger.lease(
                state, a_request(MODELS[which % 4], session=f"s{which}", prompt_tokens=100 * which), now_s
            )
        elif kind == "read":
            reading = Reading(
                running=float(which), waiting=2.0, loaded=frozenset(MODELS[: which % 3]), kv_used=0.3
            )
            live.observe(state.spec.id, reading, now_s)
        elif leases:
            lease = leases[which % len(leases)]
            lease.first_token(now_s)
            if kind == "end":
                lease.release()
                live.learn(lease.state, lease.placed, 0.2, 2.0, 50, now_s)
    return live, ledger, now_s


@every_policy
@given(events=EVENTS, request_=REQUESTS, u=DRAWS)
def test_a_decision_on_a_live_fleet_replays_exactly_when_the_fleet_has_long_gone_on(
    policy, events, request_, u
):
    live, ledger, now_s = a_day(events, observed=getattr(policy, "observes", False))
    fleet = live.at(now_s)
    decision = to_a_node(request_, fleet, policy, u)
    snapshot = fleet.snapshot()
    for state in live.states:  # life goes on before the request ends and its record is written
        ledger.lease(
            state, a_request(request_.model, session="s1", prompt_tokens=900), now_s + 1.0
        ).first_token(now_s + 2.0)
    live.at(now_s + 3.0)

    assert_same(replayed_from_disk(a_record(decision, request_, snapshot), policy), decision)


def test_a_record_keeps_a_look_only_where_the_policy_looked():
    live, _, now_s = a_day([], observed=False)
    looking, blind = (
        a_record(
            decide(a_request(), live.at(now_s), policy(), BoundedLoad(), 0.5), a_request(), live.at(now_s)
        )
        for policy in (POLICIES["least_cost"], POLICIES["least_request"])
    )

    assert blind.look == {}
    assert {name: (len(rows), len(rows[0])) for name, rows in looking.look.items()} == {
        "load": (len(LOAD), 3), "pairs": (len(PAIRS), 3), "asked": (1, len(ASKED)),
    }  # fmt: skip


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
