"""Episodes stepped from outside, decision by decision, many in one compiled call.

An episode is a hundred arrays, and handing them over from Python takes 30 us. So each is put on a *seat* once, which
compiled code finds by one pointer; a step of all seats hands over a list of them.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba.core import types
from numba.experimental import structref
from numba.typed import List
from numpy.typing import NDArray

from ccr.admission import may_hold, may_reject
from ccr.features import FEATURES, REQUEST_FEATURES, node_features, request_features
from ccr.policies.network import EXTRA
from ccr.policy import Policy
from ccr.reward import cost, cost_of_rejection
from envs.episode import Episode
from envs.kernel.choice import Chooser, eligible, guarded
from envs.kernel.compiled import inlined, njit
from envs.kernel.episode import (
    ENDED,
    NOW_S,
    OVERRIDES,
    Sim,
    act,
    book_of,
    carry_out,
    choose,
    episode_of,
    hold,
    look_of,
    make_sim,
    meet,
    referenced,
    reject,
    router_of,
    run,
    to_decision,
)
from envs.kernel.refs import ChooserRef
from envs.kernel.routers import INFLIGHT
from envs.scenario import Arrivals, Scenario

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

START: Final = -1
"""Instead of an action: run to the first decision."""
POLICY: Final = -2
"""Instead of an action: what the policy would do."""
RUN: Final = -3
"""Instead of an action: leave everything to the policy, to the end of the episode; nothing is told but the end."""
BOUND: Final = 100.0
"""Features are cut off here; they are of the order of one."""

_OK: Final = 0  # as in envs.episode
_REJECTED: Final = 1

# Entries of `Play.at`. ------------------------------------------------------------------------------------------
ASKED: Final = 0
CHARGED: Final = 1

# Columns of what a step tells. ----------------------------------------------------------------------------------
COST: Final = 0
DT_S: Final = 1
DECIDED: Final = 2
NODE: Final = 3
MASKED: Final = 4
MOVED: Final = 5
ASKS: Final = 6
NEW_CHARGES: Final = 7
TOLD: Final = 8


class Play(NamedTuple):
    """An episode that is stepped through.

    Args:
        sim: the episode.
        ideal_s: latency of each request alone on a warm A10, shape ``(r,)``.
        warmup_s: requests that arrive before it cost nothing, shape ``(1,)``.
        cost: what each request cost, once it has ended, shape ``(r,)``.
        at: the request that wants an action, or -1 at the end; how many that have ended are charged; shape ``(2,)``.
    """

    sim: Sim
    ideal_s: Floats
    warmup_s: Floats
    cost: Floats
    at: Ints


@structref.register
class SeatType(types.StructRef):
    """What compiled code knows of a seat."""


class Seat(structref.StructRefProxy):
    """A play that is handed over as one pointer."""


structref.define_proxy(Seat, SeatType, ["play"])


def play_of(scenario: Scenario, arrivals: Arrivals, seed: int, *, observed: bool = False) -> Play:
    """An episode before its first event; arguments as of :func:`envs.kernel.episode.make_sim`."""
    return Play(
        sim=make_sim(scenario, arrivals, seed, observed=observed),
        ideal_s=scenario.ideal_s(arrivals),
        warmup_s=np.array([scenario.warmup_s]),
        cost=np.full(len(arrivals.t), np.nan),
        at=np.array([-1, 0]),
    )


@njit
def referred(by: Chooser) -> Any:
    """The policy behind a pointer."""
    return ChooserRef(
        by.rule, by.picker, by.epsilon, by.theta, by.scalars, by.node, by.request, by.bias, by.own, by.pool,
        by.second_bias, by.out, by.extra, by.extra_bias,
    )  # fmt: skip


@njit
def seat_of(play: Play) -> Seat:
    """Put an episode on a seat."""
    behind = Play(referenced(play.sim), play.ideal_s, play.warmup_s, play.cost, play.at)
    return Seat(behind)


@njit
def row_of(seat: Seat, count: int) -> Any:
    """A list of seats, the same on each until others are set."""
    seats = List()
    for _ in range(count):
        seats.append(seat)
    return seats


@njit
def set_seat(seats: Any, k: int, seat: Seat) -> None:
    """Give place ``k`` another episode."""
    seats[k] = seat


@njit
def step(
    seats: Any,
    by: Any,
    first: int,
    actions: Ints,
    nodes: Features,
    request: Features,
    mask: NDArray[np.int8],
    told: Floats,
) -> None:
    """Give each seat its action and run it to its next decision.

    Args:
        seats: episodes; those from ``first`` on are stepped.
        by: the policy, a :class:`envs.kernel.choice.Chooser`.
        first: number of the first seat.
        actions: node, then ``max_nodes`` to refuse and one more to hold; or :data:`START`, :data:`POLICY`, :data:`RUN`;
            shape ``(k,)``.
        nodes: written, features of the next decision, shape ``(s, max_nodes, F)``; rows behind the fleet are left.
        request: written, shape ``(s, Q)``.
        mask: read as that of the action, and written for the next; all 0 when the episode is over;
            shape ``(s, max_nodes + 2)``.
        told: written, see the columns above, shape ``(s, 8)``.
    """
    for k in range(len(actions)):
        s = first + k
        play = seats[s].play
        sim = play.sim
        before_s = sim.clock[NOW_S]
        told[s, DECIDED], told[s, NODE], told[s, MASKED], told[s, MOVED] = play.at[ASKED], -1.0, 0.0, 0.0
        if actions[k] == RUN or actions[k] == POLICY:
            if play.at[ASKED] >= 0:
                told[s, NODE] = choose(sim, play.at[ASKED], by)
                carry_out(sim, play.at[ASKED], int(told[s, NODE]))
            if actions[k] == RUN:
                run(sim, by)
        elif actions[k] != START:
            _answer(play, actions[k], mask[s], told[s])
        _ask(play, nodes[s], request[s], mask[s])
        told[s, ASKS] = play.at[ASKED]
        told[s, DT_S] = sim.clock[NOW_S] - before_s
        told[s, NEW_CHARGES] = sim.tally[ENDED] - play.at[CHARGED]
        told[s, COST] = _charge(play)


@inlined
def _answer(play: Play, action: int, mask: NDArray[np.int8], told: Floats) -> None:
    """Do what was chosen; what may not be done goes to the least busy node that may take the request."""
    sim, j = play.sim, play.at[ASKED]
    places = len(mask) - 2
    legal = 0 <= action < len(mask) and mask[action] != 0
    told[MASKED] = 0.0 if legal else 1.0
    if legal and action == places:
        reject(sim, j)
        return
    if legal and action == places + 1:
        hold(sim, j)
        return
    inflight = router_of(sim, j % len(sim.routers.seq)).columns[INFLIGHT]
    n = len(inflight)
    may = np.zeros(n, dtype=np.bool_)
    scores = np.full(
        n, -np.inf
    )  # nothing but the chosen node is wanted: the guard takes the least busy instead
    drawn = -1
    for i in range(n):
        may[i] = mask[i] != 0
        if may[i] and (drawn < 0 or inflight[i] < inflight[drawn]):
            drawn = i
    if legal:
        drawn = action
    scores[drawn] = 0.0
    node = guarded(scores, may, inflight, drawn)
    sim.tally[OVERRIDES] += int(node != drawn)
    told[MOVED] = 1.0 if node != drawn else 0.0
    told[NODE] = node
    act(sim, j, node)


@inlined
def _ask(play: Play, nodes: Features, request: Features, mask: NDArray[np.int8]) -> None:
    """Run to the next request that a node may take, and write what is seen of it; the others are refused on the way."""
    sim = play.sim
    for i in range(len(mask)):
        mask[i] = 0
    while True:
        j = to_decision(sim)
        play.at[ASKED] = j
        if j < 0:
            nodes[:] = 0.0
            request[:] = 0.0
            return
        meet(sim, j)
        r = j % len(sim.routers.seq)
        may = eligible(router_of(sim, r), book_of(sim, r), sim.names, int(sim.jobs.model[j]))
        if may.any():
            break
        reject(sim, j)
    look = look_of(sim, j)
    seen, asked = node_features(look), request_features(look)
    for i in range(seen.shape[0]):
        mask[i] = 1 if may[i] else 0
        for f in range(seen.shape[1]):
            nodes[i, f] = min(max(seen[i, f], -BOUND), BOUND)
    for f in range(len(asked)):
        request[f] = min(max(asked[f], -BOUND), BOUND)
    places = len(mask) - 2
    mask[places] = 1 if may_reject(look, may) else 0
    mask[places + 1] = 1 if may_hold(look, may, sim.clock[NOW_S] - sim.due_s[j]) else 0


@inlined
def _charge(play: Play) -> float:
    """What those cost that have ended since the last call."""
    sim, total = play.sim, 0.0
    while play.at[CHARGED] < sim.tally[ENDED]:
        j = sim.ended[play.at[CHARGED]]
        play.at[CHARGED] += 1
        each: Any = 0.0
        if sim.due_s[j] >= play.warmup_s[0]:
            if sim.status[j] == _REJECTED:
                each = cost_of_rejection(play.ideal_s[j])
            else:
                latency_s: Any = sim.total_s[j] if sim.status[j] == _OK else np.inf
                each = cost(latency_s, play.ideal_s[j])
        play.cost[j] = each
        total += each
    return total


def compiled_episode(scenario: Scenario, policy: Policy, seed: int, by: Chooser) -> Episode:
    """One episode under a built-in policy; as :meth:`envs.simulator.Simulator.run`.

    Args:
        scenario: without crashes.
        policy: for its name, and whether it learns from observed latencies.
        seed: of arrivals, noise and draws.
        by: of :func:`envs.kernel.choice.chooser_of`.
    """
    arrivals = scenario.arrivals(seed)
    play = play_of(scenario, arrivals, seed, observed=bool(getattr(policy, "observes", False)))
    nodes, request, mask = blank_observation(1, len(scenario.nodes))
    seats = row_of(seat_of(play), 1)
    step(seats, referred(by), 0, np.array([RUN]), nodes, request, mask, np.zeros((1, TOLD)))
    return episode_of(play.sim, scenario, arrivals, policy.name, seed)


def blank_observation(count: int, max_nodes: int) -> tuple[Features, Features, NDArray[np.int8]]:
    """Room for what ``count`` seats see: features of nodes and request, and the mask."""
    return (
        np.zeros((count, max_nodes, len(FEATURES)), dtype=np.float32),
        np.zeros((count, len(REQUEST_FEATURES)), dtype=np.float32),
        np.zeros((count, max_nodes + EXTRA), dtype=np.int8),
    )
