"""What passes through untouched: bodies, streams and headers, in both directions."""

import asyncio
import json

import pytest

from router.call import HOP_BY_HOP
from tests.router.fake_node import STREAM, FakeNode, Reply, sse
from tests.router.harness import CHAT, running_router

ODD = (
    b'  {"messages" : [ {"content":"caf\xc3\xa9 \\u00e9 \\ud83d\\ude00", "role":"user"} ],\n'
    b'\t"model":"m", "temperature":1.0, "seed":12345678901234567890123, "top_p":1e-7,'
    b'"unknown_to_the_router":{"model":"nested","deep":[[[null]]]}, "stop":"\\"model\\"" }\n'
)


async def test_a_request_body_reaches_the_node_byte_for_byte():
    node = FakeNode()
    async with running_router({}, node) as router:
        await router.post(body=ODD)

    assert node.seen[0].body == ODD


@pytest.mark.parametrize(
    "size", [0, 1, 64 * 1024, 64 * 1024 + 1, 3 * 2**20], ids=lambda size: f"{size} bytes"
)
async def test_an_answer_reaches_the_client_byte_for_byte(size):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    node = FakeNode(reply=Reply(body=body))
    async with running_router({}, node) as router:
        answer = await router.post()

    assert answer.body == body
    assert answer.headers["content-length"] == str(size)


async def test_a_large_request_body_reaches_the_node_byte_for_byte():
    body = json.dumps({"model": "m", "prompt": "x" * 4 * 2**20}).encode()
    node = FakeNode()
    async with running_router({}, node) as router:
        answer = await router.post(body=body)

    assert answer.status == 200
    assert node.seen[0].body == body


async def test_a_stream_reaches_the_client_byte_for_byte_and_piece_by_piece():
    """The first event is at the client while the node has not sent the second."""
    odd = (
        b'data: {"a":1}\r\n\r\n',
        b": comment\n\ndata: x",
        b"y\n\n",
        b"\xff\xfe not even text",
        b"data: [DONE]\n\n",
    )
    node = FakeNode(reply=Reply(headers=STREAM.headers, chunks=odd, paced=True))
    async with running_router({}, node) as router:
        node.release()
        async with router.http.post(router.url + CHAT, data=b'{"model":"m","stream":true}') as reply:
            received = [await reply.content.readany()]
            for _ in odd[1:]:
                node.release()
                received.append(await reply.content.readany())

            assert await reply.content.read() == b""

    assert tuple(received) == odd


async def test_request_headers_reach_the_node_except_those_that_end_at_a_hop():
    node = FakeNode()
    given = {
        "authorization": "Bearer of-the-client",
        "x-custom": "caf\u00e9, twice",
        "x-one-hop": "drop me",
        "connection": "keep-alive, X-One-Hop",
        "te": "trailers",
        "accept-encoding": "gzip",
        "openai-organization": "org",
        "user-agent": "me/1",
    }
    async with running_router({}, node) as router:
        await router.post(headers=given)

    seen = dict(node.seen[0].headers)
    kept = {name: value for name, value in given.items() if name not in {"x-one-hop", "connection", "te"}}
    assert {name: seen[name.encode()].decode() for name in kept} == kept
    assert b"x-one-hop" not in seen
    assert not (HOP_BY_HOP - {b"host", b"content-length"}) & set(seen)
    assert seen[b"host"] == node.url.removeprefix("http://").encode()


async def test_nothing_is_added_to_a_request_but_its_id():
    node = FakeNode()
    async with running_router({}, node) as router:
        raw = (
            b"POST /v1/completions?api-version=1%2F2&x HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n"
            b"X-B: 2\r\nX-A: 1\r\nX-B: 3\r\n\r\n" + b'{"model":"m"}'
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(raw)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    seen = node.seen[0]
    others = [item for item in seen.headers if item[0] not in {b"host", b"content-length", b"x-request-id"}]
    assert seen.target == "/v1/completions?api-version=1%2F2&x"
    assert others == [(b"x-b", b"2"), (b"x-a", b"1"), (b"x-b", b"3")]


async def test_answer_headers_reach_the_client_except_those_that_end_at_a_hop():
    reply = Reply(
        headers=(
            (b"content-type", b"application/json; odd=1"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"openai-processing-ms", b"12"),
            (b"keep-alive", b"timeout=5"),
            (b"x-latin", b"caf\xe9"),
        )
    )
    async with running_router({}, FakeNode(reply=reply)) as router:
        answer = await router.post()

    assert answer.headers.getall("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["content-type"] == "application/json; odd=1"
    assert answer.headers["openai-processing-ms"] == "12"
    assert answer.headers["x-latin"].encode("utf-8", "surrogateescape") == b"caf\xe9"
    assert "keep-alive" not in answer.headers


@pytest.mark.parametrize("status", [200, 201, 400, 404, 422, 500, 503])
async def test_a_node_s_status_and_error_body_are_the_client_s(status):
    node = FakeNode(reply=Reply(status=status, body=b'{"error": "as the engine says it"}'))
    async with running_router({}, node) as router:
        answer = await router.post()

    assert (answer.status, answer.body) == (status, b'{"error": "as the engine says it"}')


CANARY = {"models": {"chat": {"versions": {"7": {}}}}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{ "model" : "chat" , "x":1.0}', b'{ "model" : "chat@7" , "x":1.0}', id="white space stays"
        ),
        pytest.param(
            b'{"tools":[{"properties":{"model":{"type":"string"}}}],"model":"chat","role":"model"}',
            b'{"tools":[{"properties":{"model":{"type":"string"}}}],"model":"chat@7","role":"model"}',
            id="other things called model stay",
        ),
        pytest.param(
            b'{"metadata":{"model":"chat"},"model":"chat","n":1E2}',
            b'{"metadata":{"model":"chat"},"model":"chat@7","n":1E2}',
            id="the same field deeper down stays",
        ),
        pytest.param(ODD.replace(b'"m"', b'"chat"'), ODD.replace(b'"m"', b'"chat@7"'), id="an odd body"),
    ],
)
async def test_choosing_a_version_rewrites_the_model_s_value_and_no_other_byte(body, expected):
    node = FakeNode(models=("chat@7",))
    async with running_router(CANARY, node) as router:
        await router.post(body=body)

    assert node.seen[0].body == expected


async def test_the_node_s_request_id_is_the_router_s():
    node = FakeNode(reply=Reply(headers=((b"x-request-id", b"of-the-node"),)))
    async with running_router({}, node) as router:
        given = await router.post(headers={"x-request-id": "of-the-client"})
        made = await router.post(headers={"x-request-id": "not an id!"})

    assert given.headers.getall("x-request-id") == ["of-the-client"]
    assert [seen.header("x-request-id") for seen in node.seen] == [
        b"of-the-client",
        made.headers["x-request-id"].encode(),
    ]
    assert made.headers["x-request-id"] != "not an id!"


async def test_usage_is_read_from_the_end_of_a_stream_without_changing_it():
    chunks = (*sse("a", "b")[:-1], b'data: {"usage":{"prompt_tokens":11,"completion_tokens":22}}\n\n')
    async with running_router({}, FakeNode(reply=Reply(headers=STREAM.headers, chunks=chunks))) as router:
        answer = await router.post(body={"model": "m", "stream": True})

        assert answer.body == b"".join(chunks)
        assert router.router.stats.tokens == {("m", "prompt"): 11, ("m", "output"): 22}
