"""A node on loopback whose every fault is under control, to the byte: raw asyncio, no framework."""

import asyncio
import json
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MODEL = "m"
JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream")


@dataclass(frozen=True)
class Reply:
    """How a fake node answers an inference request.

    Args:
        status: of the answer.
        headers: of the answer, as bytes.
        body: the whole answer, with its length; ignored where there are chunks.
        chunks: the answer in chunked coding, one write each.
        kill_after: reset the connection after this many chunks; -1 before the headers; 0 of a whole answer: half-way.
        stall_after: say nothing any more after this many chunks; -1 before the headers.
        paced: each chunk waits for :meth:`FakeNode.release`.
        every_s: time between two chunks.
    """

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    body: bytes = b'{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":5}}'
    chunks: tuple[bytes, ...] = ()
    kill_after: int | None = None
    stall_after: int | None = None
    paced: bool = False
    every_s: float = 0.0


def sse(*texts: str) -> tuple[bytes, ...]:
    """Chunks of a stream."""
    return (*(b'data: {"t":"%s"}\n\n' % text.encode() for text in texts), b"data: [DONE]\n\n")


STREAM = Reply(headers=(SSE,), chunks=sse("a", "b", "c", "d", "e"))
SILENT = Reply(stall_after=-1)
DEAD = Reply(kill_after=-1)


@dataclass(frozen=True)
class Seen:
    """A request as it reached a node."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> bytes | None:
        return next((value for key, value in self.headers if key == name.encode()), None)

    @property
    def model(self) -> str:
        return str(json.loads(self.body)["model"])


METRICS = (
    b'vllm:num_requests_running{engine="0",model_name="m"} 0\n'
    b'vllm:num_requests_waiting{engine="0",model_name="m"} 0\n'
    b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
)


class FakeNode:
    """A node by raw asyncio: it does what ``reply`` says, or what ``script`` says of one request after another.

    Args:
        node_id: its name in the router.
        reply: to every inference request.
        models: it serves.
        settings: more of its entry in the config.
    """

    def __init__(
        self, node_id: str = "a", reply: Reply = Reply(), models: tuple[str, ...] = (MODEL,), **settings: Any
    ) -> None:
        self.id = node_id
        self.reply = reply
        self.script: deque[Reply] = deque()
        self.models = models
        self.settings = settings
        self.metrics = METRICS
        self.seen: list[Seen] = []
        self.concurrent = 0
        self.peak = 0
        self.closes_seen = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._pace = asyncio.Semaphore(0)
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry in the config."""
        return {
            "id": self.id,
            "url": self.url,
            "engine": "vllm",
            "models": list(self.models),
            **self.settings,
        }

    def release(self, chunks: int = 1) -> None:
        """Let paced answers go on by so many chunks."""
        for _ in range(chunks):
            self._pace.release()

    async def start(self) -> None:
        """Listen; again on the same port after :meth:`kill`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop listening, and reset every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        if request.method == "GET":
            await self._telemetry(request, writer)
            return True
        self.seen.append(request)
        self.concurrent += 1
        self.peak = max(self.peak, self.concurrent)
        gone = asyncio.ensure_future(reader.read(1))
        answering = asyncio.ensure_future(
            self._answer(writer, self.script.popleft() if self.script else self.reply)
        )
        try:
            await asyncio.wait([gone, answering], return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and not isinstance(answering.exception(), ConnectionError):
                return answering.result()
            self.closes_seen += 1
            return False
        finally:
            self.concurrent -= 1
            gone.cancel()
            answering.cancel()
            await asyncio.gather(gone, answering, return_exceptions=True)

    async def _telemetry(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        if request.target == "/metrics":
            body = self.metrics
        else:
            cards = [{"id": model, "object": "model"} for model in self.models]
            body = json.dumps({"object": "list", "data": cards}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        """Whether the connection can be used again."""
        if await self._misbehaves(writer, reply, -1):
            return False
        head = b"HTTP/1.1 %d Whatever\r\n" % reply.status
        head += b"".join(name + b": " + value + b"\r\n" for name, value in reply.headers)
        if not reply.chunks:
            cut = len(reply.body) // 2 if reply.kill_after == 0 else len(reply.body)
            writer.write(head + b"content-length: %d\r\n\r\n" % len(reply.body) + reply.body[:cut])
            await writer.drain()
            return not await self._misbehaves(writer, reply, 0)
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n")
        for number, chunk in enumerate(reply.chunks):
            if await self._misbehaves(writer, reply, number):
                return False
            if reply.paced:
                await self._pace.acquire()
            if reply.every_s:
                await asyncio.sleep(reply.every_s)
            writer.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
            await writer.drain()
        if await self._misbehaves(writer, reply, len(reply.chunks)):
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _misbehaves(self, writer: asyncio.StreamWriter, reply: Reply, number: int) -> bool:
        if reply.kill_after == number:
            if number >= 0:
                await asyncio.sleep(0.02)  # a reset overtakes what was written before it
            _reset(writer)
            return True
        if reply.stall_after == number:
            await asyncio.Event().wait()
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> Seen:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ")
    headers = tuple(
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    )
    length = next((int(value) for name, value in headers if name == b"content-length"), 0)
    return Seen(method, target, headers, await reader.readexactly(length))
