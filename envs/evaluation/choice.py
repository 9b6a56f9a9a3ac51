"""What the user asked to compare, checked against what there is before anything runs."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

from ccr import weights
from ccr.errors import ConfigError
from ccr.policies.learned import path_of
from envs.evaluation.engine import Engine
from envs.evaluation.plan import Contender, Options, Plan

#: Compared with when nobody says otherwise: the router's own default policy.
USUAL_BASELINE: Final = "hot_cold"
#: Tuning and training draw from here upwards, comparisons from below: nobody is examined on their homework.
TRAINING_SEEDS: Final = 10_000_000
#: The one policy that a weights file belongs to, and the ending of such files.
LEARNED: Final = "learned"
WEIGHTS_SUFFIX: Final = ".npz"
#: The one option that is text: the path of such a file.
_WEIGHTS: Final = "weights"


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def the_plan(
    engine: Engine, policies: Sequence[str], scenarios: Sequence[str], baseline: str, seeds: range
) -> Plan:
    """A plan of names that exist.

    Args:
        engine: says what there is.
        policies: ``NAME`` or ``NAME@FILE``, the file as tuning or training writes it; empty: every policy.
        scenarios: by name.
        baseline: one of the policies, joined to them if it is not; empty: the usual one if it is there, else the first.
        seeds: of the runs.

    Raises:
        ConfigError: naming what does not exist, and what does.
        WeightsError: if a weights file is refused.
    """
    contenders = [contender(engine, one) for one in policies or engine.policies]
    _once([one.label for one in contenders], "policy")
    _once(scenarios, "scenario")
    labels = [one.label for one in contenders]
    if not baseline:
        baseline = USUAL_BASELINE if USUAL_BASELINE in labels else labels[0]
    reference = contender(engine, baseline)
    if reference.label not in labels:
        contenders.insert(0, reference)
    return Plan(tuple(contenders), reference.label, tuple(scenarios), seeds)


def contender(engine: Engine, text: str) -> Contender:
    """The policy that ``NAME`` or ``NAME@FILE`` means; FILE is a config, or weights (``.npz``) of ``learned``.

    Raises:
        ConfigError: if there is no such policy, or the file is not of it.
        WeightsError: if the weights are refused.
    """
    name, at, file = text.partition("@")
    known([name], engine.policies, "policy")
    if not at:
        return Contender(name, name)
    path = Path(file)
    options = _weights(name, path) if path.suffix == WEIGHTS_SUFFIX else _options(name, path)
    return Contender(f"{name}@{path.stem}", name, options)


def scenario_names(
    engine: Engine, suite: str | None, names: Sequence[str], trace: Path | None
) -> tuple[str, ...]:
    """The scenarios of a suite, or those that were named; and a trace.

    Raises:
        ConfigError: if one does not exist.
    """
    known(names, engine.scenarios, "scenario")
    if suite is not None:
        known([suite], engine.suites, "suite")
    chosen = tuple(names) + (engine.suites[suite] if suite is not None else ())
    return chosen + ((engine.of_trace(trace),) if trace is not None else ())


def known(names: Iterable[str], there_are: Iterable[str], what: str) -> None:
    """Refuse names that do not exist.

    Raises:
        ConfigError: with all that do.
    """
    there_are = list(there_are)
    for name in names:
        if name not in there_are:
            close = get_close_matches(name, there_are, 1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(f"no {what} is called {name!r}{meant}; there are {', '.join(there_are)}")


def _once(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(f"name each {what} once: {', '.join(twice)} came twice")


def _weights(policy: str, path: Path) -> Options:
    """The option that means these weights; they are tried now, not in the first run."""
    if policy != LEARNED:
        raise ConfigError(f"{policy!r} takes no weights; write {LEARNED}@{path}")
    weights.load(path)
    return {_WEIGHTS: str(path.absolute())}


def _options(policy: str, path: Path) -> Options:
    try:
        document: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the options of {policy!r} from {path}: {error}") from error
    section = document.get("policy") if isinstance(document, dict) else None
    options = section.get("options") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(options, dict):
        raise ConfigError(f"{path} has no `policy.options`; give a file that `ccr tune` wrote, or a config")
    if section.get("name") != policy:
        raise ConfigError(f"{path} has options of {section.get('name')!r}, not of {policy!r}")
    if policy == LEARNED and isinstance(options.get(_WEIGHTS), str):
        return _weights(policy, path_of(options[_WEIGHTS]))
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{path}: option {name!r} is {value!r}; give a number")
    return {str(name): float(value) for name, value in options.items()}
