"""The nodes of a fleet in virtual time, compiled: the rules of :class:`envs.node.EmulatedNode`, event for event.

Every function takes the fleet's :class:`Nodes` and the index ``n`` of one node; jobs ``j`` and models ``m`` are indices.
"""

from math import inf
from typing import Any

import numpy as np

from ccr.timing import GIB, activation_bytes
from envs.kernel.compiled import inlined, njit
from envs.kernel.loads import end_adapter, end_load, start_adapter, start_load
from envs.kernel.memory import (
    arrive,
    arrive_adapter,
    drop_adapter,
    evict,
    memory_changed,
    note_adapter,
    note_want,
    shortage,
    tell,
)
from envs.kernel.prefix import drop_lane, held
from envs.kernel.queues import merge
from envs.kernel.state import (
    ABSENT,
    EVICTED,
    EXPLICIT,
    HOST,
    LOADING,
    LOST,
    NO_KEY,
    NUMBER_BITS,
    RESIDENT,
    Events,
    Jobs,
    Nodes,
)
from envs.kernel.steps import end_step, enqueue, repeat_rounds, repeats, start_step

# -- what the world does to a node -----------------------------------------------------------------------------------


@njit
def submit(nodes: Nodes, jobs: Jobs, n: int, j: int, now_s: float, events: Events) -> int:
    """Hand a job to a node: 0 when it was taken, 1 when the model with this job never fits on its card."""
    m = jobs.model[j]
    if not _ever_fits(nodes, n, nodes.line[n, m].lane, jobs.prompt[j] + jobs.output[j]):
        return 1
    advance(nodes, n, now_s, events)
    card, job = nodes.card[n], nodes.work[j]
    job.model, job.prompt, job.output = m, jobs.prompt[j], jobs.output[j]
    job.session, job.prefix = jobs.session[j], jobs.prefix_tokens[j]
    job.generated = job.reused = 0
    job.submitted_s = now_s
    job.started_s = job.first_token_s = job.finished_s = np.nan
    job.key = (jobs.priority[j] << NUMBER_BITS) + _next_number(card)
    card.submitted += 1
    if card.overhead_s > 0:
        _await(nodes, card, j, now_s + card.overhead_s)
    else:
        _arrive_in_queue(nodes, n, j)
        _schedule(nodes, n, events)
    return 0


@njit
def place(nodes: Nodes, n: int, m: int) -> bool:
    """Make a model resident at once: what was loaded before the story begins; false when it does not fit beside others."""
    card, line = nodes.card[n], nodes.line[n, m]
    lane = nodes.line[n, line.lane]
    if lane.place != RESIDENT:
        if shortage(card, lane.weights, 0, 0, 1) > 0:
            return False
        card.weights += lane.weights
        card.models += 1
        arrive(nodes, n, line.lane)
    if line.place != RESIDENT:
        if card.adapters >= card.max_adapters:
            return False
        arrive_adapter(nodes, n, m)
    return True


@njit
def load(nodes: Nodes, n: int, m: int, now_s: float, events: Events) -> int:
    """Bring a model in as soon as there is room without disturbing busy ones: 0, or 1 when it never fits."""
    line = nodes.line[n, m]
    lane = nodes.line[n, line.lane]
    if not _ever_fits(nodes, n, line.lane, 0):
        return 1
    advance(nodes, n, now_s, events)
    key = EXPLICIT + _next_number(nodes.card[n])
    if lane.place in (ABSENT, HOST) and lane.wanted == NO_KEY:
        lane.wanted = key
        note_want(nodes, n, line.lane)
    if line.place == ABSENT and line.lane != m and line.wanted == NO_KEY:
        line.wanted = key
        note_adapter(nodes, n, m)
    _schedule(nodes, n, events)
    return 0


@njit
def unload(nodes: Nodes, n: int, m: int, now_s: float, events: Events) -> bool:
    """Drop a model from GPU and host memory, and forget a load that has not begun; of a sibling, its adapter.

    Returns:
        False when it has work or is being loaded, and so cannot leave.
    """
    advance(nodes, n, now_s, events)
    own = nodes.line[n, m].lane == m
    left = _unload_weights(nodes, n, m, events) if own else _unload_adapter(nodes, n, m, events)
    if left:
        _schedule(nodes, n, events)
    return left


@njit
def _unload_weights(nodes: Nodes, n: int, lane: int, events: Events) -> bool:
    line = nodes.line[n, lane]
    if line.batch > 0 or line.lane_waiting > 0 or line.place == LOADING:
        return False
    m = lane
    while m >= 0:
        nodes.line[n, m].wanted = NO_KEY
        note_adapter(nodes, n, m)
        m = nodes.line[n, m].next_sibling
    if line.place == RESIDENT:
        evict(nodes, n, lane, events)
    line.place = ABSENT
    note_want(nodes, n, lane)
    return True


@njit
def _unload_adapter(nodes: Nodes, n: int, m: int, events: Events) -> bool:
    line = nodes.line[n, m]
    if line.running > 0 or line.waiting > 0 or place_of(nodes, n, m) == LOADING:
        return False
    line.wanted = NO_KEY
    if line.place == RESIDENT:
        drop_adapter(nodes, n, m)
        nodes.card[n].evicted += 1
        tell(events, EVICTED, nodes.card[n].now_s, n, m)
    note_adapter(nodes, n, m)
    return True


@njit
def prefer(nodes: Nodes, n: int, m: int, weight: float) -> None:
    """Who stays when somebody has to leave: models of low weight go first; see :meth:`EmulatedNode.prefer`."""
    nodes.line[n, m].weight = weight


@njit
def slow(nodes: Nodes, n: int, factor: float) -> None:
    """Take ``factor`` times as long, > 0, for every step and load that starts after the last advance."""
    nodes.card[n].factor = factor


@njit
def crash(nodes: Nodes, n: int, now_s: float, events: Events) -> None:
    """Lose everything in flight, and come back at once with nothing resident."""
    advance(nodes, n, now_s, events)
    card = nodes.card[n]
    if card.step_end_s < inf:
        card.busy_s += now_s - card.step_start_s
    lost = events.count[0]
    _lose_jobs(nodes, n, events)
    _by_submission(nodes, events, lost)
    card.lost += events.count[0] - lost
    drop_lane(nodes, n, -1)
    for m in range(nodes.line.shape[1]):
        _clear_line(nodes, n, m)
    card.step_end_s = card.load_end_s = card.adapter_end_s = card.arrival_s = inf
    card.first_arrival = card.last_arrival = -1
    card.kv = card.weights = card.models = card.running = card.waiting = 0
    card.residents = card.adapters = card.wanting = card.closed = card.adapters_closed = 0
    memory_changed(nodes, n)


@njit
def _lose_jobs(nodes: Nodes, n: int, events: Events) -> None:
    card, work = nodes.card[n], nodes.work
    j = card.first_arrival
    while j >= 0:
        tell(events, LOST, card.now_s, n, j)
        j = work[j].next
    for m in range(nodes.line.shape[1]):
        line = nodes.line[n, m]
        while line.head >= 0:
            tell(events, LOST, card.now_s, n, line.head)
            line.head = merge(work, work[line.head].left, work[line.head].right)
        for i in range(line.batch):
            tell(events, LOST, card.now_s, n, nodes.ends[n, m, i])


@njit
def _by_submission(nodes: Nodes, events: Events, first: int) -> None:
    """Sort the jobs of the events from ``first`` on; they are alike in everything else."""
    mask = (1 << NUMBER_BITS) - 1
    for i in range(first + 1, events.count[0]):
        j = events.what[i]
        at = i
        while at > first and nodes.work[events.what[at - 1]].key & mask > nodes.work[j].key & mask:
            events.what[at] = events.what[at - 1]
            at -= 1
        events.what[at] = j


@njit
def _clear_line(nodes: Nodes, n: int, m: int) -> None:
    line = nodes.line[n, m]
    line.place = ABSENT
    line.head = line.wanting_at = -1
    line.waiting = line.running = line.batch = line.lane_waiting = line.context = 0
    line.wanted = line.closed_after = NO_KEY
    line.last_used_s = line.lane_used_s = line.last_round_s = -inf
    note_adapter(nodes, n, m)


# -- time ------------------------------------------------------------------------------------------------------------


@inlined
def next_event_s(nodes: Nodes, n: int) -> float:
    """When something happens next if nobody interferes; ``inf`` when idle."""
    card = nodes.card[n]
    return min(card.step_end_s, _next_but_step_s(card))


@inlined
def _next_but_step_s(card: Any) -> float:
    return min(card.load_end_s, card.adapter_end_s, card.arrival_s)


@njit
def advance(nodes: Nodes, n: int, until_s: float, events: Events) -> None:
    """Run a node to ``until_s``, which may not lie before its last advance, and tell what happened."""
    card = nodes.card[n]
    while True:
        if repeats(nodes, n):
            repeat_rounds(nodes, n, _next_but_step_s(card), until_s)
        at_s = next_event_s(nodes, n)
        if at_s > until_s or at_s == inf:
            break
        card.now_s = at_s
        _happen(nodes, n, at_s, events)
        _schedule(nodes, n, events)
    card.now_s = until_s


@inlined
def _happen(nodes: Nodes, n: int, at_s: float, events: Events) -> None:
    card = nodes.card[n]
    if card.step_end_s <= at_s:
        end_step(nodes, n, events)
    if card.load_end_s <= at_s:
        end_load(nodes, n, events)
    if card.adapter_end_s <= at_s:
        end_adapter(nodes, n, events)
    while card.arrival_s <= at_s:
        j = card.first_arrival
        card.first_arrival = nodes.work[j].next
        if card.first_arrival < 0:
            card.last_arrival = -1
            card.arrival_s = inf
        else:
            card.arrival_s = nodes.work[card.first_arrival].due_s
        _arrive_in_queue(nodes, n, j)


@inlined
def _schedule(nodes: Nodes, n: int, events: Events) -> None:
    card = nodes.card[n]
    if card.load_end_s == inf and (card.wanting > 0 or card.closed > 0):
        start_load(nodes, n, events)
    if card.adapter_end_s == inf and (card.adapters_wanted > 0 or card.adapters_closed > 0):
        start_adapter(nodes, n, events)
    if card.step_end_s == inf and card.running + card.waiting > 0:
        start_step(nodes, n, events)


@inlined
def _await(nodes: Nodes, card: Any, j: int, due_s: float) -> None:
    """HTTP and tokeniser first."""
    nodes.work[j].due_s = due_s
    nodes.work[j].next = -1
    if card.last_arrival < 0:
        card.first_arrival = j
        card.arrival_s = due_s
    else:
        nodes.work[card.last_arrival].next = j
    card.last_arrival = j


@inlined
def _arrive_in_queue(nodes: Nodes, n: int, j: int) -> None:
    nodes.work[j].cold = int(place_of(nodes, n, nodes.work[j].model) != RESIDENT)
    enqueue(nodes, n, j)


@inlined
def _next_number(card: Any) -> int:
    card.numbers += 1
    return card.numbers


@inlined
def _ever_fits(nodes: Nodes, n: int, lane: int, tokens: int) -> bool:
    line = nodes.line[n, lane]
    need: float = line.weights + activation_bytes(1) + tokens * line.kv
    return need <= nodes.card[n].budget


# -- what the world may see ------------------------------------------------------------------------------------------


@inlined
def place_of(nodes: Nodes, n: int, m: int) -> int:
    """Where the weights are and, once they are resident, where the adapter is: ABSENT, LOADING, RESIDENT or HOST."""
    line = nodes.line[n, m]
    lane = nodes.line[n, line.lane].place
    return line.place if lane == RESIDENT else lane


@inlined
def kv_used(nodes: Nodes, n: int) -> float:
    """Used fraction of the KV cache, in [0, 1]; contexts kept for a next turn count as free."""
    card = nodes.card[n]
    return min(1.0, card.kv / card.kv_budget) if card.kv_budget else 0.0


@inlined
def used_gib(nodes: Nodes, n: int) -> float:
    """Weights, activations and KV cache in use."""
    card = nodes.card[n]
    return (card.weights + card.kv + activation_bytes(card.models)) / GIB


@inlined
def free_gib(nodes: Nodes, n: int) -> float:
    """Device memory that is not in use."""
    return nodes.card[n].total / GIB - used_gib(nodes, n)


@inlined
def peak_gib(nodes: Nodes, n: int) -> float:
    """Most memory in use so far."""
    return nodes.card[n].peak / GIB


@inlined
def running(nodes: Nodes, n: int) -> int:
    """Sequences in all batches."""
    return nodes.card[n].running


@inlined
def waiting(nodes: Nodes, n: int) -> int:
    """Jobs in all queues; those on their way through HTTP and tokeniser are not in one yet."""
    return nodes.card[n].waiting


@inlined
def load_end_s(nodes: Nodes, n: int) -> float:
    """When the weights under way arrive; ``inf`` when none are."""
    return nodes.card[n].load_end_s


@inlined
def adapter_end_s(nodes: Nodes, n: int) -> float:
    """When the adapter under way arrives; ``inf`` when none is."""
    return nodes.card[n].adapter_end_s


@njit
def reusable_tokens(nodes: Nodes, n: int, m: int, session: int) -> int:
    """Tokens of a session's last context that the node's prefix cache has for this model."""
    j = held(nodes, n, m, session)
    return nodes.work[j].cached if j >= 0 else 0
