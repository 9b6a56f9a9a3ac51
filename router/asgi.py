"""The front door: hot paths go straight to their handlers, everything else to FastAPI."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from router.call import Scope, is_host
from router.refusals import Refusal
from router.routes.body import answer
from router.watchdog import Receive

Send = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class FrontDoor:
    """An ASGI application.

    Args:
        hot: (method, path) -> raw handler.
        rest: the FastAPI application.
        allowed_hosts: Host headers accepted; empty accepts all.
    """

    def __init__(
        self, hot: Mapping[tuple[str, str], Handler], rest: Any, allowed_hosts: frozenset[bytes]
    ) -> None:
        self._hot = dict(hot)
        self._rest = rest
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "http":
            if self._allowed_hosts and not self._is_allowed(scope):
                await _plain(send, 400, b"unknown host\n")
                return
            handler = self._hot.get((scope["method"], scope["path"]))
            if handler is not None:
                await handler(scope, receive, send)
                return
            if not _names_one_host(scope):
                await answer(send, Refusal(400, "bad_host", "the Host header is missing or malformed"), "")
                return
            if _is_too_large(scope):
                await answer(
                    send,
                    Refusal(413, "body_too_large", f"send at most {REST_BYTES} bytes, with a length"),
                    "",
                )
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        await self._rest(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        return _PORT.sub(b"", host.lower()) in self._allowed_hosts


REST_BYTES: Final = 64 * 2**10
"""Longest body of whatever is not a hot path."""
_PORT = re.compile(rb":\d*$")


def _names_one_host(scope: Scope) -> bool:
    """What hot handlers check themselves: a malformed Host must not pass for a path further in."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return len(hosts) == 1 and is_host(hosts[0])


def _is_too_large(scope: Scope) -> bool:
    """FastAPI reads bodies whole, before it looks who sends them; so they must say how long they are."""
    headers = dict(scope["headers"])
    declared = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not declared.isdigit() or int(declared) > REST_BYTES


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
