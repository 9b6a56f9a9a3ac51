"""A running router inside the test's loop.

``async with running_router(settings, *nodes) as router:`` serves on ports of the system's choice. Nodes are
:class:`tests.router.fake_node.FakeNode` for faults to the byte, or urls of ``envs.emulator.EmulatedFleet`` for answers that official
clients take.
"""

import asyncio
import io
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ccr.settings import Settings
from router.app import Router
from router.server import Serving
from tests.router.fake_node import MODEL, FakeNode

TOKEN = "admin-token-of-the-tests"
CHAT = "/v1/chat/completions"


class Clock:
    """Real monotonic time at a speed, plus what the test skipped, so that half a minute costs nothing."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() * self.speed + self.skipped_s

    def skip(self, length_s: float) -> None:
        self.skipped_s += length_s


async def until(condition: Callable[[], Any], within_s: float = 5.0) -> Any:
    """What ``condition()`` gives once it is true; the test fails if it is not within the time."""
    try:
        async with asyncio.timeout(within_s):
            while not (value := condition()):  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s") from None
    return value


@dataclass
class Running:
    """A router that serves, and what a test needs to talk to it."""

    serving: Serving
    http: aiohttp.ClientSession
    clock: Clock
    url: str
    admin_url: str
    token: str = TOKEN
    nodes: tuple[FakeNode, ...] = ()
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def router(self) -> Router:
        return self.serving.router

    @property
    def port(self) -> int:
        return self.serving.port

    async def post(
        self, path: str = CHAT, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> "Answer":
        """One request, read to its end; ``body`` as JSON, or as bytes."""
        content = (
            body
            if isinstance(body, bytes)
            else json.dumps({"model": MODEL} if body is None else body).encode()
        )
        sent = {"content-type": "application/json", **(headers or {})}
        async with self.http.post(self.url + path, data=io.BytesIO(content), headers=sent) as reply:
            return Answer(reply.status, reply.headers, await reply.read())

    async def get(self, path: str, **kwargs: Any) -> "Answer":
        async with self.http.get(self.url + path, **kwargs) as reply:
            return Answer(reply.status, reply.headers, await reply.read())

    async def admin(self, method: str, path: str, body: Any = None, token: str | None = TOKEN) -> "Answer":
        """A call of the admin API."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with self.http.request(method, self.admin_url + path, json=body, headers=headers) as reply:
            return Answer(reply.status, reply.headers, await reply.read())

    def outcomes(self) -> Counter[str]:
        """How requests ended, over all models."""
        total: Counter[str] = Counter()
        for (_, _, outcome), number in self.router.stats.outcomes.items():
            total[str(outcome)] += number
        return total

    async def quiet(self, within_s: float = 1.0) -> None:
        """Wait until nothing is in flight, in the ledger or at a node."""
        ledger = self.router.dispatch.ledger
        await until(
            lambda: ledger.in_flight == 0 and not any(node.concurrent for node in self.nodes), within_s
        )
        assert all(state.inflight == 0 for state in self.router.fleet.states)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error in the OpenAI shape."""
        return str(self.json["error"]["code"])

    @property
    def node(self) -> str | None:
        value: str | None = self.headers.get("x-ccr-node")
        return value


async def rest_of(reply: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """What is still to come of an answer, and whether it ended as an answer should."""
    received = b""
    try:
        async for piece in reply.content.iter_any():
            received += piece
    except aiohttp.ClientPayloadError:
        return received, False
    return received, True


def a_config(settings: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of a test on top of those of the harness."""
    config: dict[str, Any] = {
        "server": {"port": 0},
        "admin": {"port": 0, "token": TOKEN},
        "log": {"requests": False},
        "telemetry": {"interval": 5.0},
        "upstream": {"answer_timeout": 30.0},
        "nodes": entries,
    }
    for section, given in settings.items():
        known = config.get(section)
        config[section] = (
            {**known, **given} if isinstance(known, dict) and isinstance(given, Mapping) else given
        )
    return config


@asynccontextmanager
async def running_router(
    settings: Mapping[str, Any] | None = None, *nodes: "FakeNode | dict[str, Any] | str", seed: int = 1
) -> AsyncIterator[Running]:
    """A router that serves these nodes: fake ones are started and killed with it, entries and urls are taken as they are."""
    async with AsyncExitStack() as stack:
        entries: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(node, FakeNode):
                await node.start()
                stack.push_async_callback(node.kill)
                entries.append(node.entry)
            else:
                entries.append({"url": node} if isinstance(node, str) else node)
        serving = Serving(Settings(**a_config(settings or {}, entries)))
        clock = Clock(serving.settings.server.clock_speed)
        serving.router = Router(serving.settings, serving.token, clock, seed)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=20),
                auto_decompress=False,
            )
        )
        running = Running(
            serving,
            http,
            clock,
            f"http://127.0.0.1:{serving.port}",
            f"http://127.0.0.1:{serving.admin_port}",
            nodes=tuple(node for node in nodes if isinstance(node, FakeNode)),
        )
        running.task = task = asyncio.create_task(serving.run())
        try:
            await until(lambda: task.done() or (serving.router.readiness.discovered and _listens(serving)))
            yield running
        finally:
            await http.close()
            serving.stop()
            serving.stop()
            await task


def _listens(serving: Serving) -> bool:
    return all(_accepts(port) for port in (serving.port, serving.admin_port))


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
