"""Training in three stages: tuned numbers, a network taught by hindsight, PPO. Each has to beat the one before it.

What a stage gave is kept in a directory, so a run that was interrupted goes on where it stood; equal arguments give
equal weights.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ccr.policies.least_cost import LeastCost
from ccr.policies.network import Network, blank
from rl import imitation, labels, ppo, theta
from rl.days import SELECTION_SEEDS, TRAINING_SEEDS, Comparison, Cores, Day, compare, mixed_days
from rl.labels import Labelled
from rl.vector_env import FleetVecEnv

STAGES: Final = ("theta", "network", "ppo")
_SEEDS_PER_STAGE: Final = 1_000_000
_SEEDS_PER_RUN: Final = 100_000


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of everything; the defaults take about ten minutes on two cores.

    Args:
        generations: of the first stage.
        population: candidates in each.
        days: each candidate is played on.
        rounds: of teaching and learning.
        lessons: days taught in each round.
        decisions: labelled on each of them.
        epochs: passes over all that was labelled.
        steps: decisions of the third stage.
        exam: days that decide whether a stage is kept.
    """

    generations: int = 30
    population: int = 12
    days: int = 8
    rounds: int = 4
    lessons: int = 320
    decisions: int = 40
    epochs: int = 24
    steps: int = 200_000
    exam: int = 120


@dataclass(frozen=True, slots=True)
class Plan:
    """A training run.

    Args:
        budget: how much of everything.
        seed: of everything that is drawn.
        traces: scenarios to train on beside those drawn at random, by name.
        envs: episodes side by side in the third stage.
    """

    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    traces: tuple[str, ...] = ()
    envs: int = 8

    def days(self, stage: int, first: int, count: int) -> list[Day]:
        """Days of a stage; no two stages and no two seeds of training share one."""
        base = TRAINING_SEEDS + stage * _SEEDS_PER_STAGE + self.seed * _SEEDS_PER_RUN
        return mixed_days(base + first, count, self.traces)

    @property
    def exam(self) -> list[Day]:
        """Days that decide what is kept: the same for every stage, none of them trained on."""
        return mixed_days(SELECTION_SEEDS + self.seed * _SEEDS_PER_RUN, self.budget.exam, self.traces)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage gave.

    Args:
        stage: its name.
        network: what goes on to the next stage.
        against_heuristic: the network on the exam, against the shipped heuristic.
        against_last: what the stage proposed, against what it was given.
        is_kept: whether its proposal goes on.
        wall_s: how long it took.
    """

    stage: str
    network: Network
    against_heuristic: Comparison
    against_last: Comparison
    is_kept: bool
    wall_s: float


class Progress:
    """What training tells while it runs; this one tells nobody."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins, in so many parts."""

    def step(self, stage: str, done: int, words: str, **figures: float) -> None:
        """So many parts are done; the figures belong into a curve."""

    def finish(self, outcome: Outcome) -> None:
        """A stage is over."""


def train(plan: Plan, directory: Path, cores: Cores, progress: Progress) -> list[Outcome]:
    """All stages.

    Args:
        plan: what to do.
        directory: keeps what each stage gave; what is there of the same plan is not done again.
        cores: play days.
        progress: is told.
    """
    torch.set_num_threads(1)
    directory.mkdir(parents=True, exist_ok=True)
    _same_plan(plan, directory / "plan.json")
    network = blank(np.array(LeastCost().theta), plan.seed)
    baseline = cores.regrets(plan.exam, [network])[0]
    outcomes: list[Outcome] = []
    regrets = baseline
    for number, (stage, run) in enumerate(zip(STAGES, (_theta, _network, _ppo), strict=True)):
        kept = directory / f"{number + 1}-{stage}.npz"
        outcome = _read(kept, stage) if kept.exists() else None
        if outcome is None:
            started_s = time.monotonic()
            candidates = run(plan, network, cores, progress)
            outcome, regrets = _examined(plan, stage, network, candidates, cores, regrets, started_s)
            _write(kept, outcome)
        else:
            regrets = cores.regrets(plan.exam, [outcome.network])[0]
        progress.finish(outcome)
        outcomes.append(outcome)
        network = outcome.network
    return outcomes


def _examined(
    plan: Plan, stage: str, given: Network, candidates: Sequence[Network], cores: Cores,
    regrets: NDArray[np.float64], started_s: float,
) -> tuple[Outcome, NDArray[np.float64]]:  # fmt: skip
    """The best of what a stage proposed, if it beats what the stage was given.

    The best of several on the same days flatters itself, so half of the days choose and the other half decide.
    """
    found = cores.regrets(plan.exam, candidates)
    chooses, decides = slice(0, None, 2), slice(1, None, 2)
    if len(candidates) == 1:
        chooses = decides = slice(None)
    best = int(found[:, chooses, 0].mean(axis=1).argmin())
    against_last = compare(found[best][decides], regrets[decides])
    is_kept = against_last.cost < 1.0 and against_last.p99 <= 1.05
    after = found[best] if is_kept else regrets
    network = candidates[best] if is_kept else given
    return Outcome(
        stage, network, compare(after, np.zeros_like(after)), against_last, is_kept, time.monotonic() - started_s,
    ), after  # fmt: skip


def _theta(plan: Plan, start: Network, cores: Cores, progress: Progress) -> list[Network]:
    budget = plan.budget
    progress.begin("theta", budget.generations)

    def report(generation: int, cost: float) -> None:
        progress.step("theta", generation + 1, f"candidates cost {cost:.3f} of the heuristic", cost=cost)

    found = theta.search(
        start, lambda generation: plan.days(0, generation * budget.days, budget.days), cores,
        generations=budget.generations, population=budget.population, seed=plan.seed, report=report,
    )  # fmt: skip
    return [found]


def _network(plan: Plan, start: Network, cores: Cores, progress: Progress) -> list[Network]:
    budget = plan.budget
    parts = budget.lessons + budget.epochs
    progress.begin("network", budget.rounds * parts)
    network, taught, candidates = start, list[Labelled](), list[Network]()
    for number in range(budget.rounds):
        days = plan.days(1, number * budget.lessons, budget.lessons)
        done = number * parts
        for k, part in enumerate(cores.map(labels.label, [(day, network, budget.decisions) for day in days])):
            taught.append(part)
            progress.step(
                "network", done + k + 1, f"round {number + 1}, labelled {sum(map(len, taught))} decisions"
            )

        def report(epoch: int, seen: float, unseen: float, first: int = done + budget.lessons) -> None:
            words = f"regret {seen:.3f}, unseen {unseen:.3f}"
            progress.step("network", first + epoch + 1, words, regret=seen, unseen_regret=unseen)

        network = imitation.learn(
            network, Labelled.joined([part for part in taught if len(part)]), epochs=budget.epochs,
            rates=(2e-3, 5e-4), seed=plan.seed + number, report=report,
        )  # fmt: skip
        candidates.append(network)
    return candidates


def _ppo(plan: Plan, start: Network, cores: Cores, progress: Progress) -> list[Network]:  # noqa: ARG001 - as all stages
    progress.begin("ppo", plan.budget.steps)
    env = FleetVecEnv(
        lambda seed: mixed_days(TRAINING_SEEDS + 2 * _SEEDS_PER_STAGE + seed % _SEEDS_PER_STAGE, 1)[0].make(),
        plan.envs, plan.seed, max_nodes=12,
    )  # fmt: skip

    def report(steps: int, reward: float) -> None:
        progress.step("ppo", min(steps, plan.budget.steps), f"reward {reward:.4f}", reward=reward)

    return ppo.fine_tune(start, env, steps=plan.budget.steps, checkpoints=4, seed=plan.seed, report=report)


def _same_plan(plan: Plan, path: Path) -> None:
    facts = json.dumps(asdict(plan), indent=2, sort_keys=True)
    if path.exists() and path.read_text() != facts:
        for old in path.parent.glob("[0-9]-*.npz"):
            old.unlink()
    path.write_text(facts)


def _write(path: Path, outcome: Outcome) -> None:
    facts: dict[str, Any] = asdict(outcome)
    del facts["network"]
    arrays: dict[str, NDArray[Any]] = outcome.network._asdict()
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its other keyword is not among them
    temporary.replace(path)


def _read(path: Path, stage: str) -> Outcome | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            network = Network(**{name: arrays[name].copy() for name in Network._fields})
    except (OSError, ValueError, KeyError):
        return None  # the stage is done again
    comparisons = {name: Comparison(**facts.pop(name)) for name in ("against_heuristic", "against_last")}
    return Outcome(network=network, **{**facts, **comparisons, "stage": stage})
