"""What is compared on what: contenders, scenarios and seeds; everyone meets the same arrivals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from envs.episode import Episode

Options = Mapping[str, float | str]
"""Name of an option of a policy -> its value; text is a path."""
Run = Callable[[str, str, int, Options], Episode]
"""Runs a scenario under a policy with a seed and options; a top-level function, so that processes can share it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with its options.

    Args:
        label: what tables call it; unique in a plan.
        policy: its name in the simulator.
        options: on top of the policy's defaults.
    """

    label: str
    policy: str
    options: Options = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Task:
    """One run."""

    scenario: str
    contender: Contender
    seed: int

    def __str__(self) -> str:
        return f"scenario {self.scenario!r}, policy {self.contender.label!r}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison.

    Args:
        contenders: in the order of the tables; the baseline is one of them.
        baseline: the label that the others are compared with.
        scenarios: by name.
        seeds: each scenario runs with each.
    """

    contenders: tuple[Contender, ...]
    baseline: str
    scenarios: tuple[str, ...]
    seeds: range

    @property
    def labels(self) -> tuple[str, ...]:
        """The contenders, in order."""
        return tuple(contender.label for contender in self.contenders)

    @property
    def challengers(self) -> tuple[str, ...]:
        """The contenders without the baseline, in order."""
        return tuple(label for label in self.labels if label != self.baseline)

    def tasks(self) -> list[Task]:
        """Every run, seed by seed: what was interrupted has fewer seeds, not fewer scenarios or policies."""
        return [
            Task(scenario, contender, seed)
            for seed in self.seeds
            for scenario in self.scenarios
            for contender in self.contenders
        ]
