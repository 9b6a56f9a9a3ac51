"""Kinds of days that policies are compared on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from envs.randomised import randomised, varied
from envs.scenario import Scenario
from envs.scenarios import of_trace, scenario_of
from rl.days import EXAM_SEEDS

_ANOTHER: Final = 7_919
_SLOW_PAIRS: Final = 12
_MANY_NODES: Final = 64


class Days(Protocol):
    """Days of one kind; equal kinds are equal."""

    @property
    def words(self) -> str:
        """What they are."""

    def day(self, seed: int) -> Scenario:
        """The scenario of a seed."""

    def pairs(self, wanted: int) -> int:
        """How many of them to compare on, at most ``wanted``."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Deployments drawn at random.

    Args:
        replicas: routers; 0: as it comes.
        hidden: whether the speeds of the nodes are hidden from the routers; ``None``: as it comes.
        regime: level of load; empty: as it comes.
    """

    replicas: int = 0
    hidden: bool | None = None
    regime: str = ""

    @property
    def words(self) -> str:
        """What they are."""
        speeds = {None: "", True: ", hidden speeds", False: ", known speeds"}[self.hidden]
        routers = f", {self.replicas} routers" if self.replicas else ""
        return f"drawn{': ' + self.regime if self.regime else ''}{routers}{speeds}"

    def day(self, seed: int) -> Scenario:
        """The scenario of a seed."""
        scenario = randomised(seed, nodes=(4, 12), regime=self.regime)
        attempt = seed
        while self.hidden is not None and any(node.is_hidden for node in scenario.nodes) != self.hidden:
            attempt += _ANOTHER  # the same traffic with other constants, until the draw is of this kind
            scenario = varied(scenario, attempt)
        return replace(scenario, replicas=self.replicas) if self.replicas else scenario

    def pairs(self, wanted: int) -> int:
        """As many as are wanted."""
        return wanted


@dataclass(frozen=True, slots=True)
class Named:
    """Days of a scenario of the table.

    Args:
        name: of the scenario.
    """

    name: str

    @property
    def words(self) -> str:
        """Its name."""
        return self.name

    def day(self, seed: int) -> Scenario:  # noqa: ARG002 - the seed draws the traffic, not the fleet
        """The scenario."""
        return scenario_of(self.name)

    def pairs(self, wanted: int) -> int:
        """Fewer of those that are simulated slowly."""
        scenario = scenario_of(self.name)
        crashes = any(trouble.kind == "crash" for trouble in scenario.troubles)
        is_slow = crashes or scenario.batch_wait_s > 0.0 or len(scenario.nodes) > _MANY_NODES
        return min(wanted, _SLOW_PAIRS) if is_slow else wanted


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of a recorded trace, none of which overlap.

    Args:
        name: of the trace.
        files: a trace for each stretch.
        nodes: A10 nodes they are replayed on.
        about: rate, models and lengths, in words.
    """

    name: str
    files: tuple[Path, ...]
    nodes: int
    about: str = ""

    @property
    def words(self) -> str:
        """The trace's name."""
        return self.name

    def day(self, seed: int) -> Scenario:
        """The stretch of a seed."""
        return of_trace(self.files[(seed - EXAM_SEEDS) % len(self.files)], self.nodes)

    def pairs(self, wanted: int) -> int:
        """One for each stretch."""
        return min(wanted, len(self.files))
