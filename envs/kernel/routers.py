"""The routers of a simulated fleet in arrays: what :class:`ccr.fleet.LiveFleet` and the ledger keep, compiled.

The book of expectations is the core's own (:mod:`ccr.book`), compiled as it stands. What the live fleet adds, rates,
latencies and readings, is written again here, loop for loop, for nodes that never leave rotation; the simulator's
tests hold both equal. Episodes in which nodes crash run on the reference.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr import book as books
from ccr import shared
from ccr.book import Book, Placed
from ccr.fleet import FleetRules
from ccr.hashing import hash64
from ccr.look import Look, look_at
from ccr.shared import IN_FLIGHT, Entered, Part
from ccr.types import COLUMNS, UNKNOWN
from envs.kernel.compiled import njit
from envs.scenario import Arrivals, Scenario

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]

_ROW: Final = {name: row for row, name in enumerate(COLUMNS)}
INFLIGHT: Final = _ROW["inflight"]
QPS: Final = _ROW["qps"]
LATENCY_S: Final = _ROW["latency_s"]
GPU_FREE_GIB: Final = _ROW["gpu_free_gib"]
GPU_TOTAL_GIB: Final = _ROW["gpu_total_gib"]
ROOM_GIB: Final = _ROW["room_gib"]
RUNNING: Final = _ROW["running"]
WAITING: Final = _ROW["waiting"]
KV_USED: Final = _ROW["kv_used"]
AGE_S: Final = _ROW["telemetry_age_s"]
RAMP: Final = _ROW["ramp"]

_RULES: Final = FleetRules()
_STALE_AFTER_S: Final = _RULES.stale_after_s
_QPS_WINDOW_S: Final = _RULES.qps_window_s
_LATENCY_WEIGHT: Final = _RULES.latency_weight
_LATENCY_MEMORY_S: Final = _RULES.latency_memory_s
_GRID_S: Final = _RULES.grid_s
_UNKNOWN: Final = UNKNOWN

# Rows of `Router.reading`. --------------------------------------------------------------------------------------
READ_RUNNING: Final = 0
READ_WAITING: Final = 1
READ_KV_USED: Final = 2
READ_FREE_GIB: Final = 3
READ_AT_S: Final = 4

# Entries of `Router.clock`. -------------------------------------------------------------------------------------
DUE_S: Final = 0
VIEW_S: Final = 1
MEAN_LATENCY_S: Final = 2


class Router(NamedTuple):
    """One router.

    Args:
        columns: rows of :data:`ccr.types.COLUMNS`, shape ``(C, n)``.
        reported: weights are resident by the last reading or by an answer since, shape ``(M, n)``.
        reading: the last reading, shape ``(5, n)``.
        known: whether there was one, shape ``(n,)``.
        total_gib: device memory, shape ``(n,)``.
        qps: requests per second at the last dispatch, shape ``(n,)``.
        dispatch_s: the last dispatch, shape ``(n,)``.
        latency_s: decayed mean latency, shape ``(n,)``.
        latency_at_s: when it was last seen, shape ``(n,)``.
        clock: when columns are due, when they were made, the mean latency, shape ``(3,)``.
        seq: requests so far, shape ``(1,)``.
        session_node: column a session was last on; -1 for none, shape ``(sessions,)``.
        session_tokens: context it left there, shape ``(sessions,)``.
    """

    columns: Floats
    reported: Flags
    reading: Floats
    known: Flags
    total_gib: Floats
    qps: Floats
    dispatch_s: Floats
    latency_s: Floats
    latency_at_s: Floats
    clock: Floats
    seq: Ints
    session_node: Ints
    session_tokens: Floats


class Names(NamedTuple):
    """Hashes of what policies hash: the same numbers as the names would give.

    Args:
        node: of node ids, shape ``(n,)``.
        model: of model ids, shape ``(M,)``.
        session: of session ids, shape ``(sessions,)``.
        gib: weights of each model as the catalogue tells, shape ``(M,)``.
        load_s: load seconds as the catalogue tells, shape ``(M,)``.
    """

    node: Hashes
    model: Hashes
    session: Hashes
    gib: Floats
    load_s: Floats


def make_router(scenario: Scenario, sessions: int) -> tuple[Router, Book]:
    """A router at the start of an episode: the nodes are known, and what is warm on them."""
    n, m = len(scenario.nodes), len(scenario.models)
    specs = scenario.specs()
    book = scenario.prices().book(scenario.facts(), specs)
    reported = np.array(
        [[model in node.warm for node in scenario.nodes] for model in scenario.models], dtype=np.bool_
    ).reshape(m, n)
    columns = np.zeros((len(COLUMNS), n))
    columns[RAMP] = 1.0
    reading = np.zeros((5, n))
    reading[READ_AT_S] = 0.0
    router = Router(
        columns=columns,
        reported=reported,
        reading=reading,
        known=np.zeros(n, dtype=np.bool_),
        total_gib=np.array([spec.gpu_total_gib for spec in specs]),
        qps=np.zeros(n),
        dispatch_s=np.full(n, -np.inf),
        latency_s=np.zeros(n),
        latency_at_s=np.zeros(n),
        clock=np.zeros(3),
        seq=np.zeros(1, dtype=np.int64),
        session_node=np.full(max(sessions, 1), -1, dtype=np.int64),
        session_tokens=np.zeros(max(sessions, 1)),
    )
    for node in range(n):
        books.report(book, node, reported[:, node], np.zeros(m, dtype=np.bool_))
    return router, book


def names_of(scenario: Scenario, arrivals: Arrivals) -> Names:
    """The hashes of an episode's names."""
    facts = scenario.facts()
    return Names(
        node=np.array([hash64(node.id) for node in scenario.nodes], dtype=np.uint64),
        model=np.array([hash64(model) for model in scenario.models], dtype=np.uint64),
        session=np.array([hash64(f"s{k}") for k in range(max(arrivals.sessions, 1))], dtype=np.uint64),
        gib=np.array([gib for _, gib, _ in facts]),
        load_s=np.array([load_s for _, _, load_s in facts]),
    )


@njit
def latency_of(router: Router, node: int, mean_s: float, now_s: float) -> float:
    """The node's latency, drifted towards the mean since it was last seen."""
    if router.latency_s[node] == 0.0:
        return 0.0
    kept = math.exp(-max(now_s - router.latency_at_s[node], 0.0) / _LATENCY_MEMORY_S)
    return mean_s + (router.latency_s[node] - mean_s) * kept


@njit
def refresh(router: Router, now_s: float) -> None:
    """Bring the columns that depend on time up to date; :meth:`ccr.fleet.LiveFleet._refresh`."""
    columns = router.columns
    n = columns.shape[1]
    router.clock[DUE_S] = now_s + _GRID_S
    router.clock[VIEW_S] = now_s
    free = 0.0
    fresh_nodes = 0
    seen_s = 0.0
    seen = 0
    for i in range(n):
        age_s = now_s - router.reading[READ_AT_S, i]
        columns[AGE_S, i] = min(age_s, _UNKNOWN)
        idle_s = max(now_s - router.dispatch_s[i], 0.0)
        columns[QPS, i] = router.qps[i] * math.exp(-idle_s / _QPS_WINDOW_S)
        columns[GPU_TOTAL_GIB, i] = router.total_gib[i]
        columns[ROOM_GIB, i] = router.total_gib[i] if router.total_gib[i] > 0.0 else _UNKNOWN
        if router.known[i] and age_s <= _STALE_AFTER_S:
            free += router.reading[READ_FREE_GIB, i]
            fresh_nodes += 1
        if router.latency_s[i] != 0.0:
            seen_s += router.latency_s[i]
            seen += 1
    mean_s = seen_s / seen if seen > 0 else 0.0
    router.clock[MEAN_LATENCY_S] = mean_s
    neutral = free / fresh_nodes if fresh_nodes > 0 else 0.0
    for i in range(n):
        columns[LATENCY_S, i] = latency_of(router, i, mean_s, now_s)
        fresh = router.known[i] and columns[AGE_S, i] <= _STALE_AFTER_S
        columns[RUNNING, i] = router.reading[READ_RUNNING, i] if fresh else 0.0
        columns[WAITING, i] = router.reading[READ_WAITING, i] if fresh else 0.0
        columns[KV_USED, i] = router.reading[READ_KV_USED, i] if fresh else 0.0
        columns[GPU_FREE_GIB, i] = router.reading[READ_FREE_GIB, i] if fresh else neutral


@njit
def bring_up_to(router: Router, now_s: float) -> None:
    """Refresh if that is due; :meth:`ccr.fleet.LiveFleet.at`."""
    if now_s >= router.clock[DUE_S]:
        refresh(router, now_s)


@njit
def observe(
    router: Router,
    book: Book,
    node: int,
    reading: Floats,
    resident: Flags,
    loading: Flags,
    nowhere: Flags,
    now_s: float,
) -> None:
    """Take in a reading.

    Args:
        router: changed.
        book: changed.
        node: column.
        reading: the first four rows of :attr:`Router.reading`, shape ``(4,)``.
        resident: by model, shape ``(M,)``.
        loading: by model, shape ``(M,)``.
        nowhere: all false, shape ``(M,)``.
        now_s: the moment.
    """
    for k in range(4):
        router.reading[k, node] = reading[k]
    router.reading[READ_AT_S, node] = now_s
    router.known[node] = True
    for model in range(len(resident)):
        router.reported[model, node] = resident[model]
    books.report(book, node, resident, nowhere)
    for model in range(len(resident)):
        if loading[model]:
            books.loading(book, model, node, now_s)
    books.read(book, node, reading[READ_RUNNING] + reading[READ_WAITING])
    refresh(router, now_s)


@njit
def look(
    router: Router,
    book: Book,
    model: int,
    prompt_tokens: int,
    session: int,
    coverage: float,
    observed: bool,
) -> Look:
    """A request on every node, as :meth:`ccr.expectations.Expectations.look` gives it."""
    session_node, session_tokens = -1, 0.0
    if session >= 0:
        session_node, session_tokens = router.session_node[session], router.session_tokens[session]
    return look_at(
        book, router.columns, model, float(max(prompt_tokens, 1)), book.output_tokens[model],
        session_node, session_tokens, coverage, router.clock[VIEW_S], observed,
    )  # fmt: skip


@njit
def dispatch(
    router: Router, book: Book, model: int, node: int, prompt_tokens: int, session: int, now_s: float
) -> Placed:
    """Count a request as in flight at the node; the ledger's ``lease``."""
    columns = router.columns
    columns[INFLIGHT, node] += 1.0
    idle_s = max(now_s - router.dispatch_s[node], 0.0)
    router.qps[node] = router.qps[node] * math.exp(-idle_s / _QPS_WINDOW_S) + 1.0 / _QPS_WINDOW_S
    router.dispatch_s[node] = now_s
    columns[QPS, node] = router.qps[node]
    books.asked_for(book, model)
    output_tokens = book.output_tokens[model]
    prompt = float(max(prompt_tokens, 1))
    cached = 0.0
    if session >= 0:
        if router.session_node[session] == node:
            cached = min(router.session_tokens[session], prompt - 1.0)
        router.session_node[session] = node
        router.session_tokens[session] = prompt + output_tokens
    told = columns[RUNNING, node] + columns[WAITING, node]
    unseen = min(book.load[books.OTHERS, node], told)
    return books.place(book, model, node, prompt, output_tokens, cached, unseen, now_s)


@njit
def finish(
    router: Router,
    book: Book,
    placed: Placed,
    was_cold: bool,
    ttft_s: float,
    latency_s: float,
    output_tokens: int,
    observed: bool,
    now_s: float,
) -> None:
    """A request was answered: release its lease and learn from it.

    Args:
        router: changed.
        book: changed.
        placed: its dispatch.
        was_cold: whether the weights had to be loaded, as the router saw it.
        ttft_s: dispatch to first token.
        latency_s: dispatch to last token.
        output_tokens: generated.
        observed: as in :func:`ccr.book.learn`.
        now_s: the moment.
    """
    node = placed.node
    router.columns[INFLIGHT, node] -= 1.0
    books.leave(book, placed, True, router.clock[VIEW_S])
    if not was_cold:
        bring_up_to(router, now_s)
        known_s = latency_of(router, node, router.clock[MEAN_LATENCY_S], now_s)
        weight = _LATENCY_WEIGHT if router.latency_s[node] != 0.0 else 1.0
        router.latency_s[node] = known_s + weight * (latency_s - known_s)
        router.latency_at_s[node] = now_s
    router.columns[LATENCY_S, node] = router.latency_s[node]
    router.reported[placed.model, node] = True
    books.learn(book, placed, ttft_s, latency_s, float(output_tokens), now_s, observed)


@njit
def part(router: Router, book: Book, entered: Entered, now_s: float) -> Part:
    """What the router has placed; :meth:`ccr.fleet.LiveFleet.part`."""
    return shared.part_of(book, entered, _sent_per_s(router, entered, now_s), now_s)


@njit
def enter(router: Router, book: Book, entered: Entered, others: Part, now_s: float) -> None:
    """What other routers have placed; :meth:`ccr.fleet.LiveFleet.enter`."""
    rate = _sent_per_s(router, entered, now_s) + others.sent_per_s
    router.columns[INFLIGHT] = (
        router.columns[INFLIGHT] + others.load[IN_FLIGHT] - entered.part.load[IN_FLIGHT]
    )
    shared.enter(book, entered, others, now_s)
    router.columns[QPS] = rate
    router.qps[:] = rate
    router.dispatch_s[:] = now_s


@njit
def _sent_per_s(router: Router, entered: Entered, now_s: float) -> Floats:
    others, entered_s = entered.part.sent_per_s, entered.at_s[0]
    return shared.own_rate(router.qps, router.dispatch_s, others, entered_s, now_s, _QPS_WINDOW_S)
