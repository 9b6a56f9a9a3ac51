"""The little of ASGI an emulated node needs: read a body, notice a client that left, answer."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from envs.dialect import BadAskError, encode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
_MAX_BODY = 8 * 2**20


class ClientLeftError(Exception):
    """The connection closed, so that there is nobody to answer."""


async def read(receive: Receive) -> bytes:
    """The whole body; raises :class:`BadAskError` above 8 MiB."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        piece: bytes = message["body"]
        body += piece
        if len(body) > _MAX_BODY:
            raise BadAskError(f"the body is larger than {_MAX_BODY} bytes; send less", status=413)
        if not message["more_body"]:
            return body


async def gone(receive: Receive) -> None:
    """Return when the client hangs up; what is left of the body is thrown away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def header(scope: Scope, name: bytes) -> str:
    """The header's value, empty when it is not there; ``name`` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, value: Any, status: int = 200) -> None:
    """A whole answer in JSON."""
    await respond(send, status, encode(value), [JSON])
