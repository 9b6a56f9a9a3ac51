"""Episodes side by side, each waiting for the decision about its next request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ccr.errors import ConfigError
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import EXTRA
from ccr.policy import Policy
from envs.episode import Episode
from envs.kernel import stepping
from envs.kernel.choice import Chooser, chooser_of
from envs.kernel.episode import Sim, episode_of
from envs.kernel.stepping import Play
from envs.scenario import REFERENCE_ONLY, Arrivals, Scenario

EXTRA_ACTIONS: Final = EXTRA
"""Besides the nodes: refuse, then hold."""


def by_policy(policy: Policy) -> Chooser:
    """A built-in policy as compiled code takes it.

    Raises:
        ConfigError: if only the reference can run it.
    """
    found = chooser_of(policy)
    if found is None:
        raise ConfigError(
            f"policy {policy.name!r} is not compiled; take a built-in one, drawn greedily or best of two"
        )
    return found


_LEAST_COST: Final = by_policy(LeastCost())


@dataclass(frozen=True, slots=True)
class Sitting:
    """An episode on its seat.

    Args:
        scenario: what happens.
        arrivals: drawn from it.
        seed: of arrivals, noise and draws.
        play: its arrays; compiled code works on the same memory.
    """

    scenario: Scenario
    arrivals: Arrivals
    seed: int
    play: Play

    @property
    def sim(self) -> Sim:
        """The episode's arrays."""
        return self.play.sim

    def charges(self, count: int) -> NDArray[np.float64]:
        """What the last ``count`` requests that ended cost."""
        last = int(self.play.at[stepping.CHARGED])
        return self.play.cost[self.sim.ended[last - count : last]]

    def episode(self) -> Episode:
        """What the episode gave, once it is over."""
        return episode_of(self.sim, self.scenario, self.arrivals, "environment", self.seed)


class Seats:
    """Episodes that are stepped in one compiled call.

    Args:
        count: episodes side by side.
        max_nodes: rows of the observation; no fleet may have more nodes.
        by: what decides where :data:`envs.kernel.stepping.POLICY` is given for an action; by default least cost.

    Attributes:
        nodes: features of the next decision of each, shape ``(count, max_nodes, F)``; rows behind the fleet are 0.
        request: likewise, shape ``(count, Q)``.
        mask: 1 where an action may be taken, shape ``(count, max_nodes + 2)``.
        told: columns of :mod:`envs.kernel.stepping`, shape ``(count, TOLD)``.
        sitting: the episodes.
    """

    def __init__(self, count: int, max_nodes: int, by: Chooser | None = None) -> None:
        self.max_nodes = max_nodes
        self.nodes, self.request, self.mask = stepping.blank_observation(count, max_nodes)
        self.told = np.zeros((count, stepping.TOLD))
        self.sitting: list[Sitting | None] = [None] * count
        self._row: object = None
        self._by = stepping.referred(by or _LEAST_COST)
        self._start = np.array([stepping.START], dtype=np.int64)

    def seat(self, k: int, scenario: Scenario, seed: int) -> Sitting:
        """Begin an episode on seat ``k`` and run it to its first decision.

        Raises:
            ConfigError: if the fleet is too large, nodes of it crash, or there is nothing to decide.
        """
        self._check(scenario)
        arrivals = scenario.arrivals(seed)
        play = stepping.play_of(scenario, arrivals, seed)
        seat = stepping.seat_of(play)
        if self._row is None:
            self._row = stepping.row_of(seat, len(self.sitting))
        stepping.set_seat(self._row, k, seat)
        self.nodes[k] = 0.0
        self._step(k, self._start)
        if self.told[k, stepping.ASKS] < 0:
            raise ConfigError(f"scenario {scenario.name!r} has no request that a node could take")
        sitting = Sitting(scenario, arrivals, seed, play)
        self.sitting[k] = sitting
        return sitting

    def step(self, actions: Sequence[int] | NDArray[np.int64]) -> None:
        """Give every episode its action and run it to its next decision.

        Args:
            actions: one per seat: a node, ``max_nodes`` to refuse, ``max_nodes + 1`` to hold.
        """
        self._step(0, np.asarray(actions, dtype=np.int64))

    def _step(self, first: int, actions: NDArray[np.int64]) -> None:
        stepping.step(self._row, self._by, first, actions, self.nodes, self.request, self.mask, self.told)

    def _check(self, scenario: Scenario) -> None:
        if len(scenario.nodes) > self.max_nodes:
            raise ConfigError(
                f"scenario {scenario.name!r} has {len(scenario.nodes)} nodes and the observation {self.max_nodes} "
                f"rows; set max_nodes={len(scenario.nodes)}"
            )
        if any(trouble.kind in REFERENCE_ONLY for trouble in scenario.troubles):
            raise ConfigError(
                f"nodes of scenario {scenario.name!r} crash, lie or fail, which is not compiled; "
                "take a scenario without, or `ccr evaluate` for this one"
            )
