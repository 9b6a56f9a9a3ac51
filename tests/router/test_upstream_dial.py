"""Names, addresses, TLS and the time it may take."""

import asyncio
import shutil
import socket
import ssl
import subprocess

import pytest
from aiohttp.abc import AbstractResolver

from ccr.types import NodeSpec
from router.resolver import CarefulResolver
from router.upstream import UpstreamError
from router.upstream_dial import ADDRESSES_S, Place
from tests.router.harness import Clock
from tests.router.raw_node import HEADERS, OK, a_client, a_node, answering, ask, on_both_loops

CLOSE = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


class Names(AbstractResolver):
    """Resolves from a table; a name outside it takes forever."""

    def __init__(self, table):
        self.table = table
        self.asked = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        await asyncio.sleep(0)
        if host not in self.table:
            await asyncio.Event().wait()
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in self.table[host]
        ]

    async def close(self):
        pass


def named(wire, name="node.test"):
    return NodeSpec("n", f"http://{name}:{wire.node.url.rsplit(':', 1)[1]}")


async def refusal(upstream, node):
    with pytest.raises(UpstreamError) as failed:
        await upstream.send(node, "POST", "/", HEADERS, b"{}")
    return failed.value


@pytest.mark.parametrize(
    ("url", "place", "host_header"),
    [
        ("http://10.0.0.7:8000", Place("10.0.0.7", 8000), "10.0.0.7:8000"),
        ("http://node.test:80", Place("node.test", 80), "node.test"),
        ("https://node.test", Place("node.test", 443, is_tls=True), "node.test"),
        ("https://node.test:80", Place("node.test", 80, is_tls=True), "node.test:80"),
        ("http://[2001:db8::7]:8000", Place("2001:db8::7", 8000), "[2001:db8::7]:8000"),
    ],
)
def test_where_a_url_leads(url, place, host_header):
    assert Place.of(url) == place
    assert place.host_header == host_header


@on_both_loops
async def test_a_name_of_the_system_is_found():
    async with a_node(answering(OK)) as wire, a_client() as upstream:
        assert (await ask(upstream, named(wire, "localhost")))[1] == b"ok"


@on_both_loops
async def test_a_name_that_leads_where_no_node_may_live_is_refused():
    careful = CarefulResolver()
    careful._usual = Names({"node.test": ["169.254.169.254"]})

    async with a_node(answering(OK)) as wire, a_client(resolver=careful) as upstream:
        error = await refusal(upstream, named(wire))

    assert error.refused
    assert "no node may have" in str(error)


@on_both_loops
async def test_a_name_is_asked_for_once_in_a_while_whoever_connects():
    clock, names = Clock(), Names({"node.test": ["127.0.0.1"]})

    async with a_node(answering(CLOSE)) as wire, a_client(resolver=names, clock=clock) as upstream:
        await asyncio.gather(*[ask(upstream, named(wire)) for _ in range(5)])
        assert len(names.asked) == 1

        clock.skip(ADDRESSES_S + 0.1)
        await ask(upstream, named(wire))
        assert len(names.asked) == 2


@on_both_loops
async def test_the_next_address_is_tried_when_one_refuses():
    names = Names({"node.test": ["127.0.0.2", "127.0.0.3", "127.0.0.1"]})

    async with a_node(answering(CLOSE)) as wire, a_client(resolver=names) as upstream:
        bodies = [(await ask(upstream, named(wire)))[1] for _ in range(3)]

    assert bodies == [b"ok"] * 3  # whichever of them comes first


@on_both_loops
async def test_a_name_that_is_not_found_in_time_counts_as_refused():
    async with (
        a_node(answering(OK)) as wire,
        a_client(resolver=Names({}), connect_timeout_s=0.05) as upstream,
    ):
        error = await refusal(upstream, named(wire))

    assert error.refused
    assert "within 0.05 s" in str(error)


@on_both_loops
async def test_small_writes_are_not_held_back():
    async with a_node(answering(OK)) as wire, a_client() as upstream:
        answer = await upstream.send(wire.node, "POST", "/", HEADERS, b"{}")
        connection = answer._connection._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        answer.close()


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A certificate for localhost that nobody vouches for, and its key."""
    assert shutil.which("openssl"), "install openssl: it makes the certificate of this test"
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def tls_server(identity):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*identity)

    async def accept(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)
            await reader.readexactly(2)

    def serve(reader, writer):
        task = asyncio.ensure_future(accept(reader, writer))
        task.add_done_callback(lambda _: (task.exception(), writer.close()))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    return server, NodeSpec("n", f"https://localhost:{server.sockets[0].getsockname()[1]}")


@on_both_loops
async def test_a_node_with_a_known_certificate_is_reached_by_tls(identity):
    server, node = await tls_server(identity)

    async with a_client(tls=ssl.create_default_context(cafile=identity[0])) as upstream:
        first, second = [await ask(upstream, node) for _ in range(2)]
    server.close()

    assert first[1] == second[1] == b"ok"


@on_both_loops
async def test_a_node_whose_certificate_nobody_vouches_for_is_refused(identity):
    server, node = await tls_server(identity)

    async with a_client(pool_size=1) as upstream:
        errors = [await refusal(upstream, node) for _ in range(2)]
    server.close()

    assert [error.refused for error in errors] == [True, True]
    assert "certificate" in str(errors[0]).lower()
