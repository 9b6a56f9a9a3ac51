"""The emulated nodes and the router of the demo, as child processes, and how to steer them over HTTP."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from ccr.errors import CCRError
from router.demo.children import Child, Children
from router.demo.learner import Learning, is_installed, learning
from router.demo.workload import EmulatedNode, ServedModel, router_config
from router.prometheus_text import parse

COLD_STARTS = "ccr_node_cold_starts_total"
GPU_PEAK = "ccr_node_gpu_memory_peak_bytes"
_NODE_FIGURES = frozenset({COLD_STARTS, GPU_PEAK})
_GIB = 2.0**30
_CONTROL_TIMEOUT_S = 10.0


class StageError(CCRError):
    """A node or the router answered the demo with something else than it should."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the nodes' own metrics say.

    Args:
        cold_starts: of all nodes, since they were reset.
        peak_gib: GPU memory of the fullest node at its fullest, since they were reset.
    """

    cold_starts: int
    peak_gib: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs.

    Args:
        nodes: the emulated nodes.
        models: what they serve.
        speed: emulated seconds per second.
        url: of the router's data listener.
        admin_url: of its admin listener.
        token: for the admin listener.
        children: the processes.
        session: for HTTP.
        learning: what the learner says; ``None`` without one.
    """

    nodes: tuple[EmulatedNode, ...]
    models: tuple[ServedModel, ...]
    speed: float
    url: str
    admin_url: str
    token: str
    children: Children
    session: aiohttp.ClientSession
    learning: Learning | None = None

    async def reset_nodes(self) -> None:
        """Unload everything and zero the counters, on every node."""
        await asyncio.gather(*(self._call("POST", f"{node.url}/debug/reset") for node in self.nodes))

    async def fault(self, url: str, kind: str, **figures: float) -> None:
        """Make something go wrong with a node; ``none`` makes it well again."""
        await self._call("POST", f"{url}/debug/fault", {"kind": kind, **figures})

    async def use_policy(self, name: str) -> None:
        """Switch the router to a policy."""
        await self._call("POST", f"{self.admin_url}/admin/policy", {"name": name})

    async def figures(self) -> Figures:
        """What the nodes say now."""
        pages = await asyncio.gather(*(self._call("GET", f"{node.url}/metrics") for node in self.nodes))
        found = [parse(page, _NODE_FIGURES) for page in pages]
        if not all(page.keys() >= _NODE_FIGURES for page in found):
            raise StageError(
                f"a node does not tell {' and '.join(sorted(_NODE_FIGURES))}; is it of another version?"
            )
        return Figures(
            cold_starts=round(sum(page[COLD_STARTS][0][1] for page in found)),
            peak_gib=max(page[GPU_PEAK][0][1] for page in found) / _GIB,
        )

    async def in_flight(self, patience_s: float = 5.0) -> int:
        """Requests in flight by the router's ledger, once it has come to rest."""
        give_up_s = time.monotonic() + patience_s
        while True:
            count = int(json.loads(await self._call("GET", f"{self.admin_url}/admin/status"))["in_flight"])
            if not count or time.monotonic() > give_up_s:
                return count
            await asyncio.sleep(0.05)

    async def _call(self, method: str, url: str, body: Any = None) -> bytes:
        headers = {"authorization": f"Bearer {self.token}"} if url.startswith(self.admin_url) else {}
        try:
            async with self.session.request(
                method,
                url,
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=_CONTROL_TIMEOUT_S),
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.children.check()
            raise StageError(f"{method} {url} failed: {str(error) or 'no answer in time'}") from error
        if response.status != 200:
            raise StageError(
                f"{method} {url} answered {response.status}: {answer[:300].decode(errors='replace')}"
            )
        return answer


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be built.

    Args:
        speed: emulated seconds per second.
        nodes: how many.
        seed: of the nodes' noise.
        learner: whether one runs beside the router, where it is installed.
        full: whether router and learner share a real Redis instead of a directory.
    """

    speed: float
    nodes: int
    seed: int
    learner: bool = True
    full: bool = False


@asynccontextmanager
async def built(wanted: Wanted, session: aiohttp.ClientSession) -> AsyncIterator[Stage]:
    """Start the nodes, then the router before them, then the learner; everything ends with the context.

    Args:
        wanted: what is to be built.
        session: for HTTP.

    Raises:
        ChildError: if one of them does not come up.
        RedisMissingError: if a Redis is wanted, and there is none.
    """
    with ExitStack() as shared, Children() as children:
        nodes, models = await _start_nodes(children, wanted.speed, wanted.nodes, wanted.seed)
        port, admin_port = free_ports(2)
        config = children.directory / "router.yaml"
        document = router_config(nodes, models, speed=wanted.speed, port=port, admin_port=admin_port)
        learner, env = None, {}
        if wanted.full or (wanted.learner and is_installed()):
            learner = shared.enter_context(learning(children.directory, full=wanted.full))
            document, env = {**document, **learner.config}, learner.env
        config.write_text(json.dumps(document, indent=2))  # JSON is YAML
        token = secrets.token_urlsafe(24)
        arguments = ["--config", str(config)]
        router = children.start("router", ["serve", *arguments], {"CCR_ADMIN__TOKEN": token, **env})
        url = f"http://127.0.0.1:{port}"
        await children.until(router, "answer /readyz", lambda: _ready(session, url))
        if wanted.learner and learner is not None:
            children.start("learner", ["learn", *arguments], env)
        yield Stage(
            nodes, models, wanted.speed, url, f"http://127.0.0.1:{admin_port}", token, children, session,
            learner if wanted.learner else None,
        )  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


async def _start_nodes(
    children: Children, speed: float, count: int, seed: int
) -> tuple[tuple[EmulatedNode, ...], tuple[ServedModel, ...]]:
    options = {"--port": 0, "--count": count, "--speed": speed, "--gpu": "A10", "--seed": seed}
    arguments = [str(word) for option in options.items() for word in option]
    child = children.start("nodes", ["node", "--json", *arguments])
    found = await children.until(child, "say where they are", lambda: _announced(child))
    nodes = tuple(EmulatedNode(id=f"a10-{i}", url=node["url"]) for i, node in enumerate(found["nodes"], 1))
    models = tuple(
        ServedModel(model, facts["gib"], facts["load_s"], facts["architecture"])
        for model, facts in found["models"].items()
    )
    return nodes, models


async def _announced(child: Child) -> Any:
    """What ``ccr node --json`` printed, once it is whole."""
    try:
        return json.loads(child.out.read_bytes())
    except json.JSONDecodeError:
        return None


async def _ready(session: aiohttp.ClientSession, url: str) -> bool | None:
    try:
        async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=1.0)) as response:
            return True if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None
