"""``ccr drill``: what becomes of the traffic when something drifts or somebody lies, and whether that is good enough."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import numpy as np
from rich.console import Console

from ccr.cli import print_table
from ccr.errors import ConfigError
from ccr.policies.learned import SHIPPED, Learned
from ccr.weights import Weights, load
from envs.evaluation import manifest
from envs.evaluation.cli import OUT, write
from envs.evaluation.engine import simulator
from envs.evaluation.progress import shown
from rl.days import Cores
from rl.drills import poison
from rl.drills.drifts import DRIFTS, Times
from rl.drills.judge import KEPT, drift_document, poison_document
from rl.drills.play import ARMS, played
from rl.drills.poison import HONEST, POISONED, POISONS

#: Seeds of drills begin here; nothing is trained, chosen or tuned on them.
SEEDS: Final = 50_000_000
_PAIRS: Final = 30
_POISON_PAIRS: Final = 12
_INTERRUPTED: Final = 130
_QUICK: Final = Times(60.0, 120.0, 180.0)
_QUICK_POISON: Final = poison.Times(30.0, 90.0)

_Found = TypeVar("_Found")


@click.command("drill")
@click.argument("name", required=False)
@click.option("--seeds", type=click.IntRange(min=1),
              help=f"Paired days.  [default: {_PAIRS}; {_POISON_PAIRS} of poison]")  # fmt: skip
@click.option(
    "--seed-base", type=click.IntRange(min=0), default=SEEDS, show_default=True, help="The first seed."
)
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=SHIPPED,
              help="Of the policy.  [default: those shipped]")  # fmt: skip
@click.option(
    "--quick", is_flag=True, help="A fifth of the time for everything: to see it run, not to judge."
)
@click.option("--json", "json_to", type=OUT, help="Write arms, ratios, bars and command to this file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--list", "lists", is_flag=True, help="List the drills and end.")
def drill(
    name: str | None, seeds: int | None, seed_base: int, weights: Path, quick: bool, json_to: Path | None,
    workers: int | None, lists: bool,
) -> None:  # fmt: skip
    """Run the drill NAME in virtual time, with paired seeds; exit code 1 where a bar is missed.

    A drift is met three times: by a router that learns nothing from then on, by the product as it is, and by one that
    is told the truth; five minutes later the counting begins. Poison is met twice: on an honest day and on a poisoned one.
    """
    if lists or name is None:
        print_table(_known(), ("drill", "kind", "about"), as_json=False)
        return
    if name not in DRIFTS and name not in POISONS:
        raise ConfigError(f"no drill is called {name!r}; there are {', '.join((*DRIFTS, *POISONS))}")
    if json_to is not None and not json_to.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {json_to}: there is no directory {json_to.resolve().parent}")
    loaded = load(weights)
    count = seeds or (_PAIRS if name in DRIFTS else _POISON_PAIRS)
    if name in DRIFTS:
        simulator()  # compiles what is not compiled yet, before processes share it
    try:
        document = run(
            name, range(seed_base, seed_base + count), loaded, workers or os.cpu_count() or 1, quick=quick
        )
    except KeyboardInterrupt:
        raise click.exceptions.Exit(_INTERRUPTED) from None
    _print(document)
    if json_to is not None:
        write(json_to, json.dumps(document, indent=2, allow_nan=False) + "\n", "--json")
    if not all(bar["met"] for bar in document["bars"]):
        raise click.exceptions.Exit(1)


def run(
    name: str, seeds: Sequence[int], loaded: Weights, workers: int, *, quick: bool = False
) -> dict[str, Any]:
    """A drill's document.

    Args:
        name: in :data:`rl.drills.drifts.DRIFTS` or :data:`rl.drills.poison.POISONS`.
        seeds: of the paired days.
        loaded: the policy's weights.
        workers: processes.
        quick: whether episodes are short.
    """
    policy = Learned(loaded.network)
    if name in DRIFTS:
        arms = _each(partial(_drifted, name, policy, quick), name, seeds, workers)
        rows = {arm: np.array([each[arm] for each in arms]) for arm in ARMS}
        document = drift_document(name, seeds, rows, recovers=DRIFTS[name].recovers)
    else:
        days = _each(partial(_poisoned, name, policy, quick), name, seeds, workers)
        document = poison_document(
            POISONS[name], seeds, {arm: [each[arm] for each in days] for arm in (HONEST, POISONED)}
        )
    return document | {"weights": loaded.version, "quick": quick, **manifest.origin()}


def _each(play: Callable[[int], _Found], name: str, seeds: Sequence[int], workers: int) -> list[_Found]:
    """Every day, on all cores."""
    found = []
    with Cores(workers) as cores, shown(name, len(seeds), Console(stderr=True)) as report:
        for each in cores.map(play, seeds):
            found.append(each)
            report(1, "")
    return found


def _drifted(name: str, policy: Learned, quick: bool, seed: int) -> dict[str, list[float]]:
    times = _QUICK if quick else Times()
    arms = played(DRIFTS[name].case(seed, times), policy, seed, times.drift_s)
    metrics = {arm: ended.episode.metrics() for arm, ended in arms.items()}
    return {arm: [each[metric] for metric in KEPT] for arm, each in metrics.items()}


def _poisoned(name: str, policy: Learned, quick: bool, seed: int) -> dict[str, Mapping[str, float]]:
    times = _QUICK_POISON if quick else poison.Times()
    return {arm: POISONS[name].play(policy, seed, times, arm == POISONED) for arm in (HONEST, POISONED)}


def _known() -> list[dict[str, str]]:
    rows = [{"drill": each.name, "kind": "drift", "about": each.about} for each in DRIFTS.values()]
    return rows + [{"drill": each.name, "kind": "poison", "about": each.about} for each in POISONS.values()]


def _print(document: Mapping[str, Any]) -> None:
    arms = document["arms"]
    figures = list(next(iter(arms.values())))
    title = f"{document['drill']}: {document['seeds']['count']} paired days, weights {document['weights']}"
    print_table(
        [{"arm": arm} | {figure: rows[figure]["mean"] for figure in figures} for arm, rows in arms.items()],
        ("arm", *figures), as_json=False, title=title,
    )  # fmt: skip
    print_table(
        [{"ratio": pair, "value": each["value"], "95 %": _interval(each), "verdict": each["verdict"]}
         for pair, each in document["ratios"].items()],
        ("ratio", "value", "95 %", "verdict"), as_json=False,
    )  # fmt: skip
    if document.get("recovered"):
        click.echo(f"of the truth's gain online recovers: {document['recovered']['words']}")
    for bar in document["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3g} {_interval(bar)}".rstrip()
        click.echo(f"{'met   ' if bar['met'] else 'MISSED'}  {bar['bar']}: {value}")


def _interval(found: Mapping[str, Any]) -> str:
    return "" if found["low"] is None else f"[{found['low']:.3f}, {found['high']:.3f}]"
