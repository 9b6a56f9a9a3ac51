"""What a placement really costs: the future of one node with a request and without it, everything else as it happened.

Once an episode is over it is known which requests went to which node and when. So at any moment of it each node can be
run on alone, with the same arrivals: once as it was, once with the request added. The difference is the request's own
cost and the delay and loads it causes to others, which no latency of its own shows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccr.reward import cost
from envs.kernel.compiled import njit
from envs.kernel.nodes import advance, submit
from envs.kernel.refs import EventsRef, NodesRef

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EVENTS = 16384
DRAIN_S = 120.0
"""How long after the last arrival a node is run on; what is not done by then has cost the most there is."""


@njit
def labels(
    seat: Any,
    j: int,
    may: NDArray[np.int8],
    node: Ints,
    at_s: Floats,
    by_time: Ints,
    first: int,
    horizon_s: float,
    out: Floats,
) -> None:
    """The cost that a request adds to the fleet on each node.

    Args:
        seat: an episode at the decision about request ``j``; not changed.
        j: the request.
        may: who may take it, shape ``(n,)`` at least.
        node: where each request went in the episode that is over, -1 if nowhere, shape ``(r,)``.
        at_s: when it went there, shape ``(r,)``.
        by_time: requests in the order of ``at_s``, shape ``(r,)``.
        first: place in ``by_time`` from which requests go after ``j``.
        horizon_s: arrivals up to so long after now are run.
        out: written, in units of :func:`ccr.reward.cost`; NaN where it may not go; shape ``(n,)``.
    """
    sim = seat.play.sim
    ideal_s, due_s, now_s = seat.play.ideal_s, sim.due_s, sim.clock[0]
    n = len(sim.nodes.card)
    involved = np.empty(len(node), dtype=np.int64)
    for i in range(n):
        out[i] = np.nan
        if may[i] == 0:
            continue
        count = 0
        begin = first
        while begin < len(by_time) and at_s[by_time[begin]] <= now_s and sim.node[by_time[begin]] >= 0:
            begin += 1  # sent in the same moment, before this one
        for other in by_time[:begin]:  # what it has in flight
            if sim.node[other] == i and np.isnan(sim.total_s[other]):
                involved[count] = other
                count += 1
        in_flight = count
        last = begin
        while last < len(by_time) and at_s[by_time[last]] <= now_s + horizon_s:
            other = by_time[last]
            if other != j and node[other] == i:
                involved[count] = other
                count += 1
            last += 1
        total = np.zeros(2)
        for with_it in range(2):
            a = sim.nodes
            nodes: Any = NodesRef(  # type: ignore[no-untyped-call]  # made by numba
                a.card.copy(), a.line.copy(), a.work.copy(), a.ends.copy(), a.batch.copy(),
                a.newest_context.copy(), a.noise,
            )  # fmt: skip
            events: Any = EventsRef(  # type: ignore[no-untyped-call]  # likewise
                np.zeros(_EVENTS, np.int8), np.zeros(_EVENTS), np.zeros(_EVENTS, np.int32),
                np.zeros(_EVENTS, np.int64),
                np.zeros(1, np.int64),
            )  # fmt: skip
            until_s = now_s
            if with_it == 1:
                submit(nodes, sim.jobs, i, j, now_s, events)
            for k in range(in_flight, count):
                until_s = at_s[involved[k]]
                submit(nodes, sim.jobs, i, involved[k], until_s, events)
                events.count[0] = 0
            advance(nodes, i, until_s + DRAIN_S, events)
            for k in range(count):
                total[with_it] += _cost_of(nodes, involved[k], due_s, ideal_s)
            if with_it == 1:
                total[1] += _cost_of(nodes, j, due_s, ideal_s)
        out[i] = total[1] - total[0]


@njit
def _cost_of(nodes: Any, j: int, due_s: Floats, ideal_s: Floats) -> float:
    finished_s = nodes.work[j].finished_s
    latency_s: Any = np.inf if np.isnan(finished_s) else finished_s - due_s[j]
    ideal: Any = ideal_s[j]
    each: Any = cost(latency_s, ideal)
    return float(each)
