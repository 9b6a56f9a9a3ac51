"""Plays one day with a drift three times: frozen, online, and told the truth; the same day up to the drift.

An episode is stepped from outside as far as something is to be done to it, see :mod:`envs.kernel.stepping`.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr.book import ANSWERS, SPEED
from ccr.policy import Policy
from envs.episode import Episode
from envs.kernel.choice import chooser_of
from envs.kernel.episode import NOW_S, Sim, episode_of
from envs.kernel.stepping import (
    ASKED,
    POLICY,
    RUN,
    START,
    TOLD,
    Play,
    blank_observation,
    play_of,
    referred,
    row_of,
    seat_of,
    step,
)
from rl.drills.drifts import Case

Floats = NDArray[np.float64]

FROZEN: Final = "frozen"
ONLINE: Final = "online"
TRUTH: Final = "truth"
ARMS: Final = (FROZEN, ONLINE, TRUTH)


class Calibration(NamedTuple):
    """What routers have learned of their nodes and models, every array with a leading axis of replicas.

    Args:
        speed: observed time per token over the expected one, and the answers it rests on, shape ``(2, n)``.
        load_s: seconds of loads, shape ``(M, n)``.
        output_tokens: mean lengths of answers, shape ``(M,)``.
        share: of the recent requests, shape ``(M,)``.
        told_share: likewise, as nodes are told that evict by it; without replicas.
    """

    speed: Floats
    load_s: Floats
    output_tokens: Floats
    share: Floats
    told_share: Floats

    @classmethod
    def of(cls, sim: Sim) -> "Calibration":
        """As it is now."""
        books = sim.books
        return cls(
            books.load[:, [SPEED, ANSWERS]].copy(), books.load_s.copy(), books.output_tokens.copy(),
            books.share.copy(), sim.share.copy(),
        )  # fmt: skip

    def put(self, sim: Sim) -> None:
        """Make the routers forget what they have learned since."""
        books = sim.books
        sim.share[:] = self.told_share
        books.load[:, [SPEED, ANSWERS]] = self.speed
        books.load_s[:] = self.load_s
        books.output_tokens[:] = self.output_tokens
        books.share[:] = self.share
        books.stale[:] = True  # what evictions cost was made of these


class Ended(NamedTuple):
    """An arm that is over.

    Args:
        episode: what it gave.
        told: what its routers knew right after the drift.
        learned: what they knew at the end.
    """

    episode: Episode
    told: Calibration
    learned: Calibration


class Stepped:
    """A compiled episode under way.

    Args:
        play: the episode.
        policy: decides; a built-in one.
    """

    def __init__(self, play: Play, policy: Policy) -> None:
        self.play = play
        self._by = referred(chooser_of(policy))  # type: ignore[arg-type]  # built in
        self._seats = row_of(seat_of(play), 1)
        self._observed = blank_observation(1, play.sim.nodes.card.shape[0])
        self._told = np.zeros((1, TOLD))

    def take(self, action: int) -> None:
        """One action; see :func:`envs.kernel.stepping.step`."""
        step(self._seats, self._by, 0, np.array([action]), *self._observed, self._told)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to decide."""
        return bool(self.play.at[ASKED] < 0)

    def until(self, at_s: float) -> None:
        """To the first decision at ``at_s`` or later; it is not taken yet."""
        while not self.is_over and self.play.sim.clock[NOW_S] < at_s:
            self.take(POLICY)

    def to_the_end(self, after_each: Callable[[Sim], None] | None = None) -> None:
        """All the rest.

        Args:
            after_each: changes the episode before each decision.
        """
        if after_each is None:
            self.take(RUN)
            return
        while not self.is_over:
            after_each(self.play.sim)
            self.take(POLICY)


def played(case: Case, policy: Policy, seed: int, drift_s: float) -> dict[str, Ended]:
    """The case under every arm.

    Args:
        case: what happens.
        policy: a built-in one.
        seed: of noise and draws.
        drift_s: when it happens.
    """
    before = Stepped(play_of(case.scenario, case.arrivals, seed), policy)
    before.take(START)
    before.until(drift_s)
    found = {}
    for arm in ARMS:
        stepped = Stepped(_copied(before.play), policy)
        sim = stepped.play.sim
        case.happens(sim)
        if arm == TRUTH:
            case.tell(sim)
            sim.books.stale[:] = True
        told = Calibration.of(sim)
        stepped.to_the_end(told.put if arm == FROZEN else None)
        if arm == FROZEN:
            told.put(sim)
        episode = episode_of(sim, case.scenario, case.arrivals, policy.name, seed)
        found[arm] = Ended(episode, told, Calibration.of(sim))
    return found


def _copied(value: Any) -> Any:
    """A play with arrays of its own."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(*map(_copied, value)) if isinstance(value, tuple) else value
