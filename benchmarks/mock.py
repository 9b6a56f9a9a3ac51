"""Nodes that answer at once: a fixed chat completion, or a stream whose chunks carry their send time.

One process, one event loop, any number of ports: ``python -m benchmarks.mock 9001 9002 ...``
"""

import asyncio
import sys
import time
from typing import cast

import httptools
import uvloop

#: An answer of the size of a short chat turn; the same bytes from every kind of mock.
COMPLETION = (
    '{"id":"chatcmpl-0","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"Hello, and welcome."},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":12,"completion_tokens":5,"total_tokens":17}}'
)
#: What an engine's telemetry says when nothing is going on.
METRICS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
MODELS = '{"object":"list","data":[{"id":"m","object":"model"}]}'

FIRST_TOKEN_S = 0.020
GAP_S = 0.020
CHUNKS = 32


class Node(asyncio.Protocol):
    """One connection to the mock."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop a stream nobody reads."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A new request."""
        self._url = b""
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        """Its target."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer it."""
        if self._url == b"/metrics":
            self._answer(METRICS, "text/plain")
        elif self._url == b"/v1/models":
            self._answer(MODELS)
        elif b'"stream":true' in self._body.replace(b" ", b""):
            self._stream(time.monotonic_ns())
        else:
            self._answer(COMPLETION)

    def _answer(self, text: str, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}\r\n\r\n"
        self._transport.write((head + text).encode())

    def _stream(self, had_ns: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._later(FIRST_TOKEN_S, had_ns, CHUNKS)

    def _later(self, delay_s: float, had_ns: int, left: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._chunk, had_ns, left)

    def _chunk(self, had_ns: int, left: int) -> None:
        """One event; the first says when the request arrived, each says when it left."""
        if left == 0:
            self._transport.write(_framed("data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        stamp = f"@{had_ns}:{time.monotonic_ns()}@"
        self._transport.write(
            _framed(
                'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"m",'
                f'"choices":[{{"index":0,"delta":{{"content":"{stamp}"}},"finish_reason":null}}]}}\n\n'
            )
        )
        self._later(GAP_S, 0, left - 1)


def _framed(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


async def serve(ports: list[int]) -> None:
    """Listen on loopback until killed."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Node, "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
