"""What a swap of weights costs the requests around it: one client, one router, weights published every few seconds.

The client asks ``/route`` and reports on it, one request after the other, so that whatever holds up the router holds up exactly one of
them. Weights are published in the moment between two requests: the files and the signed manifests were made before, so
that only a pointer moves. *Near* are the requests of the second and a half from then, in which the router reads the
file, tries it on 256 states and swaps; *away* are all others.
"""

import http.client
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.processes import BenchmarkError, Probe, free_ports, on_core, running
from benchmarks.stats import Sample
from benchmarks.systems import ROUTE, ROUTE_BODY, Place, router_config
from ccr import weights
from ccr.book import Floats
from ccr.policies.learned import SHIPPED
from ccr.publication import Publication, signed
from ccr.weights import Weights
from router.publishing.publisher import NAME
from router.store.embedded import EmbeddedStore
from router.store.store import Lease

NEAR_S: Final = 1.5
EVERY_S: Final = 3.0
_KEY: Final = b"a key of the benchmark"
_WARM_S: Final = 2.0
_LONGEST_LEASE_S: Final = 3600.0


class Publishing:
    """Weights that are ready to be published.

    Args:
        store: of the router.
        count: how many.
    """

    def __init__(self, store: EmbeddedStore, count: int) -> None:
        lease = store.lease(NAME, "benchmark", _LONGEST_LEASE_S)
        if lease is None:
            raise BenchmarkError("a new store has a lease already")
        self._store, self._lease = store, lease
        self._manifests = list(_manifests(store, count, lease))
        self._current: bytes | None = None

    def next(self) -> None:
        """Move the pointer."""
        manifest = self._manifests.pop(0)
        self._store.point(NAME, self._current, manifest, self._lease)
        self._current = manifest

    def __len__(self) -> int:
        return len(self._manifests)


def measured(place: Place, behind: tuple[int, ...], swaps: int) -> dict[str, Sample]:
    """Latency of requests near swaps and away from them, and by how much the one in a thousand near is longer.

    Args:
        place: of the run.
        behind: ports of nodes.
        swaps: how many.
    """
    folder = place.corner("swap")
    (port,) = free_ports(1)
    store = EmbeddedStore(folder / "store")
    publishing = Publishing(store, swaps)
    config = router_config(folder, port, behind) | {
        "policy": {"name": "learned"},
        "store": {"directory": str(folder / "store")},
        "publication": {"key": _KEY.decode()},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    command = ["-m", "ccr", "serve", "--config", str(folder / "config.yaml")]
    with running(
        "swap",
        [sys.executable, *command],
        Probe(port, ROUTE, ROUTE_BODY),
        core=place.cores.server,
        folder=folder,
    ):
        with on_core(place.cores.load):
            at_s, took_s, swapped_s = _asked(port, publishing)
        _check_swapped(port, swaps)
    store.close()
    return samples(at_s, took_s, swapped_s)


def samples(at_s: Floats, took_s: Floats, swapped_s: Floats) -> dict[str, Sample]:
    """The latencies as the report takes them.

    Args:
        at_s: when each request was sent, ascending.
        took_s: how long each took.
        swapped_s: when weights were published.
    """
    since_s = at_s[:, None] - swapped_s[None, :]
    near = ((since_s >= 0.0) & (since_s < NEAR_S)).any(axis=1)
    away, close = _sample(took_s[~near]), _sample(took_s[near])
    return {"away": away, "near": {**close, "added_ms": close["p999_ms"] - away["p999_ms"]}}


def _sample(took_s: Floats) -> Sample:
    p50, p99, p999 = (1e3 * np.quantile(took_s, (0.5, 0.99, 0.999))).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "max_ms": 1e3 * float(took_s.max())}


def _manifests(store: EmbeddedStore, count: int, lease: Lease) -> Iterator[bytes]:
    shipped = weights.load(SHIPPED)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.npz"
        for version in range(1, count + 1):
            # Each a little other: the same numbers would be the same weights.
            network = shipped.network._replace(theta=shipped.network.theta * (1.0 + 1e-6 * version))
            weights.save(Weights(network, {**shipped.manifest, "version": f"swap-{version}"}), path)
            data = path.read_bytes()
            publication = Publication(
                epoch=lease.token, version=version, sha256=store.put_blob(data), size=len(data), name=f"swap-{version}",
                created_at_s=time.time(),
            )  # fmt: skip
            yield signed(publication, _KEY)


def _asked(port: int, publishing: Publishing) -> tuple[Floats, Floats, Floats]:
    """When requests were sent, how long each took, when weights were published."""
    at_s: list[float] = []
    took_s: list[float] = []
    swapped_s: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun_s = time.perf_counter()
        due_s, end_s = begun_s + _WARM_S + EVERY_S, begun_s + _WARM_S + EVERY_S * (len(publishing) + 1)
        while (now_s := time.perf_counter()) < end_s:
            if now_s >= due_s and len(publishing):
                publishing.next()
                swapped_s.append(now_s)
                due_s += EVERY_S
                now_s = time.perf_counter()
            answer = _exchange(connection, ROUTE, ROUTE_BODY.encode())
            if now_s >= begun_s + _WARM_S:
                at_s.append(now_s)
                took_s.append(time.perf_counter() - now_s)
            report = {
                "decision_token": json.loads(answer)["decision_token"],
                "latency_ms": 1.0,
                "output_tokens": 4,
            }
            _exchange(connection, "/feedback", json.dumps(report).encode())
    return np.array(at_s), np.array(took_s), np.array(swapped_s)


def _exchange(connection: socket.socket, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head_bytes, _, answer = received.partition(b"\r\n\r\n")
    lines = head_bytes.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    while len(answer) < length:
        answer += _some(connection)
    if b" 200 " not in lines[0]:
        raise BenchmarkError(
            f"{path} was answered {lines[0].decode()}: {answer[:200].decode(errors='replace')}"
        )
    return answer


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise BenchmarkError("the router closed the connection")
    return data


def _check_swapped(port: int, swaps: int) -> None:
    """Whether the router took every one of them: what did not happen delays nobody."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    for line in (f"ccr_weights_version {float(swaps)}", f"ccr_policy_epoch {float(swaps + 1)}"):
        if line not in page:
            raise BenchmarkError(
                f"not all of the {swaps} published weights were taken: the metrics do not say `{line}`"
            )
