"""How much is let in, who gives way first, and what the refused are told."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from router.auth import new_key
from tests.router.fake_node import FakeNode, Reply
from tests.router.harness import running_router, until

HELD = Reply(chunks=(b"{}",), paced=True)
LIMITED = {"admission": {"max_inflight": 10, "low_priority_share": 0.5, "retry_after": "7s"}}
KEYS = {name: new_key() for name in ("small", "large")}
TENANTS = {
    "keys": [
        {"name": "small", "hash": KEYS["small"][1], "models": ["*"], "max_inflight": 2},
        {"name": "large", "hash": KEYS["large"][1], "models": ["*"]},
    ]
}


@asynccontextmanager
async def a_busy_router(settings, in_flight, **headers):
    """So many requests are at the node and stay there; they all end well in the end."""
    node = FakeNode(reply=HELD)
    async with running_router(settings, node) as router:
        asking = [asyncio.create_task(router.post(headers=headers)) for _ in range(in_flight)]
        await until(lambda: node.concurrent == in_flight)
        try:
            yield router, node
        finally:
            node.release(100)
            answers = await asyncio.gather(*asking)
    assert [answer.status for answer in answers] == [200] * in_flight


def bearer(name):
    return {"authorization": f"Bearer {KEYS[name][0]}"}


@pytest.mark.parametrize(
    ("in_flight", "priority", "code"),
    [
        pytest.param(4, "low", None, id="low priority below its share"),
        pytest.param(5, "low", "low_priority_shed", id="low priority at its share"),
        pytest.param(5, "-3", "low_priority_shed", id="any priority below 0 is low"),
        pytest.param(9, "normal", None, id="normal priority below the limit"),
        pytest.param(10, "normal", "overloaded", id="normal priority at the limit"),
        pytest.param(10, "high", "overloaded", id="high priority at the limit"),
    ],
)
async def test_low_priority_gives_way_first(in_flight, priority, code):
    async with a_busy_router(LIMITED, in_flight) as (router, node):
        asking = asyncio.create_task(router.post(headers={"x-ccr-priority": priority}))
        if code is None:
            node.release(in_flight + 1)
            assert (await asking).status == 200
            return
        answer = await asking

        assert (answer.status, answer.code) == (429, code)
        assert node.concurrent == in_flight


async def test_the_refused_are_told_why_and_when_to_come_back():
    async with a_busy_router(LIMITED, 10) as (router, _):
        openai = await router.post()
        anthropic = await router.post("/v1/messages")

    for answer in (openai, anthropic):
        told = {
            name: answer.headers[name]
            for name in ("retry-after", "x-ccr-reason", "x-llm-d-request-dropped-reason")
        }
        assert told == {
            "retry-after": "7",
            "x-ccr-reason": "overloaded",
            "x-llm-d-request-dropped-reason": "overloaded",
        }
    assert openai.json["error"]["type"] == anthropic.json["error"]["type"] == "rate_limit_error"
    assert openai.json["error"]["retryable"] is True


async def test_a_tenant_s_limit_is_its_own():
    async with a_busy_router(TENANTS, 2, **bearer("small")) as (router, node):
        refused = await router.post(headers=bearer("small"))
        asking = asyncio.create_task(router.post(headers=bearer("large")))
        await until(lambda: node.concurrent == 3)

        assert (refused.status, refused.code) == (429, "tenant_limit")
        node.release(3)
        assert (await asking).status == 200


async def test_a_second_earns_as_many_requests_as_the_rate_allows():
    async with running_router({"admission": {"max_qps": 2}}, FakeNode()) as router:
        while (refused := await router.post()).status == 200:
            pass
        router.clock.skip(1.0)
        later = [(await router.post()).status for _ in range(2)]

    assert refused.code == "rate_limited"
    assert later == [200, 200]


async def test_above_its_rate_a_router_refuses():
    async with running_router({"admission": {"max_qps": 0.001}}, FakeNode()) as router:
        statuses = [(await router.post()).status for _ in range(4)]

    assert statuses == [200, 429, 429, 429]


async def test_a_node_s_own_limit_sends_requests_elsewhere_then_nowhere():
    nodes = [FakeNode("a", HELD, max_inflight=1), FakeNode("b", HELD, max_inflight=1)]
    async with running_router({}, *nodes) as router:
        asking = [asyncio.create_task(router.post()) for _ in range(2)]
        await until(lambda: [node.concurrent for node in nodes] == [1, 1])
        refused = await router.post()
        for node in nodes:
            node.release()

        assert [(await one).status for one in asking] == [200, 200]
    assert (refused.status, refused.code) == (503, "no_capacity")
    assert "full (1 in flight)" in refused.json["error"]["message"]


async def test_no_node_gets_more_than_its_bounded_share():
    """The guard: a script that wants one node only is overruled at twice the mean."""
    nodes = [FakeNode(name, HELD) for name in "abcd"]
    async with running_router(
        {"policy": {"name": "session_affinity", "options": {"factor": 1000.0}}}, *nodes
    ) as router:
        asking = [asyncio.create_task(router.post(headers={"x-session-id": "s"})) for _ in range(24)]
        await until(lambda: sum(node.concurrent for node in nodes) == 24)
        most = max(node.concurrent for node in nodes)
        for node in nodes:
            node.release(100)
        await asyncio.gather(*asking)

        assert 4 <= most <= 2 * 24 / 4
        assert router.router.stats.guard_overrides > 0
