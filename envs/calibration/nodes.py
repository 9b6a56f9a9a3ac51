"""A node's own constants from what it was recorded to do: replay its requests, and see which constants explain its times.

The replay is the emulated node itself, so batches, queues, evictions and KV limits are those of the simulator. Only how
long each load took is taken from the trace: that varies from load to load, and is not what is sought.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from ccr.errors import TraceError
from ccr.timing import prefill_s
from envs.calibration.recorded import Sample, Served, models_of
from envs.calibration.solve import Constant, Floats, Range, fit_constants
from envs.lane import Lane
from envs.node import EmulatedNode, NodeSettings
from envs.words import Finished, Job, NeverFitsError

#: Requests of one node that a fit replays at most; a fit runs them about a hundred times.
REPLAYED = 500
# A request this far off met another queue in the replay than it did: one other eviction, and a dozen requests wait for
# seconds that did not, or the reverse. How far off they are says nothing about the constants.
_ASTRAY = 0.25
# First tokens this close together came out of one prefill.
_ONE_STEP_S = 0.01
# Beyond this the trace does not hold what kept the node busy.
_MISSING_LOAD = 0.25

_RANGES = {
    "bw_scale": Range(
        1.0, 0.25, 4.0, weak=0.10, step=0.02, grid=tuple(np.geomspace(0.25, 4.0, 29).tolist())
    ),
    "overhead_s": Range(
        0.02, 0.0, 2.0, weak=0.02, linear=True, step=5e-3,
        grid=(0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.0),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Times:
    """What the replay says of one request, seconds from dispatch."""

    first_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class NodeError:
    """Mean absolute errors of one model on one node; ``None`` where nothing was measured.

    Args:
        node: id.
        model: id.
        first_mape: of the time to the first token: overhead, queue and prefill.
        decode_mape: of the time from the first token to the last; of the whole where the answer was not streamed.
        n: requests.
    """

    node: str
    model: str
    first_mape: float | None
    decode_mape: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Mean of what telemetry showed, and of the replay at the same moments."""

    running: float
    replayed_running: float
    kv_used: float | None
    replayed_kv_used: float | None

    @property
    def note(self) -> str:
        """A warning when the trace does not hold what the node did."""
        if abs(self.running - self.replayed_running) <= _MISSING_LOAD * max(self.running, 1.0):
            return ""
        return (
            f"telemetry shows {self.running:.1f} running, the replay {self.replayed_running:.1f}: "
            "the trace does not hold all of this node's load, or its model runs elsewhere"
        )


@dataclass(frozen=True, slots=True)
class NodeFit:
    """Constants of one node.

    Args:
        node: id.
        overhead_s: HTTP and tokeniser.
        bw_scale: memory bandwidth relative to the fitted card.
        errors: by model, with these constants.
        requests: replayed.
        occupancy: of the telemetry; ``None`` without.
    """

    node: str
    overhead_s: Constant
    bw_scale: Constant
    errors: tuple[NodeError, ...]
    requests: int
    occupancy: Occupancy | None


def fit_node(requests: Sequence[Served], settings: NodeSettings, samples: Sequence[Sample] = ()) -> NodeFit:
    """Overhead and bandwidth of one node.

    Args:
        requests: of this node, in order of dispatch; cold ones, and those that joined their loads, are replayed, and
            not fitted on.
        settings: card, engine and source of weights; its overhead and bandwidth are what is sought.
        samples: its telemetry, to see whether the trace holds all of its load.

    Raises:
        TraceError: no warm request, or one that does not fit the card.
    """
    requests = _with_joined(requests[:REPLAYED])
    if all(request.cold for request in requests):
        raise TraceError(f"node {requests[0].node}: every request was a cold start; nothing shows its steps")

    def errors(values: Mapping[str, float]) -> Floats:
        found = np.concatenate(_relative(requests, replay(requests, _with(settings, values))))
        return np.clip(found, -_ASTRAY, _ASTRAY)

    found = fit_constants(errors, _RANGES)
    fitted = _with(settings, {name: constant.value for name, constant in found.items()})
    return NodeFit(
        requests[0].node, found["overhead_s"], found["bw_scale"], node_errors(requests, fitted), len(requests),
        _occupancy(requests, fitted, samples),
    )  # fmt: skip


def node_errors(requests: Sequence[Served], settings: NodeSettings) -> tuple[NodeError, ...]:
    """How far the node under these settings is from what was recorded, by model."""
    times = replay(requests, settings)
    result = []
    for model in models_of(requests):
        chosen = [i for i, request in enumerate(requests) if request.model == model and not request.cold]
        if not chosen:
            continue
        first, rest = _relative([requests[i] for i in chosen], [times[i] for i in chosen])
        result.append(NodeError(requests[0].node, model, _mape(first), _mape(rest), len(chosen)))
    return tuple(result)


def replay(requests: Sequence[Served], settings: NodeSettings) -> list[Times]:
    """Run recorded requests through an emulated node; one :class:`Times` each, in the same order."""
    node = _started(requests, settings)
    for number, request in enumerate(requests):
        _submit(node, number, request)
    events = []
    while (at_s := node.next_event_s()) < inf:
        events += node.advance(at_s)
    ends = {int(event.job.id): event for event in events if isinstance(event, Finished)}
    return [
        Times(ends[i].first_token_s - request.at_s, ends[i].at_s - request.at_s)
        for i, request in enumerate(requests)
    ]


def _with(settings: NodeSettings, values: Mapping[str, float]) -> NodeSettings:
    return replace(settings, overhead_s=values["overhead_s"], bw_scale=values["bw_scale"])


class _Paced(EmulatedNode):
    """A node whose loads end so that the request they were begun for has its first token when it had it in the trace.

    A load takes a tenth longer or shorter than expected, and all that comes later on a node that often loads moves with
    it: with loads of the expected length, a replay soon has nothing to do with what was recorded.
    """

    def __init__(self, requests: Sequence[Served], settings: NodeSettings) -> None:
        super().__init__(models_of(requests), settings)
        self._recorded = requests

    def _load_seconds(self, lane: Lane) -> float:
        head = lane.head
        request = self._recorded[int(head.job.id)] if head is not None else None
        if request is None or request.first_s is None:
            return super()._load_seconds(lane)
        first_at_s = request.at_s + request.first_s
        batch = [
            other.prompt_tokens
            for other in self._recorded
            if other.model == request.model
            and other.first_s is not None
            and abs(other.at_s + other.first_s - first_at_s) < _ONE_STEP_S
        ]
        return max(first_at_s - self._now_s - prefill_s(lane.costs, batch), 0.0)


def _with_joined(requests: Sequence[Served]) -> list[Served]:
    """The requests, with those cold too that were dispatched while the weights were on their way for an earlier one.

    To the router they were not: a model that somebody waits for counts as resident, so that nobody loads it twice.
    """
    there_s: dict[str, float] = {}
    found = []
    for request in requests:
        if request.cold:
            wait_s = request.total_s if request.first_s is None else request.first_s
            there_s[request.model] = max(request.at_s + wait_s, there_s.get(request.model, 0.0))
        is_early = request.at_s < there_s.get(request.model, 0.0)
        found.append(replace(request, cold=True) if is_early else request)
    return found


def _started(requests: Sequence[Served], settings: NodeSettings) -> EmulatedNode:
    """A node with the models resident that were warm when first asked for, as far as they fit together."""
    models = models_of(requests)
    node = _Paced(requests, settings)
    for model in models:
        first = next(request for request in requests if request.model == model)
        if not first.cold:
            with suppress(NeverFitsError):  # it came in the place of another, in the meantime.
                node.place(model)
    return node


def _submit(node: EmulatedNode, number: int, request: Served) -> None:
    job = Job(
        str(number), request.model, request.prompt_tokens, request.output_tokens,
        session=request.session, prefix_tokens=request.prefix_tokens,
    )  # fmt: skip
    try:
        node.submit(job, request.at_s)
    except NeverFitsError as error:
        raise TraceError(f"line {request.line}: {error}") from error


def _relative(requests: Sequence[Served], times: Sequence[Times]) -> tuple[Floats, Floats]:
    """Relative errors of warm requests: to the first token, and from there to the end."""
    first, rest = [], []
    for request, time in zip(requests, times, strict=True):
        if request.cold:
            continue
        if request.first_s is None:
            rest.append(time.total_s / request.total_s - 1)
            continue
        first.append(time.first_s / request.first_s - 1)
        if request.output_tokens > 1:
            rest.append((time.total_s - time.first_s) / (request.total_s - request.first_s) - 1)
    return np.array(first), np.array(rest)


def _mape(errors: Floats) -> float | None:
    return float(np.abs(errors).mean()) if len(errors) else None


def _occupancy(
    requests: Sequence[Served], settings: NodeSettings, samples: Sequence[Sample]
) -> Occupancy | None:
    """Telemetry beside the replay, over the time that the replayed requests span."""
    end_s = max(request.at_s + request.total_s for request in requests)
    samples = [sample for sample in samples if requests[0].at_s <= sample.t <= end_s]
    if not samples:
        return None
    node = _started(requests, settings)
    states, upcoming = [], 0
    for sample in samples:
        while upcoming < len(requests) and requests[upcoming].at_s <= sample.t:
            _submit(node, upcoming, requests[upcoming])
            upcoming += 1
        node.advance(sample.t)
        states.append(node.state())
    seen = [
        (sample.kv_used, state.kv_used)
        for sample, state in zip(samples, states, strict=True)
        if sample.kv_used is not None
    ]
    kv = np.mean(seen, axis=0) if seen else (None, None)
    return Occupancy(
        float(np.mean([sample.running for sample in samples])),
        float(np.mean([state.running for state in states])),
        *(None if part is None else float(part) for part in kv),
    )
