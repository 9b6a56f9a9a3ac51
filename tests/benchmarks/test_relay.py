"""The relay: bytes arrive as they were sent, on connections that are kept."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from benchmarks.processes import Cores
from benchmarks.relay import left_of
from benchmarks.systems import FRONTS, Place

REQUEST = b"POST /v1/chat HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\n\r\nhello"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"


@asynccontextmanager
async def a_relay(tmp_path, *pieces):
    """A client of a relay to a node that gives every request this answer; and what the node sees, connection by connection."""
    seen, serving = [], []

    async def serve(reader, writer):
        requests = []
        serving.append(asyncio.current_task())
        seen.append(requests)
        while request := await reader.read(1000):
            requests.append(request)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as node:
        place = Place(tmp_path, Cores(None, None), None, None)
        with FRONTS["relay"](place, [node.sockets[0].getsockname()[1]]) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", *relay.ports)
            yield reader, writer, seen
            writer.close()
            await writer.wait_closed()
        await asyncio.gather(*serving)


@pytest.mark.parametrize(
    ("data", "left"),
    [
        pytest.param(REQUEST, 0, id="all of it"),
        pytest.param(REQUEST[:-2], 2, id="a part of the body"),
        pytest.param(CHUNKED, None, id="no length"),
    ],
)
def test_a_head_tells_how_much_is_to_come(data, left):
    assert left_of(data) == left


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([WHOLE], id="with a length"),
        pytest.param([WHOLE[:-4], WHOLE[-4:-2], WHOLE[-2:]], id="in pieces"),
        pytest.param([CHUNKED[:-5], CHUNKED[-5:]], id="chunked"),
    ],
)
async def test_an_answer_arrives_untouched_and_its_connection_is_used_again(tmp_path, pieces):
    answer = b"".join(pieces)

    async with a_relay(tmp_path, *pieces) as (reader, writer, seen):
        for _ in range(2):
            writer.write(REQUEST)
            assert await reader.readexactly(len(answer)) == answer

        assert seen == [[REQUEST, REQUEST]]


async def test_a_request_in_pieces_is_sent_as_one(tmp_path):
    async with a_relay(tmp_path, WHOLE) as (reader, writer, seen):
        for piece in (REQUEST[:10], REQUEST[10:-3], REQUEST[-3:]):
            writer.write(piece)
            await asyncio.sleep(0)
        await reader.readexactly(len(WHOLE))

        assert seen == [[REQUEST]]


async def test_a_route_is_answered_without_a_node(tmp_path):
    async with a_relay(tmp_path) as (reader, writer, seen):
        writer.write(b"POST /route HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
        head = await reader.readuntil(b"\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b'"node"' in await reader.readexactly(left_of(head))
        assert seen == []
