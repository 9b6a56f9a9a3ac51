"""The bytes a request begins with; what every client must do is in ``test_upstream.py``."""

import pytest

from router.upstream_http import TOGETHER_BYTES, request_head
from tests.router.raw_node import OK, a_client, a_node, answering, ask, on_both_loops


def test_a_head_is_line_host_headers_and_length():
    head = request_head("POST", "/v1/x?q=1", "h:1", [(b"x-a", b"1"), (b"x-b", b"")], 3)

    assert head == b"POST /v1/x?q=1 HTTP/1.1\r\nhost: h:1\r\nx-a: 1\r\nx-b: \r\ncontent-length: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "says_length"), [("POST", True), ("PUT", True), ("GET", False), ("HEAD", False)]
)
def test_an_empty_body_is_announced_where_one_is_expected(method, says_length):
    assert (b"content-length: 0" in request_head(method, "/", "h", [], 0)) == says_length


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("POST", "/", (b"x-a", b"1\r\nx-b: 2")),
        ("POST", "/", (b"x-a", b"1\nx-b: 2")),
        ("POST", "/", (b"x-a", b"1\r")),
        ("POST", "/", (b"x-a\r\n", b"1")),
        ("POST", "/", (b"x-a", b"1\0")),
        ("POST", "/ HTTP/1.1\r\nx-a: 1\r\n", (b"x-a", b"1")),
        ("POST\r\n", "/", (b"x-a", b"1")),
        ("POST", "/é", (b"x-a", b"1")),
    ],
)
def test_what_could_be_read_as_another_line_is_refused(method, target, header):
    with pytest.raises(ValueError):
        request_head(method, target, "h", [header], 0)


@pytest.mark.parametrize("size", [0, 1, TOGETHER_BYTES, TOGETHER_BYTES + 1, 2**22])
@on_both_loops
async def test_bodies_of_all_sizes_arrive_whole_and_in_order(size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async with a_node(answering(OK)) as wire, a_client() as upstream:
        for _ in range(2):
            assert (await ask(upstream, wire.node, body))[1] == b"ok"

    assert [request.body == body for request in wire.seen] == [True, True]
    assert wire.connections == 1
