"""Requests by raw bytes, for what no client library would send."""

import asyncio
import re

from tests.router.harness import CHAT

BODY = b'{"model":"m"}'
CHAT_PATH = CHAT.encode()


async def raw(port: int, *pieces: bytes, within_s: float = 5.0) -> tuple[bytes, bytes]:
    """What comes back to raw bytes, until the router closes the connection or has answered once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(within_s):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            return head, await reader.readexactly(int(length[1])) if length else await reader.read()
    except (ConnectionError, asyncio.IncompleteReadError):
        return b"", b""
    finally:
        writer.close()


def status_of(head: bytes) -> int:
    return int(head.split(b" ")[1]) if head else 0


def post(
    *headers: bytes,
    body: bytes = BODY,
    length: bool = True,
    path: bytes = CHAT_PATH,
    host: bytes = b"Host: h",
) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", *([host] if host else []), *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
