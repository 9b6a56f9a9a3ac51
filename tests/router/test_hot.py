"""``POST /route`` is answered inside the protocol or by ASGI: one contract for both ways."""

import asyncio
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from router.hot import InstantRoutes, hot_protocol
from router.turn import JSON_HEADERS, Reply
from tests.router.fake_node import FakeNode
from tests.router.harness import running_router, until
from tests.router.wire import post, raw, status_of

ROUTE = b'{"model":"m","headers":{}}'
#: The protocol answers plain requests itself; `Connection: close` makes one that goes the ASGI way.
WAYS = [pytest.param((), id="protocol"), pytest.param((b"Connection: close",), id="asgi")]


def route(*headers, body=ROUTE, **more):
    return post(b"Content-Type: application/json", *headers, body=body, path=b"/route", **more)


async def exchange(port, *pieces, answers=1):
    """The answers to raw bytes on one connection, in order: (status, JSON body)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    try:
        async with asyncio.timeout(5.0):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            for _ in range(answers):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                found.append((status_of(head), json.loads(await reader.readexactly(length))))
    finally:
        writer.close()
    return found


@pytest.mark.parametrize("headers", WAYS)
async def test_a_good_request_gets_a_target_and_a_lease(headers):
    async with running_router({}, FakeNode("a")) as router:
        ((status, answer),) = await exchange(router.port, route(*headers))

        assert status == 200
        assert answer["node"] == "a"
        assert router.router.dispatch.ledger.in_flight == 1


@pytest.mark.parametrize("headers", WAYS)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b'{"model":', 400, "invalid_body", id="cut off"),
        pytest.param(b'{"model":"m","what":1}', 400, "invalid_body", id="unknown field"),
        pytest.param(b'{"model":"nobody"}', 404, "model_not_found", id="unknown model"),
        pytest.param(b"{}", 400, "model_missing", id="no model"),
    ],
)
async def test_a_bad_request_is_refused_in_the_documented_shape(headers, body, status, code):
    async with running_router({}, FakeNode("a")) as router:
        ((got, answer),) = await exchange(router.port, route(*headers, body=body))

        assert (got, answer["error"]["code"]) == (status, code)
        assert router.router.dispatch.ledger.in_flight == 0


@pytest.mark.parametrize("headers", WAYS)
async def test_the_host_is_checked(headers):
    async with running_router({}, FakeNode("a")) as router:
        ((status, _),) = await exchange(router.port, route(*headers, host=b"Host: a.com/health?x="))

        assert status == 400


@pytest.mark.parametrize("headers", WAYS)
async def test_a_large_body_is_refused(headers):
    async with running_router({"server": {"max_body_bytes": 100}}, FakeNode("a")) as router:
        head, _ = await raw(router.port, route(*headers, body=b" " * 101 + ROUTE))

        assert status_of(head) == 413


async def test_a_body_may_come_in_pieces():
    async with running_router({}, FakeNode("a")) as router:
        whole = route()

        answers = await exchange(router.port, whole[:-20], whole[-20:-1], whole[-1:])

        assert [status for status, _ in answers] == [200]


async def test_a_body_that_does_not_come_is_refused_in_time():
    settings = {"server": {"body_timeout": "50ms"}}
    async with running_router(settings, FakeNode("a")) as router:
        head, _ = await raw(router.port, route()[:-5])

        assert status_of(head) == 408
        assert router.router.stats.refusals["body_timeout"] == 1


async def test_pipelined_requests_are_answered_in_order():
    async with running_router({}, FakeNode("a")) as router:
        unknown = route(body=b'{"model":"nobody"}')
        health = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"

        answers = await exchange(router.port, route() + unknown + health + route(), answers=4)

        assert [status for status, _ in answers] == [200, 404, 200, 200]


async def test_a_client_that_leaves_before_its_body_is_one_outcome():
    async with running_router({}, FakeNode("a")) as router:
        _, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(route()[:-5])
        await writer.drain()
        await asyncio.sleep(0)
        writer.close()

        await until(lambda: router.router.stats.refusals["client_closed"] == 1)


async def test_with_a_list_of_hosts_nothing_passes_the_door():
    settings = {"server": {"allowed_hosts": ["here"]}}
    async with running_router(settings, FakeNode("a")) as router:
        head, _ = await raw(router.port, route())

        assert status_of(head) == 400


async def test_a_connection_that_rests_for_long_is_closed_and_one_that_works_is_not():
    loop = asyncio.get_running_loop()
    routes = InstantRoutes({b"/x": lambda *_: Reply(200, JSON_HEADERS, b"{}")}, 100, 5.0, lambda *_: None)
    config = uvicorn.Config(lambda: None, timeout_keep_alive=0.2, lifespan="off", log_config=None)
    protocol = hot_protocol(routes, loop)
    server = await loop.create_server(lambda: protocol(config, ServerState(), {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    began_s = loop.time()

    async with asyncio.timeout(5.0):
        while loop.time() - began_s < 0.3:
            writer.write(post(path=b"/x"))
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
        last_s = loop.time()
        assert await reader.read() == b""
    rested_s = loop.time() - last_s

    assert rested_s >= 0.15
    writer.close()
    server.close()
    await server.wait_closed()
