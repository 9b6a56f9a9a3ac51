"""Prefills and decode rounds of the nodes, compiled: who is admitted, how long a step takes, who is done."""

from math import inf, isnan
from typing import Any

from ccr.timing import StepCosts, decode_s, prefill_step_s
from envs.kernel.compiled import inlined, njit
from envs.kernel.memory import make_room, note_adapter, note_peak, note_want, tell
from envs.kernel.prefix import drop_context, held, keep_context, trim
from envs.kernel.queues import merge, push_end, remove_end
from envs.kernel.state import FINISHED, FIRST_TOKEN, NO_KEY, PREEMPTED, RESIDENT, Events, Nodes
from envs.lane import MAX_SEQUENCES
from envs.node import PREFILL_TOKENS


@inlined
def enqueue(nodes: Nodes, n: int, j: int) -> None:
    """Into the queue of its model."""
    card, job = nodes.card[n], nodes.work[j]
    line = nodes.line[n, job.model]
    lane = nodes.line[n, line.lane]
    job.left = job.right = -1
    line.head = merge(nodes.work, line.head, j)
    line.waiting += 1
    lane.lane_waiting += 1
    card.waiting += 1
    if lane.place != RESIDENT:
        note_want(nodes, n, line.lane)
    if line.lane != job.model:
        note_adapter(nodes, n, job.model)


@inlined
def _dequeue(nodes: Nodes, n: int, j: int) -> None:
    card, job = nodes.card[n], nodes.work[j]
    line = nodes.line[n, job.model]
    line.head = merge(nodes.work, job.left, job.right)
    line.waiting -= 1
    nodes.line[n, line.lane].lane_waiting -= 1
    card.waiting -= 1
    if line.lane != job.model:
        note_adapter(nodes, n, job.model)


@njit
def start_step(nodes: Nodes, n: int, events: Events) -> None:
    """Begin a prefill, else a decode round, else nothing."""
    card = nodes.card[n]
    while card.step_end_s == inf:
        if card.waiting > 0 and _start_prefill(nodes, n, events):
            return
        lane = _next_decode(nodes, n)
        if lane < 0:
            return
        _start_round(nodes, n, lane, events)


@inlined
def _begin(card: Any, lane: int, prefill: int, seconds: float) -> None:
    card.step_lane = lane
    card.step_prefill = prefill
    card.step_start_s = card.now_s
    card.step_end_s = card.now_s + seconds * card.factor
    note_peak(card)


@inlined
def costs_of(lane: Any) -> StepCosts:
    """What a lane's steps cost."""
    return StepCosts(
        lane.prefill_fixed_s,
        lane.prefill_floor_s,
        lane.prefill_token_s,
        lane.prefill_square_s,
        lane.decode_fixed_s,
        lane.decode_sequence_s,
        lane.decode_context_s,
    )


@inlined
def _next_of(nodes: Nodes, n: int, lane: int) -> int:
    """The job of a resident lane to prefill next, memory permitting; -1 for none."""
    first = nodes.line[n, lane]
    if first.lane_waiting == 0 or first.batch >= MAX_SEQUENCES:
        return -1
    best, best_key = -1, first.closed_after
    m = lane
    while m >= 0:
        line = nodes.line[n, m]
        if line.head >= 0 and line.place == RESIDENT:
            key = nodes.work[line.head].key
            if key < best_key and key < line.closed_after:
                best, best_key = line.head, key
        m = line.next_sibling
    return best


@inlined
def _start_prefill(nodes: Nodes, n: int, events: Events) -> bool:
    """Admit the lane whose next job is first; false when there is none, or no KV cache for it."""
    card = nodes.card[n]
    lane, best_key = -1, NO_KEY
    for i in range(card.residents):
        other = nodes.line[n, i].resident
        j = _next_of(nodes, n, other)
        if j >= 0 and nodes.work[j].key < best_key:
            lane, best_key = other, nodes.work[j].key
    return lane >= 0 and _admit(nodes, n, lane, events)


@inlined
def _admit(nodes: Nodes, n: int, lane: int, events: Events) -> bool:
    """Begin the next prefill batch of a lane; false when KV cache is full."""
    card, work = nodes.card[n], nodes.work
    count, tokens, squares, listed = 0, 0, 0, 0
    while True:
        j = _next_of(nodes, n, lane)
        if j < 0:
            break
        job = work[j]
        length = job.prompt + job.generated
        context = held(nodes, n, job.model, job.session)
        reused = min(job.prefix, work[context].cached, job.prompt - 1) if context >= 0 else 0
        listed += length - reused
        if (count > 0 and listed > PREFILL_TOKENS) or not _kv_fits(nodes, n, lane, j, length, events):
            break
        if context >= 0:
            drop_context(nodes, n, context)
        job.reused = reused
        _join(nodes, n, lane, j)
        nodes.batch[n, count] = j
        count += 1
        tokens += length - reused
        squares += length * length - reused * reused
    if count == 0:
        return False
    _begin(card, lane, count, prefill_step_s(costs_of(nodes.line[n, lane]), tokens, squares))
    return True


@inlined
def _kv_fits(nodes: Nodes, n: int, lane: int, j: int, length: int, events: Events) -> bool:
    card = nodes.card[n]
    need = (length + 1) * nodes.line[n, lane].kv
    if card.kv + need <= card.kv_budget:
        return True
    # Nothing that runs will give memory back: idle models have to.
    return card.running == 0 and make_room(nodes, n, need, nodes.work[j].key, lane, 0, events)


@inlined
def _join(nodes: Nodes, n: int, m: int, j: int) -> None:
    """From the head of its queue into the batch, with KV cache for its prompt and its next token."""
    card, job, lane = nodes.card[n], nodes.work[j], nodes.line[n, m]
    _dequeue(nodes, n, j)
    card.numbers += 1
    job.number = card.numbers
    job.base_round = lane.round - job.generated - 1
    job.end_round = job.base_round + max(1, job.output)
    if isnan(job.started_s):
        job.started_s = card.now_s
    push_end(nodes, n, m, j)
    nodes.line[n, job.model].running += 1
    nodes.line[n, job.model].last_used_s = card.now_s
    lane.batch += 1
    card.running += 1
    lane.lane_used_s = card.now_s
    _take_kv(card, lane, job.prompt + job.generated + 1)
    if card.cached > card.kv_budget - card.kv:
        trim(nodes, n)


@inlined
def _take_kv(card: Any, lane: Any, tokens: int) -> None:
    lane.context += tokens
    card.kv += tokens * lane.kv


@inlined
def _leave(nodes: Nodes, n: int, m: int, at: int) -> None:
    """The job at ``at`` in the lane's heap leaves the batch, finished or not; its KV cache is free."""
    card, lane = nodes.card[n], nodes.line[n, m]
    job = nodes.work[nodes.ends[n, m, at]]
    remove_end(nodes, n, m, at)
    nodes.line[n, job.model].running -= 1
    nodes.line[n, job.model].last_used_s = card.now_s
    lane.batch -= 1
    card.running -= 1
    lane.lane_used_s = card.now_s
    _take_kv(card, lane, job.base_round - lane.round - job.prompt)


@inlined
def _next_decode(nodes: Nodes, n: int) -> int:
    """The lane whose turn it is; -1 when none runs."""
    best, oldest = -1, inf
    if nodes.card[n].running == 0:
        return -1
    for i in range(nodes.card[n].residents):
        m = nodes.line[n, i].resident
        if nodes.line[n, m].batch > 0 and nodes.line[n, m].last_round_s < oldest:
            best, oldest = m, nodes.line[n, m].last_round_s
    return best


@inlined
def _start_round(nodes: Nodes, n: int, m: int, events: Events) -> None:
    card, lane = nodes.card[n], nodes.line[n, m]
    while card.kv + lane.batch * lane.kv > card.kv_budget:
        _relieve(nodes, n, m, events)
        if lane.batch == 0:
            return
    _begin_round(nodes, n, m)


@inlined
def _begin_round(nodes: Nodes, n: int, m: int) -> None:
    """One more token for each sequence of the batch; there is KV cache for it."""
    card, lane = nodes.card[n], nodes.line[n, m]
    seconds = decode_s(costs_of(lane), lane.batch, lane.context)
    _take_kv(card, lane, lane.batch)
    lane.round += 1
    lane.last_round_s = card.now_s
    if card.cached > card.kv_budget - card.kv:
        trim(nodes, n)
    _begin(card, m, 0, seconds)


@njit
def _relieve(nodes: Nodes, n: int, lane: int, events: Events) -> None:
    """Give one round of ``lane`` room: recompute the newest sequence, or evict when there is only one."""
    card = nodes.card[n]
    m, at = _newest(nodes, n)
    if card.running == 1:
        key = nodes.work[nodes.ends[n, m, at]].key
        if make_room(nodes, n, nodes.line[n, lane].kv, key, lane, 0, events):
            return
    _preempt(nodes, n, m, at, events)


@njit
def _newest(nodes: Nodes, n: int) -> tuple[int, int]:
    """Lane, and position in its heap, of the sequence admitted last."""
    best, best_at, highest = -1, -1, -1
    for i in range(nodes.card[n].residents):
        m = nodes.line[n, i].resident
        for at in range(nodes.line[n, m].batch):
            number = nodes.work[nodes.ends[n, m, at]].number
            if number > highest:
                best, best_at, highest = m, at, number
    return best, best_at


@njit
def _preempt(nodes: Nodes, n: int, m: int, at: int, events: Events) -> None:
    j = nodes.ends[n, m, at]
    _leave(nodes, n, m, at)
    nodes.work[j].generated = nodes.line[n, m].round - nodes.work[j].base_round
    enqueue(nodes, n, j)
    nodes.card[n].preempted += 1
    tell(events, PREEMPTED, nodes.card[n].now_s, n, j)


@inlined
def end_step(nodes: Nodes, n: int, events: Events) -> None:
    """The step under way ends: first tokens after a prefill, and whoever has all tokens is done."""
    card = nodes.card[n]
    card.busy_s += card.step_end_s - card.step_start_s
    card.step_end_s = inf
    for i in range(card.step_prefill):
        j = nodes.batch[n, i]
        if isnan(nodes.work[j].first_token_s):
            nodes.work[j].first_token_s = card.now_s
            tell(events, FIRST_TOKEN, card.now_s, n, j)
    m = card.step_lane
    lane = nodes.line[n, m]
    while lane.batch > 0 and nodes.work[nodes.ends[n, m, 0]].end_round <= lane.round:
        _finish(nodes, n, m, events)


@inlined
def _finish(nodes: Nodes, n: int, m: int, events: Events) -> None:
    card = nodes.card[n]
    j = nodes.ends[n, m, 0]
    _leave(nodes, n, m, 0)
    keep_context(nodes, n, j)
    nodes.work[j].finished_s = card.now_s
    card.finished += 1
    tell(events, FINISHED, card.now_s, n, j)


@inlined
def repeats(nodes: Nodes, n: int) -> bool:
    """Whether a round is under way that only rounds can follow, until a sequence ends or something arrives."""
    card = nodes.card[n]
    if card.step_end_s == inf or card.step_prefill > 0:
        return False
    if (card.wanting > 0 and card.load_end_s == inf) or (
        card.adapters_wanted > 0 and card.adapter_end_s == inf
    ):
        return False
    if card.waiting > 0:
        for i in range(card.residents):
            if _next_of(nodes, n, nodes.line[n, i].resident) >= 0:
                return False
    return True


@inlined
def repeat_rounds(nodes: Nodes, n: int, before_s: float, until_s: float) -> None:
    """Run decode rounds as long as no sequence ends and there is KV cache: nothing else has to be looked at.

    Args:
        nodes: of the fleet.
        n: a node that :func:`repeats`.
        before_s: when something else happens.
        until_s: when to stop, if nothing happens.
    """
    card = nodes.card[n]
    m = card.step_lane
    while card.step_end_s <= until_s and card.step_end_s < before_s:
        if nodes.line[n, m].round >= nodes.work[nodes.ends[n, m, 0]].end_round:
            return
        m = _next_decode(nodes, n)
        lane = nodes.line[n, m]
        if card.kv + lane.batch * lane.kv > card.kv_budget:
            return
        card.now_s = card.step_end_s
        card.busy_s += card.step_end_s - card.step_start_s
        _begin_round(nodes, n, m)
