"""Who gets which connection, and that none is lost or handed out dead."""

import asyncio
import socket

import pytest

from ccr.types import NodeSpec
from router.upstream import UpstreamError
from router.upstream_connection import LOOK_AFTER_S
from tests.router.harness import Clock
from tests.router.raw_node import CHUNKED, HEADERS, OK, a_client, a_node, answering, ask, on_both_loops


@on_both_loops
async def test_the_connection_used_last_goes_out_first():
    """So that those a burst opened can idle, and go."""
    async with a_node(answering(OK)) as wire, a_client() as upstream:
        one, other = [await upstream.send(wire.node, "POST", "/", HEADERS, b"{}") for _ in range(2)]
        other.close()
        one.close()
        await ask(upstream, wire.node)
        await ask(upstream, wire.node)

    assert [request.connection for request in wire.seen] == [1, 2, 1, 1]


@on_both_loops
async def test_who_waits_longest_is_served_next():
    async with a_node(answering(OK)) as wire, a_client(pool_size=1) as upstream:
        bodies = [b"%d" % i for i in range(6)]
        await asyncio.gather(*[ask(upstream, wire.node, body) for body in bodies])

    assert [request.body for request in wire.seen] == bodies
    assert wire.connections == 1


@pytest.mark.parametrize("keeps", [True, False], ids=["given back", "closed early"])
@pytest.mark.parametrize("turns", range(6))
@on_both_loops
async def test_giving_up_in_line_costs_nobody_a_place(keeps, turns):
    """However far the hand-over has come when the one that waited leaves."""
    async with (
        a_node(answering(OK if keeps else CHUNKED, OK)) as wire,
        a_client(pool_size=1) as upstream,
    ):
        first = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        leaving, staying = [asyncio.ensure_future(ask(upstream, wire.node)) for _ in range(2)]
        await asyncio.sleep(0)
        first.close()
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

        _, body = await asyncio.wait_for(staying, 10)
        _, another = await asyncio.wait_for(ask(upstream, wire.node), 10)

    assert body == another == b"ok"


@on_both_loops
async def test_giving_up_before_its_turn_leaves_the_line_as_it_was():
    async with a_node(answering(OK)) as wire, a_client(pool_size=1) as upstream:
        first = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        leaving, staying = [asyncio.ensure_future(ask(upstream, wire.node)) for _ in range(2)]
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        first.close()

        assert (await asyncio.wait_for(staying, 10))[1] == b"ok"

    assert wire.connections == 1


@on_both_loops
async def test_a_connection_that_cannot_be_made_takes_no_place():
    async with a_node(answering(OK)) as wire:
        pass

    async with a_client(pool_size=1) as upstream:
        attempts = [upstream.send(wire.node, "POST", "/", HEADERS, b"{}") for _ in range(5)]
        failures = await asyncio.wait_for(asyncio.gather(*attempts, return_exceptions=True), 10)

    assert [failure.refused for failure in failures] == [True] * 5


@on_both_loops
async def test_an_idle_connection_is_closed_in_time():
    gone = asyncio.Event()

    async def script(_request, reader, writer):
        writer.write(OK)
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with a_node(script) as wire, a_client(idle_timeout_s=0.05) as upstream:
        await ask(upstream, wire.node)

        await asyncio.wait_for(gone.wait(), 10)


@on_both_loops
async def test_only_what_idled_long_enough_is_closed():
    clock = Clock()
    async with a_node(answering(OK)) as wire, a_client(clock=clock, idle_timeout_s=30) as upstream:
        older, newer = [await upstream.send(wire.node, "POST", "/", HEADERS, b"{}") for _ in range(2)]
        older.close()
        clock.skip(20)
        newer.close()
        clock.skip(15)
        (pool,) = [pool for pool, _ in upstream._pools.values()]
        pool._sweep()
        await ask(upstream, wire.node)

        assert [request.connection for request in wire.seen] == [1, 2, 2]
        assert pool._timer is not None  # the newer one has its turn
        assert 0 < pool._timer.when() - asyncio.get_running_loop().time() <= 15.1


@on_both_loops
async def test_a_connection_closed_in_the_same_moment_is_not_handed_out():
    """The close is in the socket, and the loop has not come to it: only looking tells."""
    clock, loop = Clock(), asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    node = NodeSpec("n", f"http://127.0.0.1:{listener.getsockname()[1]}")

    async def serve_one():
        connection, _ = await loop.sock_accept(listener)
        await loop.sock_recv(connection, 65536)
        await loop.sock_sendall(connection, OK)
        return connection

    async with a_client(clock=clock) as upstream:
        (_, body), connection = await asyncio.gather(ask(upstream, node), serve_one())
        clock.skip(LOOK_AFTER_S + 0.1)
        connection.close()
        (_, again), second = await asyncio.gather(ask(upstream, node), serve_one())
        second.close()
    listener.close()

    assert body == again == b"ok"


@pytest.mark.parametrize(("method", "is_repeated"), [("GET", True), ("PUT", True), ("POST", False)])
@on_both_loops
async def test_only_a_method_that_may_be_repeated_is_sent_again_on_another_connection(method, is_repeated):
    connections = set()

    async def script(request, _reader, writer):
        if request.connection in connections:
            writer.close()
        else:
            connections.add(request.connection)
            writer.write(OK)

    async with a_node(script) as wire, a_client() as upstream:
        await ask(upstream, wire.node)
        if is_repeated:
            assert (await ask(upstream, wire.node, method=method))[1] == b"ok"
        else:
            with pytest.raises(UpstreamError) as failed:
                await ask(upstream, wire.node, method=method)
            assert not failed.value.refused

    assert [request.connection for request in wire.seen] == ([1, 1, 2] if is_repeated else [1, 1])


@pytest.mark.parametrize("raw", [b"HTTP/1.1 2", CHUNKED], ids=["part of the headers", "headers"])
@on_both_loops
async def test_nothing_is_sent_again_after_the_first_byte_of_an_answer(raw):
    async def script(_request, _reader, writer):
        writer.write(OK if len(wire.seen) == 1 else raw)
        if len(wire.seen) > 1:
            writer.close()

    async with a_node(script) as wire, a_client() as upstream:
        await ask(upstream, wire.node)
        with pytest.raises(UpstreamError):
            await ask(upstream, wire.node, method="GET")

    assert len(wire.seen) == 2


@on_both_loops
async def test_a_new_connection_that_dies_is_no_reason_to_send_again():
    async def script(_request, _reader, writer):
        writer.close()

    async with a_node(script) as wire, a_client() as upstream:
        with pytest.raises(UpstreamError):
            await ask(upstream, wire.node, method="GET")

    assert len(wire.seen) == 1


@on_both_loops
async def test_closing_the_client_ends_what_is_under_way_and_who_waits():
    async with a_node(answering(CHUNKED)) as wire, a_client(pool_size=1) as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        reading = asyncio.ensure_future(answer.read())
        waiting = asyncio.ensure_future(upstream.send(wire.node, "POST", "/", HEADERS, b"{}"))
        await asyncio.sleep(0)
        await asyncio.wait_for(upstream.close(), 10)

        for task in (reading, waiting):
            with pytest.raises(UpstreamError):
                await task
        with pytest.raises(UpstreamError):
            await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        answer.close()


@on_both_loops
async def test_pools_without_connections_are_forgotten_when_there_are_many():
    async with a_node(answering(OK)) as wire, a_client(connect_timeout_s=5) as upstream:
        await ask(upstream, wire.node)
        for number in range(600):
            upstream._add(f"http://10.0.0.1:{number + 1}")

        assert len(upstream._pools) < 512
        assert wire.node.url in upstream._pools
