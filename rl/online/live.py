"""The live fleet as a scenario: its nodes as the calibration knows them, its traffic as it was recorded, varied around both."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ccr.hashing import hash64
from ccr.settings import Settings
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS, ModelSpec, kv_tokens, load_s
from ccr.types import NodeSpec
from envs.randomised import VariedNode
from envs.scenario import Arrivals, NodePlan, Scenario
from envs.scenarios import fleet
from rl.days import Day
from rl.online.calibration import Calibrator
from rl.online.traffic import load, save
from router.discovery.configured import spec_of

#: Seeds of days to train on and to be examined on; those of `rl.days` begin elsewhere.
TRAINING_SEEDS: Final = 60_000_000
EXAM_SEEDS: Final = 70_000_000
#: A day is so long, and has at most so many requests.
DAY_S: Final = 120.0
_MOST_REQUESTS: Final = 3_000
_DEFAULT_OUTPUT: Final = 128.0
_LARGEST: Final = 0.45  # of the tokens that a card holds beside the model: prompt and answer, each

# What varies around what was seen, from day to day.
_RATE: Final = (0.8, 1.25)
_LENGTHS: Final = (0.85, 1.2)
_SPEED: Final = 0.1
_OVERHEAD: Final = 0.3
_LOAD: Final = 0.25
_PERIOD_S: Final = (0.3, 1.0)
_DELAY_S: Final = (0.1, 0.6)
#: A node whose speed is off by more than this is one whose routers find out themselves.
_HIDDEN: Final = math.log(1.08)


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A node as it is taken to be.

    Args:
        id: its name, or what stands for it.
        gpu: its card.
        speed: time per token as a multiple of the expected one.
        overhead_s: what a request takes besides its steps.
    """

    id: str
    gpu: str = "A10"
    speed: float = 1.0
    overhead_s: float = 0.02


@dataclass(frozen=True, slots=True)
class LiveFleet:
    """What days are made from.

    Args:
        nodes: of the fleet.
        models: id of each and its architecture, as keyword arguments; in the order of the rows of the traffic.
        keys: hash of each model.
        load_times: seconds of a load as a multiple of what its bytes take from `engine_swap`.
        replicas: routers that share the traffic.
        clock_speed: of the routers.
    """

    nodes: tuple[LiveNode, ...]
    models: tuple[tuple[str, Mapping[str, Any]], ...]
    keys: tuple[int, ...]
    load_times: float = 1.0
    replicas: int = 1
    clock_speed: float = 1.0


def seen(
    settings: Settings, rows: NDArray[np.void], calibrator: Calibrator, nodes: Sequence[int], coverage: float
) -> LiveFleet:
    """The fleet as config and records tell it.

    Args:
        settings: name nodes and models, where they do.
        rows: the traffic, of :class:`rl.online.traffic.Traffic`.
        calibrator: what is known of nodes and models.
        nodes: hashes of those of the latest record.
        coverage: share of the traffic that one router sees.
    """
    prices, names = settings.prices(), names_of(settings)
    specs = {hash64(spec.id): spec for spec in _specs(settings)}
    keys = [int(key) for key in np.unique(rows["model"])]
    count = {key: int((rows["model"] == key).sum()) for key in keys}
    keys.sort(key=lambda key: -count[key])
    models = tuple(
        (names.get(key, f"unknown-{key:016x}"), _shape(prices.model(names.get(key, "")))) for key in keys
    )
    live = []
    for k, key in enumerate(nodes):
        state, spec = calibrator.nodes.get(key), specs.get(key)
        speed = math.exp(state.speed) if state else 1.0
        overhead_s = state.overhead_s if state and not math.isnan(state.overhead_s) else 0.02
        gpu = prices.node(spec).gpu.name if spec else "A10"
        live.append(LiveNode(spec.id if spec else f"node-{k}", gpu, speed, overhead_s))
    times = [
        calibrator.models[key].load_s / _load_s(shape)
        for key, (_, shape) in zip(keys, models, strict=True)
        if key in calibrator.models and not math.isnan(calibrator.models[key].load_s)
    ]
    return LiveFleet(
        tuple(live), models, tuple(keys), float(np.median(times)) if times else 1.0,
        max(round(1.0 / coverage), 1), settings.server.clock_speed,
    )  # fmt: skip


def names_of(settings: Settings) -> dict[int, str]:
    """Hash -> id of every node and model that the config names."""
    models = [
        version.id for entry in settings.catalogue().models.values() for version in entry.versions.values()
    ]
    listed = [model for node in settings.nodes for model in node.models or ()]
    nodes = [spec.id for spec in _specs(settings)]
    return {hash64(name): name for name in (*settings.models, *models, *listed, *nodes)}


def keep(live: LiveFleet, rows: NDArray[np.void], directory: Path) -> None:
    """Write what days are made from, for another process to read."""
    directory.mkdir(parents=True, exist_ok=True)
    save(rows, directory / "traffic.npy")
    (directory / "fleet.json").write_text(json.dumps(asdict(live)))


@lru_cache(maxsize=2)
def kept(directory: str) -> tuple[LiveFleet, NDArray[np.void]]:
    """Read it."""
    found = json.loads((Path(directory) / "fleet.json").read_text())
    found["nodes"] = tuple(LiveNode(**one) for one in found["nodes"])
    found["models"] = tuple((name, shape) for name, shape in found["models"])
    found["keys"] = tuple(found["keys"])
    return LiveFleet(**found), load(Path(directory) / "traffic.npy")


@dataclass(frozen=True, slots=True)
class LiveDay(Day):
    """A day of the live fleet; ``scenario`` is the directory it is kept in."""

    def make(self) -> Scenario:
        """Drawn from the seed."""
        live, rows = kept(self.scenario)
        return drawn(live, rows, self.seed)


def days(directory: Path, first: int, count: int) -> list[Day]:
    """Days from consecutive seeds."""
    return [LiveDay(first + k, str(directory)) for k in range(count)]


def drawn(live: LiveFleet, rows: NDArray[np.void], seed: int) -> Scenario:
    """A day: a cut of the recorded traffic, stretched; nodes as they are, a little different.

    Args:
        live: the fleet.
        rows: its traffic.
        seed: equal for equal seeds.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x11FE]))
    models = {name: ModelSpec(**shape) for name, shape in live.models}
    loads = replace(
        LOAD_SOURCES["engine_swap"], name="live",
        fixed_s=LOAD_SOURCES["engine_swap"].fixed_s * (times := live.load_times * _around(rng, _LOAD)),
        bytes_per_s=LOAD_SOURCES["engine_swap"].bytes_per_s / times,
    )  # fmt: skip
    arrivals = _arrivals(live, rows, list(models.values()), rng)
    popular = list(models)
    warm = [plan.warm for plan in fleet(len(live.nodes), popular)]
    return Scenario(
        name=f"live-{seed}",
        about="The live fleet and its latest traffic, varied.",
        nodes=tuple(_node(node, warm[k], loads, rng) for k, node in enumerate(live.nodes)),
        models=models,
        arrivals=lambda seed: arrivals,  # noqa: ARG005 - drawn from the seed of the day
        warmup_s=0.1 * DAY_S,
        replicas=live.replicas,
        telemetry_period_s=float(rng.uniform(*_PERIOD_S)),
        telemetry_delay_s=float(rng.uniform(*_DELAY_S)),
    )


def _node(node: LiveNode, warm: tuple[str, ...], loads: Any, rng: np.random.Generator) -> NodePlan:
    speed = node.speed * _around(rng, _SPEED)
    return VariedNode(
        id=node.id, gpu=node.gpu, source="engine_swap", overhead_s=node.overhead_s * _around(rng, _OVERHEAD),
        bw_scale=1.0 / speed, is_hidden=abs(math.log(speed)) > _HIDDEN, warm=warm, engine=PRESETS["graph"], loads=loads,
    )  # fmt: skip


def _arrivals(
    live: LiveFleet, rows: NDArray[np.void], specs: Sequence[ModelSpec], rng: np.random.Generator
) -> Arrivals:
    """A cut of the traffic that wraps around its end, a little denser or thinner, with lengths a little other."""
    begin_s = float(rows["at_s"][0])
    t = (rows["at_s"] - begin_s) * live.clock_speed
    span_s = max(float(t[-1]) * (1.0 + 1.0 / len(t)), 1.0)
    t = (t + rng.uniform(0.0, span_s)) % span_s
    order = np.argsort(t, kind="stable")
    t, rows = t[order], rows[order]
    rate = float(rng.uniform(*_RATE))
    if span_s < DAY_S * rate:  # too short for a day: over and over
        times = math.ceil(DAY_S * rate / span_s)
        t, rows = np.concatenate([t + k * span_s for k in range(times)]), np.tile(rows, times)
    here = (t < DAY_S * rate) & (np.arange(len(t)) < _MOST_REQUESTS)
    t, rows = t[here] / rate, rows[here]
    by_key = {key: row for row, key in enumerate(live.keys)}
    model = np.array([by_key[int(key)] for key in rows["model"]], dtype=np.int64)
    prompts, outputs = rng.uniform(*_LENGTHS), rng.uniform(*_LENGTHS)
    known = rows["output"][np.isfinite(rows["output"])]
    typical = float(np.median(known)) if len(known) else _DEFAULT_OUTPUT
    output = np.where(np.isfinite(rows["output"]), rows["output"], typical)
    most = np.array(
        [_LARGEST * min(kv_tokens(GPUS[node.gpu], [spec]) for node in live.nodes) for spec in specs]
    )
    _, session = np.unique(rows["session"], return_inverse=True)
    unknown = np.full(len(t), -1, dtype=np.int64)
    return Arrivals(
        t=t, model=model,
        prompt_tokens=np.clip(prompts * rows["prompt"], 1.0, most[model]).astype(np.int64),
        output_tokens=np.clip(outputs * output, 1.0, most[model]).astype(np.int64),
        session=np.where(rows["session"] == 0, -1, session).astype(np.int64),
        prefix_tokens=np.zeros(len(t), dtype=np.int64), priority=np.zeros(len(t), dtype=np.int64), after=unknown,
    )  # fmt: skip


def _specs(settings: Settings) -> list[NodeSpec]:
    return [spec_of(node) for node in settings.nodes]


def _shape(spec: ModelSpec) -> dict[str, Any]:
    return asdict(replace(spec, base="", adapter_bytes=0))


def _load_s(shape: Mapping[str, Any]) -> float:
    return load_s(ModelSpec(**shape), LOAD_SOURCES["engine_swap"])


def _around(rng: np.random.Generator, spread: float) -> float:
    return float(math.exp(rng.uniform(-spread, spread)))
