"""Whether weights do worse than those before them: shares of requests every few seconds, a CUSUM over each.

Two kinds of figures. What a decision itself shows - a node was chosen that was expected to be late although another was
not - is the policy's doing whatever the traffic is like, so it is watched all the time. How requests end is what counts, but
a burst or a slow node worsens it for every policy: it is watched while weights are on trial, against what was usual
before *at the same strain*. Strain is how much of the promise even the best node was expected to take; in a burst
requests move to strains where misses are usual, and where every node is expected to be late a miss is not held against the policy.
A policy that makes every node late by itself is still seen: what it chooses is much later than the best.

A CUSUM (Page 1954) adds up by how much a share exceeds its limit; a single bad moment is no breach, because the excess has
to go on. Counted in shares and intervals, it does not depend on the rate of requests.
"""

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from ccr.book import Floats
from ccr.latency import expected_s, promised_s
from ccr.look import BUSY, RESIDENT
from ccr.types import Decision

EVERY_S: Final = 5.0
"""Between two evaluations."""
ALARM: Final = 0.6
"""What excesses have to add up to: a fifth too much for three intervals, half of the requests for two."""
IN_A_ROW: Final = 2
"""Breaches, one after the other, that confirm it."""
FULL: Final = 20
"""Requests of an interval; what fewer of them show weighs less."""
STRAINS: Final = (0.25, 0.5, 0.75, 1.0)
"""Where strata end: expected latency on the best node, as a share of what was promised."""
ENOUGH: Final = 200
"""Requests that have to have ended before it is known what is usual."""
REMEMBER_S: Final = 1800.0
"""What was usual longer ago counts less and less."""
CROWD: Final = 2.0
"""Requests at a node from which another one that stands idle would have been better."""
MUCH_LATER: Final = 2.0
"""Where every node is expected to be late, a choice is avoidable from so many times the best one's latency on."""
_PRIOR: Final = 20.0
"""Requests that the first guess of what is usual is worth, in each stratum."""
_MISSES: Final = (0.02, 0.05, 0.2, 0.5, 1.0)
"""First guess of the share of missed promises in each stratum: seldom seen ones are not like the others."""


class Figure(NamedTuple):
    """A share of the requests.

    Args:
        meaning: of a request that counts.
        slack: by how much it may exceed what was usual.
        least: below this share there is never an alarm.
        usual: first guess.
        is_outcome: known when a request has ended; else with its decision.
    """

    meaning: str
    slack: float
    least: float = 0.0
    usual: float = 0.05
    is_outcome: bool = False


#: Name -> what it is.
FIGURES: Final = {
    "missed": Figure("the promise was missed", 0.15, is_outcome=True),
    "failed": Figure("the node failed it", 0.10, is_outcome=True),
    "avoidable": Figure("it was expected to be late although another node was expected to be in time, or in half the time", 0.15),
    "cold": Figure("its weights had to be loaded although a node that had them was expected to be in time, or sooner", 0.25),
    "guarded": Figure("the guard moved it", 0.10, least=0.20),
    "herded": Figure("it went to the one busy node that most went to, although another with its weights stood idle", 0.25, 0.4),
    "unusable": Figure("the policy failed, and the fallback decided", 0.10, least=0.20, usual=0.0),
}  # fmt: skip
_ROW: Final = {name: row for row, name in enumerate(FIGURES)}
_SLACK: Final = np.array([figure.slack for figure in FIGURES.values()])
_LEAST: Final = np.array([figure.least for figure in FIGURES.values()])
_USUAL: Final = np.array([figure.usual for figure in FIGURES.values()])
_LEAST_USUAL: Final = np.array([_MISSES if name == "missed" else [0.0] * len(_MISSES) for name in FIGURES])
_IS_OUTCOME: Final = np.array([figure.is_outcome for figure in FIGURES.values()])
_MISSED, _FAILED, _AVOIDABLE, _COLD, _GUARDED, _HERDED, _UNUSABLE = range(len(FIGURES))
_SHAPE: Final = (len(FIGURES), len(STRAINS) + 1)


class Facts(NamedTuple):
    """What a decision shows.

    Args:
        strain: stratum, see :data:`STRAINS`.
        promised_s: from arrival; infinite where it is not known.
        avoidable: see :data:`FIGURES`; so are the next three.
        cold: weights.
        guarded: by the guard.
        unusable: policy.
        crowd: the node that was chosen although it was busy and another with the weights idle; -1 where that is not so.
    """

    strain: int
    promised_s: float
    avoidable: bool
    cold: bool
    guarded: bool
    unusable: bool
    crowd: int


def facts(decision: Decision) -> Facts:
    """What a decision shows of the policy that made it; about 10 us where the arithmetic is compiled."""
    guarded, unusable, look = bool(decision.guard_reason), bool(decision.fallback), decision.look
    if look is None:
        return Facts(0, math.inf, False, False, guarded, unusable, -1)
    # In lists: of a few dozen nodes numpy takes longer to begin than these take to finish.
    promise_s, seconds = promised_s(look), expected_s(look).tolist()
    resident, busy, may = look.pairs[RESIDENT].tolist(), look.pairs[BUSY].tolist(), decision.mask.tolist()
    nodes = [n for n, is_eligible in enumerate(may) if is_eligible]
    best_s, chosen = min(seconds[n] for n in nodes), decision.index
    warm = [n for n in nodes if resident[n] > 0.0]
    chosen_s = seconds[chosen]
    return Facts(
        strain=bisect_right(STRAINS, best_s / promise_s),
        promised_s=promise_s,
        avoidable=is_avoidable(chosen_s, best_s, promise_s),
        cold=not resident[chosen] and any(seconds[n] <= max(promise_s, chosen_s) for n in warm),
        guarded=guarded,
        unusable=unusable,
        crowd=chosen if busy[chosen] >= CROWD and any(busy[n] == 0.0 for n in warm) else -1,
    )


def is_avoidable(chosen_s: float, best_s: float, promise_s: float) -> bool:
    """Whether it is late by choice.

    Args:
        chosen_s: expected on the node that was chosen.
        best_s: on the best one.
        promise_s: what was promised.
    """
    return chosen_s > promise_s and best_s <= max(promise_s, chosen_s / MUCH_LATER)


class Tally:
    """Requests of an interval, counted by figure and strain."""

    def __init__(self) -> None:
        self.number = np.zeros(_SHAPE)
        self.counted = np.zeros(_SHAPE)
        self._crowds: Counter[int] = Counter()

    def decided(self, found: Facts) -> None:
        """A decision was made."""
        strain = found.strain
        self.number[~_IS_OUTCOME, strain] += 1.0
        self.counted[_AVOIDABLE:_HERDED, strain] += (found.avoidable, found.cold, found.guarded)
        self.counted[_UNUSABLE, strain] += found.unusable
        if found.crowd >= 0:
            self._crowds[found.crowd] += 1

    def ended(self, strain: int, *, missed: bool | None = None, failed: bool | None = None) -> None:
        """A request ended, or is late already.

        Args:
            strain: of its decision.
            missed: whether it missed its promise; ``None`` where that is not known, or was counted before.
            failed: whether the node failed it; ``None`` where it has not ended.
        """
        is_hopeless = strain >= len(STRAINS)  # every node was expected to be late: a miss says nothing
        for row, value in ((_MISSED, None if is_hopeless else missed), (_FAILED, failed)):
            if value is not None:
                self.number[row, strain] += 1.0
                self.counted[row, strain] += value

    def closed(self) -> tuple[Floats, Floats]:
        """Requests, and those that count, of each figure and strain: both of shape ``(figures, strains)``."""
        counted, number = self.counted.copy(), self.number[_HERDED].sum()
        if number and self._crowds:
            counted[_HERDED] = self.number[_HERDED] * (max(self._crowds.values()) / number)
        return self.number, counted


@dataclass(slots=True)
class Usual:
    """What is usual: requests and those that counted, of each figure and strain, decayed."""

    number: Floats = field(default_factory=lambda: np.zeros(_SHAPE))
    counted: Floats = field(default_factory=lambda: np.zeros(_SHAPE))

    def add(self, number: Floats, counted: Floats, every_s: float = EVERY_S) -> None:
        """An interval."""
        kept = math.exp(-every_s / REMEMBER_S)
        self.number = kept * self.number + number
        self.counted = kept * self.counted + counted

    def shares(self) -> Floats:
        """Of each figure and strain; where little is known, near the first guess, or near what is usual over all strains."""
        number, counted = self.number.sum(axis=1), self.counted.sum(axis=1)
        over_all = (counted + _PRIOR * _USUAL) / (number + _PRIOR)
        guess = np.maximum(over_all[:, None], _LEAST_USUAL)
        shares: Floats = (self.counted + _PRIOR * guess) / (self.number + _PRIOR)
        return shares

    @property
    def is_known(self) -> bool:
        """Whether enough requests have ended."""
        return bool(self.number[_FAILED].sum() >= ENOUGH)


class Breach(NamedTuple):
    """A figure that exceeds its limit, and goes on to.

    Args:
        figure: its name.
        share: in the latest interval.
        limit: what it should have been below.
    """

    figure: str
    share: float
    limit: float

    def __str__(self) -> str:
        return f"{self.figure} {self.share:.0%}, above {self.limit:.0%}"


class Judge:
    """Judges the weights in force.

    Args:
        usual: of the weights before; filled by weights that are not on trial, or have passed.
    """

    def __init__(self, usual: Usual | None = None) -> None:
        self.usual = usual or Usual()
        self.begin(on_trial=False)

    def begin(self, *, on_trial: bool) -> None:
        """Other weights are in force."""
        self.on_trial = on_trial
        self.requests = 0.0
        self.shares = dict.fromkeys(FIGURES, 0.0)
        self.sums: Floats = np.zeros(len(FIGURES))
        self._rows: Floats = np.zeros(len(FIGURES))
        self._tried = Usual()

    def passed(self) -> None:
        """The trial is over: what it showed is usual from now on."""
        self.usual.add(self._tried.number, self._tried.counted)
        self._tried, self.on_trial = Usual(), False

    @property
    def is_calm(self) -> bool:
        """Whether no figure is on its way to an alarm."""
        return bool((self.sums < 0.5 * ALARM).all())

    def closeness(self) -> dict[str, float]:
        """How far each figure is on its way to an alarm: 1 is there."""
        return dict(zip(FIGURES, (self.sums / ALARM).tolist(), strict=True))

    def tick(self, tally: Tally) -> list[Breach]:
        """An interval is over: what is confirmed to exceed its limit."""
        number, counted = tally.closed()
        total = number.sum(axis=1)
        share = counted.sum(axis=1) / np.maximum(total, 1.0)
        expected = (self.usual.shares() * number).sum(axis=1) / np.maximum(total, 1.0)
        limit = np.maximum(expected + _SLACK, _LEAST)
        excess = np.where(total > 0.0, share - limit, 0.0)
        is_watched = ~_IS_OUTCOME | (self.on_trial and self.usual.is_known)
        self.sums = np.where(
            is_watched, np.maximum(self.sums + np.minimum(total / FULL, 1.0) * excess, 0.0), 0.0
        )
        breaches = (self.sums > ALARM) & (excess > 0.0)
        self._rows = np.where(breaches, self._rows + 1.0, 0.0)
        self.requests += total[_AVOIDABLE]
        self.shares = dict(zip(FIGURES, share.tolist(), strict=True))
        (self._tried if self.on_trial else self.usual).add(number, counted)
        return [
            Breach(name, float(share[row]), float(limit[row]))
            for name, row in _ROW.items()
            if self._rows[row] >= IN_A_ROW
        ]
