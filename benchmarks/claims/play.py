"""Who competes, and what became of them: plays days on all cores and remembers what it has played."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.claims.days import Days
from ccr.policies import POLICIES
from ccr.policies.learned import Learned
from ccr.policies.network import HOLD_SHARE, PRIORITY, REJECT_COST, Network, blank
from ccr.policy import Policy
from envs.evaluation.metrics import METRICS
from envs.evaluation.progress import shown
from envs.evaluation.statistics import Ratio, geometric, of_means
from envs.simulator import simulate
from rl.days import EXAM_SEEDS, Cores

Figures = NDArray[np.float64]

#: Of an episode, in this order.
KEPT: Final = ("cost", "mean_s", "p99_s", "slo", "goodput", "reject_rate")
TUNED: Final = Path(__file__).resolve().parents[1] / "tuned"
_SWITCHED_OFF: Final = 1e3
_CHUNK: Final = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy that processes can share; equal names are the same policy.

    Args:
        name: what it is called.
        policy: in the table of policies.
        options: of it.
        network: of a learned one, instead.
    """

    name: str
    policy: str = ""
    options: Mapping[str, float] = field(default_factory=dict, compare=False)
    network: Network | None = field(default=None, compare=False)

    def make(self) -> Policy:
        """The policy."""
        if self.network is not None:
            return Learned(self.network)
        return POLICIES[self.policy or self.name](**self.options)


#: Heuristics that docs/baselines.md found close to the best one, which comes first.
CLOSE: Final = ("least_cost", "latency_predictor", "least_request", "least_work")


def tuned(policy: str) -> Contender:
    """A heuristic under the weights that ``ccr tune`` found for it; ``least_cost`` has them by default."""
    path = TUNED / f"{policy}.yaml"
    options = yaml.safe_load(path.read_text())["policy"]["options"] if path.exists() else {}
    return Contender(f"{policy}@tuned" if options else policy, policy, options)


def without_network(network: Network) -> Network:
    """The tuned cost alone: what the network is measured against."""
    return blank(network.theta)._replace(scalars=network.scalars.copy())


def sending_everything(network: Network) -> Network:
    """The same policy that neither refuses nor holds nor reorders."""
    scalars = network.scalars.copy()
    scalars[[REJECT_COST, HOLD_SHARE]] = _SWITCHED_OFF
    scalars[PRIORITY] = 0.0
    zeros = {name: np.zeros_like(getattr(network, name)) for name in ("extra", "extra_bias")}
    return network._replace(scalars=scalars, **zeros)


def _play(task: tuple[Days, Contender, int]) -> list[float]:
    days, contender, seed = task
    metrics = simulate(days.day(seed), contender.make(), seed).metrics()
    return [metrics[name] for name in KEPT]


class Bench:
    """Plays days.

    Args:
        cores: play them.
        days: pairs of each comparison, where there are so many.
        console: is told.
    """

    def __init__(self, cores: Cores, days: int, console: Console) -> None:
        self.cores = cores
        self.days = days
        self.console = console
        self._known: dict[tuple[Days, Contender], Figures] = {}

    def play(self, label: str, wanted: Iterable[tuple[Days, Contender]]) -> None:
        """Play what was not played before, all in one go."""
        new = [each for each in dict.fromkeys(wanted) if each not in self._known]
        if not new:
            return
        counts = [days.pairs(self.days) for days, _ in new]
        tasks = [
            (*each, EXAM_SEEDS + k) for each, count in zip(new, counts, strict=True) for k in range(count)
        ]
        found = []
        with shown(label, len(tasks), self.console) as report:
            for task, figures in zip(tasks, self.cores.map(_play, tasks, _CHUNK), strict=True):
                found.append(figures)
                report(1, f"{task[1].name} on {task[0].words}")
        for each, block in zip(new, np.split(np.array(found), np.cumsum(counts)[:-1]), strict=True):
            self._known[each] = block

    def figures(self, days: Days, contender: Contender, metric: str) -> Figures:
        """One of :data:`KEPT` for every day, shape ``(pairs,)``; plays them if nobody did."""
        if (days, contender) not in self._known:
            self.play(contender.name, [(days, contender)])
        return self._known[days, contender][:, KEPT.index(metric)]

    def ratio(self, days: Days, new: Contender, old: Contender, metric: str) -> Ratio:
        """Of one against another on the same days."""
        take = geometric if METRICS[metric].positive else of_means
        return take(self.figures(days, new, metric), self.figures(days, old, metric))

    def level(self, days: Days, contender: Contender, metric: str) -> Ratio:
        """The mean of one; its ratio to 1, so to speak."""
        values = self.figures(days, contender, metric)
        return of_means(values, np.ones_like(values))
