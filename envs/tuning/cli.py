"""``ccr tune``: fit the few weights of a policy to training scenarios."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import yaml
from rich.console import Console

from ccr.cli import print_table
from ccr.errors import ConfigError
from envs.evaluation import manifest
from envs.evaluation.choice import TRAINING_SEEDS, known, scenario_names, words
from envs.evaluation.cli import OUT, write
from envs.evaluation.engine import Engine, simulator
from envs.evaluation.parallel import Workers
from envs.evaluation.progress import shown
from envs.evaluation.statistics import Ratio
from envs.tuning.search import P99_GATE, Blocks, Outcome, Search
from envs.tuning.search import tune as tuned
from envs.tuning.space import Space

_INTERRUPTED: Final = 130


@click.command()
@click.argument("policy")
@click.option("--suite", help="Scenarios to train on, as a set.  [default: train, unless others are named]")
@click.option("--scenarios", default="", help="Scenarios to train on, separated by commas.")
@click.option(
    "--generations", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of the search."
)
@click.option("--population", type=click.IntRange(min=4), default=10, show_default=True,
              help="Candidates in each step.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=4, show_default=True,
              help="Episodes per candidate and scenario in each step; new ones every step.")  # fmt: skip
@click.option("--validation-seeds", "validation", type=click.IntRange(min=4), default=32, show_default=True,
              help="Episodes per scenario to rank the best candidates, and as many again to confirm the first of them.")  # fmt: skip
@click.option("--seed-base", type=click.IntRange(min=0), default=TRAINING_SEEDS, show_default=True,
              help="The first seed; keep it away from those of comparisons.")  # fmt: skip
@click.option("--draw", "rng_seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the candidates drawn.")  # fmt: skip
@click.option("--out", "out", type=OUT, help="Write the weights here, as `policy.options` of a config.")
@click.option("--json", "json_to", type=OUT, help="Write the whole outcome to this file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.pass_obj
def tune(
    engine: Engine | None, policy: str, suite: str | None, scenarios: str, generations: int, population: int, seeds: int,
    validation: int, seed_base: int, rng_seed: int, out: Path | None, json_to: Path | None, workers: int | None,
) -> None:  # fmt: skip
    """Tune the weights of POLICY in the simulator with CMA-ES, and say whether that beats its defaults.

    Candidates are compared with the defaults on the same arrivals. The winner is confirmed on seeds that nothing was
    chosen on; weights that are not better there are not written. Ctrl-C ends it without a result.
    """
    engine = engine or simulator()
    search = _search(
        engine, policy, _scenarios(engine, suite, scenarios), Blocks(seed_base, generations, seeds, validation),
        population, rng_seed,
    )  # fmt: skip
    for path, option in ((out, "--out"), (json_to, "--json")):
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no such directory; give {option} another place")
    try:
        outcome = _run(engine, search, workers or os.cpu_count() or 1)
    except KeyboardInterrupt:
        click.echo("interrupted: nothing was written")
        raise click.exceptions.Exit(_INTERRUPTED) from None
    _report(search, outcome, out, json_to)


def said(outcome: Outcome) -> str:
    """The outcome in a sentence."""
    cost = f"cost {_interval(outcome.cost)} of the defaults on {outcome.cost.n} unseen seeds"
    return {
        "better": f"better: {cost}",
        "tie": f"tie: keep the defaults ({cost})",
        "worse": f"worse: keep the defaults ({cost})",
        "tail": f"keep the defaults: {cost}, but P99 {_interval(outcome.p99)}, and above {P99_GATE:g} is too much",
    }[outcome.verdict]


def as_config(search: Search, outcome: Outcome, made: Mapping[str, Any]) -> str:
    """The weights as a config file; where they come from stands in its comments."""
    facts = manifest.flat(dict(made) | {"outcome": said(outcome)})
    comment = "".join(f"# {name}: {' '.join(value.split())}\n" for name, value in facts.items())
    section = {"policy": {"name": search.policy, "options": dict(outcome.options)}}
    return comment + yaml.safe_dump(section, sort_keys=False)


def _scenarios(engine: Engine, suite: str | None, names: str) -> tuple[str, ...]:
    if suite is None and not names:
        suite = "train"
    return scenario_names(engine, suite, words(names), None)


def _search(
    engine: Engine, policy: str, scenarios: tuple[str, ...], blocks: Blocks, population: int, rng_seed: int
) -> Search:
    known([policy], engine.policies, "policy")
    if policy not in engine.tunable:
        raise ConfigError(f"policy {policy!r} has nothing to tune; these have: {', '.join(engine.tunable)}")
    space = Space(engine.tunable[policy])
    defaults = engine.defaults(policy)
    missing = sorted(set(space.ranges).difference(defaults))
    if missing:
        raise ConfigError(f"policy {policy!r} has no option {', '.join(missing)}; correct its tunable ranges")
    return Search(policy, space, defaults, scenarios, blocks, population, rng_seed)


def _run(engine: Engine, search: Search, workers: int) -> Outcome:
    with (
        shown(f"tune {search.policy}", search.runs, Console(stderr=True)) as report,
        Workers(engine.run, workers) as pool,
    ):
        return tuned(search, pool, report)


def _report(search: Search, outcome: Outcome, out: Path | None, json_to: Path | None) -> None:
    rows = [
        {"option": name, "default": search.defaults[name], "tuned": value, "low": one.low, "high": one.high}
        for (name, value), one in zip(outcome.options.items(), search.space.ranges.values(), strict=True)
    ]
    print_table(
        rows,
        ("option", "default", "tuned", "low", "high"),
        as_json=False,
        title=f"Weights of {search.policy}",
    )
    click.echo(said(outcome))
    made = manifest.origin() | _of_search(search)
    if json_to is not None:
        write(
            json_to, json.dumps(_document(search, outcome, made), indent=2, allow_nan=False) + "\n", "--json"
        )
    if out is not None and outcome.verdict == "better":
        write(out, as_config(search, outcome, made), "--out")
        click.echo(
            f"written: {out}; compare with: ccr evaluate --policies {search.policy},{search.policy}@{out}"
        )
    elif out is not None:
        click.echo(f"{out} was not written")


def _document(search: Search, outcome: Outcome, made: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "policy": search.policy,
        "verdict": outcome.verdict,
        "options": dict(outcome.options),
        "defaults": {name: search.defaults[name] for name in search.space.ranges},
        "cost": _as_json(outcome.cost),
        "p99_s": _as_json(outcome.p99),
        "history": list(outcome.history),
        "shortlist": [{"options": dict(options), "cost_ratio": ratio} for options, ratio in outcome.shortlist],
        "manifest": dict(made),
    }  # fmt: skip


def _of_search(search: Search) -> dict[str, Any]:
    blocks = search.blocks
    return {
        "policy": search.policy,
        "scenarios": list(search.scenarios),
        "generations": blocks.generations,
        "population": search.population,
        "draw": search.rng_seed,
        "seeds": {
            "search": f"{blocks.base} to {blocks.ranking.start - 1}",
            "ranking": f"{blocks.ranking.start} to {blocks.ranking.stop - 1}",
            "confirmation": f"{blocks.confirmation.start} to {blocks.confirmation.stop - 1}",
        },
    }


def _as_json(ratio: Ratio) -> dict[str, Any]:
    return {
        "ratio": ratio.ratio,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "p": ratio.p,
        "n": ratio.n,
    }


def _interval(ratio: Ratio) -> str:
    if ratio.ratio is None or ratio.low is None or ratio.high is None:
        return "-"
    return f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
