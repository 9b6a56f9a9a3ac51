"""Routers around one Redis count each other's requests; whatever becomes of it, no request notices and nothing stays behind."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import numpy as np
import pytest

from ccr import shared
from router.sharing.sharer import FAMILY
from router.store.redis_store import RedisStore
from tests.redis import REDIS
from tests.router.fake_node import MODEL, SILENT, STREAM, FakeNode, Reply
from tests.router.harness import CHAT, running_router, until
from tests.router.test_journey_feedback import Load
from tests.router.test_journey_process import a_process

QUICK = {"interval": 0.02, "expires": 0.5}
SLOW = Reply(chunks=STREAM.chunks, headers=STREAM.headers, every_s=0.01)


def settings(redis_server, **ledger):
    return {
        "store": {"redis_url": redis_server.url},
        "feedback": {"enabled": False},
        "server": {"port": 0, "replicas": 2},
        "ledger": QUICK | ledger,
    }


@asynccontextmanager
async def routers(given, *nodes, number=2):
    """Several routers before the same nodes."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(running_router(given, *nodes))]
        entries = [node.entry for node in nodes][::-1]
        others = [running_router(given, *entries) for _ in range(number - 1)]
        found += [await stack.enter_async_context(other) for other in others]
        await until(lambda: all(one.router.fleet.peers == number - 1 for one in found))
        yield found


@asynccontextmanager
async def in_flight(router, number):
    """Requests that nobody answers; they are cancelled at the end."""
    asking = [asyncio.create_task(router.post()) for _ in range(number)]
    await until(lambda: router.router.dispatch.ledger.in_flight == number)
    try:
        yield
    finally:
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def elsewhere(router):
    """Requests of other routers that this one counts, over all nodes."""
    fleet = router.router.fleet
    return sum(state.elsewhere for state in fleet.states)


def seen(router):
    """Requests in flight as policies and guard see them."""
    fleet, now_s = router.router.fleet, router.router.dispatch.clock()
    return {node.id: node.inflight for node in fleet.at(now_s).nodes}


def left_behind(router):
    """What is in a router's book of others or of its own; 0 when nothing is in flight anywhere."""
    fleet = router.router.fleet
    book, part = fleet.expected.book, fleet.own(router.router.dispatch.clock()).part
    rows = np.abs(book.load[list(shared.ADDED)]).sum() + np.abs(book.inflight).sum()
    return router.router.dispatch.ledger.in_flight + elsewhere(router) + rows + part.load.sum()


@REDIS
async def test_what_one_router_sends_the_other_expects(redis_server):
    async with routers(settings(redis_server), FakeNode("a", SILENT)) as (one, other):
        async with in_flight(one, 3):
            await until(lambda: elsewhere(other) == 3)
            expected = other.router.fleet.expected.book
            assert expected.inflight.sum() == 3
            assert expected.load[shared.ADDED[shared.IN_FLIGHT]].sum() == 3.0
            assert seen(other) == {"a": 3}
            assert seen(one) == {"a": 3}
            page = (await other.get("/metrics")).body.decode()
            status = (await other.admin("GET", "/admin/status")).json
        await until(lambda: elsewhere(other) == 0)
        assert left_behind(one) == left_behind(other) == 0.0

    assert 'ccr_ledger_elsewhere_requests{node="a"} 3.0' in page
    assert 'ccr_inflight_requests{node="a"} 0.0' in page
    assert "ccr_ledger_peers 1.0" in page
    assert "ccr_ledger_coverage_ratio 1.0" in page
    assert status["ledger"]["peers"] == 1
    assert status["ledger"]["coverage"] == 1.0
    assert [(node["inflight"], node["elsewhere"]) for node in status["nodes"]] == [(0, 3)]


@REDIS
async def test_four_routers_spread_requests_that_each_of_them_would_send_to_one_node(redis_server):
    """By its own count alone every router would begin with the same node."""
    nodes = [FakeNode(name, SILENT) for name in "abcd"]
    given = settings(redis_server) | {"policy": {"name": "least_request"}}
    async with routers(given, *nodes, number=4) as found:
        asking = []
        for number, router in enumerate(found, 1):
            asking.append(asyncio.create_task(router.post()))
            await until(lambda number=number: all(sum(seen(one).values()) == number for one in found))
        concurrent = [node.concurrent for node in nodes]
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: all(left_behind(one) == 0.0 for one in found))

    assert concurrent == [1, 1, 1, 1]


@REDIS
async def test_a_router_that_is_killed_is_forgotten(redis_server, tmp_path):
    node, given = FakeNode("a", SILENT), settings(redis_server)
    async with (
        a_process(tmp_path, given, node) as (process, http),
        running_router(given, node.entry) as other,
    ):
        await until(lambda: other.router.fleet.peers == 1)
        asking = asyncio.create_task(http.post(process.url + CHAT, json={"model": MODEL}))
        await until(lambda: elsewhere(other) == 1)
        process.child.send_signal(signal.SIGKILL)
        await until(lambda: elsewhere(other) == 0)
        await asyncio.gather(asking, return_exceptions=True)

        assert other.router.fleet.peers == 0
        assert other.router.fleet.coverage == 1.0
        assert left_behind(other) == 0.0


@REDIS
async def test_a_router_that_ends_in_order_is_forgotten_at_once(redis_server):
    node, given = FakeNode("a"), settings(redis_server, expires=60.0)
    async with running_router(given, node) as other:
        async with running_router(given, node.entry):
            await until(lambda: other.router.fleet.peers == 1)
        await until(lambda: other.router.fleet.peers == 0)


@REDIS
async def test_no_request_fails_when_redis_is_killed_and_the_share_of_the_traffic_falls_back(redis_server):
    async with routers(settings(redis_server), FakeNode("a"), FakeNode("b", SLOW)) as (one, other):
        loads = [Load(one), Load(other)]
        for load in loads:
            await load.more(20)
        redis_server.kill()
        await until(lambda: one.router.fleet.heard_s is other.router.fleet.heard_s is None)
        for router in (one, other):
            assert router.router.fleet.expected.coverage == 0.5
            assert elsewhere(router) == 0
            assert b"ccr_ledger_coverage_ratio 0.5" in (await router.get("/metrics")).body
        for load in loads:
            await load.more(20)
        redis_server.start()
        await until(lambda: one.router.fleet.peers == other.router.fleet.peers == 1, 15.0)
        for load in loads:
            await load.more(20)
            await load.end()
        await until(lambda: left_behind(one) == left_behind(other) == 0.0)

    assert sum((load.statuses for load in loads), Counter()).keys() == {200}


@REDIS
async def test_a_redis_that_hangs_holds_up_no_request(redis_server):
    async with routers(settings(redis_server), FakeNode("a")) as (one, other):
        loads = [Load(one), Load(other)]
        redis_server.signal(signal.SIGSTOP)
        await until(lambda: one.router.fleet.heard_s is other.router.fleet.heard_s is None)
        for load in loads:
            await load.more(20)
            await load.end()
        redis_server.signal(signal.SIGCONT)
        await until(lambda: one.router.fleet.peers == other.router.fleet.peers == 1, 15.0)

    assert sum((load.statuses for load in loads), Counter()).keys() == {200}
    assert max(load.slowest_s for load in loads) < 0.5


async def disturbed(redis_server, number=120):
    """Requests through three routers, streamed and whole, every third of which hangs up; what is left in each at the end."""
    rng = random.Random(7)
    async with routers(settings(redis_server), FakeNode("a", SLOW), FakeNode("b"), number=3) as found:

        async def ask(k):
            await asyncio.sleep(0.005 * k)
            router, patience_s = found[k % 3], rng.uniform(0.001, 0.05)
            with suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(patience_s if k % 3 == 0 else 20.0):
                    await router.post(body={"model": MODEL, "stream": k % 2 == 0})

        await asyncio.gather(*(ask(k) for k in range(number)))
        for router in found:
            await router.quiet(5.0)
        with suppress(AssertionError):
            await until(lambda: not any(left_behind(router) for router in found), 2.0)
        return [left_behind(router) for router in found]


@REDIS
async def test_nothing_is_left_after_everything_has_ended(redis_server):
    assert await disturbed(redis_server) == [0.0, 0.0, 0.0]


@REDIS
async def test_the_test_above_finds_an_exchange_that_forgets_what_it_entered(redis_server, monkeypatch):
    """Planted: what was heard before is not taken off again."""
    monkeypatch.setattr(shared, "put", lambda into, part: None)

    assert sum(await disturbed(redis_server, number=30)) > 0.0


@REDIS
async def test_what_somebody_else_writes_is_refused_and_counted(redis_server):
    store = RedisStore(redis_server.url, timeout_s=5.0)
    async with routers(settings(redis_server), FakeNode("a", SILENT)) as (one, other), in_flight(one, 1):
        await asyncio.to_thread(store.put, FAMILY, "evil", b"nonsense", 60.0)
        await until(lambda: other.router.sharer.counts.refused["unreadable"] > 0)
        await until(lambda: elsewhere(other) == 1)
        page = (await other.get("/metrics")).body

        assert b'ccr_ledger_refused_total{reason="unreadable"}' in page
    store.close()


async def test_in_a_directory_nothing_is_shared(tmp_path):
    given = {"store": {"directory": str(tmp_path)}, "server": {"port": 0, "replicas": 2}}
    async with running_router(given, FakeNode("a")) as router:
        assert (await router.post()).status == 200
        status = (await router.admin("GET", "/admin/status")).json

        assert router.router.sharer is None
        assert status["ledger"] is None
        assert router.router.fleet.expected.coverage == 0.5


@REDIS
@pytest.mark.parametrize("name", ["shared", "store"])
async def test_who_does_not_want_to_share_does_not(redis_server, name):
    given = settings(redis_server, shared=False) if name == "shared" else {"server": {"port": 0}}
    async with running_router(given, FakeNode("a")) as router:
        assert router.router.sharer is None
