"""What the demo asks for, and the config of the router that serves it.

Six models in ten versions; popularity falls as 1/rank over the models, and a model's first version takes most of
its requests, the others are canaries. Prompts are 32-256 tokens (median 96), answers 8-64 (median 24): short chat, as
in the founding article's benchmark. A client names the version it wants, so the requests are the same for every
policy; the same shares stand in the router's config as canary weights for clients that name only the model.

Ten versions and room for two on each of four A10s: what limits the fleet is loading models, not arithmetic. Under
`article` it answers 9.6 requests a second (emulated) when 50 clients do not think at all; they think 5 s by default,
which makes it 6.2, two thirds of that. Clients, think time and nothing else were chosen for that share
(2 cores, speed 10, seed 1: `ccr demo --policies article --think-time 0 --exit`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.load_mix import Mix, zipf

#: Share of each version among those of its model, by how many there are.
_VERSION_SHARES: Mapping[int, Sequence[float]] = {1: (1.0,), 2: (0.95, 0.05), 3: (0.94, 0.05, 0.01)}
_TELEMETRY_S = 1.0
PATIENCE_S = 600.0
"""Patience with an answer, in emulated time: long, so that a bad policy shows as waiting."""
_TIMEOUTS = ("ttft_timeout", "answer_timeout", "stream_idle_timeout")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model id as the nodes tell it.

    Args:
        id: ``name@version``.
        gib: GPU memory of its weights.
        load_s: expected seconds of a cold start, in emulated time.
        architecture: as in the section of a router's config.
    """

    id: str
    gib: float
    load_s: float
    architecture: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Without the version."""
        return self.id.partition("@")[0]

    @property
    def version(self) -> str:
        """Without the name."""
        return self.id.partition("@")[2]


@dataclass(frozen=True, slots=True)
class EmulatedNode:
    """A node as ``ccr node`` tells it."""

    id: str
    url: str


def popularity(models: Sequence[ServedModel]) -> list[tuple[str, float]]:
    """Each model id with its share of the requests; the names' ranks are the order in which they come."""
    versions = _by_name(models)
    return [
        (model.id, share * version_share)
        for name, share in zipf(list(versions))
        for model, version_share in zip(versions[name], _shares(len(versions[name])), strict=True)
    ]


def mix(models: Sequence[ServedModel]) -> Mix:
    """The requests of the demo."""
    return Mix(models=popularity(models))


def router_config(
    nodes: Sequence[EmulatedNode], models: Sequence[ServedModel], *, speed: float, port: int, admin_port: int
) -> dict[str, Any]:
    """The config of the demo's router, as it would stand in a ``config.yaml``.

    Its clock runs as fast as the nodes, so its times are emulated times.

    Args:
        nodes: which there are.
        models: which they serve.
        speed: emulated seconds per second.
        port: of the data listener.
        admin_port: of the admin listener.
    """
    return {
        "server": {"port": port, "drain": "2s", "clock_speed": speed},
        "admin": {"port": admin_port},
        "policy": {"name": "round_robin"},
        "nodes": [
            {
                "id": node.id,
                "url": node.url,
                "engine": "emulator",
                "labels": {"gpu": "A10"},
                "models": [model.id for model in models],
                "loads_on_demand": True,
                "schedules_by_priority": True,
            }
            for node in nodes
        ],
        "models": {
            name: {"architecture": dict(known[0].architecture), "versions": _versions(known)}
            for name, known in _by_name(models).items()
        },
        "upstream": dict.fromkeys(_TIMEOUTS, PATIENCE_S),
        "telemetry": {"interval": _TELEMETRY_S},
        "log": {"requests": False},
    }


def _versions(models: Sequence[ServedModel]) -> dict[str, Any]:
    return {
        model.version: {"weight": share, "gib": model.gib, "load": model.load_s}
        for model, share in zip(models, _shares(len(models)), strict=True)
    }


def _shares(count: int) -> Sequence[float]:
    return _VERSION_SHARES.get(count) or [1.0 / count] * count


def _by_name(models: Sequence[ServedModel]) -> dict[str, list[ServedModel]]:
    found: dict[str, list[ServedModel]] = {}
    for model in models:
        found.setdefault(model.name, []).append(model)
    return found
