"""Days to train and to be examined on, and what policies cost on them: paired, on all cores."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ccr.policies.learned import Learned
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import Network
from ccr.policy import Policy
from envs.evaluation.parallel import outlive_nobody, started_since
from envs.randomised import randomised
from envs.scenario import Scenario
from envs.scenarios import scenario_of
from envs.simulator import simulate

#: Where a kind of seed begins; no two kinds meet (`ccr evaluate` uses those from 0).
TRAINING_SEEDS: Final = 20_000_000
SELECTION_SEEDS: Final = 30_000_000
EXAM_SEEDS: Final = 40_000_000
_NODES: Final = (4, 12)
_Task = TypeVar("_Task")
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Day:
    """An episode to be.

    Args:
        seed: of the deployment, where it is drawn, and of the episode.
        scenario: by name, as ``ccr evaluate`` takes it; empty: drawn at random.
    """

    seed: int
    scenario: str = ""

    def make(self) -> Scenario:
        """The scenario; drawn from the seed if it has no name."""
        return scenario_of(self.scenario) if self.scenario else randomised(self.seed, nodes=_NODES)


def mixed_days(first: int, count: int, traces: Sequence[str] = ()) -> list[Day]:
    """Days from consecutive seeds: drawn at random, every second one from the traces if there are any."""
    return [Day(first + k, traces[k // 2 % len(traces)] if traces and k % 2 else "") for k in range(count)]


def regret(day: Day, policy: Policy) -> tuple[float, float]:
    """Cost and P99 latency of a policy on a day, relative to the heuristic as it ships; logarithms."""
    cost, p99_s = _figures(day.make(), policy, day.seed)
    ours, ours_p99_s = _reference(day)
    return float(np.log(cost / ours)), float(np.log(p99_s / ours_p99_s))


@lru_cache(maxsize=512)
def _reference(day: Day) -> tuple[float, float]:
    return _figures(day.make(), LeastCost(), day.seed)


def _figures(scenario: Scenario, policy: Policy, seed: int) -> tuple[float, float]:
    metrics = simulate(scenario, policy, seed, engine="compiled").metrics()
    return metrics["cost"], metrics["p99_s"]


def _regret_of(task: tuple[Day, Network]) -> tuple[float, float]:
    day, network = task
    return regret(day, Learned(network))


class Cores:
    """Processes that play days; to be used in a ``with``, all of them are gone afterwards.

    Args:
        count: processes; 0: one for each core.
    """

    def __init__(self, count: int = 0) -> None:
        self._not_mine = {process.pid for process in multiprocessing.active_children()}
        self._pool = ProcessPoolExecutor(
            count or os.cpu_count() or 1,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=outlive_nobody,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in started_since(self._not_mine).values():
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, function: Callable[[_Task], _Found], tasks: Iterable[_Task], chunk: int = 1
    ) -> Iterable[_Found]:
        """Results in the order of the tasks, as they come."""
        return self._pool.map(function, tasks, chunksize=chunk)

    def regrets(self, days: Sequence[Day], networks: Sequence[Network]) -> NDArray[np.float64]:
        """Of every network on every day, shape ``(networks, days, 2)``; see :func:`regret`."""
        # Days outside: a process meets the same day again and again, and keeps its reference.
        tasks = [(day, network) for day in days for network in networks]
        found = list(self.map(_regret_of, tasks, len(networks)))
        return np.array(found).reshape(len(days), len(networks), 2).swapaxes(0, 1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One network against another on the same days.

    Args:
        cost: geometric mean of the paired ratios.
        low: lower end of its 95 % interval.
        high: upper end.
        p99: geometric mean of the paired ratios of P99 latency.
        days: how many.
    """

    cost: float
    low: float
    high: float
    p99: float
    days: int

    @property
    def is_better(self) -> bool:
        """Whether the whole interval lies below 1, and the tail has not paid for it."""
        return self.high < 1.0 and self.p99 <= 1.05

    def __str__(self) -> str:
        return f"{self.cost:.3f} [{self.low:.3f}, {self.high:.3f}], P99 {self.p99:.3f}, {self.days} days"


def compare(new: NDArray[np.float64], old: NDArray[np.float64]) -> Comparison:
    """What :meth:`Cores.regrets` gave of two networks on the same days, shape ``(days, 2)`` each."""
    logs = new - old
    mean, error = logs.mean(axis=0), logs[:, 0].std(ddof=1) / len(logs) ** 0.5
    low, high = np.exp(mean[0] - 1.96 * error), np.exp(mean[0] + 1.96 * error)
    return Comparison(float(np.exp(mean[0])), float(low), float(high), float(np.exp(mean[1])), len(logs))
