"""Malformed and ambiguous requests: each has its documented verdict, and costs a node nothing."""

import pytest
import pytest_asyncio

from tests.router.fake_node import FakeNode
from tests.router.harness import running_router
from tests.router.wire import post, raw, status_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"server": {"max_body_bytes": 100_000, "max_headers": 20, "max_header_bytes": 4096}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router():
    """One for all of them: none of these requests may do anything to it."""
    async with running_router(SETTINGS, FakeNode()) as router:
        yield router


# -- the corpus ------------------------------------------------------------------------------------------------------

CORPUS = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no such method": (b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "no version": (b"POST /v1/chat/completions\r\n\r\n", 400),
    "space in the path": (b"POST /v1/chat completions HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "bytes above ASCII in the path": (post(path=b"/v1/chat/completions\xff"), 400),
    "NUL in a header": (post(b"X-A: a\x00b"), 400),
    "header without colon": (post(b"X-A"), 400),
    "space before the colon": (post(b"X-A : b"), 400),
    "continued header line": (post(b"X-A: b\r\n continued"), 400),
    "bare line feeds": (post().replace(b"\r\n", b"\n"), 400),
    "length and chunks": (post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "two lengths": (post(b"Content-Length: 14"), 400),
    "negative length": (post(b"Content-Length: -1", length=False), 400),
    "length with a sign": (post(b"Content-Length: +13", length=False), 400),
    "unknown transfer coding": (post(b"Transfer-Encoding: xchunked", length=False), 400),
    "chunked is not the last coding": (post(b"Transfer-Encoding: chunked, gzip", length=False), 400),
    "chunk size that is no number": (
        post(b"Transfer-Encoding: chunked", body=b"zz\r\n\r\n", length=False),
        400,
    ),
    "no host": (post(host=b""), 400),
    "two hosts": (post(b"Host: other"), 400),
    "host with a path": (post(host=b"Host: h/admin?x="), 400),
    "host with credentials": (post(host=b"Host: a@b"), 400),
    "host with a long port": (post(host=b"Host: h:123456"), 400),
    "host with a path, at FastAPI": (b"GET /v1/models HTTP/1.1\r\nHost: h/healthz?x=\r\n\r\n", 400),
    "no host, at FastAPI": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    "two hosts, at FastAPI": (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "gzip body": (post(b"Content-Encoding: gzip"), 415),
    "too many headers": (post(*[b"X-%d: y" % i for i in range(30)]), 431),
    "headers too large": (post(b"X-A: " + b"y" * 5000), 431),
    "declared too large": (post(b"Content-Length: 100001", length=False, body=b""), 413),
    "absurdly large": (post(b"Content-Length: 9999999999999999", length=False, body=b""), 413),
    "two model names": (post(b"X-Model-Name: m", b"X-Model-Name: n"), 400),
    "two keys": (post(b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    "two sessions": (post(b"X-Session-Id: a", b"X-Session-Id: b"), 400),
    "two session tokens": (post(b"X-Session-Token: a", b"X-Session-Token: b"), 400),
    "two priorities": (post(b"X-CCR-Priority: low", b"x-ccr-priority: high"), 400),
    "priority that is none": (post(b"X-CCR-Priority: urgent"), 400),
    "not a chat path": (post(path=b"/v1/chat/completions/"), 404),
    "GET on a POST path": (b"GET /v1/chat/completions HTTP/1.1\r\nHost: h\r\n\r\n", 404),
    "admin path on the data listener": (post(path=b"/admin/policy/reload"), 404),
}


@pytest.mark.parametrize(("request_", "expected"), CORPUS.values(), ids=CORPUS)
async def test_a_malformed_request_is_refused(router, request_, expected):
    seen = len(router.nodes[0].seen)

    head, _ = await raw(router.port, request_)

    assert status_of(head) == expected
    assert len(router.nodes[0].seen) == seen
    assert (await router.post()).status == 200  # and others are served


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b"{", "invalid_json", id="cut off"),
        pytest.param(b"[]", "invalid_json", id="a list"),
        pytest.param(b'"m"', "invalid_json", id="a string"),
        pytest.param(b'{"model":"m"} {"model":"n"}', "invalid_json", id="two documents"),
        pytest.param(b'\xef\xbb\xbf{"model":"m"}', "invalid_json", id="byte order mark"),
        pytest.param('{"model":"m"}'.encode("utf-16"), "invalid_json", id="UTF-16"),
        pytest.param(b'{"model":"\xff"}', "invalid_json", id="bad UTF-8 in the model"),
        pytest.param(b'{"model":"\\ud800"}', "invalid_json", id="half a surrogate pair"),
        pytest.param(b'{"model":"m","t":NaN}', "invalid_json", id="NaN"),
        pytest.param(
            b'{"model":"m","x":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "invalid_json", id="40,000 deep"
        ),
        pytest.param(b'{"model":5}', "invalid_json", id="model is a number"),
        pytest.param(b'{"model":"m","stream":"yes"}', "invalid_json", id="stream is a text"),
        pytest.param(b'{"model":"m","model":"m"}', "repeated_field", id="model twice"),
        pytest.param(b'{"model":"m","mod\\u0065l":"n"}', "repeated_field", id="model twice, once escaped"),
        pytest.param(b"{}", "model_missing", id="no model"),
        pytest.param(b'{"model":null}', "model_missing", id="model is null"),
        pytest.param(b'{"model":""}', "model_missing", id="model is empty"),
    ],
)
async def test_a_body_that_is_not_what_the_api_takes_is_a_400_that_says_why(router, body, code):
    seen, before = len(router.nodes[0].seen), router.outcomes()

    answer = await router.post(body=body)

    assert (answer.status, answer.code) == (400, code)
    error = answer.json["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-ccr-reason"] == code
    assert router.outcomes() - before == {"rejected": 1}
    assert len(router.nodes[0].seen) == seen


async def test_two_models_in_a_deep_body_are_refused_not_crashed_on(router):
    deep = b'{"model":"m","x":' + b"[" * 500 + b"]" * 500 + b',"model":"n"}'

    assert (await router.post(body=deep)).code == "repeated_field"
