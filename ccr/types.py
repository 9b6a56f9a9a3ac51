"""The words of the house: Request, NodeSpec, Reading, Node, Fleet, Decision, Outcome, TraceRecord."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ccr.hashing import hash64
from ccr.look import Look

Column = NDArray[np.float64]
Scores = NDArray[np.float64]
Probabilities = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Outcome(StrEnum):
    """How a request ended: exactly one of these for each accepted request."""

    OK = "ok"
    UPSTREAM_4XX = "upstream_4xx"
    UPSTREAM_5XX = "upstream_5xx"
    UPSTREAM_RESET = "upstream_reset"
    TIMEOUT = "timeout"
    NO_CAPACITY = "no_capacity"
    REJECTED = "rejected"
    CLIENT_CLOSED = "client_closed"
    ABORTED_DRAIN = "aborted_drain"
    EXPIRED = "expired"

    @property
    def is_node_failure(self) -> bool:
        """Whether the node is to blame: its latency then counts as a penalty, never as fast."""
        return self in _NODE_FAILURES

    @property
    def is_censored(self) -> bool:
        """Whether the true latency is unknown (the client or the router ended it early)."""
        return self in _CENSORED


_NODE_FAILURES = frozenset({Outcome.UPSTREAM_5XX, Outcome.UPSTREAM_RESET, Outcome.TIMEOUT})
_CENSORED = frozenset({Outcome.CLIENT_CLOSED, Outcome.ABORTED_DRAIN, Outcome.EXPIRED})


@dataclass(frozen=True, slots=True)
class Request:
    """What a policy may know about a request; never the prompt.

    Args:
        id: unique, echoed to the client as ``x-request-id``.
        model: resolved model id, ``name@version`` or plain ``name``: the key of residency.
        name: the model's name without its version.
        version: the version that was resolved; empty when the model has none.
        seq: position in the router's arrival order, counting from 0.
        session: conversation id; empty when single-shot or unknown.
        tags: node tags the request insists on.
        priority: 0 is normal, higher is more urgent, negative is refused first.
        tenant: name of the API key; empty when keys are off.
        prompt_tokens: prompt length in tokens (estimated from bytes before a tokeniser saw it).
        output_tokens: the client's limit on generated tokens; 0 when it gave none.
        slo_ttft_s: wanted time to first token; 0 when none was asked for.
        slo_tpot_s: wanted time per output token; 0 when none was asked for.
        model_gib: GPU memory of the model's weights; 0 when unknown.
        load_s: expected time to load the weights; 0 when unknown.
        headers: request headers with lower-case names, without credentials.
    """

    id: str
    model: str
    name: str = ""
    version: str = ""
    seq: int = 0
    session: str = ""
    tags: frozenset[str] = frozenset()
    priority: int = 0
    tenant: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    slo_ttft_s: float = 0.0
    slo_tpot_s: float = 0.0
    model_gib: float = 0.0
    load_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def quick(cls, *fields: Any) -> Self:
        """As the constructor with every field by position, unchecked, in a third of its time.

        A frozen dataclass sets each field through ``object.__setattr__``. This fills a twin that is not frozen, which
        then becomes one that is.
        """
        request: Any = _Unfrozen(*fields)
        request.__class__ = cls  # both have the same slots, which Python checks
        made: Self = request
        return made


_Unfrozen = make_dataclass("_Unfrozen", list(Request.__annotations__.items()), slots=True)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A GPU node as configured or discovered: what stays the same while it lives.

    Args:
        id: unique name.
        url: base URL, ``http://host:port``.
        engine: what runs there; a key of ``router.collectors.COLLECTORS``.
        tags: free words requests can insist on, e.g. ``canary``.
        labels: key-value facts for people and scripts, e.g. ``{"gpu": "A10"}``.
        gpu_total_gib: device memory; 0 when unknown until telemetry tells.
        models: model ids it may serve; empty: whatever telemetry reports as loaded.
        loads_on_demand: whether a request for a model that is not resident makes the node load it
            (evicting others if it must); false for a plain vLLM server.
        max_inflight: cap on requests in flight; 0 for none.
        schedules_by_priority: whether its engine orders its queue by the request's ``priority``, lower first.
        address: ``host:port`` out of ``url``, as the sidecar call answers it.
    """

    id: str
    url: str
    engine: str = "auto"
    tags: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    gpu_total_gib: float = 0.0
    models: frozenset[str] = frozenset()
    loads_on_demand: bool = False
    max_inflight: int = 0
    schedules_by_priority: bool = False
    address: str = field(init=False, compare=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "address", self.url.split("://", 1)[-1].rstrip("/"))


@dataclass(frozen=True, slots=True)
class Reading:
    """One telemetry sample of a node; ``None`` means the source does not tell.

    Args:
        running: sequences in the batch.
        waiting: sequences queued at the engine.
        kv_used: used fraction of the KV cache, in [0, 1].
        gpu_free_gib: free device memory.
        gpu_total_gib: device memory.
        gpu_util: GPU busy fraction, in [0, 1].
        loaded: model ids resident in GPU memory.
        loading: model ids being loaded.
        boot_id: changes when the node restarts; empty when the source has none.
        load_s: seconds the last load of each model took, by model id.
    """

    running: float | None = None
    waiting: float | None = None
    kv_used: float | None = None
    gpu_free_gib: float | None = None
    gpu_total_gib: float | None = None
    gpu_util: float | None = None
    loaded: frozenset[str] | None = None
    loading: frozenset[str] | None = None
    boot_id: str = ""
    load_s: Mapping[str, float] = field(default_factory=dict)


#: Stands for "no limit known" in a column; finite, so that records stay plain JSON.
UNKNOWN = 1e6

#: The numeric columns of a fleet, in order: one float64 row each. Name -> what it holds.
COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "inflight": "requests in flight by this router's ledger, and by those it is shared with",
        "qps": "requests dispatched per second by these routers, exponentially decayed",
        "latency_s": "decayed mean request latency seen by this router; failures count as the penalty; 0 where nothing was seen",
        "gpu_free_gib": "free device memory; the mean of the fresh nodes where the reading is stale",
        "gpu_total_gib": "device memory",
        "room_gib": "device memory a model could take, evicting others where the node does that; UNKNOWN if not known",
        "running": "sequences in the engine's batch; 0 where stale",
        "waiting": "sequences in the engine's queue; 0 where stale",
        "kv_used": "used fraction of the KV cache; 0 where stale",
        "telemetry_age_s": "age of the last reading; UNKNOWN where there never was one",
        "ramp": "slow-start share in (0, 1]; 1 for a node in full rotation",
    }
)
_ROW = {name: row for row, name in enumerate(COLUMNS)}


Looker = Callable[..., Look]
"""Request, columns of shape ``(C, n)``, the moment, whether observed latencies are wanted -> the request on every node."""


class Fleet:
    """Read-only columns of all nodes at one moment; the policies see nothing else.

    Every column of :data:`COLUMNS` is an attribute of shape ``(n,)``, float64; ``available`` is a
    boolean column: false where the node is ejected, draining, backing off or full.

    Args:
        specs: one per node.
        columns: shape ``(len(COLUMNS), n)``.
        available: shape ``(n,)``.
        loaded: model ids resident on each node (reported, or in flight there).
        why_unavailable: per node, in words; empty where available.
        now_s: the moment, on the caller's clock.
        looker: looks at a request on every node, from the owner's book; see :func:`ccr.expectations.look_of`.
    """

    __slots__ = (
        "_candidate_masks", "_capable_masks", "_id_hashes", "_loaded_masks", "_nodes", "_serving_masks", "_tag_masks", "available", "columns",
        "gpu_free_gib", "gpu_total_gib", "inflight", "kv_used", "latency_s", "loaded", "looked", "looker", "may", "now_s", "qps",
        "ramp", "room_gib", "running", "specs", "telemetry_age_s", "waiting", "why_unavailable",
    )  # fmt: skip

    inflight: Column
    qps: Column
    latency_s: Column
    gpu_free_gib: Column
    gpu_total_gib: Column
    room_gib: Column
    running: Column
    waiting: Column
    kv_used: Column
    telemetry_age_s: Column
    ramp: Column

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        columns: NDArray[np.float64],
        available: Mask,
        loaded: Sequence[frozenset[str]],
        why_unavailable: Sequence[str] = (),
        now_s: float = 0.0,
        looker: Looker | None = None,
    ) -> None:
        self.looker = looker
        self.looked: Look | None = None
        self.may: Mask | None = None
        self.specs = tuple(specs)
        self.columns = _read_only(columns)
        self.available = _read_only(available)
        self.loaded = loaded
        self.why_unavailable = why_unavailable
        self.now_s = now_s
        for name, row in _ROW.items():
            setattr(self, name, self.columns[row])
        self._nodes: tuple[Node, ...] | None = None
        self._id_hashes: NDArray[np.uint64] | None = None
        self._loaded_masks: dict[str, Mask] = {}
        self._serving_masks: dict[str, Mask] = {}
        self._capable_masks: dict[tuple[str, float], Mask] = {}
        self._candidate_masks: dict[tuple[str, float], Mask] = {}
        self._tag_masks: dict[frozenset[str], Mask] = {}

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def nodes(self) -> "tuple[Node, ...]":
        """One row per node, for people and operator scripts."""
        if self._nodes is None:
            self._nodes = tuple(Node(self, i) for i in range(len(self.specs)))
        return self._nodes

    @property
    def id_hashes(self) -> NDArray[np.uint64]:
        """A hash of each node's id, the same in every replica, shape ``(n,)``."""
        if self._id_hashes is None:
            self._id_hashes = np.array([hash64(spec.id) for spec in self.specs], dtype=np.uint64)
        return self._id_hashes

    def resident(self, model: str) -> Mask:
        """True where the model's weights are on the GPU, shape ``(n,)``."""
        mask = self._loaded_masks.get(model)
        if mask is None:
            mask = _mask(model in loaded for loaded in self.loaded)
            _keep(self._loaded_masks, model, mask)
        return mask

    def serving(self, model: str) -> Mask:
        """True where the node serves the model at all, loaded or not, shape ``(n,)``."""
        mask = self._serving_masks.get(model)
        if mask is None:
            mask = _mask(
                model in loaded or (spec.loads_on_demand and model in spec.models)
                for spec, loaded in zip(self.specs, self.loaded, strict=True)
            )
            _keep(self._serving_masks, model, mask)
        return mask

    def capable(self, model: str, gib: float) -> Mask:
        """True where the node serves the model and has it resident or room for its ``gib``, shape ``(n,)``."""
        mask = self._capable_masks.get((model, gib))
        if mask is None:
            mask = self.serving(model) & (self.resident(model) | (self.room_gib >= gib))
            _keep(self._capable_masks, (model, gib), mask)
        return mask

    def candidates(self, model: str, gib: float) -> Mask:
        """True where the node is in rotation and capable, shape ``(n,)``, read-only."""
        mask = self._candidate_masks.get((model, gib))
        if mask is None:
            mask = self.available & self.capable(model, gib)
            _keep(self._candidate_masks, (model, gib), mask)
        return mask

    def tagged(self, tags: frozenset[str]) -> Mask:
        """True where the node carries every one of ``tags``, shape ``(n,)``."""
        mask = self._tag_masks.get(tags)
        if mask is None:
            mask = _mask(tags <= spec.tags for spec in self.specs)
            _keep(self._tag_masks, tags, mask)
        return mask

    def residency_changed(self) -> None:
        """Forget the cached model masks; for the owner of ``loaded`` and ``room_gib`` only."""
        self._candidate_masks.clear()
        self._capable_masks.clear()
        self._loaded_masks.clear()
        self._serving_masks.clear()

    def availability_changed(self) -> None:
        """Forget who the candidates are; for the owner of ``available`` only."""
        self._candidate_masks.clear()

    def snapshot(self) -> "Fleet":
        """A copy that later events do not change; what a decision log keeps."""
        return Fleet(
            self.specs, self.columns.copy(), self.available.copy(), tuple(self.loaded),
            tuple(self.why_unavailable), self.now_s,
        )  # fmt: skip

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], now_s: float = 0.0) -> Self:
        """A fleet from plain rows; for tests, replay and small examples.

        Args:
            rows: each has ``spec`` (a :class:`NodeSpec`) and any of the column names, ``loaded``,
                ``available`` and ``why``; what is left out takes the value of an idle, healthy node.
            now_s: the moment.
        """
        columns = np.zeros((len(COLUMNS), len(rows)))
        for i, row in enumerate(rows):
            spec: NodeSpec = row["spec"]
            total = row.get("gpu_total_gib", spec.gpu_total_gib)
            defaults = {"ramp": 1.0, "gpu_total_gib": total, "gpu_free_gib": total, "room_gib": total}
            for name, index in _ROW.items():
                columns[index, i] = row.get(name, defaults.get(name, 0.0))
        return cls(
            specs=[row["spec"] for row in rows],
            columns=columns,
            available=_mask(row.get("available", True) for row in rows),
            loaded=[frozenset(row.get("loaded", ())) for row in rows],
            why_unavailable=[row.get("why", "") for row in rows],
            now_s=now_s,
        )


class _Cell:
    """A number of a node's row, read when looked at; four times cheaper than ``__getattr__``."""

    __slots__ = ("_row",)

    def __init__(self, column: str) -> None:
        self._row = _ROW[column]

    def __get__(self, node: "Node", owner: type) -> float:
        value: float = node._fleet.columns.item(self._row, node._index)
        return value


class Node:
    """One row of a fleet, read-only: what an operator script is handed.

    Attributes a script may use: ``id``, ``address``, ``tags``, ``labels``, ``loaded_models`` and every
    column of :data:`COLUMNS`; :mod:`ccr.metrics` has them under the names of the founding article.
    """

    __slots__ = ("_fleet", "_index")

    _fleet: Fleet
    _index: int

    inflight = _Cell("inflight")
    qps = _Cell("qps")
    latency_s = _Cell("latency_s")
    gpu_free_gib = _Cell("gpu_free_gib")
    gpu_total_gib = _Cell("gpu_total_gib")
    room_gib = _Cell("room_gib")
    running = _Cell("running")
    waiting = _Cell("waiting")
    kv_used = _Cell("kv_used")
    telemetry_age_s = _Cell("telemetry_age_s")
    ramp = _Cell("ramp")

    def __init__(self, fleet: Fleet, index: int) -> None:
        object.__setattr__(self, "_fleet", fleet)
        object.__setattr__(self, "_index", index)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a node is read-only: a policy proposes, it does not change {name!r}")

    def __getattr__(self, name: str) -> float:
        raise AttributeError(f"a node has no {name!r}; it has {', '.join(sorted([*_ROW, *_NODE_WORDS]))}")

    def __repr__(self) -> str:
        return f"<Node {self.id} inflight={self.inflight:g}>"

    @property
    def spec(self) -> NodeSpec:
        """The configured facts."""
        return self._fleet.specs[self._index]

    @property
    def id(self) -> str:
        """The node's name."""
        return self.spec.id

    @property
    def address(self) -> str:
        """``host:port``."""
        return self.spec.address

    @property
    def tags(self) -> frozenset[str]:
        """The words requests can insist on."""
        return self.spec.tags

    @property
    def labels(self) -> Mapping[str, str]:
        """Facts such as ``{"gpu": "A10"}``."""
        return self.spec.labels

    @property
    def loaded_models(self) -> frozenset[str]:
        """Model ids resident on the GPU, or being loaded for a request in flight."""
        return self._fleet.loaded[self._index]

    @property
    def available(self) -> bool:
        """Whether the node is in rotation."""
        return bool(self._fleet.available[self._index])

    @property
    def why_unavailable(self) -> str:
        """Why it is out of rotation, in words; empty when it is not."""
        return self._fleet.why_unavailable[self._index]


_NODE_WORDS = ("id", "address", "tags", "labels", "loaded_models", "available")


class Explored(NamedTuple):
    """What exploration did to a decision.

    Args:
        share: of exploration in it; 0 where it stood still.
        cost_s: expected seconds lost by it against the best node, weighted by the probability.
        best_s: expected seconds on the best node.
    """

    share: float
    cost_s: float
    best_s: float


class Decision(NamedTuple):
    """Which node, and everything needed to explain or repeat the choice.

    A tuple because one is made for each request: it costs a third of a frozen dataclass.

    Args:
        request_id: of the request.
        node_id: the node that was executed.
        index: its position in the fleet.
        policy: name of the policy that proposed.
        propensity: probability of ``node_id`` after mask and guard, in (0, 1].
        u: the draw in [0, 1) that picked it.
        drawn_id: the node the policy drew; differs from ``node_id`` when the guard moved it.
        drawn_propensity: probability of ``drawn_id`` before the guard.
        guard_reason: empty unless the guard moved it.
        scores: one per node, shape ``(n,)``.
        probabilities: executed distribution, shape ``(n,)``.
        mask: who was eligible, shape ``(n,)``.
        fallback: why the configured policy was not used; empty normally.
        look: what the policy saw of the router's expectations, if it asked for them.
        explored: what exploration did to it, where it is on.
    """

    request_id: str
    node_id: str
    index: int  # type: ignore[assignment]  # hides the method of tuples, which nobody needs here
    policy: str
    propensity: float
    u: float
    drawn_id: str
    drawn_propensity: float
    guard_reason: str
    scores: Scores
    probabilities: Probabilities
    mask: Mask
    fallback: str = ""
    look: Look | None = None
    explored: Explored | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """One request as the router saw it: numbers, enumerations and ids, never text of a prompt.

    Times are seconds from the start of the trace. ``None`` means unknown. The first block follows the
    trace format (``docs/traces.md``); the second makes the decision replayable.
    """

    t: float
    request_id: str
    model: str
    version: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    session: str = ""
    priority: int = 0
    node: str = ""
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    cold_start: bool | None = None
    status: Outcome = Outcome.OK
    policy: str = ""
    propensity: float | None = None

    parent_id: str = ""
    model_id: str = ""
    seq: int = 0
    load_s: float = 0.0
    u: float = 0.0
    drawn: str = ""
    drawn_propensity: float | None = None
    guard_reason: str = ""
    exploration: float = 0.0
    fallback: str = ""
    node_ids: tuple[str, ...] = ()
    mask: tuple[bool, ...] = ()
    scores: tuple[float | None, ...] = ()
    probabilities: tuple[float, ...] = ()
    observation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    resident: tuple[bool, ...] = ()
    look: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


# Clients can ask for any number of models and tags: what is remembered about them has an end.
_MAX_MASKS = 1024


def _keep(masks: dict[Any, Mask], key: object, mask: Mask) -> None:
    """Remember a mask; everything is forgotten when there are too many: they are quick to make again."""
    if len(masks) >= _MAX_MASKS:
        masks.clear()
    mask.flags.writeable = False
    masks[key] = mask


def _mask(values: Any) -> Mask:
    mask: Mask = np.fromiter(values, dtype=np.bool_)
    mask.flags.writeable = False
    return mask
