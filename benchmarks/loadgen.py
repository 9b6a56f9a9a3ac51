"""A load generator that keeps its appointments: closed loop, open loop, and streams.

One thread, one epoll, own wake-ups through ``select`` because its timeout counts microseconds where the
event loops round to a millisecond. It reads a :class:`Plan` as JSON and answers with a JSON object:

    echo '{"mode": "open", "ports": [8090], "path": "/route", "body": "{}", "rate": 500}' |
        python -m benchmarks.loadgen
"""

import contextlib
import gc
import random
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httptools
import msgspec

from benchmarks.stats import percentile

#: A request must fit into the socket's send buffer, so that one ``send`` takes all of it.
MAX_REQUEST_BYTES = 128 * 2**10
_SEND_BUFFER_BYTES = 2 * MAX_REQUEST_BYTES
_RECEIVE_BYTES = 256 * 2**10
#: After an open loop, answers still due are awaited this long; then they count as unfinished.
_DRAIN_S = 2.0
#: Streams start this far apart in all, so that they do not beat together.
_STREAM_SPREAD_S = 0.1
_MAX_RECONNECTS = 1000
_CONNECT_S = 5.0
#: What the streaming mock writes into each chunk: when it had the request, when it sent the chunk (monotonic ns).
STAMP = re.compile(rb"@(\d+):(\d+)@")
_STAMP_BYTES = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    Args:
        mode: ``closed``: each connection sends when its answer is there. ``open``: requests are due at
            random moments (Poisson) whatever the server does. ``stream``: closed loop over SSE answers.
        ports: on loopback; connections take turns.
        path: of the POST.
        body: JSON text.
        connections: at most this many requests under way.
        warm_s: nothing that starts earlier is reported.
        duration_s: measured time after that.
        rate: requests per second; ``open`` only.
        seed: of the moments.
    """

    mode: Literal["closed", "open", "stream"]
    ports: tuple[int, ...]
    path: str
    body: str
    connections: int = 50
    warm_s: float = 0.5
    duration_s: float = 2.0
    rate: float = 0.0
    seed: int = 1


@dataclass(slots=True)
class Record:
    """What happened. The lists hold the measured window only, the counts everything.

    Args:
        window_ns: from and to, monotonic.
        open_loop: whether a request belongs to the window by the moment it was due, not by its answer.
    """

    window_ns: tuple[int, int]
    open_loop: bool
    answered: int = 0
    failed: int = 0
    unfinished: int = 0
    chunks: int = 0
    latency_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    chunk_ns: list[int] = field(default_factory=list)

    def answer(self, status: int, since_ns: int, now_ns: int) -> None:
        """Count a complete answer; its latency only if it is a good one."""
        if not 200 <= status < 300:
            self.failed += 1
            return
        self.answered += 1
        if self._inside(since_ns if self.open_loop else now_ns):
            self.latency_ns.append(now_ns - since_ns)

    def chunk(self, had_ns: int, sent_ns: int, since_ns: int, now_ns: int) -> None:
        """Count a chunk; ``had_ns`` is 0 except in the first, which tells when the node had the request."""
        self.chunks += 1
        if not self._inside(now_ns):
            return
        if had_ns:
            self.first_ns.append((now_ns - since_ns) - (sent_ns - had_ns))
        else:
            self.chunk_ns.append(now_ns - sent_ns)

    def _inside(self, moment_ns: int) -> bool:
        return self.window_ns[0] <= moment_ns <= self.window_ns[1]


def run(plan: Plan) -> dict[str, Any]:
    """Carry the plan out.

    Returns:
        ``answered`` (2xx answers, warm-up included), ``failed``, ``unfinished``, ``chunks``,
        ``elapsed_s``, ``rate_per_s`` (good answers in the window), ``generator_busy`` (share of a core),
        and ``latency_ms``, ``first_ms``, ``chunk_ms``: each p50, p90, p99, max and n, absent without
        values. An open loop's latency counts from the moment the request was due, not from when it was
        sent; ``first_ms`` is the time to the first chunk without the time the node itself took for it.

    Raises:
        ConnectionError: if the server cannot be reached, or drops connections without end.
    """
    began_s, cpu_s = time.perf_counter(), time.process_time()
    with _Generator(plan) as generator:
        record = generator.loop()
    elapsed_s = time.perf_counter() - began_s
    summaries = {"latency_ms": record.latency_ns, "first_ms": record.first_ns, "chunk_ms": record.chunk_ns}
    return {
        "answered": record.answered,
        "failed": record.failed,
        "unfinished": record.unfinished,
        "chunks": record.chunks,
        "elapsed_s": elapsed_s,
        "rate_per_s": len(record.latency_ns) / plan.duration_s,
        "generator_busy": (time.process_time() - cpu_s) / elapsed_s,
        **{name: summary_ms(values) for name, values in summaries.items() if values},
    }


def summary_ms(values_ns: Sequence[int]) -> dict[str, float]:
    """p50, p90, p99 and max in milliseconds, and the number of values."""
    ordered = sorted(values_ns)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: percentile(ordered, share) / 1e6 for name, share in shares.items()} | {"n": len(ordered)}


def due_s(plan: Plan) -> Iterator[float]:
    """Seconds from the start at which requests are due: all along an open loop, else one per connection."""
    if plan.mode == "open":
        rng = random.Random(plan.seed)
        return accumulate(rng.expovariate(plan.rate) for _ in repeat(None))
    spread_s = _STREAM_SPREAD_S if plan.mode == "stream" else 0.0
    return iter([i * spread_s / plan.connections for i in range(plan.connections)])


class _Connection:
    """One keep-alive connection with at most one request under way."""

    __slots__ = ("_finished", "_parser", "_record", "_tail", "port", "since_ns", "sock")

    def __init__(self, port: int, record: Record) -> None:
        self.port = port
        self.since_ns = 0
        self._record = record
        self.dial()

    def dial(self) -> None:
        """Connect, again if need be."""
        self.sock = _dialled(self.port)
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""

    def send(self, request: bytes, since_ns: int) -> None:
        """Send a request whose latency counts from ``since_ns``."""
        self.since_ns = since_ns
        self._finished = False
        if self.sock.send(request) != len(request):
            raise ConnectionError("the socket took only a part of a request that fits its buffer")

    def receive(self) -> bool:
        """Take what arrived; true when the answer is complete.

        Raises:
            ConnectionError: if the server closed, or says it will, or does not speak HTTP.
        """
        data = self.sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError(f"the server does not speak HTTP: {error}") from error
        return self._finished

    def on_body(self, body: bytes) -> None:
        """A part of the body; called by the parser."""
        if not self._tail and b"@" not in body:
            return
        now_ns = time.monotonic_ns()
        text = self._tail + body
        end = 0
        for stamp in STAMP.finditer(text):
            end = stamp.end()
            self._record.chunk(int(stamp[1]), int(stamp[2]), self.since_ns, now_ns)
        cut = text.find(b"@", end)
        self._tail = text[cut:] if 0 <= len(text) - cut < _STAMP_BYTES and cut >= 0 else b""

    def on_message_complete(self) -> None:
        """The answer is complete; called by the parser."""
        self._finished = True
        self._tail = b""
        self._record.answer(self._parser.get_status_code(), self.since_ns, time.monotonic_ns())


class _Generator:
    """The connections, the appointments, and the loop between them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._request = _request(plan)
        self._start_ns = time.monotonic_ns()
        self._stop_ns = self._start_ns + int((plan.warm_s + plan.duration_s) * 1e9)
        window_ns = (self._start_ns + int(plan.warm_s * 1e9), self._stop_ns)
        self._record = Record(window_ns, open_loop=plan.mode == "open")
        self._appointments = due_s(plan)
        self._waiting: deque[int] = deque()
        self._idle: deque[_Connection] = deque()
        self._busy: dict[int, _Connection] = {}
        self._reconnects = 0
        self._epoll = select.epoll()
        self._advance()

    def __enter__(self) -> Self:
        try:
            for i in range(self._plan.connections):
                connection = _Connection(self._plan.ports[i % len(self._plan.ports)], self._record)
                self._idle.append(connection)
                self._epoll.register(connection.sock, select.EPOLLIN)
        except OSError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._epoll.close()
        for connection in [*self._idle, *self._busy.values()]:
            connection.sock.close()

    def loop(self) -> Record:
        """Until the time is over; an open loop then waits a little for what is still due."""
        while (now_ns := time.monotonic_ns()) < self._stop_ns:
            self._wait(self._send_due(now_ns))
        if self._record.open_loop:
            self._drain()
        return self._record

    def _drain(self) -> None:
        end_ns = self._stop_ns + int(_DRAIN_S * 1e9)
        while (self._busy or self._waiting) and (now_ns := time.monotonic_ns()) < end_ns:
            self._dispatch()
            self._wait((end_ns - now_ns) / 1e9)
        self._record.unfinished = len(self._busy) + len(self._waiting)

    def _send_due(self, now_ns: int) -> float:
        """Send what is due; seconds until there is more to do."""
        while self._due_ns <= now_ns:
            self._waiting.append(self._due_ns if self._record.open_loop else now_ns)
            self._advance()
        self._dispatch()
        return (self._due_ns - now_ns) / 1e9

    def _advance(self) -> None:
        due = next(self._appointments, None)
        self._due_ns = self._stop_ns if due is None else min(self._stop_ns, self._start_ns + int(due * 1e9))

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            self._send(self._idle.popleft(), self._waiting.popleft())

    def _send(self, connection: _Connection, since_ns: int) -> None:
        self._busy[connection.sock.fileno()] = connection
        connection.send(self._request, since_ns)

    def _wait(self, timeout_s: float) -> None:
        if not select.select([self._epoll], [], [], max(0.0, timeout_s))[0]:
            return
        for fd, _ in self._epoll.poll(0):
            connection = self._busy.get(fd)
            if connection is None:
                self._dropped(next(idle for idle in self._idle if idle.sock.fileno() == fd))
            else:
                self._receive(fd, connection)

    def _receive(self, fd: int, connection: _Connection) -> None:
        try:
            if not connection.receive():
                return
        except OSError:
            del self._busy[fd]
            self._record.failed += 1
            self._idle.append(connection)
            self._dropped(connection)
        else:
            del self._busy[fd]
            self._idle.append(connection)
        if not self._record.open_loop:
            self._waiting.append(time.monotonic_ns())
            self._dispatch()

    def _dropped(self, connection: _Connection) -> None:
        """Dial again after the server closed."""
        self._reconnects += 1
        if self._reconnects > _MAX_RECONNECTS:
            raise ConnectionError(f"the server dropped {_MAX_RECONNECTS} connections: see its log")
        connection.sock.close()
        connection.dial()
        self._epoll.register(connection.sock, select.EPOLLIN)


def _dialled(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_CONNECT_S)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _request(plan: Plan) -> bytes:
    body = plan.body.encode()
    head = (
        f"POST {plan.path} HTTP/1.1\r\nhost: 127.0.0.1:{plan.ports[0]}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    if len(request) > MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {len(request)} bytes is too large: at most {MAX_REQUEST_BYTES}")
    return request


def main() -> None:
    """A plan from standard input, the result on standard output."""
    with contextlib.suppress(OSError):  # not every kernel lets a process ask for precise wake-ups
        Path("/proc/self/timerslack_ns").write_text("1")
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    gc.disable()
    sys.stdout.buffer.write(msgspec.json.encode(run(plan)))


if __name__ == "__main__":
    main()
