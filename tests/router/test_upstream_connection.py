"""Framing, backpressure and endings of one connection, on both event loops."""

import asyncio
import socket
import struct

import pytest

from ccr.types import NodeSpec
from router.upstream import UpstreamError
from router.upstream_connection import BUFFER_BYTES, HEAD_BYTES
from tests.router.raw_node import CHUNKED, HEADERS, OK, a_client, a_node, answering, ask, on_both_loops

# asyncio and uvloop hand over at most this much in one read.
READ_BYTES = 256 * 2**10


def at_once(awaitable):
    """What it gives without one turn of the loop."""
    with pytest.raises(StopIteration) as done:
        awaitable.send(None)
    return done.value.value


@on_both_loops
async def test_a_small_answer_is_whole_when_its_headers_are():
    async with a_node(answering(OK)) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")

        assert at_once(answer.read()) == b"ok"
        answer.close()


LINE = b"HTTP/1.1 200 OK\r\n"
MALFORMED = {
    "length and chunks": LINE + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
    "chunks and length": LINE
    + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": LINE + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok",
    "a list of lengths": LINE + b"content-length: 2, 2\r\n\r\nok",
    "length with a sign": LINE + b"content-length: +2\r\n\r\nok",
    "length of nothing": LINE + b"content-length:\r\n\r\nok",
    "length beyond 64 bits": LINE + b"content-length: 99999999999999999999\r\n\r\nok",
    "another coding": LINE + b"transfer-encoding: gzip\r\n\r\nok",
    "chunked is not the last coding": LINE + b"transfer-encoding: chunked, gzip\r\n\r\nok",
    "a coding under chunked": LINE + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": LINE + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "no colon": LINE + b"hunter2\r\n\r\nok",
    "space before the colon": LINE + b"content-length : 2\r\n\r\nok",
    "continued line": LINE + b"x-a: b\r\n hunter2\r\n\r\nok",
    "NUL in a value": LINE + b"x-a: hunter2\0\r\n\r\nok",
    "bare line feeds": OK.replace(b"\r\n", b"\n"),
    "switched protocols": b"HTTP/1.1 101 Fine\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhunter2",
    "status below all": b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
    "status above all": b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
    "headers too large": LINE + b"x-a: " + b"y" * HEAD_BYTES + b"\r\ncontent-length: 2\r\n\r\nok",
    "headers without end": LINE + b"x-a: " + b"y" * (4 * READ_BYTES),
    "interim answers without end": b"HTTP/1.1 103 Soon\r\nlink: x\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
@on_both_loops
async def test_a_malformed_answer_is_an_error_without_its_content(raw):
    gone = asyncio.Event()

    async def script(_request, reader, writer):
        writer.write(raw)
        try:
            assert await reader.read() == b""
        finally:
            gone.set()  # a reset also ends it
        writer.close()

    async with a_node(script) as wire, a_client() as upstream:
        with pytest.raises(UpstreamError) as failed:
            await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        await asyncio.wait_for(gone.wait(), 10)

    assert str(failed.value).startswith("malformed answer: ")
    assert "hunter2" not in str(failed.value)
    assert not failed.value.refused


@pytest.mark.parametrize("raw", [b"zz\r\n", b"2\r\nokk\r\n", b"0\r\nx-a: " + b"y" * (4 * READ_BYTES)])
@on_both_loops
async def test_malformed_chunks_end_an_answer_after_what_came(raw):
    async with a_node(answering(CHUNKED + b"4\r\npart\r\n" + raw)) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        assert (await anext(answer.chunks())).startswith(b"part")
        with pytest.raises(UpstreamError, match="malformed"):
            await answer.read()
        answer.close()


@on_both_loops
async def test_a_reset_does_not_end_an_answer_that_ends_with_its_connection():
    got = asyncio.Event()

    async def script(_request, _reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
        await got.wait()
        linger = struct.pack("ii", 1, 0)  # what turns a close into a reset
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with a_node(script) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        assert await anext(answer.chunks()) == b"part"
        got.set()
        with pytest.raises(UpstreamError, match="ConnectionResetError"):
            await answer.read()
        answer.close()


@pytest.mark.parametrize(
    "raw",
    [OK + b"x", OK + b"HTT", OK + OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\nx"],
    ids=["garbage", "half an answer", "an answer nobody asked for", "after chunks"],
)
@on_both_loops
async def test_what_follows_an_answer_is_never_taken_for_the_next(raw):
    async with a_node(answering(raw, OK)) as wire, a_client() as upstream:
        assert (await ask(upstream, wire.node))[1] == b"ok"
        assert (await ask(upstream, wire.node))[1] == b"ok"

    assert [request.connection for request in wire.seen] == [1, 2]


@on_both_loops
async def test_bytes_nobody_asked_for_end_an_idle_connection():
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(request, reader, writer):
        writer.write(OK)
        if request.connection == 1:
            await asked.wait()
            writer.write(b"HTTP/1.1 408 Too Late\r\ncontent-length: 0\r\n\r\n")
            assert await reader.read() == b""
            gone.set()
            writer.close()

    async with a_node(script) as wire, a_client() as upstream:
        await ask(upstream, wire.node)
        asked.set()
        await asyncio.wait_for(gone.wait(), 10)
        answer, _ = await ask(upstream, wire.node)

    assert (answer.status, wire.connections) == (200, 2)


BODILESS = {
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", 2),
    "HEAD of chunks": ("HEAD", CHUNKED, None),
    "no content": ("POST", b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", None),
    "not modified": ("POST", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", None),
}


@pytest.mark.parametrize(("method", "raw", "length"), BODILESS.values(), ids=BODILESS)
@on_both_loops
async def test_an_answer_without_body_ends_with_its_headers(method, raw, length):
    async with a_node(answering(raw)) as wire, a_client() as upstream:
        for _ in range(2):
            answer = await upstream.send(wire.node, method, "/", HEADERS, b"{}")
            assert [piece async for piece in answer.chunks()] == []
            answer.close()

    assert answer.content_length == length


@on_both_loops
async def test_trailers_are_no_headers():
    raw = CHUNKED + b"2;x=y\r\nok\r\n0\r\nx-t: 1\r\n\r\n"

    async with a_node(answering(raw)) as wire, a_client() as upstream:
        answers = [await ask(upstream, wire.node) for _ in range(2)]

    assert [(answer.headers, body) for answer, body in answers] == [
        ([(b"transfer-encoding", b"chunked")], b"ok")
    ] * 2
    assert wire.connections == 1


@on_both_loops
async def test_what_one_read_brings_is_one_piece_and_two_reads_are_two():
    more, written = asyncio.Event(), asyncio.Event()

    async def script(_request, _reader, writer):
        writer.write(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
        await more.wait()
        writer.write(b"1\r\nc\r\n")
        written.set()
        await more.wait()
        writer.write(b"0\r\n\r\n")

    async with a_node(script) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        more.set()
        pieces = [piece async for piece in answer.chunks()]
        answer.close()

    assert pieces[0] == b"ab"
    assert pieces[1] == b"c"


@on_both_loops
async def test_a_node_waits_while_nobody_reads():
    piece = b"x" * 2**16
    pieces = 256  # 16 MiB

    async def script(_request, _reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (pieces * len(piece)))
        for _ in range(pieces):
            writer.write(piece)
            await writer.drain()

    async with a_node(script) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        for _ in range(500):
            await asyncio.sleep(0)
        there = 0
        while answer._pieces:
            there += len(at_once(anext(answer)))
        rest = b"".join([piece async for piece in answer.chunks()])
        answer.close()
        _, again = await ask(upstream, wire.node)

    assert BUFFER_BYTES < there <= BUFFER_BYTES + READ_BYTES
    assert there + len(rest) == len(again) == pieces * len(piece)
    assert wire.connections == 1


@pytest.mark.parametrize("how", ["read", "chunks"])
@on_both_loops
async def test_giving_up_inside_an_answer_ends_the_nodes_work(how):
    gone = asyncio.Event()

    async def script(_request, reader, writer):
        writer.write(CHUNKED)
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with a_node(script) as wire, a_client(pool_size=1) as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        reading = asyncio.ensure_future(answer.read() if how == "read" else anext(answer.chunks()))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        await asyncio.wait_for(gone.wait(), 10)
        answer.close()


@on_both_loops
async def test_a_cancellation_that_meets_the_answer_leaves_no_connection_behind():
    """The headers are here and the task has not run again: nobody will close that answer."""
    async with a_node(answering(OK)) as wire, a_client(pool_size=1) as upstream:
        await ask(upstream, wire.node)
        for turns in range(8):
            sending = asyncio.ensure_future(ask(upstream, wire.node))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

        _, body = await asyncio.wait_for(ask(upstream, wire.node), 10)

    assert body == b"ok"


@on_both_loops
async def test_a_node_that_answers_before_it_has_the_request_gets_no_other_one():
    """What is left of the first body would be the beginning of the second request."""
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"
    gone = asyncio.Event()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early)
        while await reader.read(2**20):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**16)
    async with a_client() as upstream:
        node = NodeSpec("n", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        answer, _ = await ask(upstream, node, bytes(64 * 2**20))
        await asyncio.wait_for(gone.wait(), 10)
    server.close()

    assert answer.status == 413


@on_both_loops
async def test_an_answer_closed_early_cannot_be_read():
    async with a_node(answering(CHUNKED)) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        answer.close()
        with pytest.raises(UpstreamError):
            await answer.read()
