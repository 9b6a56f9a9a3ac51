"""Reading a bounded body, and answering with a refusal or a small JSON body."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ccr.settings import ServerSettings, UpstreamSettings
from ccr.types import Outcome
from router.refusals import Refusal
from router.watchdog import Receive

#: The header that ends a connection after its answer.
CLOSE: Final = (b"connection", b"close")
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a handler on the data listener holds a request to."""

    max_headers: int
    max_header_bytes: int
    max_body_bytes: int
    body_timeout_s: float
    ttft_timeout_s: float
    answer_timeout_s: float
    stream_idle_timeout_s: float
    retries: int

    @classmethod
    def of(cls, server: ServerSettings, upstream: UpstreamSettings) -> "Limits":
        """The limits the settings ask for, in seconds of the router's clock."""
        return cls(
            max_headers=server.max_headers,
            max_header_bytes=server.max_header_bytes,
            max_body_bytes=server.max_body_bytes,
            body_timeout_s=server.body_timeout_s * server.clock_speed,
            ttft_timeout_s=upstream.ttft_timeout_s,
            answer_timeout_s=upstream.answer_timeout_s,
            stream_idle_timeout_s=upstream.stream_idle_timeout_s,
            retries=upstream.retries,
        )


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """The whole body, refused as soon as it is known to be too large.

    Raises:
        Refusal: 413 if it is too large; with outcome ``client_closed`` if the client left.
    """
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Refusal(499, "client_closed", "the client left before its body arrived", Outcome.CLIENT_CLOSED)
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(
                499, "client_closed", "the client left before its body arrived", Outcome.CLIENT_CLOSED
            )
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


async def answer(
    send: Send,
    refusal: Refusal,
    request_id: str,
    *,
    anthropic: bool = False,
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Send a refusal. After one for size or time the connection closes: the rest of the body is not wanted."""
    body = refusal.body(request_id, anthropic=anthropic)
    headers = refusal.headers("" if more else request_id) + (more or [])
    headers.append((b"content-length", b"%d" % len(body)))
    headers += closes(refusal)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def closes(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """The header that ends the connection after a refusal for size or time."""
    return [CLOSE] if refusal.status in {408, 413, 431} else []


async def answer_json(send: Send, body: bytes, status: int = 200) -> None:
    """Send a small JSON body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is larger than {max_bytes} bytes")
