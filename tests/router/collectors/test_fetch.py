"""Fetching from a real server on loopback."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from ccr.errors import TelemetryError
from router.collectors.fetch import HttpFetch


@asynccontextmanager
async def served(handler, method="GET"):
    """The address of a server that answers every path with ``handler``."""
    app = web.Application()
    app.router.add_route(method, "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def fetch():
    fetch = HttpFetch()
    yield fetch
    await fetch.close()


async def reason_of(fetching):
    with pytest.raises(TelemetryError) as refused:
        await fetching
    return refused.value.reason


async def test_a_body_of_the_allowed_size_comes_whole(fetch):
    async def handler(_request):
        return web.Response(body=b"x" * 1000)

    async with served(handler) as url:
        assert await fetch(f"{url}/metrics", "GET", 5.0, 1000) == b"x" * 1000


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_above_the_cap_is_cut_off_while_it_comes(fetch, declared):
    sent = 0

    async def handler(request):
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Length": str(64 << 20)} if declared else {})
        await response.prepare(request)
        for _ in range(64):
            await response.write(b"x" * (1 << 20))
            sent += 1 << 20
        return response

    async with served(handler) as url:
        assert await reason_of(fetch(url, "GET", 5.0, 1000)) == "too_large"
    assert sent < 64 << 20


async def test_a_compressed_body_is_not_unpacked(fetch):
    async def handler(_request):
        return web.Response(body=b"packed", headers={"Content-Encoding": "gzip"})

    async with served(handler) as url:
        assert await fetch(url, "GET", 5.0, 1000) == b"packed"


@pytest.mark.parametrize("status", [204, 301, 401, 404, 500, 503])
async def test_any_other_status_than_200_is_refused_and_no_redirect_is_followed(fetch, status):
    asked = []

    async def handler(request):
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with served(handler) as url:
        assert await reason_of(fetch(f"{url}/metrics", "GET", 5.0, 1000)) == "status"
    assert asked == ["/metrics"]


async def test_a_node_that_never_answers_is_a_timeout(fetch):
    async def handler(_request):
        await asyncio.Event().wait()

    async with served(handler) as url:
        assert await reason_of(fetch(url, "GET", 0.05, 1000)) == "timeout"


async def test_a_body_that_never_ends_is_a_timeout(fetch):
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()

    async with served(handler) as url:
        assert await reason_of(fetch(url, "GET", 0.05, 1000)) == "timeout"


async def test_a_port_where_nothing_listens_is_unreachable(fetch):
    async def handler(_request):
        return web.Response()

    async with served(handler) as url:
        pass

    assert await reason_of(fetch(url, "GET", 5.0, 1000)) == "unreachable"


async def test_a_server_that_hangs_up_is_unreachable(fetch):
    async def handler(request):
        request.transport.abort()

    async with served(handler) as url:
        assert await reason_of(fetch(url, "GET", 5.0, 1000)) == "unreachable"


async def test_a_post_has_an_empty_body(fetch):
    async def handler(request):
        return web.Response(body=await request.read() + b"!")

    async with served(handler, method="POST") as url:
        assert await fetch(url, "POST", 5.0, 1000) == b"!"


async def test_a_name_that_points_to_a_metadata_service_is_not_asked(fetch, monkeypatch):
    """What a name resolves to is judged at each connection, not only when the node is configured."""

    async def everything_is_link_local(_self, host, port=0, family=0):
        return [
            {
                "hostname": host,
                "host": "169.254.169.254",
                "port": port,
                "family": family,
                "proto": 0,
                "flags": 0,
            }
        ]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", everything_is_link_local)

    with pytest.raises(TelemetryError, match="no node may have") as refused:
        await fetch("http://rebound.example:80/metrics", "GET", 5.0, 1000)
    assert refused.value.reason == "unreachable"


async def test_closing_without_ever_fetching_is_fine():
    await HttpFetch().close()
