"""What every client of nodes must do, against a real server on loopback; a faster client is one more line in the table."""

import asyncio
import hashlib

import pytest

from ccr.settings import UpstreamSettings
from router.upstream import AiohttpUpstream, UpstreamError
from router.upstream_http import HttpUpstream
from tests.router.raw_node import CHUNKED, HEADERS, OK, a_node, answering, ask

IMPLEMENTATIONS = {"aiohttp": AiohttpUpstream, "http": HttpUpstream}


@pytest.fixture(params=IMPLEMENTATIONS)
async def make(request):
    """Makes a client of the implementation, with these settings."""
    made = []

    def make(**settings):
        made.append(IMPLEMENTATIONS[request.param](UpstreamSettings(**settings)))
        return made[-1]

    yield make
    for upstream in made:
        await upstream.close()


@pytest.fixture
async def upstream(make):
    return make()


async def test_a_request_arrives_as_it_was_given(upstream):
    async with a_node(answering(OK)) as wire:
        await ask(upstream, wire.node, b'{"a": 1}', target="/v1/a%20b%2Fc?q=%C3%A9&q=+")

    (request,) = wire.seen
    assert request.line == b"POST /v1/a%20b%2Fc?q=%C3%A9&q=+ HTTP/1.1"
    assert request.body == b'{"a": 1}'


async def test_no_header_is_added_but_host_and_length(upstream):
    async with a_node(answering(OK)) as wire:
        await ask(upstream, wire.node, b"{}")

    (request,) = wire.seen
    added = {name.lower(): value for name, value in request.headers if (name, value) not in HEADERS}
    assert added == {b"host": wire.node.address.encode(), b"content-length": b"2"}


async def test_header_bytes_and_their_order_are_left_alone(upstream):
    headers = [
        (b"x-b", b"2"),
        (b"X-Case", b'A;b="c", d'),
        (b"x-a", "naïve ☃".encode()),
        (b"x-b", b""),
        (b"x-b", b"1"),
    ]

    async with a_node(answering(OK)) as wire:
        await ask(upstream, wire.node, headers=headers)

    assert [item for item in wire.seen[0].headers if item[0].lower().startswith(b"x-")] == headers


async def test_answer_headers_come_by_lower_case_name_with_their_bytes_in_order(upstream):
    raw = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-Caf: \xc3\xa9\xff\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"

    async with a_node(answering(raw)) as wire:
        answer, body = await ask(upstream, wire.node)

    expected = [
        (b"set-cookie", b"a=1"),
        (b"x-caf", b"\xc3\xa9\xff"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"0"),
    ]
    assert answer.headers == expected
    assert (answer.status, answer.content_length, body) == (200, 0, b"")


@pytest.mark.parametrize("status", [200, 201, 400, 404, 422, 429, 500, 503])
async def test_every_status_is_an_answer_and_no_error(upstream, status):
    async with a_node(answering(b"HTTP/1.1 %d Why\r\ncontent-length: 3\r\n\r\nwhy" % status)) as wire:
        answer, body = await ask(upstream, wire.node)

    assert (answer.status, body) == (status, b"why")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(upstream, status):
    raw = b"HTTP/1.1 %d Away\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n" % status

    async with a_node(answering(raw)) as wire:
        answer, _ = await ask(upstream, wire.node)

    assert (answer.status, len(wire.seen)) == (status, 1)
    assert (b"location", b"/elsewhere") in answer.headers


async def test_an_interim_answer_is_not_the_answer(upstream):
    async with a_node(answering(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK)) as wire:
        answer, body = await ask(upstream, wire.node)

    assert (answer.status, body) == (200, b"ok")


async def test_an_encoded_body_is_not_unpacked(upstream):
    raw = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\npacked"

    async with a_node(answering(raw)) as wire:
        _, body = await ask(upstream, wire.node)

    assert body == b"packed"


async def test_cookies_are_not_kept(upstream):
    raw = b"HTTP/1.1 200 OK\r\nset-cookie: s=1; path=/\r\ncontent-length: 0\r\n\r\n"

    async with a_node(answering(raw)) as wire:
        await ask(upstream, wire.node)
        await ask(upstream, wire.node)

    assert all(name.lower() != b"cookie" for name, _ in wire.seen[1].headers)


async def test_pieces_come_as_they_are_written(upstream):
    """Each piece is read before the node writes the next."""
    got = asyncio.Event()

    async def script(_request, _reader, writer):
        writer.write(CHUNKED)
        for piece in (b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await got.wait()
            got.clear()
        writer.write(b"0\r\n\r\n")

    pieces = []
    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        async for piece in answer.chunks():
            pieces.append(piece)
            got.set()
        answer.close()

    assert pieces == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert answer.content_length is None


async def test_headers_are_handed_over_before_the_body_comes(upstream):
    more = asyncio.Event()

    async def script(_request, _reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await more.wait()
        writer.write(b"ok")

    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        assert answer.content_length == 2
        more.set()
        assert await answer.read() == b"ok"
        answer.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
async def test_large_bodies_come_whole_in_both_directions(upstream, framing):
    big = bytes(range(256)) * 2**14  # 4 MiB

    async def script(_request, _reader, writer):
        if framing == "chunked":
            writer.write(CHUNKED)
            for start in range(0, len(big), 50_000):
                piece = big[start : start + 50_000]
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
        else:
            length = b"content-length: %d\r\n" % len(big) if framing == "length" else b""
            writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + big)
        await writer.drain()
        if framing == "until close":
            writer.close()

    digest = hashlib.sha256()
    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, big)
        async for piece in answer.chunks():
            digest.update(piece)
        answer.close()

    assert wire.seen[0].body == big
    assert digest.digest() == hashlib.sha256(big).digest()


async def test_where_nothing_listens_the_error_says_refused(upstream):
    async with a_node(answering(OK)) as wire:
        pass

    with pytest.raises(UpstreamError) as failed:
        await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")

    assert failed.value.refused


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
    ],
    ids=["nothing", "half a line", "half a header", "another protocol", "no status"],
)
async def test_a_node_that_breaks_off_before_its_answer_did_not_refuse(upstream, raw):
    async def script(_request, _reader, writer):
        writer.write(raw)
        writer.close()

    async with a_node(script) as wire:
        with pytest.raises(UpstreamError) as failed:
            await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")

    assert not failed.value.refused
    assert len(wire.seen) == 1


BROKEN = {
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
    "chunked": CHUNKED + b"4\r\npart\r\n",
    "inside a chunk": CHUNKED + b"8\r\npart",
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framing", BROKEN)
async def test_a_reset_in_the_middle_is_an_error_after_what_came(upstream, framing, how):
    got = asyncio.Event()

    async def script(_request, _reader, writer):
        writer.write(BROKEN[framing])
        await got.wait()
        writer.transport.abort() if how == "reset" else writer.close()

    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        pieces = answer.chunks()
        first = await anext(pieces)
        got.set()
        with pytest.raises(UpstreamError) as failed:
            await anext(pieces)
        answer.close()

    assert first == b"part"
    assert not failed.value.refused


@pytest.mark.parametrize("framing", BROKEN)
async def test_a_torn_body_is_never_taken_for_a_whole_one(upstream, framing):
    async def script(_request, _reader, writer):
        writer.write(BROKEN[framing])
        writer.close()

    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        with pytest.raises(UpstreamError):
            await answer.read()
        answer.close()


async def test_a_connection_serves_one_request_after_another(upstream):
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with a_node(answering(OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", empty, OK)) as wire:
        for _ in range(4):
            await ask(upstream, wire.node)

    assert [request.connection for request in wire.seen] == [1, 1, 1, 1]


async def test_a_connection_that_the_node_closes_is_replaced(upstream):
    async def script(_request, _reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with a_node(script) as wire:
        for _ in range(3):
            assert (await ask(upstream, wire.node))[1] == b"ok"

    assert [request.connection for request in wire.seen] == [1, 2, 3]


async def test_the_pool_bounds_the_connections_and_nobody_starves(make):
    upstream = make(pool_size=2)
    open_now, most = 0, 0

    async def script(_request, _reader, writer):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        for _ in range(5):
            await asyncio.sleep(0)
        open_now -= 1
        writer.write(OK)

    async with a_node(script) as wire:
        answers = await asyncio.gather(*[ask(upstream, wire.node) for _ in range(10)])

    assert [body for _, body in answers] == [b"ok"] * 10
    assert (most, wire.connections) == (2, 2)


async def test_closing_early_aborts_the_nodes_work(upstream):
    """The GPU should not go on for a client that left."""
    gone = asyncio.Event()

    async def script(_request, reader, writer):
        writer.write(CHUNKED + b"1\r\nx\r\n")
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with a_node(script) as wire:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        await anext(answer.chunks())
        answer.close()

        await asyncio.wait_for(gone.wait(), 10)


async def test_giving_up_before_the_answer_aborts_the_nodes_work(upstream):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(_request, reader, writer):
        asked.set()
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with a_node(script) as wire:
        sending = asyncio.create_task(upstream.send(wire.node, "POST", "/", HEADERS, b"{}"))
        await asked.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        await asyncio.wait_for(gone.wait(), 10)


async def test_an_answer_left_early_leaves_nothing_for_the_next_request(upstream):
    async def script(_request, _reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nanswer no. %d" % len(wire.seen))

    async with a_node(script) as wire:
        first = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        first.close()
        _, body = await ask(upstream, wire.node)

    assert body == b"answer no. 2"


async def test_closing_an_answer_twice_does_no_harm(upstream):
    async with a_node(answering(OK)) as wire:
        answer, _ = await ask(upstream, wire.node)
        answer.close()
        assert (await ask(upstream, wire.node))[1] == b"ok"


async def test_the_end_of_the_client_closes_idle_connections(upstream):
    gone = asyncio.Event()

    async def script(_request, reader, writer):
        writer.write(OK)
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with a_node(script) as wire:
        await ask(upstream, wire.node)
        await upstream.close()

        await asyncio.wait_for(gone.wait(), 10)


async def test_nodes_do_not_share_connections(upstream):
    async with a_node(answering(OK)) as one, a_node(answering(OK)) as other:
        for wire in (one, other, one, other):
            await ask(upstream, wire.node)

    assert (len(one.seen), len(other.seen)) == (2, 2)
    assert (one.connections, other.connections) == (1, 1)


async def test_errors_hold_nothing_of_the_request(upstream):
    async with a_node(answering(OK)) as wire:
        pass

    with pytest.raises(UpstreamError) as failed:
        await upstream.send(wire.node, "POST", "/", [(b"authorization", b"Bearer hunter2")], b"my prompt")

    assert "hunter2" not in str(failed.value)
    assert "my prompt" not in str(failed.value)
