"""Requests that are too large, too slow, or badly addressed; and bodies the admin API does not take."""

import asyncio
import json
import re
from contextlib import suppress

import pytest

from tests.router.fake_node import FakeNode
from tests.router.harness import CHAT, TOKEN, running_router, until
from tests.router.wire import post, raw, status_of

SETTINGS = {"server": {"max_body_bytes": 100_000}}


@pytest.fixture
async def node():
    return FakeNode()


@pytest.fixture
async def router(node):
    async with running_router(SETTINGS, node) as router:
        yield router


# -- size and time ---------------------------------------------------------------------------------------------------


async def test_a_declared_oversize_is_refused_before_a_byte_of_it_is_read(router):
    """With ``Expect: 100-continue`` the client never sends it."""
    head, body = await raw(
        router.port, post(b"Content-Length: 100001", b"Expect: 100-continue", length=False, body=b"")
    )

    assert status_of(head) == 413
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("path", [CHAT, "/route"])
async def test_an_undeclared_oversize_is_refused_when_it_gets_too_large(router, path):
    """The client would send 10 MB; the router hangs up after a little more than its limit."""
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(post(b"Transfer-Encoding: chunked", body=b"", length=False, path=path.encode()))
    sent = 0
    with suppress(ConnectionError):
        for _ in range(640):
            writer.write(chunk)
            sent += len(chunk)
            await writer.drain()
    writer.close()

    assert sent < 10_000_000
    assert router.outcomes() == {"rejected": 1}
    assert router.router.stats.refusals == {"body_too_large": 1}


async def test_a_body_at_the_limit_passes(router, node):
    body = b'{"model":"m","x":"' + b"y" * (100_000 - 20) + b'"}'

    assert len(body) == 100_000
    assert (await router.post(body=body)).status == 200
    assert node.seen[0].body == body


@pytest.mark.parametrize("path", [CHAT, "/route", "/feedback"])
async def test_a_body_that_does_not_come_is_a_408(path):
    head_only = post(b"Content-Length: 50", length=False, body=b'{"mod', path=path.encode())
    async with running_router({"server": {"body_timeout": "50ms"}}, FakeNode()) as router:
        head, body = await raw(router.port, head_only)

        assert (status_of(head), json.loads(body)["error"]["code"]) == (408, "body_timeout")
        assert b"connection: close" in head.lower()
        assert len(router.router.watchdog) == 0
        if path != "/feedback":  # which is not a request for inference
            assert router.outcomes() == {"rejected": 1}


@pytest.mark.parametrize("path", [CHAT, "/route"])
async def test_a_client_that_leaves_inside_its_body_ends_as_client_closed(router, path):
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(post(b"Content-Length: 50", length=False, body=b'{"mod', path=path.encode()))

    writer.close()
    await until(lambda: router.outcomes() == {"client_closed": 1})

    assert len(router.router.watchdog) == 0


async def test_pipelined_requests_are_answered_in_order(router):
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    ids = [f"r{i}" for i in range(5)]
    writer.write(b"".join(post(b"X-Request-Id: " + i.encode()) for i in ids))
    got = []
    for _ in ids:
        head = await reader.readuntil(b"\r\n\r\n")
        got.append(re.search(rb"x-request-id: (\S+)", head)[1].decode())
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
    writer.close()

    assert got == ids


async def test_only_listed_hosts_are_served_when_there_is_a_list():
    async with running_router({"server": {"allowed_hosts": ["router.local"]}}, FakeNode()) as router:
        good = [
            await raw(router.port, post(host=host))
            for host in (b"Host: router.local", b"Host: ROUTER.local:80")
        ]
        bad = [
            await raw(router.port, post(host=host))
            for host in (b"Host: evil.example", b"Host: router.local.evil")
        ]

    assert [status_of(head) for head, _ in good] == [200, 200]
    assert [status_of(head) for head, _ in bad] == [400, 400]


# -- the admin listener ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/admin/policy", b'{"name": 5}', id="wrong type"),
        pytest.param("/admin/policy", b'{"name": "random", "more": 1}', id="unknown field"),
        pytest.param("/admin/policy", b'{"name": "random", "options": {"x": "1"}}', id="text for a number"),
        pytest.param(
            "/admin/policy", b'{"name": "learned", "options": {"weights": "/nowhere.npz"}}', id="no weights"
        ),
        pytest.param(
            "/admin/policy", b'{"name": "learned", "options": {"weights": 1}}', id="number for text"
        ),
        pytest.param("/admin/policy", b'{"name": "nonesuch"}', id="unknown policy"),
        pytest.param("/admin/policy", b'{"name": "random", "options": {"nonesuch": 1}}', id="unknown option"),
        pytest.param(
            "/admin/policy", b'{"name": "random", "options": {"picker": 1}}', id="option it must not set"
        ),
        pytest.param("/admin/policy", b"{", id="not JSON"),
        pytest.param("/admin/nodes/a/drain", b'{"draining": "yes"}', id="text for a boolean"),
    ],
)
async def test_a_bad_admin_body_is_refused_in_the_one_shape_and_changes_nothing(router, path, body):
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    async with router.http.post(router.admin_url + path, data=body, headers=headers) as reply:
        answer = await reply.json()

    assert reply.status == 422
    assert answer["error"]["message"]
    assert router.router.policies.epoch == 1
    assert (await router.post()).status == 200
