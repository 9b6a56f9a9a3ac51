import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.settings import KeySettings, Settings, SidecarSettings
from ccr.types import NodeSpec, Outcome
from router.app import Router
from router.auth import new_key
from router.routes.hearing import Hearing
from router.routes.sidecar import LATEST_S, SLACK_S, DecisionToken, Signer

KEY, HASH = new_key()
TOKENS = st.builds(
    DecisionToken,
    st.text(max_size=20),
    st.text(max_size=9),
    st.floats(0, 1e9),
    st.integers(0, 99),
    st.floats(0, 1),
)


class Callers:
    """A router with two nodes, and callers of its `/route` and `/feedback`; time stands still until it is moved."""

    def __init__(self, **settings):
        self.now_s = 1000.0
        self.router = Router(Settings(**settings), "token", clock=lambda: self.now_s, seed=0)
        specs = [
            NodeSpec(name, f"http://{name}:1", models=frozenset({"llama"}), loads_on_demand=True)
            for name in "ab"
        ]
        self.router.fleet.replace(specs, self.now_s)

    @property
    def in_flight(self):
        return self.router.dispatch.ledger.in_flight

    @property
    def outcomes(self):
        return {str(outcome): n for (_, _, outcome), n in self.router.stats.outcomes.items()}

    async def call(self, handler, document, *headers):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self.call_with(handler, a_receive(body), *headers)

    async def call_with(self, handler, receive, *headers):
        sent = []

        async def send(message):
            sent.append(message)

        await handler({"type": "http", "headers": [(b"host", b"r"), *headers]}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def route(self, document=None, *headers):
        return await self.call(
            self.router.sidecar.route, {"model": "llama"} if document is None else document, *headers
        )

    async def feedback(self, token, **fields):
        return await self.call(self.router.sidecar.feedback, {"decision_token": token, **fields})


def a_receive(body):
    async def receive():
        return {"type": "http.request", "body": body}

    return receive


@pytest.fixture
def make():
    """Makes routers with callers; what they leave open is ended."""
    made = []

    def make(**settings):
        made.append(Callers(**settings))
        return made[-1]

    yield make
    for callers in made:
        callers.router.sidecar.abort_all()


@pytest.fixture
def callers(make):
    return make()


async def test_a_decision_names_its_target_and_holds_a_lease(callers):
    status, decision = await callers.route({"model": "llama", "prompt_tokens": 5})

    assert status == 200
    assert decision["target"] == f"{decision['node']}:1"
    assert (decision["model"], decision["policy"], decision["expires_in_s"]) == ("llama", "learned", 120.0)
    assert callers.in_flight == 1


async def test_feedback_ends_the_lease_and_is_what_the_record_says(callers):
    _, decision = await callers.route()
    callers.now_s += 2.0

    answer = await callers.feedback(decision["decision_token"], latency_ms=1500, ttft_ms=200, output_tokens=7)

    (record,) = callers.router.dispatch.decisions(1)
    assert answer == (200, {"result": "recorded"})
    assert callers.in_flight == 0
    assert (record.status, record.total_ms, record.ttft_ms, record.output_tokens) == (
        Outcome.OK,
        1500.0,
        200.0,
        7,
    )
    assert callers.outcomes == {"ok": 1}


async def test_feedback_given_twice_changes_nothing(callers):
    _, decision = await callers.route()
    await callers.feedback(decision["decision_token"])

    answer = await callers.feedback(decision["decision_token"], status="timeout")

    assert answer == (200, {"result": "duplicate"})
    assert callers.outcomes == {"ok": 1}


async def test_a_decision_without_feedback_expires_on_time_and_its_feedback_is_late(callers):
    _, decision = await callers.route()

    callers.now_s += 119.9
    callers.router.sidecar.expire(callers.now_s)
    assert callers.in_flight == 1
    callers.now_s += 0.1
    callers.router.sidecar.expire(callers.now_s)

    assert callers.in_flight == 0
    assert callers.outcomes == {"expired": 1}
    assert await callers.feedback(decision["decision_token"]) == (200, {"result": "late"})
    assert callers.outcomes == {"expired": 1}


async def test_younger_decisions_outlive_older_ones(callers):
    await callers.route()
    callers.now_s += 60.0
    await callers.route()

    callers.router.sidecar.expire(callers.now_s + 60.0)

    assert (callers.in_flight, len(callers.router.sidecar)) == (1, 1)


async def test_the_end_of_the_process_ends_every_decision(callers):
    for _ in range(3):
        await callers.route()

    assert callers.router.sidecar.abort_all() == 3

    assert callers.in_flight == 0
    assert callers.outcomes == {"aborted_drain": 3}


@pytest.mark.parametrize("token", ["x", "=", "☃", "A" * 60, "00" * 40])
async def test_a_made_up_token_is_refused(token, callers):
    await callers.route()

    status, body = await callers.feedback(token)

    assert (status, body["error"]["code"]) == (403, "bad_token")
    assert callers.in_flight == 1


async def test_a_token_of_another_replica_is_refused_and_long_after_is_late(make):
    shared = SidecarSettings(secret="s")
    one, other = make(sidecar=shared), make(sidecar=shared)
    _, decision = await other.route()

    status, body = await one.feedback(decision["decision_token"])
    one.now_s += LATEST_S + 1.0

    assert (status, body["error"]["code"]) == (403, "unknown_decision")
    assert await one.feedback(decision["decision_token"]) == (200, {"result": "late"})


@pytest.mark.parametrize("field", ["latency_ms", "ttft_ms"])
async def test_a_latency_longer_than_the_decision_is_old_is_refused(field, callers):
    """Feedback teaches the policy: what cannot be true must not."""
    _, decision = await callers.route()
    callers.now_s += 1.0
    most_ms = 1e3 * (1.0 + SLACK_S)

    status, body = await callers.feedback(decision["decision_token"], **{field: most_ms + 1.0})

    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "impossible_latency", field)
    assert callers.in_flight == 1
    assert (await callers.feedback(decision["decision_token"], **{field: most_ms - 1.0}))[0] == 200


@pytest.mark.parametrize(
    "status", ["upstream_5xx", "upstream_reset", "timeout", "client_closed", "upstream_4xx"]
)
async def test_how_it_ended_is_the_callers_word(status, callers):
    _, decision = await callers.route()

    await callers.feedback(decision["decision_token"], status=status)

    assert callers.outcomes == {status: 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "expired"},
        {"status": "great"},
        {"latency_ms": -1},
        {"ttft_ms": "1"},
        {"output_tokens": 1.5},
        {"x": 1},
    ],
)
async def test_feedback_of_another_form_is_refused_and_the_lease_stays(fields, callers):
    _, decision = await callers.route()

    status, body = await callers.feedback(decision["decision_token"], **fields)

    assert (status, body["error"]["code"]) == (400, "invalid_body")
    assert callers.in_flight == 1


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"", "invalid_body"),
        (b"[]", "invalid_body"),
        ({"model": 1}, "invalid_body"),
        ({"model": "llama", "modle": "x"}, "invalid_body"),
        ({"model": "llama", "prompt_tokens": -1}, "invalid_body"),
        ({"model": "llama", "headers": {"a": 1}}, "invalid_body"),
        ({}, "model_missing"),
        ({"model": "gpt"}, "model_not_found"),
        ({"model": "llama", "headers": {"x-ccr-priority": "urgent"}}, "bad_header"),
        ({"model": "llama", "headers": {"x-ccr-node-tags": "h100"}}, "no_capacity"),
    ],
)
async def test_a_question_that_cannot_be_answered_takes_no_lease(document, code, callers):
    _, body = await callers.route(document)

    assert body["error"]["code"] == code
    assert callers.in_flight == 0
    assert callers.router.stats.refusals[code] == 1


async def test_the_headers_of_the_request_to_come_decide(callers):
    _, decision = await callers.route({"headers": {"X-Model-Name": "llama"}}, (b"x-model-name", b"gpt"))

    assert decision["model"] == "llama"


async def test_keys_are_asked_for_at_both_ends(make):
    callers = make(keys=(KeySettings(name="t", hash=HASH, models=("llama",)),))
    bearer = (b"authorization", b"Bearer " + KEY.encode())

    assert (await callers.route())[0] == 401
    status, decision = await callers.route(None, bearer)
    assert status == 200
    assert (await callers.feedback(decision["decision_token"]))[0] == 401
    assert callers.in_flight == 1


async def test_a_body_that_never_comes_is_given_up(callers):
    async def never():
        await asyncio.Event().wait()

    asking = asyncio.create_task(callers.call_with(callers.router.sidecar.route, never))
    await asyncio.sleep(0)
    callers.now_s += 31.0
    callers.router.watchdog.sweep(callers.now_s)

    status, body = await asking

    assert (status, body["error"]["code"]) == (408, "body_timeout")
    assert len(callers.router.watchdog) == 0


@given(TOKENS, st.binary(min_size=1))
def test_what_was_signed_is_read_with_the_same_secret_only(token, secret):
    signed = Signer(secret).sign(token)

    assert Signer(secret).read(signed) == token
    assert Signer(secret + b"x").read(signed) is None
    assert Signer(None).read(signed) is None


@given(TOKENS, st.data())
def test_a_token_with_any_bit_changed_is_not_read(token, data):
    signer = Signer(b"secret")
    raw = bytearray(bytes.fromhex(signer.sign(token)))
    position = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[position // 8] ^= 1 << position % 8

    assert signer.read(raw.hex()) is None


@given(st.text() | st.binary().map(bytes.hex))
def test_no_text_is_a_token(text):
    assert Signer(b"secret").read(text) is None


async def asked(callers, count, *, every_s=0.05, reports=False):
    """So many decisions, one after the other; how many were refused."""
    refused, open_tokens = 0, []
    for _ in range(count):
        callers.now_s += every_s
        status, answer = await callers.route({"model": "llama", "prompt_tokens": 400, "output_tokens": 100})
        callers.router.sidecar.expire(callers.now_s)
        refused += status == 429
        if status == 200:
            open_tokens.append((callers.now_s, answer["decision_token"]))
        while reports and open_tokens and open_tokens[0][0] <= callers.now_s - 4.0:
            assert (await callers.feedback(open_tokens.pop(0)[1]))[0] == 200
    return refused


async def test_callers_that_never_report_are_not_refused_for_what_nobody_ended(callers):
    """Two nodes take 20 requests a second of which none is reported: their leases alone would be 2,400 requests in flight."""
    refused = [await asked(callers, 400) for _ in range(5)]

    assert callers.router.sidecar.hearing.is_silent
    assert refused[-1] < refused[0]
    assert callers.in_flight < 300


async def test_leases_that_run_their_time_would_saturate_the_fleet_of_silent_callers(callers, monkeypatch):
    """The same without listening: what the test above would miss."""
    monkeypatch.setattr(Hearing, "missed", lambda _: None)

    for _ in range(5):
        refused = await asked(callers, 400)

    assert not callers.router.sidecar.hearing.is_silent
    assert refused > 300 or callers.in_flight > 1000


async def test_a_slow_report_in_time_keeps_the_lease(callers):
    await asked(callers, 400, reports=True)

    assert callers.router.sidecar.hearing.share == 1.0
    assert callers.router.sidecar.hearing.lease_s == 120.0


async def test_callers_that_begin_to_report_get_their_leases_back(callers):
    await asked(callers, 1000)
    assert callers.router.sidecar.hearing.lease_s < 30.0

    await asked(callers, 400, reports=True)

    assert callers.router.sidecar.hearing.lease_s == 120.0


async def test_saying_it_again_late_is_not_heard_twice(callers):
    _, decision = await callers.route()
    callers.now_s += 120.0
    callers.router.sidecar.expire(callers.now_s)
    hearing = callers.router.sidecar.hearing
    hearing.share = 0.2

    results = [(await callers.feedback(decision["decision_token"]))[1]["result"] for _ in range(3)]

    assert results == ["late", "duplicate", "duplicate"]
    assert hearing.share == pytest.approx(0.216)
