"""What a simulation is about: a fleet, its models, the traffic, what the routers know, and what goes wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr.errors import ConfigError
from ccr.prices import NodePrices, PriceList
from ccr.timing import (
    GIB,
    GPUS,
    LOAD_SOURCES,
    PRESETS,
    ModelSpec,
    decode_s,
    load_s,
    prefill_s,
    step_costs,
)
from ccr.types import NodeSpec
from envs.node import NodeSettings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEVER: Final = -1
SHARE_KEPT_S: Final = 2.0
"""How long what other routers placed stays in a ledger after they were last heard, as by the router's default."""
REFERENCE_ONLY: Final = frozenset({"crash", "lie", "fail"})
"""Kinds of trouble that the compiled simulator does not know."""


class Arrivals(NamedTuple):
    """The requests of an episode in columns of shape ``(r,)``, in order of arrival where it is known.

    Args:
        t: arrival in seconds; for a request that waits for another, the time after that one's end.
        model: row of the model.
        prompt_tokens: prompt length.
        output_tokens: generated length.
        session: conversation, counted from 0; -1 for none.
        prefix_tokens: leading prompt tokens that repeat the session's context.
        priority: as in :class:`ccr.types.Request`.
        after: the request whose end this one waits for; -1 for none.
    """

    t: Floats
    model: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints
    prefix_tokens: Ints
    priority: Ints
    after: Ints

    @property
    def sessions(self) -> int:
        """Number of conversations."""
        return int(self.session.max(initial=-1)) + 1


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node of the fleet.

    Args:
        id: unique name.
        gpu: key of :data:`ccr.timing.GPUS`.
        preset: key of :data:`ccr.timing.PRESETS`.
        source: key of :data:`ccr.timing.LOAD_SOURCES`.
        overhead_s: HTTP and tokeniser.
        bw_scale: its memory bandwidth relative to its card's.
        is_hidden: whether the routers take it for a plain node of its card, knowing neither overhead nor bandwidth.
        warm: models resident at the start.
    """

    id: str
    gpu: str = "A10"
    preset: str = "graph"
    source: str = "engine_swap"
    overhead_s: float = 0.02
    bw_scale: float = 1.0
    is_hidden: bool = False
    warm: tuple[str, ...] = ()

    def settings(self, *, keep_evicted: bool) -> NodeSettings:
        """For the node itself."""
        return NodeSettings(
            gpu=GPUS[self.gpu],
            preset=PRESETS[self.preset],
            source=LOAD_SOURCES[self.source],
            overhead_s=self.overhead_s,
            bw_scale=self.bw_scale,
            keep_evicted=keep_evicted,
        )

    def prices(self) -> NodePrices:
        """For the routers."""
        gpu, preset, source = GPUS[self.gpu], PRESETS[self.preset], LOAD_SOURCES[self.source]
        if self.is_hidden:
            return NodePrices(gpu, preset, source)
        return NodePrices(gpu, preset, source, self.overhead_s, self.bw_scale)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something goes wrong with a node for a while.

    Args:
        kind: ``slow``: every step takes ``factor`` times as long; ``freeze``: telemetry stops; ``crash``: everything on
            it is lost, and it comes back empty; ``lie``: telemetry shows an idle GPU and empty queues; ``fail``: what
            is sent there fails at once, while what it has goes on.
        node: its column.
        from_s: when it begins.
        until_s: when it is over.
        factor: for ``slow``.
    """

    kind: Literal["slow", "freeze", "crash", "lie", "fail"]
    node: int
    from_s: float
    until_s: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of day.

    Args:
        name: in the table.
        about: one sentence for people.
        nodes: the fleet.
        models: architecture by id; the rows of :class:`Arrivals`.
        arrivals: draws the traffic from a seed.
        warmup_s: requests before it are served but not counted.
        replicas: routers, each with its own ledger, that share the traffic.
        telemetry_period_s: time between two readings of a node.
        telemetry_delay_s: age of a reading when it arrives.
        troubles: what goes wrong.
        keep_evicted: whether evicted weights stay in host memory.
        eviction: whom nodes give up first: the least recently used model, or the least popular.
        load_noise: standard deviation of a load, as a fraction.
        batch_wait_s: how long routers hold requests of one model for each other; 0 for not at all.
        batch_size: requests that make a full batch.
        share_s: how often each router tells the others what it has in flight, and takes in what they told; 0: never.
        share_until_s: when that breaks down.
    """

    name: str
    about: str
    nodes: tuple[NodePlan, ...]
    models: Mapping[str, ModelSpec]
    arrivals: Callable[[int], Arrivals]
    warmup_s: float = 30.0
    replicas: int = 1
    telemetry_period_s: float = 0.5
    telemetry_delay_s: float = 0.2
    troubles: tuple[Trouble, ...] = ()
    keep_evicted: bool = False
    eviction: Literal["lru", "popularity"] = "lru"
    load_noise: float = 0.17
    batch_wait_s: float = 0.0
    batch_size: int = 4
    share_s: float = 0.0
    share_until_s: float = np.inf

    def __post_init__(self) -> None:
        if not self.nodes or not self.models:
            raise ConfigError(f"scenario {self.name!r} needs at least one node and one model")
        if self.telemetry_period_s <= 0.0 or self.telemetry_delay_s < 0.0 or self.replicas < 1:
            raise ConfigError(
                f"scenario {self.name!r}: telemetry_period_s must be above 0, telemetry_delay_s not below 0, "
                "replicas at least 1"
            )
        if not self.share_s >= 0.0 or self.share_s == np.inf:
            raise ConfigError(f"scenario {self.name!r}: share_s is {self.share_s}; give seconds, or 0")
        ends: dict[tuple[str, int], float] = {}
        for trouble in sorted(self.troubles, key=lambda trouble: trouble.from_s):
            key = (trouble.kind, trouble.node)
            if not 0 <= trouble.node < len(self.nodes) or not trouble.from_s < trouble.until_s:
                raise ConfigError(
                    f"scenario {self.name!r}: {trouble} needs a node of the fleet, and an end after its begin"
                )
            if trouble.from_s < ends.get(key, 0.0):
                raise ConfigError(
                    f"scenario {self.name!r}: {trouble} begins before another of its kind is over on that node"
                )
            ends[key] = trouble.until_s

    def specs(self) -> list[NodeSpec]:
        """The fleet as a router has it configured."""
        models = frozenset(self.models)
        return [
            NodeSpec(
                id=node.id,
                url=f"http://{node.id}",
                engine="emulator",
                labels={"gpu": node.gpu},
                gpu_total_gib=GPUS[node.gpu].total_gib,
                models=models,
                loads_on_demand=True,
            )
            for node in self.nodes
        ]

    def prices(self) -> PriceList:
        """What the routers take models and nodes for."""
        return PriceList(self.models, {node.id: node.prices() for node in self.nodes})

    def facts(self) -> list[tuple[str, float, float]]:
        """Id, GiB and load seconds of each model, as a router's catalogue tells them."""
        source = LOAD_SOURCES[self.nodes[0].source]
        return [(model, spec.stored_bytes / GIB, load_s(spec, source)) for model, spec in self.models.items()]

    def noise(self, seed: int, loads: int = 256) -> Floats:
        """Factors on the durations of each node's loads, one after the other, shape ``(n, loads)``; mean 1, above 0."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 0x10AD]))
        sd = self.load_noise
        drawn = rng.lognormal(-0.5 * np.log1p(sd * sd), np.sqrt(np.log1p(sd * sd)), (len(self.nodes), loads))
        return np.asarray(drawn)

    def ideal_s(self, arrivals: Arrivals) -> Floats:
        """Latency of each request alone on a warm, plain A10, shape ``(r,)``."""
        gpu, preset = GPUS["A10"], PRESETS["graph"]
        ideal = np.zeros(len(arrivals.t))
        for row, spec in enumerate(self.models.values()):
            costs = step_costs(spec, gpu, preset)
            for i in np.flatnonzero(arrivals.model == row):
                prompt, output = int(arrivals.prompt_tokens[i]), int(arrivals.output_tokens[i])
                rounds = max(output - 1, 0)
                ideal[i] = prefill_s(costs, [prompt]) + rounds * decode_s(costs, 1, prompt + output // 2)
        return ideal


def draws(seed: int, requests: int) -> Floats:
    """The draw of each request's decision, in [0, 1), shape ``(requests,)``."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xDECDE]))
    return np.asarray(rng.random(requests))
