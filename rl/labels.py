"""Second stage, the teacher: what each action would have cost the whole fleet, worked out after the fact.

An episode is played twice. The first time tells where every request went; the second time stops at some decisions and
runs every node on from there with and without the request (:mod:`rl.branch`). States are those that the policy itself
runs into, so the student is examined where it will stand (DAgger: Ross et al. 2011, arXiv 1011.0686).
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ccr.policies.learned import Learned
from ccr.policies.network import EXTRA, REJECT, Network
from ccr.reward import cost_of_rejection
from envs.kernel import stepping
from envs.seats import Seats, by_policy
from rl import branch
from rl.days import Day

HORIZON_S: Final = 30.0
"""Arrivals after the decision that still count: with 12 s the tail got worse."""
WORST: Final = 15.0
"""Regret beyond this, in units of :func:`ccr.reward.cost`, is an accident of an overloaded future and not the decision's."""
LEAST_COST: Final = 0.7
"""Of an average request, where regret is measured in it: of days on which nearly nothing goes wrong, single loads would count most."""
_AT_S: Final = 6
_Entry = TypeVar("_Entry", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Decisions and what was lost by each action; ``k`` decisions, ``N`` places for nodes.

    Args:
        nodes: features, shape ``(k, N, F)``.
        request: features, shape ``(k, Q)``.
        mask: actions that may be taken and have a label, shape ``(k, N + 2)``.
        regret: what each action cost more than the cheapest, but not more than :data:`WORST`, in units of an average request
            of the episode; 0 where masked; shape ``(k, N + 2)``.
        day: which day each was taken from, counted from 0, shape ``(k,)``.
    """

    nodes: NDArray[np.float32]
    request: NDArray[np.float32]
    mask: NDArray[np.bool_]
    regret: NDArray[np.float32]
    day: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.regret)

    @staticmethod
    def joined(parts: "list[Labelled]") -> "Labelled":
        """All of them, one day each, with as many places as the largest fleet needs."""
        most = max(part.nodes.shape[1] for part in parts)
        return Labelled(
            np.concatenate([_padded(part.nodes, most) for part in parts]),
            np.concatenate([part.request for part in parts]),
            np.concatenate([_spread(part.mask, most) for part in parts]),
            np.concatenate([_spread(part.regret, most) for part in parts]),
            np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        )


def _padded(rows: NDArray[_Entry], most: int) -> NDArray[_Entry]:
    return np.pad(rows, ((0, 0), (0, most - rows.shape[1]), (0, 0)))


def _spread(actions: NDArray[_Entry], most: int) -> NDArray[_Entry]:
    """Room between the nodes and the actions behind them."""
    n = actions.shape[1] - EXTRA
    return np.concatenate((np.pad(actions[:, :n], ((0, 0), (0, most - n))), actions[:, n:]), axis=1)


def label(task: tuple[Day, Network, int]) -> Labelled:
    """Decisions of one day under a policy.

    Args:
        task: the day, the policy, and how many of its decisions are wanted.
    """
    day, network, wanted = task
    scenario = day.make()
    n = len(scenario.nodes)
    seats = Seats(1, n, by_policy(Learned(network)))
    over = seats.seat(0, scenario, day.seed)
    seats.step([stepping.RUN])
    node, at_s = over.sim.node.copy(), over.sim.placed[:, _AT_S].copy()
    at_s[node < 0] = np.inf
    by_time = np.argsort(at_s, kind="stable")
    asked = np.flatnonzero(node >= 0)
    rng = np.random.default_rng([day.seed, 0x1ABE1])
    chosen = set(rng.choice(asked, min(wanted, len(asked)), replace=False).tolist())
    episode_cost = float(np.nanmean(over.play.cost)) if np.isfinite(over.play.cost).any() else 1.0
    return _second_time(seats, day, (node, at_s, by_time), chosen, max(episode_cost, LEAST_COST))


def _second_time(
    seats: Seats,
    day: Day,
    script: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]],
    chosen: set[int],
    episode_cost: float,
) -> Labelled:
    node, at_s, by_time = script
    sitting = seats.seat(0, day.make(), day.seed)
    seat = stepping.seat_of(sitting.play)
    n = seats.max_nodes
    found: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]] = []
    sent = 0
    while (j := int(seats.told[0, stepping.ASKS])) >= 0:
        while sent < len(by_time) and at_s[by_time[sent]] < sitting.sim.clock[0]:
            sent += 1
        if j in chosen and node[j] >= 0 and at_s[j] == sitting.sim.clock[0]:
            costs = np.zeros(n + EXTRA)
            branch.labels(seat, j, seats.mask[0], node, at_s, by_time, sent, HORIZON_S, costs[:n])
            costs[n + REJECT] = cost_of_rejection(sitting.play.ideal_s[j])
            mask = seats.mask[0].astype(np.bool_)
            mask[n + REJECT + 1] = False  # what holding leads to is not known from one placement
            found.append((seats.nodes[0].copy(), seats.request[0].copy(), mask, np.where(mask, costs, 0.0)))
        seats.step([stepping.POLICY])
    if not found:
        return Labelled(
            np.zeros((0, n, seats.nodes.shape[2]), np.float32), np.zeros((0, seats.request.shape[1]), np.float32),
            np.zeros((0, n + EXTRA), np.bool_), np.zeros((0, n + EXTRA), np.float32), np.zeros(0, np.int64),
        )  # fmt: skip
    nodes, request, mask, costs = (np.stack(column) for column in zip(*found, strict=True))
    regret = np.minimum(costs - np.where(mask, costs, np.inf).min(axis=1, keepdims=True), WORST)
    shares = np.where(mask, regret / episode_cost, 0.0).astype(np.float32)
    return Labelled(nodes, request, mask, shares, np.zeros(len(shares), np.int64))
