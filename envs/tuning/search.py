"""CMA-ES over the weights of a policy: a new block of seeds each generation, the winner confirmed on unseen ones.

The objective is noisy: the best of many candidates looks better than it is, and more so the fewer episodes it was
measured on. So nothing that was seen while searching counts at the end. A shortlist is ranked on one block of
seeds, and the first of it is compared with the defaults on another, once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from cmaes import CMA  # type: ignore[import-untyped]  # it has no types
from numpy.typing import NDArray

from ccr.errors import CCRError
from envs.evaluation.parallel import Workers
from envs.evaluation.plan import Contender, Task
from envs.evaluation.progress import Report
from envs.evaluation.result import Result
from envs.evaluation.statistics import Ratio, over_scenarios
from envs.tuning.space import Point, Space

# A fifth of each range: wide enough to leave the defaults, narrow enough to remember them.
_SIGMA: Final = 0.2
_SHORTLIST: Final = 6
#: A tail this much heavier is not bought by a lower cost: P99 is a gate.
P99_GATE: Final = 1.05

_DEFAULTS: Final = "defaults"


class TuningError(CCRError):
    """The search cannot go on; the message names the run."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which seeds are used for what; no seed for two things.

    Args:
        base: the first of all.
        generations: each has a block of its own.
        seeds: per generation and scenario.
        validation: per scenario, to rank the shortlist; and again as many to confirm the winner.
    """

    base: int
    generations: int
    seeds: int
    validation: int

    def generation(self, number: int) -> range:
        """Seeds of a generation, counting from 0."""
        start = self.base + number * self.seeds
        return range(start, start + self.seeds)

    @property
    def ranking(self) -> range:
        """Seeds that rank the shortlist."""
        start = self.base + self.generations * self.seeds
        return range(start, start + self.validation)

    @property
    def confirmation(self) -> range:
        """Seeds that nothing was chosen on."""
        return range(self.ranking.stop, self.ranking.stop + self.validation)


@dataclass(frozen=True, slots=True)
class Search:
    """What to tune.

    Args:
        policy: its name.
        space: its weights.
        defaults: where the search starts.
        scenarios: to train on, each with the same weight.
        blocks: of seeds.
        population: candidates per generation.
        rng_seed: of the candidates drawn.
    """

    policy: str
    space: Space
    defaults: Mapping[str, float]
    scenarios: tuple[str, ...]
    blocks: Blocks
    population: int
    rng_seed: int = 0

    @property
    def runs(self) -> int:
        """How many runs all of it takes."""
        searching = self.blocks.generations * self.blocks.seeds * (self.population + 1)
        return len(self.scenarios) * (searching + self.blocks.validation * (_SHORTLIST + 1 + 2))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Args:
        options: the winner of the shortlist.
        cost: its cost relative to the defaults, on the confirmation seeds.
        p99: its P99 latency likewise.
        history: best cost ratio of each generation; noisy, and too good by selection.
        shortlist: options and cost ratio on the ranking seeds, best first.
    """

    options: Mapping[str, float]
    cost: Ratio
    p99: Ratio
    history: Sequence[float]
    shortlist: Sequence[tuple[Mapping[str, float], float]] = field(default_factory=tuple)

    @property
    def verdict(self) -> str:
        """``better``, or why the defaults stay."""
        word = self.cost.verdict(higher_is_better=False)
        if word != "better":
            return "worse" if word == "worse" else "tie"
        if self.p99.ratio is None or self.p99.ratio > P99_GATE:
            return "tail"
        return "better"


def tune(search: Search, pool: Workers, report: Report) -> Outcome:
    """Search, rank, confirm.

    Args:
        search: what to tune.
        pool: runs the episodes.
        report: is told about every run and the best so far.

    Raises:
        TuningError: if a run has no cost.
        RunFailedError: if a run fails.
    """
    trial = _Trial(search, pool, report)
    candidates, history = _generations(search, trial)
    trial.say("ranking the shortlist")
    shortlist = _ranked(trial, candidates, search.blocks.ranking)
    winner = shortlist[0][0]
    trial.say("confirming")
    logs = trial.log_ratios([winner], search.blocks.confirmation, ("cost", "p99_s"))
    return Outcome(
        winner, over_scenarios(logs["cost"][0]), over_scenarios(logs["p99_s"][0]), history, shortlist
    )


class _Trial:
    """Compares candidates with the defaults on the same arrivals."""

    def __init__(self, search: Search, pool: Workers, report: Report) -> None:
        self._search = search
        self._pool = pool
        self._report = report
        self._state = ""

    def say(self, state: str) -> None:
        """Show these words from now on."""
        self._state = state
        self._report(0, state)

    def costs(self, candidates: Sequence[Mapping[str, float]], seeds: range) -> NDArray[np.float64]:
        """Log of the cost relative to the defaults, averaged over episodes, shape ``(len(candidates),)``."""
        logs: NDArray[np.float64] = self.log_ratios(candidates, seeds, ("cost",))["cost"].mean(axis=(1, 2))
        return logs

    def log_ratios(
        self, candidates: Sequence[Mapping[str, float]], seeds: range, metrics: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Per metric, log ratios to the defaults, shape ``(candidates, scenarios, seeds)``."""
        policy = self._search.policy
        contenders = [Contender(_DEFAULTS, policy)]
        contenders += [Contender(str(i), policy, options) for i, options in enumerate(candidates)]
        results = self._run(contenders, seeds)
        shape = (len(self._search.scenarios), len(seeds), len(contenders))
        logs = {}
        for metric in metrics:
            figures = np.array([_figure(one, metric) for one in results]).reshape(shape)
            logs[metric] = np.moveaxis(np.log(figures[..., 1:]) - np.log(figures[..., :1]), -1, 0)
        return logs

    def _run(self, contenders: Sequence[Contender], seeds: range) -> list[Result]:
        tasks = [
            Task(scenario, contender, seed)
            for scenario in self._search.scenarios
            for seed in seeds
            for contender in contenders
        ]
        results: dict[int, Result] = {}
        for position, result in self._pool.results(tasks):
            results[position] = result
            self._report(1, self._state)
        return [results[position] for position in range(len(tasks))]


def _generations(search: Search, trial: _Trial) -> tuple[list[Mapping[str, float]], list[float]]:
    """What to shortlist, the most promising first: where the search ended, then the winners of generations."""
    cma = CMA(
        mean=search.space.point(search.defaults), sigma=_SIGMA, population_size=search.population,
        bounds=np.tile([0.0, 1.0], (len(search.space), 1)), seed=search.rng_seed,
    )  # fmt: skip
    history: list[float] = []
    winners: list[tuple[float, Point]] = []
    for number in range(search.blocks.generations):
        points = [cma.ask() for _ in range(search.population)]
        costs = trial.costs(
            [search.space.options(point) for point in points], search.blocks.generation(number)
        )
        cma.tell([(point, float(value)) for point, value in zip(points, costs, strict=True)])
        best = int(costs.argmin())
        history.append(float(np.exp(costs[best])))
        winners.append((float(costs[best]), points[best]))
        trial.say(f"generation {number + 1}, best so far {min(history):.3f}")
    # The mean averages the noise of all generations out; single winners are there in case it lies in a valley.
    winners.sort(key=lambda entry: entry[0])
    points = [cma.mean, *[point for _, point in winners]]
    return _distinct([search.space.options(point) for point in points])[:_SHORTLIST], history


def _ranked(
    trial: _Trial, candidates: Sequence[Mapping[str, float]], seeds: range
) -> list[tuple[Mapping[str, float], float]]:
    ratios = np.exp(trial.costs(candidates, seeds)).tolist()
    return sorted(zip(candidates, ratios, strict=True), key=lambda entry: entry[1])


def _distinct(candidates: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    kept: list[Mapping[str, float]] = []
    for candidate in candidates:
        if candidate not in kept:
            kept.append(candidate)
    return kept


def _figure(result: Result, metric: str) -> float:
    value = result.metrics[metric]
    if not value > 0.0 or not np.isfinite(value):
        raise TuningError(
            f"{metric} is {value:g} on scenario {result.scenario!r} with seed {result.seed}: nothing to compare. "
            "Train on scenarios in which requests are served."
        )
    return value
