"""What the compiled nodes of a fleet know, as arrays: cards, lines, jobs and the events they tell.

A *card* is a node's GPU, a *line* is one model on it: its queue, and for a base model also the lane it shares with its
LoRA siblings. Jobs, models and sessions are indices. Lists are threaded through the records: -1 ends one.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr.errors import ConfigError
from ccr.timing import GIB, LOAD_SOURCES, ModelSpec, StepCosts, adapter_s, load_s
from envs.lane import MAX_SEQUENCES, Lane
from envs.node import NodeSettings, lanes_of

ABSENT: Final = 0
LOADING: Final = 1
RESIDENT: Final = 2
HOST: Final = 3

FIRST_TOKEN: Final = 0
FINISHED: Final = 1
LOADED: Final = 2
EVICTED: Final = 3
PREEMPTED: Final = 4
LOST: Final = 5

# A place in a queue is one integer: priority, then order of arrival. Explicit loads come after every request.
NUMBER_BITS: Final = 40
EXPLICIT: Final = 1 << 62
NO_KEY: Final = np.iinfo(np.int64).max
MAX_PRIORITY: Final = 1 << 20

_INT, _LINK, _FLOAT = np.int64, np.int32, np.float64

#: One per node. Seconds are ``inf`` when nothing of the kind is under way, links -1 when there is nobody.
CARD: Final = np.dtype(
    [
        ("now_s", _FLOAT),
        ("step_start_s", _FLOAT),
        ("step_end_s", _FLOAT),
        ("step_lane", _INT),
        ("step_prefill", _INT),  # sequences of the prefill batch; 0 in a decode round.
        ("load_start_s", _FLOAT),
        ("load_end_s", _FLOAT),
        ("load_lane", _INT),
        ("adapter_start_s", _FLOAT),
        ("adapter_end_s", _FLOAT),
        ("adapter_line", _INT),
        ("arrival_s", _FLOAT),  # when the first of the arrivals reaches its queue.
        ("first_arrival", _LINK),
        ("last_arrival", _LINK),
        ("factor", _FLOAT),
        ("kv_budget", _FLOAT),
        ("kv", _INT),  # bytes of KV cache in use.
        ("weights", _INT),  # bytes, resident and on their way.
        ("models", _INT),  # resident and on their way.
        ("cached", _INT),  # bytes of the prefix cache.
        ("oldest", _LINK),
        ("newest", _LINK),
        ("residents", _INT),  # lengths of the lists in the lines.
        ("wanting", _INT),
        ("adapters", _INT),
        ("adapters_wanted", _INT),
        ("closed", _INT),  # whether a lane, or an adapter, may be closed.
        ("adapters_closed", _INT),
        ("numbers", _INT),
        ("draws", _INT),
        ("budget", _FLOAT),
        ("total", _FLOAT),
        ("overhead_s", _FLOAT),
        ("host_bytes", _FLOAT),
        ("keep_evicted", _INT),
        ("prefix_cache", _INT),
        ("max_adapters", _INT),
        ("peak", _FLOAT),  # bytes.
        ("busy_s", _FLOAT),
        ("running", _INT),
        ("waiting", _INT),
        ("submitted", _INT),
        ("finished", _INT),
        ("preempted", _INT),
        ("evicted", _INT),
        ("cold_starts", _INT),
        ("loads", _INT),
        ("lost", _INT),
    ],
    align=True,
)

#: One per node and model. The second block is of the lane, so of a base model; the last holds the node's lists, entry by
#: entry.
LINE: Final = np.dtype(
    [
        ("place", _INT),  # of the weights of a base model, of the adapter of a sibling.
        ("head", _LINK),  # root of the heap of waiting jobs.
        ("next_sibling", _LINK),
        ("lane", _INT),
        ("waiting", _INT),
        ("running", _INT),
        ("wanted", _INT),
        ("closed_after", _INT),
        ("adapter_wanted", _INT),
        ("weight", _FLOAT),
        ("last_used_s", _FLOAT),
        ("load_s", _FLOAT),  # of the last load; NaN before the first.
        ("source_s", _FLOAT),  # mean of a load from the source.
        ("batch", _INT),  # sequences running, of all siblings.
        ("lane_waiting", _INT),
        ("lane_used_s", _FLOAT),
        ("last_round_s", _FLOAT),
        ("round", _INT),
        ("context", _INT),
        ("kv", _INT),
        ("weights", _INT),
        ("stored", _INT),
        ("host_s", _FLOAT),
        ("wanting_at", _INT),  # its place in the list of lanes to load; -1 when it is not there.
        *((name, _FLOAT) for name in StepCosts._fields),
        ("resident", _LINK),
        ("wanting", _LINK),
        ("victim", _LINK),
        ("adapter", _LINK),
    ],
    align=True,
)

#: One per job: what it asks for, its place on the node, and its context in the prefix cache once it has finished.
WORK: Final = np.dtype(
    [
        ("key", _INT),
        ("number", _INT),
        ("base_round", _INT),
        ("end_round", _INT),
        ("prompt", _LINK),
        ("output", _LINK),
        ("prefix", _LINK),
        ("model", _LINK),
        ("session", _INT),
        ("generated", _LINK),
        ("reused", _LINK),
        ("left", _LINK),
        ("right", _LINK),
        ("next", _LINK),
        ("cold", _LINK),
        ("submitted_s", _FLOAT),
        ("due_s", _FLOAT),
        ("started_s", _FLOAT),
        ("first_token_s", _FLOAT),
        ("finished_s", _FLOAT),
        ("home", _LINK),  # node whose prefix cache has its context; -1 for none.
        ("cached", _LINK),  # tokens of it.
        ("older", _LINK),
        ("newer", _LINK),
        ("same_older", _LINK),  # the other contexts of the session, on any node.
        ("same_newer", _LINK),
    ],
    align=True,
)


class Jobs(NamedTuple):
    """Jobs by index; every column has shape ``(j,)``. A job may be submitted again after it was lost, not otherwise.

    Args:
        model: index of the model.
        prompt: prompt tokens, >= 1.
        output: tokens to generate; 0 for an embedding.
        session: index of the session; -1 for none.
        prefix_tokens: leading prompt tokens that repeat the session's previous context.
        priority: lower goes first.
    """

    model: NDArray[np.int32]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    session: NDArray[np.int64]
    prefix_tokens: NDArray[np.int64]
    priority: NDArray[np.int64]


class Nodes(NamedTuple):
    """Every node of a fleet; n nodes, m models, j jobs, s sessions.

    Args:
        card: :data:`CARD`, shape ``(n,)``.
        line: :data:`LINE`, shape ``(n, m)``.
        work: :data:`WORK`, shape ``(j,)``.
        ends: heap of the running jobs of a lane by the round that ends them, shape ``(n, m, MAX_SEQUENCES)``.
        batch: jobs of the prefill under way, shape ``(n, MAX_SEQUENCES)``.
        newest_context: the session's newest context in any prefix cache, shape ``(s,)``.
        noise: factor on the k-th load of a node from its source, shape ``(n, k)``, used in turn.
    """

    card: NDArray[np.void]
    line: NDArray[np.void]
    work: NDArray[np.void]
    ends: NDArray[np.int32]
    batch: NDArray[np.int32]
    newest_context: NDArray[np.int32]
    noise: NDArray[np.float64]


class Events(NamedTuple):
    """What happened, in order; the reader sets ``count[0]`` back to 0.

    Args:
        kind: :data:`FIRST_TOKEN`, ... :data:`LOST`, shape ``(e,)``.
        at_s: when.
        node: where.
        what: the job; for :data:`LOADED` and :data:`EVICTED` the model.
        count: how many there are, shape ``(1,)``.
    """

    kind: NDArray[np.int8]
    at_s: NDArray[np.float64]
    node: NDArray[np.int32]
    what: NDArray[np.int64]
    count: NDArray[np.int64]  # type: ignore[assignment]  # nobody counts values in this tuple.


def make_events(capacity: int) -> Events:
    """An empty list of events; a kernel that needs more than ``capacity`` before it is read raises ``IndexError``."""
    return Events(
        np.zeros(capacity, np.int8),
        np.zeros(capacity),
        np.zeros(capacity, np.int32),
        np.zeros(capacity, np.int64),
        np.zeros(1, np.int64),
    )


def make_jobs(
    model: Any, prompt: Any, output: Any, session: Any = -1, prefix_tokens: Any = 0, priority: Any = 0
) -> Jobs:
    """Jobs from columns, or from numbers that hold for all.

    Raises:
        ConfigError: a priority is out of range.
    """
    columns = np.broadcast_arrays(
        *map(np.atleast_1d, (model, prompt, output, session, prefix_tokens, priority))
    )
    if np.abs(columns[-1]).max(initial=0) > MAX_PRIORITY:
        raise ConfigError(f"priorities lie within +-{MAX_PRIORITY}; these reach {np.abs(columns[-1]).max()}")
    model_column, *others = columns
    return Jobs(model_column.astype(np.int32), *(column.astype(np.int64) for column in others))


def make_nodes(
    settings: Sequence[NodeSettings],
    models: Mapping[str, ModelSpec],
    n_jobs: int,
    n_sessions: int,
    load_noise: NDArray[np.float64],
) -> Nodes:
    """Idle nodes that serve every model.

    Args:
        settings: one per node, n of them.
        models: by id; a model's index is its position.
        n_jobs: how many jobs there are.
        n_sessions: how many sessions.
        load_noise: factors on the durations of loads from the source, > 0, shape ``(n, k)``, k >= 1.

    Raises:
        ConfigError: the settings cannot be served, or ``load_noise`` has another shape.
    """
    n, m = len(settings), len(models)
    if load_noise.ndim != 2 or len(load_noise) != n or load_noise.shape[1] == 0:
        raise ConfigError(f"load_noise has shape {load_noise.shape}; give ({n}, k), k at least 1")
    rows = {each: (_card(each), _lines(each, models)) for each in dict.fromkeys(settings)}
    card, line = np.zeros(n, CARD), np.zeros((n, m), LINE)
    for i, each in enumerate(settings):
        card[i], line[i] = rows[each]
    work = np.zeros(n_jobs, WORK)
    for link in ("home", "older", "newer", "same_older", "same_newer", "left", "right", "next"):
        work[link] = -1
    for moment in ("submitted_s", "due_s", "started_s", "first_token_s", "finished_s"):
        work[moment] = np.nan
    return Nodes(
        card,
        line,
        work,
        np.zeros((n, m, MAX_SEQUENCES), np.int32),
        np.zeros((n, MAX_SEQUENCES), np.int32),
        np.full(n_sessions, -1, np.int32),
        np.ascontiguousarray(load_noise, np.float64),
    )


def _card(settings: NodeSettings) -> NDArray[np.void]:
    card = np.zeros((), CARD)
    for end in ("step_end_s", "load_end_s", "adapter_end_s", "arrival_s"):
        card[end] = inf
    for link in (
        "step_lane",
        "load_lane",
        "adapter_line",
        "first_arrival",
        "last_arrival",
        "oldest",
        "newest",
    ):
        card[link] = -1
    card["factor"] = 1.0
    card["kv_budget"] = card["budget"] = settings.gpu.budget_bytes
    card["total"] = settings.gpu.total_gib * GIB
    card["overhead_s"] = settings.overhead_s
    card["host_bytes"] = settings.host_gib * GIB
    card["keep_evicted"] = settings.keep_evicted
    card["prefix_cache"] = settings.prefix_cache
    card["max_adapters"] = settings.max_adapters
    return card


def _lines(settings: NodeSettings, models: Mapping[str, ModelSpec]) -> NDArray[np.void]:
    index = {model: i for i, model in enumerate(models)}
    lines = np.zeros(len(models), LINE)
    for link in ("head", "next_sibling", "wanting_at"):
        lines[link] = -1
    for key in ("wanted", "closed_after"):
        lines[key] = NO_KEY
    for moment in ("last_used_s", "lane_used_s", "last_round_s"):
        lines[moment] = -inf
    lines["load_s"] = np.nan
    for lane in lanes_of(models, settings):
        _fill_lane(lines, lane, index, settings)
    return lines


def _fill_lane(lines: NDArray[np.void], lane: Lane, index: Mapping[str, int], settings: NodeSettings) -> None:
    here = [index[queue.model] for queue in lane.queues]
    for i, after, queue in zip(here, [*here[1:], -1], lane.queues, strict=True):
        line = lines[i]
        line["lane"], line["next_sibling"] = here[0], after
        line["source_s"] = adapter_s(queue.spec, settings.source)
    own = lines[here[0]]
    own["place"] = ABSENT
    own["source_s"] = load_s(lane.spec, settings.source)
    own["host_s"] = load_s(lane.spec, LOAD_SOURCES["host_pinned"])
    own["kv"], own["weights"], own["stored"] = lane.kv, lane.weights, lane.spec.stored_bytes
    for name, cost in zip(StepCosts._fields, lane.costs, strict=True):
        own[name] = cost
