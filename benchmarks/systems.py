"""What is measured: the router, nginx in its place, two Python floors in its place, and the nodes behind them."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType

from benchmarks import nginx
from benchmarks.processes import BenchmarkError, Cores, Probe, Server, free_ports, running

CHAT = "/v1/chat/completions"
ROUTE = "/route"
ROUTE_BODY = json.dumps({"model": "m", "headers": {}})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens.

    Args:
        folder: of this run, removed at the end; configs and logs go there.
        cores: of server and load.
        nginx: path of nginx, ``None`` where it is not installed.
        wrk: path of wrk, ``None`` where it is not installed.
    """

    folder: Path
    cores: Cores
    nginx: str | None
    wrk: str | None

    def corner(self, name: str) -> Path:
        """A fresh folder for one program."""
        return Path(mkdtemp(prefix=f"{name}-", dir=self.folder))


@dataclass(frozen=True, slots=True)
class System:
    """Something requests can be sent to.

    Args:
        name: as the report shows it.
        ports: where it listens.
        server: the program; ``None`` for ``direct``, where requests reach the nodes without a server between.
    """

    name: str
    ports: tuple[int, ...]
    server: Server | None = None


def chat_body(prompt_bytes: int = 32, *, stream: bool = False) -> str:
    """A chat request with a prompt of this length."""
    prompt = ("The quick brown fox jumps over the lazy dog. " * (prompt_bytes // 45 + 1))[:prompt_bytes]
    message = {"role": "user", "content": prompt}
    return json.dumps({"model": "m", "messages": [message], "max_tokens": 32, "stream": stream})


@contextlib.contextmanager
def nodes(place: Place, count: int = 4, *, streaming: bool = False) -> Iterator[tuple[int, ...]]:
    """Mock nodes on the load core, nginx where it can be; the ports they listen on."""
    ports = free_ports(count)
    folder = place.corner("nodes")
    if place.nginx and not streaming:
        command = nginx.command(place.nginx, folder, nginx.nodes_config(folder, ports))
    else:
        command = [sys.executable, "-m", "benchmarks.mock", *map(str, ports)]
    probe = Probe(ports[-1], CHAT, chat_body())
    with running("nodes", command, probe, core=place.cores.load, folder=folder):
        yield ports


@contextlib.contextmanager
def _router(place: Place, behind: Sequence[int]) -> Iterator[System]:
    folder = place.corner("router")
    (port,) = free_ports(1)
    config = folder / "config.yaml"
    config.write_text(json.dumps(router_config(folder, port, behind), indent=2))
    command = [sys.executable, "-m", "ccr", "serve", "--config", str(config)]
    probe = Probe(port, ROUTE, ROUTE_BODY)
    with running("router", command, probe, core=place.cores.server, folder=folder) as server:
        yield System("router", (port,), server)


def router_config(folder: Path, port: int, behind: Sequence[int]) -> dict[str, object]:
    """The router's config; JSON is YAML.

    The policy is a heuristic: `/route` is measured with decisions that nobody ever reports on, and one that expects what it
    sent to be still there would rightly refuse most of them. What the learned policy costs is measured by ``decide``.

    Differs from the defaults in what would measure something else: no line per request, as in nginx
    here, and room for the decisions that ``/route`` leaves open, which end after a second.
    """
    return {
        "policy": {"name": "hot_cold"},
        "server": {"host": "127.0.0.1", "port": port},
        "admin": {"port": 0, "token_file": str(folder / "admin-token")},
        "nodes": [
            {"id": f"node-{i}", "url": f"http://127.0.0.1:{node}", "engine": "vllm", "models": ["m"]}
            for i, node in enumerate(behind)
        ],
        "telemetry": {"interval": "5s"},
        "admission": {"max_inflight": 10_000_000},
        "sidecar": {"lease": "1s"},
        "log": {"requests": False, "level": "warning"},
    }


@contextlib.contextmanager
def _nginx(place: Place, behind: Sequence[int]) -> Iterator[System]:
    if place.nginx is None:
        raise BenchmarkError(
            "nginx is not installed: install it (Debian: apt install nginx-light), or leave it out of --systems"
        )
    folder = place.corner("nginx")
    (port,) = free_ports(1)
    command = nginx.command(place.nginx, folder, nginx.front_config(folder, port, behind))
    probe = Probe(port, ROUTE, ROUTE_BODY)
    with running("nginx", command, probe, core=place.cores.server, folder=folder) as server:
        yield System("nginx", (port,), server)


@contextlib.contextmanager
def _floor(place: Place, behind: Sequence[int]) -> Iterator[System]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "benchmarks.floors:app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    env = {"FLOOR_NODES": ",".join(f"http://127.0.0.1:{node}" for node in behind)}
    probe = Probe(port, ROUTE, ROUTE_BODY)
    folder = place.corner("floor")
    with running("floor", command, probe, core=place.cores.server, folder=folder, env=env) as server:
        yield System("floor", (port,), server)


@contextlib.contextmanager
def _relay(place: Place, behind: Sequence[int]) -> Iterator[System]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.relay", str(port), *map(str, behind)]
    probe = Probe(port, ROUTE, ROUTE_BODY)
    folder = place.corner("relay")
    with running("relay", command, probe, core=place.cores.server, folder=folder) as server:
        yield System("relay", (port,), server)


Front = Callable[[Place, Sequence[int]], contextlib.AbstractContextManager[System]]
#: Everything that can stand in front of the nodes. The first one present is what ratios are to.
FRONTS: Mapping[str, Front] = MappingProxyType(
    {"nginx": _nginx, "floor": _floor, "relay": _relay, "router": _router}
)


def reference(systems: Sequence[str]) -> str:
    """The system ratios are to: nginx if it runs, else the floor, else nothing."""
    return next((name for name in ("nginx", "floor") if name in systems), "")
