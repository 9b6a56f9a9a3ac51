"""The strongest heuristic there is for one kind of deployment: cost weights that were tuned for exactly that kind."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.claims.days import Drawn
from benchmarks.claims.play import Bench, Contender, without_network
from ccr.policies.network import Network
from ccr.weights import checksum
from envs.evaluation.progress import shown
from envs.scenario import Scenario
from rl.days import TRAINING_SEEDS, Day
from rl.theta import search

_GENERATIONS: Final = 18
_POPULATION: Final = 12
_DAYS: Final = 8
_FIRST: Final = TRAINING_SEEDS + 9_000_000


@dataclass(frozen=True, slots=True)
class _DayOf(Day):
    kind: Drawn = field(default_factory=Drawn)

    def make(self) -> Scenario:
        """A day of that kind."""
        return self.kind.day(self.seed)


def retuned(bench: Bench, kind: Drawn, network: Network, keep: Path | None) -> Contender:
    """The analytic cost, with refusing and holding, tuned for one kind of day alone.

    Args:
        bench: its cores play the search.
        kind: of day.
        network: the search begins at its weights, which were tuned for all kinds.
        keep: directory where the result is looked up and kept.
    """
    start = without_network(network)
    kept = keep / f"{checksum(start)[:12]}-{kind.replicas}-{int(bool(kind.hidden))}.npz" if keep else None
    name = f"cost tuned for {kind.words}"
    if kept is not None and kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            return Contender(name, network=start._replace(theta=arrays["theta"], scalars=arrays["scalars"]))
    with shown(name, _GENERATIONS, bench.console) as report:
        found = search(
            start, lambda k: [_DayOf(_FIRST + k * _DAYS + i, kind=kind) for i in range(_DAYS)], bench.cores,
            generations=_GENERATIONS, population=_POPULATION, seed=0,
            report=lambda _, cost: report(1, f"{cost:.3f} of the shipped heuristic"),
        )  # fmt: skip
    if kept is not None:
        np.savez(kept, theta=found.theta, scalars=found.scalars)
    return Contender(name, network=found)
