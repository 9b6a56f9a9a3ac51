"""Weights and adapters on their way, compiled: which is next, when it may begin, and what happens when it is there."""

from math import inf

from envs.kernel.compiled import inlined, njit
from envs.kernel.memory import (
    arrive,
    arrive_adapter,
    head_of,
    make_room,
    make_slot,
    memory_changed,
    note_adapter,
    note_want,
    reopen,
    reopen_adapters,
    tell,
)
from envs.kernel.state import ABSENT, HOST, LOADED, LOADING, NO_KEY, Events, Nodes


@inlined
def draw_noise(nodes: Nodes, n: int) -> float:
    """Factor on the next load from the source."""
    card = nodes.card[n]
    factor = nodes.noise[n, card.draws % nodes.noise.shape[1]]
    card.draws += 1
    return factor


@njit
def start_load(nodes: Nodes, n: int, events: Events) -> None:
    """Begin the next load of weights, if there is one and room for it."""
    card = nodes.card[n]
    if card.wanting == 0:
        reopen(nodes, n)
        return
    lane, key, head = -1, NO_KEY, -1
    for i in range(card.wanting):
        other = nodes.line[n, i].wanting
        j = head_of(nodes, n, other)
        other_key = nodes.work[j].key if j >= 0 else nodes.line[n, other].wanted
        if other_key < key:
            lane, key, head = other, other_key, j
    line = nodes.line[n, lane]
    need = line.weights
    if head >= 0:
        need += line.kv * (nodes.work[head].prompt + nodes.work[head].output)
    if make_room(nodes, n, need, key, lane, 1, events):
        _begin_load(nodes, n, lane)


@njit
def _begin_load(nodes: Nodes, n: int, lane: int) -> None:
    card, line = nodes.card[n], nodes.line[n, lane]
    if line.place == HOST:
        seconds = line.host_s * card.factor
    else:
        seconds = line.source_s * draw_noise(nodes, n) * card.factor
        card.cold_starts += int(line.lane_waiting > 0)
    line.place = LOADING
    line.wanted = NO_KEY
    line.load_s = seconds
    card.load_lane = lane
    card.load_start_s = card.now_s
    card.load_end_s = card.now_s + seconds
    card.weights += line.weights
    card.models += 1
    note_want(nodes, n, lane)
    memory_changed(nodes, n)


@njit
def end_load(nodes: Nodes, n: int, events: Events) -> None:
    """The weights under way arrive."""
    card = nodes.card[n]
    card.load_end_s = inf
    arrive(nodes, n, card.load_lane)
    card.loads += 1
    tell(events, LOADED, card.now_s, n, card.load_lane)


@njit
def start_adapter(nodes: Nodes, n: int, events: Events) -> None:
    """Begin the next load of an adapter, if there is one and a slot for it."""
    card = nodes.card[n]
    m, key = -1, NO_KEY
    if card.adapters_wanted > 0:
        for i in range(card.residents):
            lane = nodes.line[n, i].resident
            other = nodes.line[n, lane].next_sibling
            while other >= 0:
                other_key = _adapter_key(nodes, n, other)
                if other_key < key and other_key < nodes.line[n, lane].closed_after:
                    m, key = other, other_key
                other = nodes.line[n, other].next_sibling
    if m < 0:
        reopen_adapters(nodes, n)
    elif make_slot(nodes, n, key, events):
        _begin_adapter(nodes, n, m)


@inlined
def _adapter_key(nodes: Nodes, n: int, m: int) -> int:
    line = nodes.line[n, m]
    if line.place != ABSENT:
        return NO_KEY
    return nodes.work[line.head].key if line.head >= 0 else line.wanted


@njit
def _begin_adapter(nodes: Nodes, n: int, m: int) -> None:
    card, line = nodes.card[n], nodes.line[n, m]
    seconds = line.source_s * draw_noise(nodes, n) * card.factor
    card.cold_starts += int(line.head >= 0)
    line.place = LOADING
    line.wanted = NO_KEY
    line.load_s = seconds
    card.adapter_line = m
    card.adapter_start_s = card.now_s
    card.adapter_end_s = card.now_s + seconds
    note_adapter(nodes, n, m)


@njit
def end_adapter(nodes: Nodes, n: int, events: Events) -> None:
    """The adapter under way arrives."""
    card = nodes.card[n]
    card.adapter_end_s = inf
    arrive_adapter(nodes, n, card.adapter_line)
    card.loads += 1
    tell(events, LOADED, card.now_s, n, card.adapter_line)
