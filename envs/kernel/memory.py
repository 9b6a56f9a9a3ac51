"""GPU memory and adapter slots of the nodes, compiled: who is resident and who has to leave; see :mod:`envs.memory`."""

from math import inf
from typing import Any

from ccr.timing import activation_bytes
from envs.kernel.compiled import inlined, njit
from envs.kernel.prefix import drop_lane, trim
from envs.kernel.state import ABSENT, EVICTED, EXPLICIT, HOST, LOADING, NO_KEY, RESIDENT, Events, Nodes


@inlined
def tell(events: Events, kind: int, at_s: float, n: int, what: int) -> None:
    """Add an event.

    Raises:
        IndexError: there is no room for it; read the events more often, or make room for more.
    """
    i = events.count[0]
    if i >= len(events.kind):
        raise IndexError("no room for events: read them more often, or give make_events a larger capacity")
    events.kind[i] = kind
    events.at_s[i] = at_s
    events.node[i] = n
    events.what[i] = what
    events.count[0] = i + 1


@inlined
def note_peak(card: Any) -> None:
    """Remember the most memory that was used, in bytes."""
    used = card.weights + card.kv + activation_bytes(card.models)
    card.peak = max(card.peak, used)


@njit
def memory_changed(nodes: Nodes, n: int) -> None:
    """Weights came or went: what is left for KV cache."""
    card = nodes.card[n]
    card.kv_budget = card.budget - card.weights - activation_bytes(card.models)
    trim(nodes, n)
    note_peak(card)


@inlined
def shortage(card: Any, need: int, freed: int, gone: int, arriving: int) -> float:
    """Bytes missing for ``need`` if ``gone`` models that hold ``freed`` bytes had left."""
    wanted: float = need + card.weights + card.kv - freed
    return wanted + activation_bytes(card.models - gone + arriving) - card.budget


@inlined
def head_of(nodes: Nodes, n: int, lane: int) -> int:
    """The job that waits first in any queue of the lane, whatever it waits for; -1 for none."""
    if nodes.line[n, lane].lane_waiting == 0:
        return -1
    best, best_key = -1, NO_KEY
    m = lane
    while m >= 0:
        j = nodes.line[n, m].head
        if j >= 0 and nodes.work[j].key < best_key:
            best, best_key = j, nodes.work[j].key
        m = nodes.line[n, m].next_sibling
    return best


@njit
def busy_for(nodes: Nodes, n: int, lane: int, key: int) -> bool:
    """Whether the lane has work that goes before ``key``."""
    if nodes.line[n, lane].batch > 0:
        return True
    j = head_of(nodes, n, lane)
    return j >= 0 and nodes.work[j].key < key


@inlined
def line_busy_for(nodes: Nodes, n: int, m: int, key: int) -> bool:
    """Whether one model of a lane has work that goes before ``key``."""
    line = nodes.line[n, m]
    return line.running > 0 or (line.head >= 0 and nodes.work[line.head].key < key)


@njit
def reopen(nodes: Nodes, n: int) -> None:
    """No lane has to leave any more."""
    card = nodes.card[n]
    if card.closed:
        for i in range(card.residents):
            nodes.line[n, nodes.line[n, i].resident].closed_after = NO_KEY
        card.closed = 0


@inlined
def note_want(nodes: Nodes, n: int, lane: int) -> None:
    """Something about a lane changed: is it among those to load?"""
    card, line = nodes.card[n], nodes.line[n, lane]
    wants = line.place in (ABSENT, HOST) and (line.lane_waiting > 0 or line.wanted != NO_KEY)
    if wants and line.wanting_at < 0:
        nodes.line[n, card.wanting].wanting = lane
        line.wanting_at = card.wanting
        card.wanting += 1
    elif not wants and line.wanting_at >= 0:
        card.wanting -= 1
        last = nodes.line[n, card.wanting].wanting
        nodes.line[n, line.wanting_at].wanting = last
        nodes.line[n, last].wanting_at = line.wanting_at
        line.wanting_at = -1


@inlined
def note_adapter(nodes: Nodes, n: int, m: int) -> None:
    """Something about a model changed: is there an adapter to load for it, once its weights are there?"""
    line = nodes.line[n, m]
    wants = line.lane != m and line.place == ABSENT and (line.head >= 0 or line.wanted != NO_KEY)
    nodes.card[n].adapters_wanted += int(wants) - line.adapter_wanted
    line.adapter_wanted = int(wants)


@njit
def make_room(nodes: Nodes, n: int, need: int, key: int, lane: int, arriving: int, events: Events) -> bool:
    """Whether ``need`` bytes are free now, after evicting who had to leave.

    Idle models leave, least preferred first and among equals least recently used first. When they are not enough, busy
    ones are closed to work younger than ``key`` and drain; an explicit load closes nobody.

    Args:
        nodes: of the fleet.
        n: the node.
        need: bytes, without the activations of an arriving model.
        key: place of the work the room is for.
        lane: whose work it is; it never leaves.
        arriving: 1 when the lane brings its weights, 0 when it wants KV cache.
        events: who left.
    """
    card = nodes.card[n]
    count = 0
    if shortage(card, need, 0, 0, arriving) > 0:
        count = _choose_victims(nodes, n, need, key, lane, arriving)
        if count < 0:
            return False
    reopen(nodes, n)
    busy = False
    for i in range(count):
        victim = nodes.line[n, i].victim
        if busy_for(nodes, n, victim, key):
            busy = True
            if key < EXPLICIT:
                nodes.line[n, victim].closed_after = key
                card.closed = 1
    if busy:
        return False
    for i in range(count):
        victim = nodes.line[n, i].victim
        evict(nodes, n, victim, events)
        if card.keep_evicted:
            _keep_in_host(nodes, n, victim)
    return True


@njit
def _choose_victims(nodes: Nodes, n: int, need: int, key: int, lane: int, arriving: int) -> int:
    """Fill the list of victims, and say how many of them have to go; -1 when all are not enough."""
    card = nodes.card[n]
    others = 0
    for i in range(card.residents):
        other = nodes.line[n, i].resident
        if other == lane:
            continue
        at = others
        while at > 0 and _leaves_before(nodes, n, other, nodes.line[n, at - 1].victim, key):
            nodes.line[n, at].victim = nodes.line[n, at - 1].victim
            at -= 1
        nodes.line[n, at].victim = other
        others += 1
    freed = 0
    for count in range(1, others + 1):
        victim = nodes.line[n, nodes.line[n, count - 1].victim]
        freed += victim.weights + victim.context * victim.kv
        if shortage(card, need, freed, count, arriving) <= 0:
            return count
    return -1


@njit
def _leaves_before(nodes: Nodes, n: int, one: int, other: int, key: int) -> bool:
    first, second = nodes.line[n, one], nodes.line[n, other]
    first_busy, second_busy = busy_for(nodes, n, one, key), busy_for(nodes, n, other, key)
    if first_busy != second_busy:
        return second_busy
    if (first.closed_after == NO_KEY) != (second.closed_after == NO_KEY):
        return second.closed_after == NO_KEY
    if first.weight != second.weight:
        return first.weight < second.weight
    return first.lane_used_s < second.lane_used_s


@njit
def arrive(nodes: Nodes, n: int, lane: int) -> None:
    """The weights are here."""
    card, line = nodes.card[n], nodes.line[n, lane]
    line.place = RESIDENT
    line.lane_used_s = card.now_s
    nodes.line[n, card.residents].resident = lane
    card.residents += 1
    note_want(nodes, n, lane)
    memory_changed(nodes, n)


@njit
def evict(nodes: Nodes, n: int, lane: int, events: Events) -> None:
    """The weights leave, and the adapters on top of them."""
    card, line = nodes.card[n], nodes.line[n, lane]
    m = line.next_sibling
    while m >= 0:
        drop_adapter(nodes, n, m)
        m = nodes.line[n, m].next_sibling
    line.place = ABSENT
    line.closed_after = NO_KEY
    at = 0
    while nodes.line[n, at].resident != lane:
        at += 1
    card.residents -= 1
    for i in range(at, card.residents):
        nodes.line[n, i].resident = nodes.line[n, i + 1].resident
    card.weights -= line.weights
    card.models -= 1
    drop_lane(nodes, n, lane)
    memory_changed(nodes, n)
    note_want(nodes, n, lane)
    card.evicted += 1
    tell(events, EVICTED, card.now_s, n, lane)


@njit
def _keep_in_host(nodes: Nodes, n: int, lane: int) -> None:
    """Into host memory, and the least recently used there out when it is full."""
    lines = nodes.line[n]
    lines[lane].place = HOST
    while True:
        total, oldest = 0, -1
        for m in range(len(lines)):
            if lines[m].lane == m and lines[m].place == HOST:
                total += lines[m].stored
                if oldest < 0 or lines[m].lane_used_s < lines[oldest].lane_used_s:
                    oldest = m
        if total <= nodes.card[n].host_bytes:
            return
        lines[oldest].place = ABSENT


@njit
def reopen_adapters(nodes: Nodes, n: int) -> None:
    """No adapter has to leave any more."""
    card = nodes.card[n]
    if card.adapters_closed:
        for i in range(card.adapters):
            nodes.line[n, nodes.line[n, i].adapter].closed_after = NO_KEY
        card.adapters_closed = 0


@njit
def make_slot(nodes: Nodes, n: int, key: int, events: Events) -> bool:
    """Whether an adapter slot is free now, after evicting the adapter that had to leave."""
    card = nodes.card[n]
    if card.adapters < card.max_adapters:
        reopen_adapters(nodes, n)
        return True
    victim = nodes.line[n, 0].adapter
    for i in range(1, card.adapters):
        other = nodes.line[n, i].adapter
        if _adapter_leaves_before(nodes, n, other, victim, key):
            victim = other
    reopen_adapters(nodes, n)
    if not line_busy_for(nodes, n, victim, key):
        drop_adapter(nodes, n, victim)
        card.evicted += 1
        tell(events, EVICTED, card.now_s, n, victim)
        return True
    if key < EXPLICIT:
        nodes.line[n, victim].closed_after = key
        card.adapters_closed = 1
    return False


@njit
def _adapter_leaves_before(nodes: Nodes, n: int, one: int, other: int, key: int) -> bool:
    first, second = nodes.line[n, one], nodes.line[n, other]
    first_busy, second_busy = line_busy_for(nodes, n, one, key), line_busy_for(nodes, n, other, key)
    if first_busy != second_busy:
        return second_busy
    if (first.closed_after == NO_KEY) != (second.closed_after == NO_KEY):
        return second.closed_after == NO_KEY
    if first.weight != second.weight:
        return first.weight < second.weight
    return first.last_used_s < second.last_used_s


@njit
def arrive_adapter(nodes: Nodes, n: int, m: int) -> None:
    """The adapter is in its slot."""
    card, line = nodes.card[n], nodes.line[n, m]
    line.place = RESIDENT
    line.last_used_s = card.now_s
    nodes.line[n, card.adapters].adapter = m
    card.adapters += 1
    note_adapter(nodes, n, m)


@njit
def drop_adapter(nodes: Nodes, n: int, m: int) -> None:
    """Out of its slot, or not loaded any further."""
    card, line = nodes.card[n], nodes.line[n, m]
    if line.place == RESIDENT:
        at = 0
        while nodes.line[n, at].adapter != m:
            at += 1
        card.adapters -= 1
        for i in range(at, card.adapters):
            nodes.line[n, i].adapter = nodes.line[n, i + 1].adapter
    elif line.place == LOADING:
        card.adapter_end_s = inf
    line.place = ABSENT
    line.closed_after = NO_KEY
    note_adapter(nodes, n, m)
