"""The least a Python server does: a raw ASGI app that answers ``/route`` with fixed JSON and forwards the rest.

Stands beside the router as a floor, and in its place to try the harness: ``uvicorn benchmarks.floors:app``
with ``FLOOR_NODES=http://127.0.0.1:9001,...`` in the environment.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import cycle
from typing import Any

import aiohttp

_DECISION = b'{"node":"node-0","url":"http://127.0.0.1:9001"}'
_JSON = [(b"content-type", b"application/json"), (b"content-length", str(len(_DECISION)).encode())]
_nodes = cycle(os.environ.get("FLOOR_NODES", "http://127.0.0.1:9").split(","))

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class Floor:
    """The app; its client lives from the first forwarded request on."""

    def __init__(self) -> None:
        self._client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """One request."""
        body = await _body(receive)
        if scope["path"] == "/route":
            await send({"type": "http.response.start", "status": 200, "headers": _JSON})
            await send({"type": "http.response.body", "body": _DECISION})
        else:
            await self._forward(scope["path"], body, send)

    async def _forward(self, path: str, body: bytes, send: Send) -> None:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        headers = {"content-type": "application/json"}
        async with self._client.post(next(_nodes) + path, data=body, headers=headers) as answer:
            kept = [
                (name.lower().encode(), value.encode())
                for name, value in answer.headers.items()
                if name.lower() in {"content-type", "content-length"}
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    event = await receive()
    body: bytes = event.get("body", b"")
    while event.get("more_body"):
        event = await receive()
        body += event.get("body", b"")
    return body


app = Floor()
