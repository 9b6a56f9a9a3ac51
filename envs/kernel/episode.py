"""An episode, compiled: nodes, routers, telemetry and traffic from one decision to the next.

The order of things is that of :class:`envs.simulator.Simulator`. :func:`to_decision` runs to the next request that needs
a node, :func:`act` gives it one; :func:`run` does both with a built-in policy until nothing is left to do.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba.experimental import structref
from numpy.typing import NDArray

from ccr import book as books
from ccr import shared
from ccr.admission import HOLD_S, may_hold, may_reject
from ccr.book import Book, Placed
from ccr.features import node_features, request_features
from ccr.look import Look
from ccr.policies.network import PRIORITY, logits, priority, service_s
from ccr.shared import Entered, Part
from ccr.timing import GIB
from envs.episode import Episode, span_of
from envs.kernel import choice
from envs.kernel.compiled import njit
from envs.kernel.nodes import (
    advance,
    free_gib,
    kv_used,
    next_event_s,
    place_of,
    prefer,
    running,
    slow,
    submit,
    waiting,
)
from envs.kernel.nodes import place as place_on
from envs.kernel.refs import (
    BookRef,
    EventsRef,
    JobsRef,
    NamesRef,
    NodesRef,
    Reference,
    RouterRef,
    behind_pointer,
)
from envs.kernel.routers import (
    INFLIGHT,
    Names,
    Router,
    bring_up_to,
    dispatch,
    enter,
    finish,
    look,
    make_router,
    names_of,
    observe,
    part,
    refresh,
)
from envs.kernel.state import (
    FINISHED,
    FIRST_TOKEN,
    LOADING,
    RESIDENT,
    Events,
    Jobs,
    Nodes,
    make_events,
    make_jobs,
    make_nodes,
)
from envs.scenario import SHARE_KEPT_S, Arrivals, Scenario, draws

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PREFER_S: Final = 5.0  # as in envs.simulator
# What a policy may answer instead of a node. ---------------------------------------------------------------------
REFUSE: Final = -1
WAIT: Final = -2

_OK: Final = 0  # as in envs.episode
_REJECTED: Final = 1
_FAILED: Final = 2

# Entries of `Sim.tally`. ----------------------------------------------------------------------------------------
NEXT_OPEN: Final = 0
WAITING_CLOSED: Final = 1
IN_FLIGHT: Final = 2
NEXT_SAMPLE: Final = 3
READ_FROM: Final = 4
READ_TO: Final = 5
NEXT_TROUBLE: Final = 6
OVERRIDES: Final = 7
DECISIONS: Final = 8
ENDED: Final = 9
NEXT_SHARE: Final = 10

# Entries of `Sim.clock`. ----------------------------------------------------------------------------------------
NOW_S: Final = 0
PREFER_AT_S: Final = 1
SHARE_AT_S: Final = 2

# Columns of `Sim.placed`, see `ccr.book.Placed`. --------------------------------------------------------------------
_PROMPT, _OUTPUT, _PREFILL_S, _STEP_S, _INFLIGHT, _UNSEEN, _AT_S, _LOAD_S, _WAIT_S = range(9)


class Setting(NamedTuple):
    """What does not change during an episode.

    Args:
        period_s: between two readings of a node.
        delay_s: of a reading.
        coverage: share of the traffic one router sees of its own.
        share_s: between two exchanges of the routers, whoever's; ``inf`` for never.
        share_until_s: when exchanges break down.
        is_closed: whether requests wait for others.
        by_popularity: whether nodes give up the least popular model first.
        observed: whether observed latencies are learned from.
    """

    period_s: float
    delay_s: float
    coverage: float
    share_s: float
    share_until_s: float
    is_closed: bool
    by_popularity: bool
    observed: bool


class Sim(NamedTuple):
    """An episode under way.

    Args:
        nodes: the fleet.
        jobs: what is asked of it.
        events: of the nodes, read at once.
        routers: one :class:`Router`, every array with a leading axis of replicas.
        books: one :class:`ccr.book.Book`, likewise.
        parts: what each router told last of its ledger, likewise.
        entered: what of others is in each book, likewise.
        coverage: share of the traffic each router sees, shape ``(replicas,)``.
        names: what policies hash.
        setting: what does not change.
        clock: see the entries above, shape ``(3,)``.
        tally: see the entries above, shape ``(11,)``.
        due_s: arrival of each request once it is known, shape ``(r,)``.
        ready_s: when it wants a node: its arrival, or the end of its hold, shape ``(r,)``.
        after_s: time after another's end, for those that wait, shape ``(r,)``.
        open: requests that wait for nobody, by arrival, shape ``(k,)``.
        heap: requests that have stopped waiting for another, or are held, by ``ready_s``, shape ``(r,)``.
        first_follower: of each request; -1 for none, shape ``(r,)``.
        next_follower: likewise.
        u: draw of each decision, shape ``(r,)``.
        sample_s: next reading of each node, shape ``(n,)``.
        frozen: whether a node gives no readings, shape ``(n,)``.
        trouble: time, node, factor (0: freeze, -1: thaw) of each change, shape ``(t, 3)``.
        reading_s: when a reading arrives, shape ``(q,)``: a ring.
        reading_node: its node.
        reading: its numbers, shape ``(q, 4)``.
        resident: its weights, shape ``(q, M)``.
        loading: likewise.
        nowhere: all false, shape ``(M,)``.
        share: of the recent requests, shape ``(M,)``.
        total_s: outcome, as in :class:`envs.episode.Episode`, shape ``(r,)``.
        ttft_s: likewise.
        first_s: moment of the first token, shape ``(r,)``.
        node: outcome.
        status: outcome.
        cold: outcome.
        ended: requests that were answered or refused, in that order, shape ``(r,)``.
        placed: numbers of :class:`ccr.book.Placed`, shape ``(r, 9)``.
        placed_cold: whether the book had it cold, shape ``(r,)``.
    """

    nodes: Nodes
    jobs: Jobs
    events: Events
    routers: Router
    books: Book
    parts: Part
    entered: Entered
    coverage: Floats
    names: Names
    setting: Setting
    clock: Floats
    tally: Ints
    due_s: Floats
    ready_s: Floats
    after_s: Floats
    open: Ints
    heap: Ints
    first_follower: Ints
    next_follower: Ints
    u: Floats
    sample_s: Floats
    frozen: Flags
    trouble: Floats
    reading_s: Floats
    reading_node: Ints
    reading: Floats
    resident: Flags
    loading: Flags
    nowhere: Flags
    share: Floats
    total_s: Floats
    ttft_s: Floats
    first_s: Floats
    node: Ints
    status: Ints
    cold: Flags
    ended: Ints
    placed: Floats
    placed_cold: Flags


@structref.register
class SimType(Reference):
    """Type of :class:`SimRef`."""


class SimRef(structref.StructRefProxy):
    """:class:`Sim` behind a pointer."""


behind_pointer(SimRef, SimType, Sim)


def make_sim(scenario: Scenario, arrivals: Arrivals, seed: int, *, observed: bool) -> Sim:
    """An episode before its first event.

    Args:
        scenario: without crashes.
        arrivals: drawn from the scenario.
        seed: of noise and draws.
        observed: whether the policy learns from observed latencies.
    """
    n, m, r = len(scenario.nodes), len(scenario.models), len(arrivals.t)
    settings = [node.settings(keep_evicted=scenario.keep_evicted) for node in scenario.nodes]
    nodes = make_nodes(settings, scenario.models, r, max(arrivals.sessions, 1), scenario.noise(seed))
    rows = {model: row for row, model in enumerate(scenario.models)}
    for i, plan in enumerate(scenario.nodes):
        for model in plan.warm:
            place_on(nodes, i, rows[model])
    pairs = [make_router(scenario, arrivals.sessions) for _ in range(scenario.replicas)]
    for router, _ in pairs:
        refresh(router, 0.0)
    is_shared = scenario.share_s > 0.0
    share_s = scenario.share_s / scenario.replicas if is_shared else np.inf
    waits = arrivals.after >= 0
    first, following = _followers(arrivals.after)
    ready = np.flatnonzero(~waits)
    readings = n * (2 + int(np.ceil(scenario.telemetry_delay_s / scenario.telemetry_period_s)))
    return Sim(
        nodes=nodes,
        jobs=make_jobs(
            arrivals.model, arrivals.prompt_tokens, arrivals.output_tokens, arrivals.session,
            arrivals.prefix_tokens, 0,
        ),
        events=make_events(64 * n + 4096),
        routers=Router(*(np.stack(field) for field in zip(*(router for router, _ in pairs), strict=True))),
        books=Book(*(np.stack(field) for field in zip(*(book for _, book in pairs), strict=True))),
        parts=_for_each(shared.nothing(m, n), scenario.replicas),
        entered=_none_entered(m, n, scenario.replicas),
        coverage=np.full(scenario.replicas, 1.0 if is_shared else 1.0 / scenario.replicas),
        names=names_of(scenario, arrivals),
        setting=Setting(
            scenario.telemetry_period_s, scenario.telemetry_delay_s, 1.0 / scenario.replicas,
            share_s, scenario.share_until_s, bool(waits.any()), scenario.eviction == "popularity", observed,
        ),
        clock=np.array([0.0, PREFER_S if scenario.eviction == "popularity" else np.inf, share_s]),
        tally=np.zeros(11, dtype=np.int64),
        due_s=arrivals.t.astype(np.float64),
        ready_s=arrivals.t.astype(np.float64),
        after_s=arrivals.t.astype(np.float64),
        open=ready[np.argsort(arrivals.t[ready], kind="stable")].astype(np.int64),
        heap=np.zeros(r, dtype=np.int64),
        first_follower=first,
        next_follower=following,
        u=draws(seed, r),
        sample_s=scenario.telemetry_period_s * np.arange(n) / n,
        frozen=np.zeros(n, dtype=np.bool_),
        trouble=_changes(scenario),
        reading_s=np.zeros(readings),
        reading_node=np.zeros(readings, dtype=np.int64),
        reading=np.zeros((readings, 4)),
        resident=np.zeros((readings, m), dtype=np.bool_),
        loading=np.zeros((readings, m), dtype=np.bool_),
        nowhere=np.zeros(m, dtype=np.bool_),
        share=np.full(m, 1.0 / m),
        total_s=np.full(r, np.nan),
        ttft_s=np.full(r, np.nan),
        first_s=np.full(r, np.inf),
        node=np.full(r, -1, dtype=np.int64),
        status=np.full(r, _FAILED, dtype=np.int64),
        cold=np.zeros(r, dtype=np.bool_),
        ended=np.zeros(r, dtype=np.int64),
        placed=np.zeros((r, 9)),
        placed_cold=np.zeros(r, dtype=np.bool_),
    )  # fmt: skip


def _for_each(one: Part, replicas: int) -> Part:
    """The same for every replica, along a leading axis."""
    fields: list[Any] = [np.stack([field] * replicas) for field in one]
    return Part(*fields)


def _none_entered(models: int, nodes: int, replicas: int) -> Entered:
    blank = shared.none_entered(models, nodes)
    parts = _for_each(blank.part, replicas)
    return Entered(parts, np.stack([blank.progress_s] * replicas), np.stack([blank.at_s] * replicas))


def _followers(after: Ints) -> tuple[Ints, Ints]:
    """Lists of those that wait for each request, first in order first."""
    first, following = np.full(len(after), -1, dtype=np.int64), np.full(len(after), -1, dtype=np.int64)
    for j in range(len(after) - 1, -1, -1):
        if after[j] >= 0:
            following[j] = first[after[j]]
            first[after[j]] = j
    return first, following


def _changes(scenario: Scenario) -> Floats:
    """Troubles as changes in time; the end of one before the beginning of the next at equal times."""
    changes = []
    for k, trouble in enumerate(scenario.troubles):
        begins = trouble.factor if trouble.kind == "slow" else 0.0
        ends = 1.0 if trouble.kind == "slow" else -1.0
        changes += [(trouble.from_s, k, 1, trouble.node, begins), (trouble.until_s, k, 0, trouble.node, ends)]
    changes.sort()
    return np.array([(at_s, node, factor) for at_s, _, _, node, factor in changes]).reshape(-1, 3)


@njit
def referenced(sim: Sim) -> Any:
    """The same episode behind pointers, on the same memory: what all functions below are given."""
    a = sim.nodes
    nodes = NodesRef(a.card, a.line, a.work, a.ends, a.batch, a.newest_context, a.noise)
    b = sim.jobs
    jobs = JobsRef(b.model, b.prompt, b.output, b.session, b.prefix_tokens, b.priority)
    c = sim.events
    events = EventsRef(c.kind, c.at_s, c.node, c.what, c.count)
    d = sim.names
    names = NamesRef(d.node, d.model, d.session, d.gib, d.load_s)
    e = sim.routers
    routers = RouterRef(
        e.columns,
        e.reported,
        e.reading,
        e.known,
        e.total_gib,
        e.qps,
        e.dispatch_s,
        e.latency_s,
        e.latency_at_s,
        e.clock,
        e.seq,
        e.session_node,
        e.session_tokens,
    )
    g = sim.books
    ledgers = BookRef(
        g.load,
        g.resident,
        g.in_host,
        g.inflight,
        g.loading_until_s,
        g.used_s,
        g.loads_until_s,
        g.progress_s,
        g.done_s,
        g.victim_gib,
        g.victim_cost_s,
        g.stale,
        g.weights_gib,
        g.kv_gib,
        g.share,
        g.output_tokens,
        g.costs,
        g.load_s,
        g.host_load_s,
        g.ttft_curve,
        g.ttft_seen,
        g.weights,
        g.precision,
    )
    return SimRef(
        nodes,
        jobs,
        events,
        routers,
        ledgers,
        sim.parts,
        sim.entered,
        sim.coverage,
        names,
        sim.setting,
        sim.clock,
        sim.tally,
        sim.due_s,
        sim.ready_s,
        sim.after_s,
        sim.open,
        sim.heap,
        sim.first_follower,
        sim.next_follower,
        sim.u,
        sim.sample_s,
        sim.frozen,
        sim.trouble,
        sim.reading_s,
        sim.reading_node,
        sim.reading,
        sim.resident,
        sim.loading,
        sim.nowhere,
        sim.share,
        sim.total_s,
        sim.ttft_s,
        sim.first_s,
        sim.node,
        sim.status,
        sim.cold,
        sim.ended,
        sim.placed,
        sim.placed_cold,
    )


@njit
def router_of(sim: Sim, r: int) -> Any:
    """One replica."""
    a = sim.routers
    return RouterRef(
        a.columns[r], a.reported[r], a.reading[r], a.known[r], a.total_gib[r], a.qps[r], a.dispatch_s[r],
        a.latency_s[r], a.latency_at_s[r], a.clock[r], a.seq[r], a.session_node[r], a.session_tokens[r],
    )  # fmt: skip


@njit
def book_of(sim: Sim, r: int) -> Any:
    """Its book."""
    a = sim.books
    return BookRef(
        a.load[r], a.resident[r], a.in_host[r], a.inflight[r], a.loading_until_s[r], a.used_s[r],
        a.loads_until_s[r], a.progress_s[r], a.done_s[r], a.victim_gib[r], a.victim_cost_s[r], a.stale[r],
        a.weights_gib[r], a.kv_gib[r], a.share[r], a.output_tokens[r], a.costs[r], a.load_s[r],
        a.host_load_s[r], a.ttft_curve[r], a.ttft_seen[r], a.weights[r], a.precision[r],
    )  # fmt: skip


@njit
def _part_of(parts: Part, r: int) -> Part:
    """What one router told."""
    return Part(
        parts.load[r], parts.inflight[r], parts.loading_s[r], parts.quiet_s[r], parts.done_per_s[r],
        parts.sent_per_s[r],
    )  # fmt: skip


@njit
def _share(sim: Sim, at_s: float) -> None:
    """The next router tells what it has placed, and takes in what the others told."""
    r, count = sim.tally[NEXT_SHARE], len(sim.coverage)
    sim.tally[NEXT_SHARE] = (r + 1) % count
    sim.clock[SHARE_AT_S] = at_s + sim.setting.share_s
    is_over = at_s >= sim.setting.share_until_s + SHARE_KEPT_S
    if is_over and sim.coverage[r] != 1.0:
        return  # the others were taken out before
    if at_s >= sim.setting.share_until_s and not is_over:
        return  # what was heard last still holds
    router, book = router_of(sim, r), book_of(sim, r)
    a = sim.entered
    entered = Entered(_part_of(a.part, r), a.progress_s[r], a.at_s[r])
    others = shared.nothing(len(sim.share), len(sim.nodes.card))
    if is_over:
        sim.coverage[r] = sim.setting.coverage
    else:
        shared.put(_part_of(sim.parts, r), part(router, book, entered, at_s))
        for k in range(count):
            if k != r:
                shared.add(others, _part_of(sim.parts, k))
    enter(router, book, entered, others, at_s)


# -- time ------------------------------------------------------------------------------------------------------------


@njit
def to_decision(sim: Sim) -> int:
    """Run to the next request that needs a node; -1 when everything is answered."""
    count, clock = sim.tally, sim.clock
    while True:
        arrives_s, from_heap = _next_arrival(sim)
        if arrives_s == np.inf and count[IN_FLIGHT] == 0:
            return -1
        trouble_s = sim.trouble[count[NEXT_TROUBLE], 0] if count[NEXT_TROUBLE] < len(sim.trouble) else np.inf
        sample_s = sim.sample_s[count[NEXT_SAMPLE]]
        reading_s = (
            sim.reading_s[count[READ_FROM] % len(sim.reading_s)]
            if count[READ_FROM] < count[READ_TO]
            else np.inf
        )
        at_s = min(trouble_s, clock[PREFER_AT_S], sample_s, reading_s, clock[SHARE_AT_S], arrives_s)
        if _nodes_happen(sim, at_s):
            continue  # a request may have stopped waiting
        clock[NOW_S] = at_s
        if trouble_s == at_s:
            _trouble(sim, at_s)
        elif clock[PREFER_AT_S] == at_s:
            _tell_popularity(sim, at_s)
        elif sample_s == at_s:
            _sample(sim, at_s)
        elif reading_s == at_s:
            _deliver(sim, at_s)
        elif clock[SHARE_AT_S] == at_s:
            _share(sim, at_s)
        else:
            return _pop_arrival(sim, from_heap)


@njit
def _nodes_happen(sim: Sim, until_s: float) -> bool:
    """Run the nodes to ``until_s`` and deliver what they did; where requests wait for others, only to the next event.

    Returns:
        Whether something was done after which the next arrival has to be looked up again.
    """
    nodes, events = sim.nodes, sim.events
    n = len(nodes.card)
    if sim.setting.is_closed:
        first_s, first = np.inf, -1
        for i in range(n):
            at_s = next_event_s(nodes, i)
            if at_s < first_s:
                first_s, first = at_s, i
        if first_s > until_s or first < 0:
            return False
        advance(nodes, first, first_s, events)
        sim.clock[NOW_S] = first_s
        _tell(sim)
        return True
    for i in range(n):
        if next_event_s(nodes, i) <= until_s:
            advance(nodes, i, until_s, events)
    if events.count[0] > 0:
        _sort(events)
        _tell(sim)
    return False


@njit
def _sort(events: Events) -> None:
    """By time, then node; what one node told stays in its order."""
    for i in range(1, events.count[0]):
        kind, at_s, node, what = events.kind[i], events.at_s[i], events.node[i], events.what[i]
        k = i
        while k > 0 and (
            events.at_s[k - 1] > at_s or (events.at_s[k - 1] == at_s and events.node[k - 1] > node)
        ):
            events.kind[k], events.at_s[k] = events.kind[k - 1], events.at_s[k - 1]
            events.node[k], events.what[k] = events.node[k - 1], events.what[k - 1]
            k -= 1
        events.kind[k], events.at_s[k], events.node[k], events.what[k] = kind, at_s, node, what


@njit
def _tell(sim: Sim) -> None:
    """The routers hear of first tokens and answers."""
    events = sim.events
    for i in range(events.count[0]):
        if events.kind[i] == FIRST_TOKEN:
            _first_token(sim, events.what[i], events.at_s[i])
        elif events.kind[i] == FINISHED:
            _finished(sim, events.what[i], events.at_s[i])
    events.count[0] = 0


@njit
def _placed(sim: Sim, j: int) -> Placed:
    row = sim.placed[j]
    return Placed(
        int(sim.jobs.model[j]), int(sim.node[j]), row[_PROMPT], row[_OUTPUT], row[_PREFILL_S], row[_STEP_S],
        row[_INFLIGHT], row[_UNSEEN], sim.placed_cold[j], row[_AT_S], row[_LOAD_S], row[_WAIT_S],
    )  # fmt: skip


@njit
def _first_token(sim: Sim, j: int, now_s: float) -> None:
    sim.first_s[j] = now_s
    sim.ttft_s[j] = now_s - sim.due_s[j]
    r = j % len(sim.routers.seq)
    books.first_token(book_of(sim, r), _placed(sim, j), now_s)


@njit
def _finished(sim: Sim, j: int, now_s: float) -> None:
    r = j % len(sim.routers.seq)
    placed = _placed(sim, j)
    finish(
        router_of(sim, r), book_of(sim, r), placed, sim.cold[j], sim.first_s[j] - placed.at_s,
        now_s - placed.at_s, sim.jobs.output[j], sim.setting.observed, now_s,
    )  # fmt: skip
    sim.total_s[j] = now_s - sim.due_s[j]
    sim.status[j] = _OK
    sim.tally[IN_FLIGHT] -= 1
    _end(sim, j, now_s)


@njit
def _end(sim: Sim, j: int, now_s: float) -> None:
    sim.ended[sim.tally[ENDED]] = j
    sim.tally[ENDED] += 1
    _follow(sim, j, now_s)


@njit
def _follow(sim: Sim, j: int, now_s: float) -> None:
    follower = sim.first_follower[j]
    while follower >= 0:
        sim.due_s[follower] = now_s + sim.after_s[follower]
        sim.ready_s[follower] = sim.due_s[follower]
        _push(sim, follower)
        follower = sim.next_follower[follower]


# -- arrivals --------------------------------------------------------------------------------------------------------


@njit
def _earlier(sim: Sim, i: int, j: int) -> bool:
    return sim.ready_s[i] < sim.ready_s[j] or (sim.ready_s[i] == sim.ready_s[j] and i < j)


@njit
def _next_arrival(sim: Sim) -> tuple[float, bool]:
    """When the next request wants a node, and whether it is on the heap."""
    count = sim.tally
    has_open = count[NEXT_OPEN] < len(sim.open)
    if count[WAITING_CLOSED] > 0:
        top = sim.heap[0]
        if not has_open or _earlier(sim, top, sim.open[count[NEXT_OPEN]]):
            return sim.ready_s[top], True
    if has_open:
        return sim.ready_s[sim.open[count[NEXT_OPEN]]], False
    return np.inf, False


@njit
def _pop_arrival(sim: Sim, from_heap: bool) -> int:
    count = sim.tally
    if not from_heap:
        count[NEXT_OPEN] += 1
        return sim.open[count[NEXT_OPEN] - 1]
    heap = sim.heap
    top = heap[0]
    count[WAITING_CLOSED] -= 1
    last, at = heap[count[WAITING_CLOSED]], 0
    while True:
        child = 2 * at + 1
        if child >= count[WAITING_CLOSED]:
            break
        if child + 1 < count[WAITING_CLOSED] and _earlier(sim, heap[child + 1], heap[child]):
            child += 1
        if not _earlier(sim, heap[child], last):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return top


@njit
def _push(sim: Sim, j: int) -> None:
    heap, at = sim.heap, sim.tally[WAITING_CLOSED]
    sim.tally[WAITING_CLOSED] += 1
    while at > 0 and _earlier(sim, j, heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = j


# -- telemetry and troubles ------------------------------------------------------------------------------------------


@njit
def _sample(sim: Sim, at_s: float) -> None:
    count, nodes = sim.tally, sim.nodes
    i = count[NEXT_SAMPLE]
    count[NEXT_SAMPLE] = (i + 1) % len(nodes.card)
    sim.sample_s[i] = at_s + sim.setting.period_s
    if sim.frozen[i]:
        return
    advance(nodes, i, at_s, sim.events)
    at = count[READ_TO] % len(sim.reading_s)
    count[READ_TO] += 1
    sim.reading_s[at] = at_s + sim.setting.delay_s
    sim.reading_node[at] = i
    sim.reading[at, 0] = running(nodes, i)
    sim.reading[at, 1] = waiting(nodes, i)
    sim.reading[at, 2] = kv_used(nodes, i)
    sim.reading[at, 3] = free_gib(nodes, i)
    for m in range(sim.resident.shape[1]):
        there = place_of(nodes, i, m)
        sim.resident[at, m] = there == RESIDENT
        sim.loading[at, m] = there == LOADING


@njit
def _deliver(sim: Sim, at_s: float) -> None:
    at = sim.tally[READ_FROM] % len(sim.reading_s)
    sim.tally[READ_FROM] += 1
    for r in range(len(sim.routers.seq)):
        observe(
            router_of(sim, r), book_of(sim, r), sim.reading_node[at], sim.reading[at],
            sim.resident[at], sim.loading[at], sim.nowhere, at_s,
        )  # fmt: skip


@njit
def _trouble(sim: Sim, at_s: float) -> None:
    _, node, factor = sim.trouble[sim.tally[NEXT_TROUBLE]]
    sim.tally[NEXT_TROUBLE] += 1
    i = int(node)
    if factor > 0.0:
        advance(sim.nodes, i, at_s, sim.events)
        slow(sim.nodes, i, factor)
    else:
        sim.frozen[i] = factor == 0.0


@njit
def _tell_popularity(sim: Sim, at_s: float) -> None:
    sim.clock[PREFER_AT_S] = at_s + PREFER_S
    for i in range(len(sim.nodes.card)):
        for m in range(len(sim.share)):
            prefer(sim.nodes, i, m, sim.share[m])


# -- decisions -------------------------------------------------------------------------------------------------------


@njit
def arrive(sim: Sim, j: int) -> int:
    """Count an arrival; returns its replica, whose columns are up to date then."""
    r = j % len(sim.routers.seq)
    books.count_arrival(sim.share, int(sim.jobs.model[j]))
    bring_up_to(router_of(sim, r), sim.clock[NOW_S])
    return r


@njit
def look_of(sim: Sim, j: int) -> Look:
    """What its router sees of a request that arrived."""
    r = j % len(sim.routers.seq)
    return look(
        router_of(sim, r), book_of(sim, r), sim.jobs.model[j], sim.jobs.prompt[j], sim.jobs.session[j],
        sim.coverage[r], sim.setting.observed,
    )  # fmt: skip


@njit
def act(sim: Sim, j: int, node: int) -> None:
    """Send a request to a node."""
    now_s = sim.clock[NOW_S]
    r = j % len(sim.routers.seq)
    router, book = router_of(sim, r), book_of(sim, r)
    model = int(sim.jobs.model[j])
    sim.cold[j] = not choice.is_resident(router, book, model, node)
    placed = dispatch(router, book, model, node, sim.jobs.prompt[j], sim.jobs.session[j], now_s)
    row = sim.placed[j]
    row[_PROMPT], row[_OUTPUT], row[_PREFILL_S] = placed.prompt_tokens, placed.output_tokens, placed.prefill_s
    row[_STEP_S], row[_INFLIGHT], row[_UNSEEN] = placed.step_s, placed.inflight, placed.unseen
    row[_AT_S], row[_LOAD_S], row[_WAIT_S] = now_s, placed.load_s, placed.wait_s
    sim.placed_cold[j] = placed.was_cold
    sim.node[j] = node
    router.seq[0] += 1
    sim.tally[IN_FLIGHT] += 1
    sim.tally[DECISIONS] += 1
    submit(sim.nodes, sim.jobs, node, j, now_s, sim.events)


@njit
def reject(sim: Sim, j: int) -> None:
    """Refuse a request."""
    sim.status[j] = _REJECTED
    sim.routers.seq[j % len(sim.routers.seq), 0] += 1
    _end(sim, j, sim.clock[NOW_S])


@njit
def hold(sim: Sim, j: int) -> None:
    """Ask again about a request in a moment; its latency goes on counting."""
    sim.ready_s[j] = sim.clock[NOW_S] + HOLD_S
    _push(sim, j)


@njit
def meet(sim: Sim, j: int) -> None:
    """Bring the router of a request up to date, and count the request if it has just arrived."""
    if sim.clock[NOW_S] == sim.due_s[j]:
        arrive(sim, j)
    else:  # it was held: its arrival has been counted
        bring_up_to(router_of(sim, j % len(sim.routers.seq)), sim.clock[NOW_S])


@njit
def choose(sim: Sim, j: int, by: Any) -> int:
    """What a built-in policy does with a request that is met: a node, or :data:`REFUSE`, or :data:`WAIT`."""
    r = j % len(sim.routers.seq)
    router, book = router_of(sim, r), book_of(sim, r)
    model = int(sim.jobs.model[j])
    mask = choice.eligible(router, book, sim.names, model)
    if not mask.any():
        return REFUSE
    if by.rule == choice.LEARNED:
        seen = look_of(sim, j)
        nodes = node_features(seen)
        every = logits(nodes, request_features(seen), mask, by)
        n = len(mask)
        scores = every[:n].copy()
        best = -np.inf
        for i in range(n):
            if mask[i]:
                best = max(best, scores[i])
        reject, hold_on = every[n], every[n + 1]
        refuses = reject > best and may_reject(seen, mask)
        waits = hold_on > best and may_hold(seen, mask, sim.clock[NOW_S] - sim.due_s[j])
        if waits and not (refuses and reject >= hold_on):
            return WAIT
        if refuses:
            return REFUSE
        node = _node(sim, j, by, scores, mask, router.columns[INFLIGHT])
        if by.scalars[PRIORITY] > 0.0:
            sim.jobs.priority[j] = priority(by, sim.due_s[j], service_s(nodes, node))
        return node
    if by.rule >= choice.LOOKS:
        scores = choice.score_look(by.rule, by.theta, look_of(sim, j))
    else:
        scores = choice.score_simply(by.rule, by.theta, router, book, sim.names, model, sim.jobs.session[j])
    return _node(sim, j, by, scores, mask, router.columns[INFLIGHT])


@njit
def _node(sim: Sim, j: int, by: Any, scores: Floats, mask: Flags, inflight: Floats) -> int:
    probabilities = choice.pick(scores, mask, by.picker, by.epsilon)
    drawn = choice.draw(probabilities, sim.u[j])
    executed = choice.guarded(scores, mask, inflight, drawn)
    sim.tally[OVERRIDES] += int(executed != drawn)
    return executed


@njit
def run(sim: Sim, by: Any) -> None:
    """The whole episode, or what is left of it, under a built-in policy.

    Args:
        sim: under way.
        by: a :class:`envs.kernel.choice.Chooser`.
    """
    while True:
        j = to_decision(sim)
        if j < 0:
            return
        meet(sim, j)
        carry_out(sim, j, choose(sim, j, by))


@njit
def carry_out(sim: Sim, j: int, action: int) -> None:
    """Do what was chosen for a request."""
    if action == REFUSE:
        reject(sim, j)
    elif action == WAIT:
        hold(sim, j)
    else:
        act(sim, j, action)


def episode_of(sim: Sim, scenario: Scenario, arrivals: Arrivals, policy: str, seed: int) -> Episode:
    """What an episode that is over gave."""
    counted = sim.due_s >= scenario.warmup_s
    card = sim.nodes.card
    return Episode(
        scenario=scenario.name, policy=policy, seed=seed, arrived_s=sim.due_s, total_s=sim.total_s,
        ttft_s=sim.ttft_s, ideal_s=scenario.ideal_s(arrivals), node=sim.node, status=sim.status,
        cold=sim.cold, counted=counted, evictions=int(card["evicted"].sum()), loads=int(card["loads"].sum()),
        peak_gib=float(card["peak"].max()) / GIB, span_s=span_of(sim.due_s, sim.total_s, counted),
        guard_overrides=int(sim.tally[OVERRIDES]),
    )  # fmt: skip
