"""A policy that refuses and holds, in a router before emulated nodes: allowed only where the fleet's state asks for it.

The weights prefer refusing, or holding, to every node: what happens then is what the router allows.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from ccr.policies.network import HOLD_SHARE, REJECT_COST
from envs.emulator import EmulatedFleet
from tests.router.harness import running_router, until
from tests.weights import weights_that_prefer

MODEL = "chat-7b@1"
SMALL = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
LONG = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "x" * 16_000}]}
WAYS = [
    pytest.param({}, id="without a task"),
    pytest.param({"connection": "close"}, id="in a task"),
]


@asynccontextmanager
async def a_fleet(action, tmp_path, *, speed, warm=(MODEL,), count=2, **settings):
    """A router with such weights before emulated nodes."""
    policy = {"name": "learned", "options": {"weights": weights_that_prefer(action, tmp_path)}}
    async with EmulatedFleet(count=count, speed=speed, warm=warm) as fleet:
        nodes = [
            {"id": f"n{i}", "url": url, "engine": "emulator", "models": [MODEL], "loads_on_demand": True}
            for i, url in enumerate(fleet.urls)
        ]
        telemetry = {"telemetry": {"interval": 0.1}}
        async with running_router({"policy": policy, **telemetry, **settings}, *nodes) as router:
            await until(
                lambda: all(state.reading_s > 0.0 for state in router.router.fleet.states)  # all were read
            )
            yield router


@asynccontextmanager
async def a_saturated_fleet(tmp_path, question=LONG, **settings):
    """Nodes that have far more to prefill than they manage, and that answer nothing before the test is over."""
    async with a_fleet(REJECT_COST, tmp_path, speed=0.01, **settings) as router:
        ledger, asking = router.router.dispatch.ledger, []
        while not router.outcomes()["rejected"]:
            sent = ledger.in_flight
            task = asyncio.create_task(router.post(body=question))
            asking.append(task)
            await until(lambda sent=sent, task=task: task.done() or ledger.in_flight > sent)
        assert asking.pop().result().code == "saturated"
        try:
            yield router, asking
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await router.quiet(5.0)
        assert router.outcomes()["client_closed"] == len(asking) > 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_saturated_fleet_refuses_once_and_says_when_to_come_back(way, tmp_path):
    async with a_saturated_fleet(tmp_path) as (router, _):
        before, in_flight = router.outcomes(), router.router.dispatch.ledger.in_flight

        answer = await router.post(body=LONG, headers=way)

        assert (answer.status, answer.code) == (429, "saturated")
        assert answer.headers["x-ccr-reason"] == "saturated"
        assert int(answer.headers["retry-after"]) >= 1
        assert router.outcomes() - before == {"rejected": 1}
        assert router.router.dispatch.ledger.in_flight == in_flight
        assert router.router.stats.refusals["saturated"] == before["rejected"] + 1


async def test_what_a_saturated_fleet_refuses_is_in_the_metrics(tmp_path):
    async with a_saturated_fleet(tmp_path) as (router, _):
        page = (await router.get("/metrics")).body.decode()

    assert 'ccr_request_errors_total{error_code="saturated"} 1.0' in page


@pytest.mark.parametrize("way", WAYS)
async def test_a_higher_priority_is_refused_later(way, tmp_path):
    async with a_saturated_fleet(tmp_path) as (router, asking):
        ledger = router.router.dispatch.ledger
        sent = ledger.in_flight

        asking.append(asyncio.create_task(router.post(body=LONG, headers={"x-ccr-priority": "60", **way})))
        await until(lambda: ledger.in_flight > sent)
        refused = await router.post(body=LONG, headers={"x-ccr-priority": "high", **way})

        assert (refused.status, refused.code) == (429, "saturated")


async def test_a_caller_that_goes_to_the_node_itself_is_refused_too(tmp_path):
    async with a_saturated_fleet(tmp_path) as (router, _):
        before = router.outcomes()

        answer = await router.post("/route", {"model": MODEL, "prompt_tokens": 4000})

        assert (answer.status, answer.code) == (429, "saturated")
        assert int(answer.headers["retry-after"]) >= 1
        assert router.outcomes() - before == {"rejected": 1}


async def test_below_saturation_nothing_is_refused_whatever_the_weights_prefer(tmp_path):
    async with a_fleet(REJECT_COST, tmp_path, speed=200.0) as router:
        answers = await asyncio.gather(*(router.post(body=SMALL) for _ in range(4)))

    assert [answer.status for answer in answers] == [200] * 4


@pytest.mark.parametrize(
    ("question", "is_refused"),
    [
        pytest.param(LONG, False, id="whole: its prefill is taken as done when it should be"),
        pytest.param({**LONG, "stream": True}, True, id="streamed: its first token has not come"),
    ],
)
async def test_prefill_saturates_until_it_should_be_done(question, is_refused, tmp_path):
    patience = {"upstream": {"answer_timeout": 3600.0, "ttft_timeout": 3600.0}}
    async with a_saturated_fleet(tmp_path, question, **patience) as (router, asking):
        ledger, before = router.router.dispatch.ledger, router.outcomes()["rejected"]
        sent = ledger.in_flight

        router.clock.skip(600.0)
        asking.append(asyncio.create_task(router.post(body=SMALL)))
        await until(lambda: ledger.in_flight > sent or router.outcomes()["rejected"] > before)

        assert (router.outcomes()["rejected"] > before) is is_refused
        if is_refused:
            assert (await asking.pop()).code == "saturated"


# -- holding


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_no_node_has_the_weights_for_waits_a_moment_and_goes(way, tmp_path):
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0, warm=()) as router:
        answer = await router.post(body=SMALL, headers=way)
        (decision,) = (await router.admin("GET", "/admin/decisions")).json
        page = (await router.get("/metrics")).body.decode()

    assert answer.status == 200
    assert decision["queue_ms"] >= 200.0
    # Each hold lasts a tenth of a second, and none begins that would end after four tenths.
    assert 2 <= router.router.stats.holds <= 4
    assert f"ccr_holds_total {router.router.stats.holds}.0" in page
    assert router.outcomes() == {"ok": 1}


async def test_where_a_node_has_the_weights_nothing_is_held(tmp_path):
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0) as router:
        answer = await router.post(body=SMALL)

    assert (answer.status, router.router.stats.holds) == (200, 0)


async def test_a_caller_that_goes_to_the_node_itself_is_never_held(tmp_path):
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0, warm=()) as router:
        answer = await router.post("/route", {"model": MODEL, "prompt_tokens": 100})

        assert (answer.status, router.router.stats.holds) == (200, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_while_it_is_held_counts_once_and_reaches_no_node(
    way, tmp_path, monkeypatch
):
    monkeypatch.setattr("ccr.admission.MAX_HOLD_S", 60.0)
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0, warm=()) as router:
        asking = asyncio.create_task(router.post(body=SMALL, headers=way))
        await until(lambda: router.router.stats.holds)

        asking.cancel()

        await until(router.outcomes)
        await router.quiet()
        assert router.outcomes() == {"client_closed": 1}
        assert router.router.stats.refusals["client_closed"] == 1
        assert router.router.stats.attempts == 0


async def test_a_router_that_shuts_down_lets_go_of_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("ccr.admission.MAX_HOLD_S", 60.0)
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0, warm=()) as router:
        asking = asyncio.create_task(router.post(body=SMALL))
        await until(lambda: router.router.stats.holds)

        ended = await router.router.abort()

        assert ended == 1
        assert (await asking).status == 503
        assert router.outcomes() == {"aborted_drain": 1}


async def test_a_held_stream_comes_whole(tmp_path):
    async with a_fleet(HOLD_SHARE, tmp_path, speed=200.0, warm=()) as router:
        answer = await router.post(body={**SMALL, "stream": True})

    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert router.router.stats.holds >= 2
