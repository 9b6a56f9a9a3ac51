"""The fast loop: what nodes and models are like by the routers' own clocks, robustly, and never jumping.

Each constant follows the median of what was seen lately, only so fast, and within limits. A node looks faster only by
answers that were whole and well; no session counts for more than a tenth of a node's evidence while there are others; a
node whose telemetry tells of less work than the routers know it to have is doubted, and never taken for fast.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ccr.calibration import LENGTHS, LOADS_S, OVERHEADS_S, SPEEDS, Calibration, ModelConstants, NodeConstants
from rl.online.batch import Batch
from rl.online.windows import Floats, Windows, capped, clipped_mean, median

#: Numbers of a key that are looked at, at most, and how old they may be.
WINDOW: Final = 256
WINDOW_S: Final = 180.0
#: Below this nothing is said of a node; loads are rare, and long.
LEAST_ANSWERS: Final = 20
LEAST_LOADS: Final = 3
#: Of a node's evidence, that one session may be, where there are others.
SESSION_SHARE: Final = 0.1
#: On a logarithmic scale, in a minute: what looks faster is believed slowly, what looks slower is not believed at once.
FASTER_PER_MIN: Final = math.log(1.1)
SLOWER_PER_MIN: Final = math.log(1.5)
_OVERHEAD_PER_MIN_S: Final = 0.25
_LOAD_PER_MIN: Final = math.log(2.0)
_LOAD_LIMITS: Final = (0.2, 5.0)  # times what the routers expected
_LENGTH_TIMES: Final = 8.0  # of the median; a single long answer is no trend
#: Telemetry that tells of so much less work than there is, on average, is not believed; more has to be seen to trust it again.
DOUBTED_BELOW: Final = 0.75
_TRUSTED_ABOVE: Final = 0.85
_LEAST_READINGS: Final = 100
_LEAST_KNOWN: Final = 0.5  # requests that the routers had there, on average: with fewer, nothing can be told
_FAILURES_MEMORY: Final = 50.0  # requests of a node

# Of overhead and prefill speed, regressed together: how many answers the expectation counts for.
_PRIOR_PREFILL: Final = 10.0
_PRIOR_OVERHEAD: Final = 2.0
_HUBER_S: Final = 0.02
_REGRESSED: Final = 4  # times


class Regressed(NamedTuple):
    """What a node's first bytes come to: ``overhead_s + prefill * expected``."""

    overhead_s: float
    prefill: float


@dataclass(slots=True)
class NodeState:
    """What is believed of a node now.

    Args:
        speed: logarithm of observed over expected time per token.
        prefill: of its prefill.
        overhead_s: what a request takes besides.
        answers: that it rests on.
        failures: share of its requests that failed, decayed.
        told: what its telemetry tells of over what the routers had there, on average; NaN where too little was told.
        is_doubted: whether that is too little.
    """

    speed: float = 0.0
    prefill: float = 0.0
    overhead_s: float = math.nan
    answers: int = 0
    failures: float = 0.0
    told: float = math.nan
    is_doubted: bool = False


@dataclass(slots=True)
class ModelState:
    """What is believed of a model now.

    Args:
        load_s: of a load from the source; NaN before any was seen.
        stated_load_s: the same as routers expected it.
        loads: that it rests on.
        output_tokens: on average; NaN before any were seen.
    """

    load_s: float = math.nan
    stated_load_s: float = math.nan
    loads: int = 0
    output_tokens: float = math.nan


@dataclass(slots=True)
class Calibrator:
    """Constants of all nodes and models.

    Args:
        nodes: by hash.
        models: by hash.
        clock_speed: of the routers: how fast constants may move is by their clock.
    """

    nodes: dict[int, NodeState] = field(default_factory=dict)
    models: dict[int, ModelState] = field(default_factory=dict)
    _steps: Windows = field(default_factory=lambda: Windows(WINDOW))
    _wholes: Windows = field(default_factory=lambda: Windows(WINDOW))
    _firsts: Windows = field(default_factory=lambda: Windows(WINDOW, 2))
    _told: Windows = field(default_factory=lambda: Windows(WINDOW, 3))
    _loads: Windows = field(default_factory=lambda: Windows(64, 2))
    _lengths: Windows = field(default_factory=lambda: Windows(WINDOW))
    clock_speed: float = 1.0
    _turned_s: float = math.nan
    _anew_s: dict[int, float] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Take in what was read."""
        if math.isnan(self._turned_s) and len(batch):
            self._turned_s = float(batch.at_s.min())  # what is believed may have moved since then
        has_node = batch.node != 0
        nodes, at_s, whose = batch.node, batch.at_s, batch.session
        self._steps.add(nodes, np.where(has_node, np.log(batch.step), np.nan), at_s, whose)
        self._wholes.add(nodes, np.where(has_node, np.log(batch.whole), np.nan), at_s, whose)
        self._firsts.add(nodes, np.stack((batch.first_s, batch.work_s)), at_s, whose)
        # A load is the node's as much as the model's: no node tells alone how long a model takes.
        self._loads.add(batch.model, np.stack((batch.load_s, batch.stated_load_s)), at_s, nodes)
        has_model = (batch.model != 0) & (batch.output_tokens >= 1.0)
        self._lengths.add(batch.model, np.where(has_model, batch.output_tokens, np.nan), at_s, whose)
        if len(batch.told_node):
            now_s = np.full(len(batch.told_node), at_s.max())
            self._told.add(batch.told_node, batch.told, now_s, np.zeros(len(now_s), dtype=np.uint64))
        self._count_failures(batch)

    def turn(self, now_s: float) -> None:
        """Move what is believed towards what was seen; every second or so.

        Args:
            now_s: seconds since 1970.
        """
        passed_s = 0.0 if math.isnan(self._turned_s) else max(now_s - self._turned_s, 0.0) * self.clock_speed
        passed_min = min(passed_s, 60.0) / 60.0
        self._turned_s, since_s = now_s, now_s - WINDOW_S
        for key in self._told.keys:
            self._doubt(self.nodes.setdefault(key, NodeState()), self._told.latest(key, since_s)[0])
        for key in self._wholes.keys:
            self._turn_node(key, since_s, passed_min)
        for key in self._lengths.keys:
            self._turn_model(key, since_s, passed_min)

    def begin_anew(self, key: int, since_s: float) -> None:
        """A node or a model is another one since then: what was seen of it before counts no more."""
        self._anew_s[key] = max(since_s, self._anew_s.get(key, -math.inf))

    def calibration(self) -> Calibration:
        """What is known well enough to be told to routers."""
        nodes = {
            key: NodeConstants(
                _limited(math.exp(max(one.speed, 0.0) if one.is_doubted else one.speed), SPEEDS),
                _limited(one.overhead_s, OVERHEADS_S), one.is_doubted,
            )
            for key, one in self.nodes.items() if one.answers >= LEAST_ANSWERS
        }  # fmt: skip
        models = {
            key: ModelConstants(_limited(one.load_s, LOADS_S), _limited(one.output_tokens, LENGTHS))
            for key, one in self.models.items()
        }
        return Calibration(0.0 if math.isnan(self._turned_s) else self._turned_s, nodes, models)

    def doubted(self) -> list[int]:
        """Nodes whose telemetry is not believed."""
        return [key for key, one in self.nodes.items() if one.is_doubted]

    def as_json(self, names: Mapping[int, str]) -> dict[str, Any]:
        """For people: by name where the config has one."""
        return {
            "nodes": {
                names.get(key, f"unknown-{key:016x}"): _node_as_json(one) for key, one in self.nodes.items()
            },
            "models": {
                names.get(key, f"unknown-{key:016x}"): _model_as_json(one) for key, one in self.models.items()
            },
        }

    def begin_with(self, known: Calibration) -> None:
        """What an earlier process of ours found out."""
        for key, node in known.nodes.items():
            state = self.nodes.setdefault(key, NodeState())
            state.speed = 0.0 if math.isnan(node.speed) else math.log(node.speed)
            state.overhead_s, state.is_doubted = node.overhead_s, node.is_doubted
        for key, model in known.models.items():
            self.models[key] = ModelState(load_s=model.load_s, output_tokens=model.output_tokens)

    # -- details

    def _turn_node(self, key: int, since_s: float, passed_min: float) -> None:
        state = self.nodes.setdefault(key, NodeState())
        since_s = max(since_s, self._anew_s.get(key, since_s))
        seen, whose = self._wholes.latest(key, since_s)
        streamed, theirs = self._steps.latest(key, since_s)
        is_streamed = streamed.shape[1] >= max(LEAST_ANSWERS, seen.shape[1] // 4)
        if is_streamed:  # else an answer as a whole says nearly as much
            seen, whose = streamed, theirs
        state.answers = seen.shape[1]
        if state.answers < LEAST_ANSWERS:
            return
        found = median(seen[0], capped(whose, SESSION_SHARE))
        if state.is_doubted:
            found = max(found, 0.0)
        low, high = np.log(SPEEDS)
        state.speed = float(np.clip(_towards(state.speed, found, passed_min), low, high))
        firsts, whose = self._firsts.latest(key, since_s)
        if not is_streamed or firsts.shape[1] < LEAST_ANSWERS:
            return
        fitted = regressed(firsts[0], firsts[1], capped(whose, SESSION_SHARE), math.exp(state.speed))
        prefill = math.log(_limited(fitted.prefill, SPEEDS))
        state.prefill = float(np.clip(_towards(state.prefill, prefill, passed_min), low, high))
        overhead_s = 0.0 if math.isnan(state.overhead_s) else state.overhead_s
        most_s = _OVERHEAD_PER_MIN_S * passed_min
        moved_s = min(max(fitted.overhead_s - overhead_s, -most_s), most_s)
        state.overhead_s = _limited(overhead_s + moved_s, OVERHEADS_S)

    def _turn_model(self, key: int, since_s: float, passed_min: float) -> None:
        state = self.models.setdefault(key, ModelState())
        anew_s = self._anew_s.get(key, since_s)
        lengths, whose = self._lengths.latest(key, max(since_s, anew_s))
        if lengths.shape[1] >= LEAST_ANSWERS:
            state.output_tokens = clipped_mean(lengths[0], capped(whose, SESSION_SHARE), _LENGTH_TIMES)
        loads, whose = self._loads.latest(
            key, max(since_s - WINDOW_S, anew_s)
        )  # rare, and they hardly change
        state.loads = loads.shape[1]
        if state.loads < LEAST_LOADS:
            return
        weights = capped(whose, 0.5)
        if math.isnan(state.stated_load_s):  # what routers expected before anybody had seen one
            state.stated_load_s = median(loads[1], weights)
        low, high = (limit * state.stated_load_s for limit in _LOAD_LIMITS)
        seen_s = _limited(median(loads[0], weights), (low, high))
        now_s = state.stated_load_s if math.isnan(state.load_s) else state.load_s
        most = _LOAD_PER_MIN * passed_min
        state.load_s = now_s * math.exp(min(max(math.log(seen_s / now_s), -most), most))

    def _count_failures(self, batch: Batch) -> None:
        for key in np.unique(batch.node[batch.node != 0]).tolist():
            mine = batch.has_failed[batch.node == key]
            state = self.nodes.setdefault(key, NodeState())
            weight = 1.0 - (1.0 - 1.0 / _FAILURES_MEMORY) ** len(mine)
            state.failures += weight * (float(mine.mean()) - state.failures)

    @staticmethod
    def _doubt(state: NodeState, told: Floats) -> None:
        told_of, known, readings = told.sum(axis=1)
        if readings < _LEAST_READINGS or known < _LEAST_KNOWN * readings:
            state.told = math.nan
            return
        state.told = float(told_of / known)
        state.is_doubted = state.told < (_TRUSTED_ABOVE if state.is_doubted else DOUBTED_BELOW)


def regressed(first_s: Floats, work_s: Floats, weights: Floats, speed: float) -> Regressed:
    """Overhead and prefill speed from first bytes, by least squares that give outliers less weight (Huber).

    Both are held to what is expected as if some answers had said so: where all prompts are alike, only their sum can be
    seen, and the difference goes to the overhead.

    Args:
        first_s: dispatch to first byte, shape ``(k,)``.
        work_s: the prefill expected before it, shape ``(k,)``.
        weights: of each, shape ``(k,)``.
        speed: the node's observed speed of decoding: what its prefill is expected to be like.
    """
    scale = float(np.median(work_s)) or 1.0
    inputs = np.stack((np.ones_like(work_s), work_s / scale))
    prior = np.diag([_PRIOR_OVERHEAD, _PRIOR_PREFILL])
    expected = np.array([max(float(np.median(first_s - speed * work_s)), 0.0), speed * scale])
    found, robust = expected, weights
    for _ in range(_REGRESSED):
        normal = (inputs * robust) @ inputs.T + prior
        found = np.linalg.solve(normal, (inputs * robust) @ first_s + prior @ expected)
        off_s = np.abs(first_s - found @ inputs)
        robust = weights * np.minimum(1.0, max(_HUBER_S, float(np.median(off_s))) / np.maximum(off_s, 1e-9))
    return Regressed(max(float(found[0]), 0.0), max(float(found[1]) / scale, 1e-3))


def _towards(value: float, found: float, passed_min: float) -> float:
    """A step on the logarithmic scale: slow to the fast side, less slow to the other."""
    return value + min(max(found - value, -FASTER_PER_MIN * passed_min), SLOWER_PER_MIN * passed_min)


def _limited(value: float, limits: tuple[float, float]) -> float:
    return value if math.isnan(value) else min(max(value, limits[0]), limits[1])


def _node_as_json(one: NodeState) -> dict[str, Any]:
    return {
        "speed": round(math.exp(one.speed), 3), "prefill": round(math.exp(one.prefill), 3),
        "overhead_s": None if math.isnan(one.overhead_s) else round(one.overhead_s, 4), "answers": one.answers,
        "failures": round(one.failures, 3), "told": None if math.isnan(one.told) else round(one.told, 3),
        "is_doubted": one.is_doubted,
    }  # fmt: skip


def _model_as_json(one: ModelState) -> dict[str, Any]:
    return {
        "load_s": None if math.isnan(one.load_s) else round(one.load_s, 2), "loads": one.loads,
        "output_tokens": None if math.isnan(one.output_tokens) else round(one.output_tokens, 1),
    }  # fmt: skip
