"""The least that Python can do between a client and a node: bytes in, the same bytes out, on kept connections.

It looks for the end of a head and for a content length, and knows the end of a chunked answer when a read ends with it;
it parses, decides, counts and times nothing, and takes the nodes in turn. What it costs beside nginx is the interpreter
and the event loop; what the router costs beside it is the router. ``/route`` gets a fixed answer.

    python -m benchmarks.relay PORT NODE_PORT ...
"""

import asyncio
import sys
from collections.abc import Sequence
from itertools import cycle
from typing import Final, cast

import uvloop

_ROUTE: Final = b"POST /route "
_DECISION: Final = b'{"node":"node-0","url":"http://127.0.0.1:9001"}'
_DECIDED: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_DECISION),
    _DECISION,
)
_LENGTH: Final = b"content-length:"
_LAST_CHUNK: Final = b"0\r\n\r\n"


def left_of(data: bytes) -> int | None:
    """Bytes that are still to come of a message whose whole head is in ``data``; ``None`` if the head does not say."""
    head, _, body = data.partition(b"\r\n\r\n")
    _, found, length = head.lower().partition(_LENGTH)
    return int(length.split(b"\r\n", 1)[0]) - len(body) if found else None


class _Wire(asyncio.Protocol):
    """A connection that can be written to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting


class Upstream(_Wire):
    """A connection to a node.

    Args:
        idle: where it waits for its next request.
    """

    def __init__(self, idle: list["Upstream"]) -> None:
        self._idle = idle
        self._left: int | None = None
        self.client: Client | None = None

    def ask(self, request: bytes, client: "Client") -> None:
        """Send a request; its answer goes to the client."""
        self.client = client
        self._left = 0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Pass it on; at the end of the answer wait for the next request."""
        if self.client is None:
            return
        self.client.transport.write(data)
        if self._left:
            self._left -= len(data)
        elif data.startswith(b"HTTP/"):
            self._left = left_of(data)
        if self._left == 0 or (self._left is None and data.endswith(_LAST_CHUNK)):
            self.client = None
            self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """A node that goes away takes its client along."""
        if self.client is not None:
            self.client.transport.abort()
        elif self in self._idle:
            self._idle.remove(self)


class Relay:
    """The nodes, and the connections to them that wait.

    Args:
        ports: of the nodes, on loopback.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._turns = cycle([(port, list[Upstream]()) for port in ports])
        self._dialling: set[asyncio.Task[None]] = set()

    def forward(self, request: bytes, client: "Client") -> None:
        """To the node whose turn it is, on a connection that waits or a new one."""
        port, idle = next(self._turns)
        if idle:
            idle.pop().ask(request, client)
            return
        task = asyncio.ensure_future(self._dial(port, idle, request, client))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, port: int, idle: list[Upstream], request: bytes, client: "Client") -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(idle), "127.0.0.1", port)
        upstream.ask(request, client)


class Client(_Wire):
    """A connection from a client, which sends its next request when it has the answer.

    Args:
        relay: to the nodes.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._request = b""

    def data_received(self, data: bytes) -> None:
        """Forward a request when all of it is here."""
        self._request = request = self._request + data
        if b"\r\n\r\n" not in request or (left_of(request) or 0) > 0:
            return
        self._request = b""
        if request.startswith(_ROUTE):
            self.transport.write(_DECIDED)
        else:
            self._relay.forward(request, self)


async def serve(port: int, nodes: Sequence[int]) -> None:
    """Listen on loopback until killed."""
    relay = Relay(nodes)
    await asyncio.get_running_loop().create_server(lambda: Client(relay), "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
