"""Makes published versions versions of the registry: ``python -m rl.online.registering DIRECTORY URI``, with the key in the environment.

A process of its own, because MLflow takes more memory than the learner has, and may hang. It may be killed at any
step: a version that was registered and not noted is found again by what its run says.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from ccr.weights import load
from rl.online.shelf import Shelf, Waiting
from rl.registry import Registry
from rl.versions import RegistryError, RunFacts

KEY: Final = "CCR_PUBLICATION__KEY"
_PUBLISHED: Final = "published"


def register(shelf: Shelf, registry: Registry) -> int:
    """Register all that waits; how many there were.

    Raises:
        RegistryError: if the registry cannot be reached; what is left waits on.
    """
    waiting = shelf.waiting()
    for one in waiting:
        number = _known(registry, one) or registry.register(one.weights, _facts(one))
        shelf.registered(one, number)
    return len(waiting)


def _facts(one: Waiting) -> RunFacts:
    facts: dict[str, Any] = dict(one.facts)
    gate = facts.pop("gate", None) or {}
    metrics = {f"gate.{name}": float(value) for name, value in gate.items() if not isinstance(value, bool)}
    told: dict[str, Any] = {
        name: facts[name] for name in ("epoch", "version", "reason", "sha256", "why") if name in facts
    }
    return RunFacts(
        params={_PUBLISHED: one.name, **told}, metrics=metrics, name=f"{facts['name']} ({facts['reason']})"
    )


def _known(registry: Registry, one: Waiting) -> int | None:
    """Its number, if an earlier try got so far."""
    sha256 = load(one.weights).sha256
    for version in reversed(registry.versions()):
        if version.sha256 == sha256 and registry.run_of(version)["params"].get(_PUBLISHED) == one.name:
            return version.number
    return None


def main(arguments: Sequence[str]) -> None:
    """In a process of its own; exit code 1 if the registry was not to be reached."""
    os.nice(10)
    shelf = Shelf(Path(arguments[0]), os.environ[KEY].encode())
    try:
        register(shelf, Registry(arguments[1]))
    except RegistryError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
