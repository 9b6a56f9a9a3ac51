"""A node whose every byte is under control, for what a client of nodes must stand."""

import asyncio
import functools
import inspect
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import uvloop

from ccr.settings import UpstreamSettings
from ccr.types import NodeSpec
from router.upstream_http import HttpUpstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
HEADERS = [(b"content-type", b"application/json"), (b"x-a", b"1")]


@dataclass
class Seen:
    """One request as it came over the wire."""

    head: bytes
    body: bytes
    connection: int

    @property
    def line(self):
        return self.head.split(b"\r\n")[0]

    @property
    def headers(self):
        lines = self.head.split(b"\r\n")[1:-2]
        return [tuple(line.split(b": ", 1)) for line in lines]


@dataclass
class Wire:
    """A node that speaks bytes: ``script(request, reader, writer)`` answers each request of each connection."""

    script: object
    seen: list = field(default_factory=list)
    connections: int = 0
    node: NodeSpec = None

    async def serve(self, reader, writer):
        self.connections += 1
        number = self.connections
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while not writer.is_closing():
                    request = await self._read(reader, number)
                    await self.script(request, reader, writer)
        finally:
            writer.close()

    async def _read(self, reader, number):
        request = Seen(await reader.readuntil(b"\r\n\r\n"), b"", number)
        length = next((value for name, value in request.headers if name.lower() == b"content-length"), 0)
        request.body = await reader.readexactly(int(length))
        self.seen.append(request)
        return request


def answering(*answers):
    """A script that gives these answers in turn, the last one again and again."""
    left = list(answers)

    async def script(_request, _reader, writer):
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return script


@asynccontextmanager
async def a_node(script):
    wire = Wire(script)
    tasks = set()

    def accept(reader, writer):
        tasks.add(asyncio.create_task(wire.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=64 * 2**20)
    wire.node = NodeSpec("n", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield wire
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def ask(upstream, node, body=b"{}", *, method="POST", target="/v1/x", headers=HEADERS):
    """A whole exchange."""
    answer = await upstream.send(node, method, target, headers, body)
    try:
        return answer, await answer.read()
    finally:
        answer.close()


@asynccontextmanager
async def a_client(*, resolver=None, tls=None, clock=None, **settings):
    """The fast client, closed at the end."""
    given = {"resolver": resolver, "tls": tls, "clock": clock}
    upstream = HttpUpstream(
        UpstreamSettings(**settings), **{name: value for name, value in given.items() if value is not None}
    )
    try:
        yield upstream
    finally:
        await upstream.close()


def on_both_loops(test):
    """Runs a test on asyncio's own loop and on uvloop, the one in production: their transports differ."""

    @functools.wraps(test)
    def run(new_loop, **arguments):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**arguments))

    names = ["new_loop", *inspect.signature(test).parameters]
    run.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])(run)
