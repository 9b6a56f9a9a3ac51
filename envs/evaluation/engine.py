"""The seam to the simulator: what comparing and tuning need of it, by name; everything else here knows only this."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from ccr.errors import CCRError
from envs.episode import Episode
from envs.evaluation.plan import Options, Run


class Range(Protocol):
    """Where a weight may lie."""

    @property
    def low(self) -> float:
        """Smallest value."""

    @property
    def high(self) -> float:
        """Largest value."""

    @property
    def log(self) -> bool:
        """Whether factors matter rather than differences; ``low`` is then above 0."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A simulator.

    Args:
        run: one run; a top-level function.
        scenarios: name -> what it is about, in a line.
        suites: name -> its scenarios.
        policies: names that ``run`` takes.
        tunable: policy -> option -> where it may lie.
        defaults: the options of a policy with their default values.
        of_trace: the scenario that replays a trace file, as ``run`` takes it.
    """

    run: Run
    scenarios: Mapping[str, str]
    suites: Mapping[str, tuple[str, ...]]
    policies: tuple[str, ...]
    tunable: Mapping[str, Mapping[str, Range]]
    defaults: Callable[[str], Mapping[str, float]]
    of_trace: Callable[[Path], str]


# -- the adapter. The simulator's modules are imported when they are used: `ccr --help` and a router without the
# -- `simulator` extra must not need numba.


_OURS: Final = ("ccr", "envs")


def simulator() -> Engine:
    """The simulator of this project.

    Raises:
        CCRError: if its packages are not installed.
    """
    scenarios = _module("envs.scenarios")
    _module("envs.ahead").compile_ahead(sys.stderr)
    return Engine(
        run=run,
        scenarios={name: scenario.about for name, scenario in scenarios.SCENARIOS.items()},
        suites=scenarios.SUITES,
        policies=tuple(_module("envs.simulator").POLICIES_SIMULATED),
        tunable=_module("ccr.policies.tunable").TUNABLE,
        defaults=_defaults,
        of_trace=lambda path: f"trace:{path.resolve()}",
    )


def run(scenario: str, policy: str, seed: int, options: Options) -> Episode:
    """One run of the simulator."""
    episode: Episode = _module("envs.simulator").run(scenario, policy, seed, options=options)
    return episode


def _defaults(policy: str) -> Mapping[str, float]:
    parameters = inspect.signature(_module("ccr.policies").POLICIES[policy]).parameters
    return {
        name: float(one.default) for name, one in parameters.items() if isinstance(one.default, int | float)
    }


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise  # a mistake of ours: installing something would not help
        raise CCRError(
            f"the simulator needs {error.name}: install it with `pip install 'ccr-autopilot[simulator]'`"
        ) from error
