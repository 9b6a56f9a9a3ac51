"""A plain request for a proxied path needs no task, and whatever turns up, one takes over: the client cannot tell."""

import asyncio
import gc
import json
from contextlib import asynccontextmanager

import pytest

from router.routes.exchange import Exchange
from tests.router.fake_node import DEAD, SILENT, FakeNode, Reply
from tests.router.harness import running_router, until
from tests.router.wire import post, status_of

WHOLE = Reply(headers=((b"content-type", b"application/json"), (b"x-more", b"1")))
PACED = Reply(chunks=(b"a", b"b"), paced=True)


class Client:
    """A connection to the router that is kept."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def answer(self):
        async with asyncio.timeout(5.0):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return status_of(head), head, await self.reader.readexactly(length)

    async def ask(self, *pieces):
        for piece in pieces or (post(),):
            self.writer.write(piece)
            await self.writer.drain()
        return await self.answer()


@asynccontextmanager
async def a_client(router):
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def a_warm_client(router):
    """One whose first request has opened a connection to the node, so that the next one finds it idle."""
    async with a_client(router) as client:
        assert (await client.ask())[0] == 200
        yield client


async def under_way(router, node):
    """The watch over the one request that is at the node."""
    await until(lambda: node.concurrent == 1)
    (watch,) = router.router.watchdog._watches
    return watch


async def test_a_request_at_its_node_has_no_task():
    node = FakeNode()
    async with running_router({}, node) as router, a_warm_client(router) as client:
        node.reply = SILENT

        client.writer.write(post())
        watch = await under_way(router, node)

        assert watch.task is None
        client.writer.close()
        await router.quiet()


async def test_both_ways_give_the_same_answer():
    node = FakeNode(reply=WHOLE)
    async with running_router({}, node) as router, a_client(router) as client:
        by_a_task = await client.ask(post(b"X-Request-Id: one"))
        directly = await client.ask(post(b"X-Request-Id: one"))

        assert directly == by_a_task
        assert router.outcomes() == {"ok": 2}


async def test_both_ways_remember_the_same():
    async with running_router({}, FakeNode()) as router, a_client(router) as client:
        await client.ask()
        await client.ask()

        second, first = router.router.dispatch.decisions(2)
        assert (second.status, second.prompt_tokens, second.output_tokens) == (first.status, 3, 5)
        assert second.ttft_ms is not None


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        pytest.param(Reply(status=404, body=b"{}"), 404, id="not found"),
        pytest.param(Reply(status=429, body=b"{}"), 429, id="overloaded"),
        pytest.param(Reply(status=500, body=b"{}"), 500, id="broken"),
        pytest.param(DEAD, 502, id="resets"),
        pytest.param(Reply(kill_after=0), 502, id="breaks off in its answer"),
        pytest.param(Reply(body=b"x" * 100_000), 200, id="answers at length"),
    ],
)
async def test_any_answer_ends_the_request_once(reply, status):
    node = FakeNode()
    async with running_router({}, node) as router, a_warm_client(router) as client:
        node.reply = reply

        assert (await client.ask())[0] == status

        await router.quiet()
        assert sum(router.outcomes().values()) == 2
        assert router.router.dispatch.ledger.in_flight == 0


async def test_a_failure_is_tried_again_on_another_node():
    nodes = [FakeNode("a"), FakeNode("b")]
    settings = {"policy": {"name": "round_robin"}, "upstream": {"retry_per_s": 1000.0}}
    async with running_router(settings, *nodes) as router, a_client(router) as client:
        for _ in range(4):
            await client.ask()
        nodes[0].reply = DEAD

        statuses = [(await client.ask())[0] for _ in range(2)]

        assert statuses == [200, 200]
        assert router.router.stats.retries == 1


async def test_a_request_behind_one_under_way_waits_for_its_turn():
    node = FakeNode()
    async with running_router({}, node) as router, a_warm_client(router) as client:
        node.script.extend([Reply(body=b"1"), Reply(body=b"2"), Reply(body=b"3")])

        client.writer.write(post() + post() + post())

        assert [(await client.answer())[2] for _ in range(3)] == [b"1", b"2", b"3"]
        assert router.outcomes() == {"ok": 4}


async def test_a_client_that_leaves_takes_its_request_along():
    node = FakeNode()
    async with running_router({}, node) as router, a_warm_client(router) as client:
        node.reply = SILENT
        client.writer.write(post())
        await until(lambda: node.concurrent == 1)

        client.writer.transport.abort()

        await until(lambda: node.closes_seen == 1)
        await router.quiet()
        assert router.outcomes() == {"ok": 1, "client_closed": 1}


async def test_a_node_that_does_not_answer_in_time_is_told_of():
    node = FakeNode()
    settings = {"upstream": {"answer_timeout": "150ms", "retries": 0}}
    async with running_router(settings, node) as router, a_warm_client(router) as client:
        node.reply = SILENT

        status, _, body = await client.ask()

        assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
        assert router.outcomes() == {"ok": 1, "timeout": 1}


async def test_a_stream_that_begins_gets_a_task():
    node = FakeNode()
    async with running_router({}, node) as router, a_warm_client(router) as client:
        node.reply = PACED
        client.writer.write(post())
        watch = await under_way(router, node)

        node.release()
        await client.reader.readuntil(b"a\r\n")

        assert watch.task is not None
        node.release(2)
        await client.reader.readuntil(b"0\r\n\r\n")
        await router.quiet()
        assert router.outcomes() == {"ok": 2}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b'{"model":', 400, "invalid_json", id="cut off"),
        pytest.param(b'{"model":"nobody"}', 404, "model_not_found", id="unknown model"),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages"])
async def test_a_refusal_has_the_shape_of_the_api_and_the_connection_goes_on(path, body, status, code):
    async with running_router({}, FakeNode()) as router, a_warm_client(router) as client:
        got, head, told = await client.ask(post(path=path, body=body))

        assert (got, f"x-ccr-reason: {code}".encode() in head) == (status, True)
        assert ("type" in json.loads(told)) == (path == b"/v1/messages")
        assert (await client.ask())[0] == 200


async def test_whoever_stops_the_router_waits_for_what_is_under_way():
    node = FakeNode()
    async with (
        running_router({"server": {"drain_grace": "0s"}}, node) as router,
        a_warm_client(router) as client,
    ):
        node.reply = Reply(chunks=(b"late",), paced=True)
        client.writer.write(post())
        await until(lambda: node.concurrent == 1)

        router.serving.stop()
        await until(
            lambda: router.router.watchdog._watches and next(iter(router.router.watchdog._watches)).task
        )
        node.release(2)

        assert b"late" in await client.reader.readuntil(b"0\r\n\r\n")
        await router.quiet()
        assert router.outcomes() == {"ok": 2}


async def test_a_request_that_is_over_does_not_wait_for_the_collector():
    """Its body may be large, and the collector comes by rarely."""
    async with running_router({}, FakeNode()) as router, a_warm_client(router) as client:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await client.ask()

            kept = [
                thing for thing in gc.get_objects() if type(thing) is Exchange
            ]  # others may act when asked
        finally:
            gc.enable()

        assert kept == []
