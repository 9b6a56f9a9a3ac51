"""Emulated nodes on real ports: several in one process, each to be killed and revived.

One uvicorn server for each node inside one event loop; signals are ours.
"""

import asyncio
import contextlib
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import uvicorn
import uvloop

from ccr.errors import CCRError, ConfigError
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS
from envs.asgi import App, Receive, Scope, Send, read, respond_json
from envs.catalogue import catalogue
from envs.dialect import BadAskError, decode
from envs.faults import Fault, parse
from envs.life import Build
from envs.node import EmulatedNode, NodeSettings
from envs.node_app import NodeApp

_BACKLOG = 1024
# Longer than a router keeps an idle connection, so that the router is the one who closes it.
_KEEP_ALIVE_S = 120
_LEAST_NOISE = 0.4
_TIDY_S = 1.0


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """A fleet of emulated nodes.

    Args:
        count: how many.
        host: where they listen.
        port: of the first, the others follow; 0: the system chooses all.
        supervisor_port: where :class:`Supervisor` listens; 0: the system chooses; ``None``: it does not.
        speed: node seconds for each second of the wall clock.
        gpus: cards, dealt to the nodes in turn; keys of :data:`ccr.timing.GPUS`.
        preset: engine; a key of :data:`ccr.timing.PRESETS`.
        load: where weights come from; a key of :data:`ccr.timing.LOAD_SOURCES`.
        models: ids out of the catalogue; empty: all of it.
        warm: ids resident at boot.
        overhead_s: HTTP and tokeniser, in node seconds.
        bw_scale: memory bandwidth relative to the fitted card.
        seed: of the noise in load times.
    """

    count: int = 4
    host: str = "127.0.0.1"
    port: int = 0
    supervisor_port: int | None = None
    speed: float = 1.0
    gpus: tuple[str, ...] = ("A10",)
    preset: str = "graph"
    load: str = "engine_swap"
    models: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    overhead_s: float = 0.0
    bw_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, known in (
            ("gpus", self.gpus, GPUS),
            ("preset", (self.preset,), PRESETS),
            ("load", (self.load,), LOAD_SOURCES),
        ):
            for value in values:
                if value not in known:
                    raise ConfigError(f"{name}: unknown {value!r}; choose from {', '.join(known)}")
        if self.count < 1 or not self.gpus:
            raise ConfigError(f"count is {self.count}, gpus {self.gpus}: a fleet needs a node and a card")
        if not self.speed > 0:
            raise ConfigError(f"speed is {self.speed}; give a number above 0 (1 is real time)")
        catalogue((*self.models, *self.warm))

    def build(self, index: int) -> Build:
        """What the node at ``index`` is built from."""
        models = catalogue(self.models)
        source = LOAD_SOURCES[self.load]
        node = NodeSettings(
            gpu=GPUS[self.gpus[index % len(self.gpus)]],
            preset=PRESETS[self.preset],
            source=source,
            overhead_s=self.overhead_s,
            bw_scale=self.bw_scale,
        )
        dice = random.Random(f"{self.seed}/{index}")
        return Build(
            name=f"node-{index}",
            models=models,
            warm=self.warm,
            speed=self.speed,
            make=lambda: EmulatedNode(models, node, _noise(dice, source.sd)),
        )


def _noise(dice: random.Random, sd: float) -> Callable[[], float]:
    """Factors around 1, normal with ``sd``, cut off where a load would become instant."""
    return lambda: max(_LEAST_NOISE, dice.gauss(1.0, sd))


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Keep the date header right; the original looks ten times a second whether it should stop."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Every connection was reset before: only wait until the requests have noticed."""
        for bound in sockets or ():
            bound.close()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=_TIDY_S)

    def stop(self) -> None:
        """Leave the main loop."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """An ASGI application on a port, that can be made to vanish.

    Args:
        app: the application.
        host: to bind.
        port: to bind; 0 for any. It stays the same after :meth:`close`.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        self._app = app
        self.host, self.port = host, port
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def open(self) -> None:
        """Listen; return when connections are accepted."""
        bound = _bind(self.host, self.port)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))
        await self._server.listening.wait()

    def vanish(self) -> None:
        """Stop listening and reset every connection, now."""
        if self._server is not None:
            for listening in self._server.servers:
                listening.close()
            for connection in _connections(self._server):
                _abort(connection)

    async def close(self) -> None:
        """Vanish, and return when nothing is left."""
        self.vanish()
        server, serving, self._server, self._serving = self._server, self._serving, None, None
        if server is not None and serving is not None:
            server.stop()
            await serving

    def abort(self, scope: Scope) -> None:
        """Reset the connection a request came on."""
        if self._server is not None:
            peer = tuple(scope["client"])
            for connection in _connections(self._server):
                if connection.client == peer:
                    _abort(connection)


def _bind(host: str, port: int) -> socket.socket:
    # The protocol is named because asyncio turns Nagle's delay off only where it is.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from None
    bound.setblocking(False)
    return bound


def _connections(server: _Server) -> list[Any]:
    return list(server.server_state.connections)


def _abort(connection: Any) -> None:
    """Close a uvicorn connection with a reset instead of a goodbye."""
    linger = struct.pack("ii", 1, 0)
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if connection.cycle is not None:
        # The loop reports the loss a turn later; until then nothing may be written.
        connection.cycle.disconnected = True
        connection.cycle.message_event.set()
    connection.transport.abort()


class NodeServer:
    """An emulated node on a port.

    Args:
        build: what it is built from.
        host: to bind.
        port: to bind; 0 for any.
    """

    def __init__(self, build: Build, host: str, port: int) -> None:
        self.app = NodeApp(build, self._abort, self._die)
        self._listener = Listener(self.app, host, port)
        self._one_at_a_time = asyncio.Lock()
        self._dying: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL; the same for all its lives."""
        return self._listener.url

    @property
    def name(self) -> str:
        """As in ``/debug/state``."""
        return self.app.life.build.name

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._listener.is_open

    async def start(self) -> None:
        """Listen."""
        await self._listener.open()

    async def kill(self) -> None:
        """Stop listening and reset every connection, like a machine that lost power."""
        self._listener.vanish()
        async with self._one_at_a_time:
            self.app.life.end("the node died")
            await self._listener.close()

    async def revive(self) -> None:
        """Boot again on the same port: nothing resident but what is warm at boot, and a new boot id."""
        async with self._one_at_a_time:
            if not self.alive:
                self.app.reboot()
                await self._listener.open()

    def fault(self, kind: str, **numbers: Any) -> None:
        """Make something go wrong, e.g. ``fault("slow", factor=10)``; see :class:`envs.faults.Fault`."""
        fault = Fault(kind, **numbers)
        if kind == "die":
            self._die()
        else:
            self.app.life.set_fault(fault)

    def snapshot(self) -> dict[str, Any]:
        """What ``/debug/state`` shows."""
        return self.app.life.snapshot()

    def _abort(self, scope: Scope) -> None:
        self._listener.abort(scope)

    def _die(self) -> None:
        self._dying = asyncio.get_running_loop().create_task(self._die_soon())

    async def _die_soon(self) -> None:
        await asyncio.sleep(0)  # one turn of the loop, in which an answer may still leave.
        await self.kill()


class Supervisor:
    """What outlives the nodes: ``GET /nodes``, ``POST /nodes/{i}/kill``, ``/revive`` and ``/fault``.

    Args:
        nodes: the fleet.
    """

    def __init__(self, nodes: Sequence[NodeServer]) -> None:
        self._nodes = nodes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        match scope["method"], *scope["path"].strip("/").split("/"):
            case "GET", "nodes":
                await respond_json(send, [_card(node) for node in self._nodes])
            case "POST", "nodes", number, verb if number.isdecimal() and int(number) < len(self._nodes):
                await self._do(verb, self._nodes[int(number)], receive, send)
            case _:
                await respond_json(send, {"error": "GET /nodes, or POST /nodes/{i}/kill|revive|fault"}, 404)

    async def _do(self, verb: str, node: NodeServer, receive: Receive, send: Send) -> None:
        try:
            match verb:
                case "kill":
                    await node.kill()
                case "revive":
                    await node.revive()
                case "fault":
                    fault = parse(decode(await read(receive)))
                    node.fault(**asdict(fault))
                case _:
                    raise BadAskError(f"cannot {verb!r} a node: kill, revive or fault")
        except CCRError as error:
            await respond_json(send, {"error": str(error)}, 400)
        else:
            await respond_json(send, _card(node))


def _card(node: NodeServer) -> dict[str, Any]:
    return {"name": node.name, "url": node.url, "alive": node.alive}


class EmulatedFleet:
    """Emulated nodes, from ``async with`` to its end.

    Args:
        settings: of the fleet.
        changes: fields of the settings by name, e.g. ``EmulatedFleet(count=2, speed=50)``.
    """

    def __init__(self, settings: EmulatorSettings | None = None, **changes: Any) -> None:
        self.settings = replace(settings or EmulatorSettings(), **changes)
        host, port = self.settings.host, self.settings.port
        self.nodes = [
            NodeServer(self.settings.build(i), host, port + i if port else 0)
            for i in range(self.settings.count)
        ]
        self.supervisor: Listener | None = None
        if self.settings.supervisor_port is not None:
            self.supervisor = Listener(Supervisor(self.nodes), host, self.settings.supervisor_port)

    @property
    def urls(self) -> list[str]:
        """Base URLs of the nodes, in order."""
        return [node.url for node in self.nodes]

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                await node.start()
            if self.supervisor is not None:
                await self.supervisor.open()
        except ConfigError:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Kill every node; nothing is left running."""
        kills = [node.kill() for node in self.nodes]
        if self.supervisor is not None:
            kills.append(self.supervisor.close())
        await asyncio.gather(*kills)


def run(settings: EmulatorSettings, on_ready: Callable[[EmulatedFleet], None]) -> None:
    """Emulate until SIGTERM or SIGINT.

    Args:
        settings: of the fleet.
        on_ready: told once, when every node listens.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, on_ready))


async def _run(settings: EmulatorSettings, on_ready: Callable[[EmulatedFleet], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with EmulatedFleet(settings) as fleet:
        on_ready(fleet)
        await stopped.wait()
