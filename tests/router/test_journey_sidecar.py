"""``/route`` and ``/feedback``: the caller goes to the node itself and says how it went."""

import asyncio
import json

import pytest

from tests.router.fake_node import FakeNode
from tests.router.harness import running_router, until

ROUTE = {"model": "m", "headers": {"X-Session-Id": "s", "x-ccr-priority": "low"}, "prompt_tokens": 12}


@pytest.fixture
async def router():
    async with running_router({"sidecar": {"lease": "120s"}}, FakeNode("a"), FakeNode("b")) as router:
        yield router


async def routed(router, body=None):
    answer = await router.post("/route", ROUTE if body is None else body)
    assert answer.status == 200
    return answer.json


async def feedback(router, token, **fields):
    return await router.post("/feedback", {"decision_token": token, **fields})


async def test_a_route_names_a_node_and_feedback_closes_it(router):
    decision = await routed(router)
    assert decision["target"] in {node.url.removeprefix("http://") for node in router.nodes}
    assert decision["node"] in {"a", "b"}
    assert (decision["model"], decision["policy"], decision["expires_in_s"]) == ("m", "learned", 120.0)
    assert router.router.fleet.state(decision["node"]).inflight == 1

    router.clock.skip(3.0)
    answer = await feedback(
        router, decision["decision_token"], status="ok", latency_ms=2500, ttft_ms=300, output_tokens=40
    )

    assert (answer.status, answer.json) == (200, {"result": "recorded"})
    await router.quiet()
    assert router.outcomes() == {"ok": 1}
    record = (await router.admin("GET", f"/admin/decisions/{decision['request_id']}")).json
    told = {
        name: record[name] for name in ("node", "session", "priority", "total_ms", "ttft_ms", "output_tokens")
    }
    assert told == {
        "node": decision["node"],
        "session": "s",
        "priority": -1,
        "total_ms": 2500.0,
        "ttft_ms": 300.0,
        "output_tokens": 40,
    }


@pytest.mark.parametrize(
    "status", ["ok", "upstream_4xx", "upstream_5xx", "upstream_reset", "timeout", "client_closed"]
)
async def test_every_status_a_caller_can_see_is_taken(router, status):
    decision = await routed(router)

    await feedback(router, decision["decision_token"], status=status)

    assert router.outcomes() == {status: 1}


async def test_five_failures_told_by_callers_eject_a_node():
    async with running_router({"policy": {"name": "round_robin"}}, FakeNode("a"), FakeNode("b")) as router:
        for _ in range(20):
            decision = await routed(router)
            status = "upstream_5xx" if decision["node"] == "a" else "ok"
            await feedback(router, decision["decision_token"], status=status)

        assert router.outcomes() == {"upstream_5xx": 5, "ok": 15}
        assert not router.router.fleet.at(router.clock()).nodes[0].available


async def test_feedback_given_again_changes_nothing(router):
    decision = await routed(router)

    results = [(await feedback(router, decision["decision_token"])).json["result"] for _ in range(3)]

    assert results == ["recorded", "duplicate", "duplicate"]
    assert router.outcomes() == {"ok": 1}
    assert router.router.stats.feedback == {"recorded": 1, "duplicate": 2}


async def test_feedback_in_any_order_and_at_once_counts_each_decision_once(router):
    decisions = [await routed(router, {"model": "m"}) for _ in range(30)]

    asked = [decision["decision_token"] for decision in decisions * 3]
    answers = await asyncio.gather(*[feedback(router, token) for token in reversed(asked)])

    assert [answer.status for answer in answers] == [200] * 90
    assert router.outcomes() == {"ok": 30}
    await router.quiet()


async def test_a_decision_without_feedback_expires(router):
    decision = await routed(router)

    router.clock.skip(119.0)
    router.router.watchdog.sweep(router.clock())
    assert router.router.dispatch.ledger.in_flight == 1
    router.clock.skip(1.5)
    await until(lambda: router.outcomes() == {"expired": 1})

    await router.quiet()
    late = await feedback(router, decision["decision_token"])
    assert (late.status, late.json) == (200, {"result": "late"})
    assert router.outcomes() == {"expired": 1}
    assert router.router.fleet.state(decision["node"]).latency_s == 0.0  # unknown is not slow


def changed(token, place):
    """The token with one character turned into another of its own."""
    other = next(letter for letter in token if letter != token[place])
    return token[:place] + other + token[place:][1:]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda token, _: changed(token, 0), id="first character changed"),
        pytest.param(
            lambda token, _: changed(token, len(token) // 2), id="a character in the middle changed"
        ),
        pytest.param(lambda token, _: changed(token, len(token) - 1), id="last character changed"),
        pytest.param(
            lambda token, other: token[: len(token) // 2] + other[len(token) // 2 :], id="spliced of two"
        ),
        pytest.param(lambda token, _: token[:10], id="cut off"),
        pytest.param(lambda token, _: "not base64 at all!", id="no such alphabet"),
        pytest.param(lambda token, _: "00" * 64, id="zeros"),
        pytest.param(lambda token, _: "caf\u00e9", id="beyond ASCII"),
    ],
)
async def test_a_forged_token_is_refused_and_the_decision_stays_open(router, forge):
    tokens = [(await routed(router))["decision_token"] for _ in range(2)]

    answer = await feedback(router, forge(*tokens))

    assert (answer.status, answer.code) == (403, "bad_token")
    assert router.router.dispatch.ledger.in_flight == 2


async def test_another_router_s_token_is_refused(router):
    async with running_router({}, FakeNode()) as other:
        foreign = await routed(other)

        answer = await feedback(router, foreign["decision_token"])

    assert (answer.status, answer.code) == (403, "bad_token")


@pytest.mark.parametrize("field", ["latency_ms", "ttft_ms"])
async def test_a_latency_longer_than_the_decision_is_old_is_impossible(router, field):
    decision = await routed(router)
    router.clock.skip(1.0)

    answer = await feedback(router, decision["decision_token"], **{field: 60_000})

    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "impossible_latency", field)
    assert (await feedback(router, decision["decision_token"], **{field: 1000})).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        '"latency_ms": NaN', '"latency_ms": Infinity', '"latency_ms": 1e999', '"latency_ms": -1', '"latency_ms": "5"',
        '"latency_ms": true', '"ttft_ms": -0.5', '"output_tokens": -1', '"output_tokens": 1.5', '"output_tokens": 1e9',
        '"status": "fine"', '"status": "expired"', '"status": null', '"nonesuch": 1', '"node": "b"',
    ],
)  # fmt: skip
async def test_feedback_takes_nothing_but_what_it_knows(router, fields):
    decision = await routed(router)
    body = f'{{"decision_token": "{decision["decision_token"]}", {fields}}}'

    answer = await router.post("/feedback", body.encode())

    assert (answer.status, answer.code) == (400, "invalid_body")
    assert router.router.dispatch.ledger.in_flight == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b'{"model": 1}', b'{"model": "m", "prompt_tokens": -1}', b'{"model": "m", "nonesuch": 1}',
        b'{"model": "m", "headers": {"a": 1}}', b'{"model": "m", "headers": ["a"]}', b'{"model": "m"} x',
        b'{"model": "m", "headers": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}",
    ],
)  # fmt: skip
async def test_a_route_body_it_does_not_take_is_a_400_with_an_error(router, body):
    answer = await router.post("/route", body)

    assert (answer.status, answer.code) == (400, "invalid_body")
    assert set(answer.json) == {"error"}
    assert router.outcomes() == {"rejected": 1}
    assert router.router.dispatch.ledger.in_flight == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "model_missing"),
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "m", "headers": {"x-ccr-node-tags": "none"}}, 503, "no_capacity"),
        ({"model": "m", "headers": {"x-ccr-priority": "?"}}, 400, "bad_header"),
    ],
)
async def test_a_route_that_cannot_be_has_the_same_verdict_as_a_request(router, body, status, code):
    answer = await router.post("/route", body)

    assert (answer.status, answer.code) == (status, code)


async def test_decisions_still_open_at_the_end_are_aborted():
    async with running_router({}, FakeNode()) as router:
        for _ in range(3):
            await routed(router, {"model": "m"})
        router.serving.stop()
        router.serving.stop()
        await router.task

        assert router.outcomes() == {"aborted_drain": 3}
        assert router.router.dispatch.ledger.in_flight == 0


async def test_the_openapi_page_describes_both_calls(router):
    schema = json.loads((await router.get("/openapi.json")).body)

    assert {"/route", "/feedback", "/v1/chat/completions", "/v1/messages"} <= set(schema["paths"])
    assert {"RouteBody", "RouteAnswer", "FeedbackBody"} <= set(schema["components"]["schemas"])
