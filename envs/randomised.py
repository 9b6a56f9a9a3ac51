"""Fleets and days drawn at random, so that no policy is tuned to one engine, one load, or one number of routers.

The ranges are those the learner was studied with; what a policy is compared on (:mod:`envs.scenarios`) is not drawn here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from ccr.prices import NodePrices
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS, EnginePreset, LoadSource
from envs.node import NodeSettings
from envs.scenario import Arrivals, NodePlan, Scenario, Trouble
from envs.scenarios import MODELS, clients, plain
from envs.traces.synth import CLASSES, Lengths, Workload

REPLICAS: Final = (1, 4, 8)
#: Further ids of the same architectures, for fleets that are asked for more models than they hold.
MORE_MODELS: Final = (*MODELS, *(f"{name}@{version}" for version in (3, 4, 5) for name in dict.fromkeys(
    model.partition("@")[0] for model in MODELS
)))  # fmt: skip
_PROMPTS: Final = (1 / 10, 8.0)
_OUTPUTS: Final = (1 / 10, 3.0)
_BRIEF: Final = ((1 / 20, 1 / 2), (1 / 30, 1 / 3))
_LONGEST_PROMPT: Final = 16_384
_FASTEST: Final = 4.0
_PREFILL_SHARE: Final = 0.27
"""Of the work of the default mix."""
_BANDWIDTH: Final = 0.15
_PER_SEQUENCE_S: Final = (0.05e-3, 0.25e-3)
_OVERHEAD_S: Final = (0.0, 0.1)
_LOAD_RATE: Final = 0.5
_DELAY_S: Final = (0.1, 1.0)
_PERIOD_S: Final = (0.2, 1.0)
_HIDDEN_SPEED: Final = (1 / 2.2, 1 / 0.8)
"""Steps take 0.8 to 2.2 times as long as the routers believe."""
_CROWDED_NODES: Final = 5
_TOO_MANY: Final = 4  # models beyond those that the nodes hold at a time
_ANSWER_S: Final = 3.0  # about what a client waits for an answer
_CARDS: Final = (("A10",), ("A10",), ("A10", "A10", "L4"), ("A10", "A10", "A10", "A100-80G"))


class Regime(NamedTuple):
    """A level of load.

    Args:
        weight: how often it is drawn, relative to the others.
        rate: least and most requests per second and node.
        is_prefill_heavy: whether prompts are long and answers short.
        is_crowded: whether there are more models than places for them, each about as popular as the next.
        is_closed: whether clients wait for an answer before they ask again; the rate is what they would reach without waiting.
        is_brief: whether prompts and answers are much shorter than usual, as of classifiers.
    """

    weight: float
    rate: tuple[float, float]
    is_prefill_heavy: bool = False
    is_crowded: bool = False
    is_closed: bool = False
    is_brief: bool = False


#: An A10 that keeps its models serves about 1.8 requests per second of the default mix, and 0.9 with long prompts.
REGIMES: Mapping[str, Regime] = MappingProxyType(
    {
        "low": Regime(1.0, (0.4, 0.9)),
        "medium": Regime(2.0, (0.9, 1.4)),
        "high": Regime(2.0, (1.4, 1.9)),
        "overload": Regime(1.0, (2.0, 3.2)),
        "saturated": Regime(1.0, (3.5, 4.5)),
        "prefill-heavy": Regime(1.0, (0.4, 1.1), is_prefill_heavy=True),
        "crowded": Regime(1.0, (0.3, 1.2), is_crowded=True),
        "brief": Regime(1.0, (0.3, 1.2), is_crowded=True, is_brief=True),
        "clients": Regime(1.0, (1.0, 3.0), is_crowded=True, is_closed=True),
    }
)


@dataclass(frozen=True, slots=True)
class VariedNode(NodePlan):
    """A node whose engine and loads are not those of a table.

    Args:
        engine: its engine; replaces ``preset``.
        loads: where its weights come from; replaces ``source``.
    """

    engine: EnginePreset = field(default_factory=lambda: PRESETS["graph"])
    loads: LoadSource = field(default_factory=lambda: LOAD_SOURCES["engine_swap"])

    def settings(self, *, keep_evicted: bool) -> NodeSettings:
        """For the node itself."""
        return NodeSettings(
            gpu=GPUS[self.gpu],
            preset=self.engine,
            source=self.loads,
            overhead_s=self.overhead_s,
            bw_scale=self.bw_scale,
            keep_evicted=keep_evicted,
        )

    def prices(self) -> NodePrices:
        """For the routers; of a hidden node they know the card and nothing else."""
        if self.is_hidden:
            return NodePrices(GPUS[self.gpu])
        return NodePrices(GPUS[self.gpu], self.engine, self.loads, self.overhead_s, self.bw_scale)


def randomised(
    seed: int, *, nodes: tuple[int, int] = (4, 16), duration_s: float = 120.0, regime: str = ""
) -> Scenario:
    """A fleet, its load and its constants; equal for equal arguments.

    Args:
        seed: of the scenario; that of its episodes is another.
        nodes: least and most nodes.
        duration_s: of the traffic.
        regime: a key of :data:`REGIMES`; empty: drawn as well.
    """
    rng = _rng(seed, 0xDA1)
    drawn = str(rng.choice(list(REGIMES), p=_weights()))
    name = regime or drawn
    level = REGIMES[name]
    most = max(min(nodes[1], _CROWDED_NODES), nodes[0]) if level.is_crowded else nodes[1]
    count = int(rng.integers(nodes[0], most + 1))
    models = _models(rng, count, is_crowded=level.is_crowded)
    prompts, outputs = (1.0, 1.0) if level.is_prefill_heavy else _lengths(rng, level)
    # The same work at one end, the same number of requests at the other.
    work = _PREFILL_SHARE * prompts + (1.0 - _PREFILL_SHARE) * outputs
    rate = float(min(work ** -rng.uniform(0.0, 1.0), _FASTEST) * rng.uniform(*level.rate))
    scenario = plain(
        f"random-{name}-{seed}",
        f"Drawn at random: {name}.",
        nodes=count,
        rate=rate,
        models=models,
        cards=_CARDS[rng.integers(len(_CARDS))],
        workload=_stretched(_workload(rng, level), prompts, outputs),
        duration_s=duration_s,
    )
    if level.is_closed:
        scenario = replace(scenario, arrivals=_asking(rng, models, rate * count, duration_s))
    scenario = replace(scenario, warmup_s=0.0, troubles=_troubles(rng, count, duration_s))
    return varied(scenario, seed)


def varied(scenario: Scenario, seed: int) -> Scenario:
    """The same day with other constants: engines, loads, overheads, speeds, readings, and number of routers.

    Args:
        scenario: its traffic, models, cards and troubles are kept.
        seed: equal for equal seeds.
    """
    rng = _rng(seed, 0xC057)
    is_hidden = bool(rng.random() < 0.3)
    engine = _engine(rng)
    source = LOAD_SOURCES[str(rng.choice(["engine_swap", "engine_swap", "disk_safetensors", "disk_fast"]))]
    loads = replace(source, bytes_per_s=source.bytes_per_s * rng.uniform(1 - _LOAD_RATE, 1 + _LOAD_RATE))
    return replace(
        scenario,
        nodes=tuple(_vary(node, rng, engine, loads, is_hidden=is_hidden) for node in scenario.nodes),
        replicas=int(rng.choice(REPLICAS)),
        telemetry_period_s=float(rng.uniform(*_PERIOD_S)),
        telemetry_delay_s=float(rng.uniform(*_DELAY_S)),
        keep_evicted=bool(rng.random() < 0.3),
        eviction="popularity" if rng.random() < 0.3 else "lru",
        load_noise=float(rng.uniform(0.05, 0.3)),
    )


def _vary(
    node: NodePlan, rng: np.random.Generator, engine: EnginePreset, loads: LoadSource, *, is_hidden: bool
) -> VariedNode:
    speeds = _HIDDEN_SPEED if is_hidden else (1 - _BANDWIDTH, 1 + _BANDWIDTH)
    return VariedNode(
        id=node.id,
        gpu=node.gpu,
        source=loads.name,
        overhead_s=float(rng.uniform(*_OVERHEAD_S)),
        bw_scale=float(rng.uniform(*speeds)),
        is_hidden=is_hidden,
        warm=node.warm,
        engine=engine,
        loads=loads,
    )


def _engine(rng: np.random.Generator) -> EnginePreset:
    graph = PRESETS["graph"]
    faster = rng.uniform(1 - _BANDWIDTH, 1 + _BANDWIDTH)
    return replace(
        graph,
        prefill_bandwidth=graph.prefill_bandwidth * faster,
        decode_bandwidth=graph.decode_bandwidth * faster,
        kv_bandwidth=graph.kv_bandwidth * faster,
        per_sequence_s=float(rng.uniform(*_PER_SEQUENCE_S)),
    )


def _models(rng: np.random.Generator, nodes: int, *, is_crowded: bool) -> tuple[str, ...]:
    """Every second day from a longer list, up to as many as the nodes hold at a time; on a crowded one a few more."""
    if is_crowded:
        known, fewest, most = MORE_MODELS, 2 * nodes, 2 * nodes + _TOO_MANY
    else:
        most = min(len(MORE_MODELS), 2 * nodes) if rng.random() < 0.5 else len(MODELS)
        known, fewest = MORE_MODELS if most > len(MODELS) else MODELS, 3
    return tuple(str(model) for model in rng.permutation(known)[: rng.integers(fewest, most + 1)])


def _lengths(rng: np.random.Generator, regime: Regime) -> tuple[float, float]:
    """How much longer prompts and answers are than usual: every second day as usual, unless all of them are brief."""
    ranges = _BRIEF if regime.is_brief else (_PROMPTS, _OUTPUTS)
    prompts, outputs = (float(np.exp(rng.uniform(*np.log(limits)))) for limits in ranges)
    return (prompts, outputs) if regime.is_brief or rng.random() < 0.5 else (1.0, 1.0)


def _stretched(workload: Workload, prompts: float, outputs: float) -> Workload:
    classes = {
        name: replace(
            each,
            prompt_median=prompts * each.prompt_median,
            prompt_max=int(min(max(prompts, 1.0) * each.prompt_max, _LONGEST_PROMPT)),
            output_median=max(outputs * each.output_median, 2.0),
        )
        for name, each in workload.classes.items()
    }
    return replace(workload, classes=classes)


def _workload(rng: np.random.Generator, regime: Regime) -> Workload:
    drawn = Workload(
        zipf=float(rng.uniform(0.4, 1.4)),
        cv=float(rng.uniform(1.0, 3.0)),
        drift=float(rng.uniform(0.0, 0.8)),
        drift_s=float(rng.uniform(20.0, 60.0)),
        burst_factor=float(rng.choice([1.0, 1.0, 3.0, 5.0])),
        burst_s=float(rng.uniform(8.0, 20.0)),
        release_every_s=float(rng.choice([0.0, 0.0, 0.0, rng.uniform(30.0, 80.0)])),
        release_ramp_s=float(rng.uniform(10.0, 40.0)),
    )
    return replace(drawn, classes=_long_prompts(rng)) if regime.is_prefill_heavy else drawn


def _asking(
    rng: np.random.Generator, models: tuple[str, ...], rate: float, duration_s: float
) -> Callable[[int], Arrivals]:
    """Clients that think, ask one of the models for a short answer, and wait for it."""
    think_s = float(rng.uniform(2.0, 8.0))
    return clients(
        models, count=max(round(rate * think_s), 2), requests=max(round(duration_s / (think_s + _ANSWER_S)), 2),
        think_s=think_s, prompt=int(rng.integers(40, 400)), output=int(rng.integers(16, 100)), zipf=float(rng.uniform(0.4, 1.4)),
    )  # fmt: skip


def _long_prompts(rng: np.random.Generator) -> dict[str, Lengths]:
    prompt, output = float(rng.uniform(1400.0, 2400.0)), float(rng.uniform(20.0, 50.0))
    return {
        name: replace(lengths, prompt_median=prompt, prompt_sigma=0.4, output_median=output, turns=1.0)
        for name, lengths in CLASSES.items()
    }


def _troubles(rng: np.random.Generator, nodes: int, duration_s: float) -> tuple[Trouble, ...]:
    """In one day of seven a straggler, in another a node whose telemetry stands still."""
    drawn, kind = int(rng.integers(nodes)), rng.random()
    from_s = float(rng.uniform(0.1, 0.5)) * duration_s
    until_s = from_s + float(rng.uniform(0.2, 0.4)) * duration_s
    if kind < 1 / 7:
        return (Trouble("slow", drawn, from_s, until_s, float(rng.uniform(2.0, 5.0))),)
    if kind < 2 / 7:
        return (Trouble("freeze", drawn, from_s, until_s),)
    return ()


def _weights() -> list[float]:
    total = sum(regime.weight for regime in REGIMES.values())
    return [regime.weight / total for regime in REGIMES.values()]


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream]))
