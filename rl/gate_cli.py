"""``ccr policy gate``: a candidate against the incumbent and the best heuristic, and the verdict."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from ccr import weights
from ccr.cli import print_table
from envs.evaluation import manifest
from envs.evaluation.choice import LEARNED, contender, scenario_names
from envs.evaluation.cli import OUT, write
from envs.evaluation.engine import Engine, simulator
from envs.evaluation.plan import Contender, Plan
from envs.evaluation.progress import shown
from envs.evaluation.result import Result
from envs.evaluation.terminal import interval
from rl.gate import (
    LEAST_EPISODES,
    LEAST_SEEDS,
    Condition,
    Match,
    episodes_wanted,
    matches,
    plan_of,
    played,
    verdict_of,
)
from rl.named import SUFFIX, Named, named
from rl.policy_cli import TRACKING
from rl.registry import Registry
from rl.versions import CHAMPION, SUITE

_INTERRUPTED: Final = 130
_CANDIDATE: Final = "candidate"


@click.command("gate")
@click.argument("candidate")
@click.option("--incumbent", default=CHAMPION, show_default=True,
              help="Whose place it would take: a version, an alias, weights (FILE.npz), or a policy by name.")  # fmt: skip
@click.option("--heuristic", default="least_cost", show_default=True,
              help="The best heuristic: NAME, or NAME@FILE with options that tuning wrote.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(min=LEAST_EPISODES), default=LEAST_EPISODES, show_default=True,
              help=f"Paired episodes in all, at least; each scenario gets {LEAST_SEEDS} or more.")  # fmt: skip
@click.option("--suite", default=SUITE, show_default=True, help="Scenarios; each is a regime.")
@click.option("--json", "json_to", type=OUT, help="Write the verdict to this file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@TRACKING
@click.pass_obj
def gate(
    engine: Engine | None, candidate: str, incumbent: str, heuristic: str, episodes: int, suite: str,
    json_to: Path | None, workers: int | None, tracking_uri: str,
) -> None:  # fmt: skip
    """Judge CANDIDATE, a version, an alias or weights (FILE.npz): may it take the incumbent's place?

    Everyone meets the same arrivals, on seeds that follow from the candidate's checksum. The verdict is kept with a
    registered version; exit code 1 if it does not pass. Without a champion in the registry, the incumbent is what ships
    with the package.
    """
    engine = engine or simulator()
    registry = Registry(tracking_uri)
    mine = named(candidate, registry)
    who, theirs = _incumbent(engine, incumbent, registry)
    scenarios = scenario_names(engine, suite, (), None)
    sha256 = weights.load(mine.path).sha256
    plan = plan_of(
        _learned(_CANDIDATE, mine.path), _distinct(theirs, contender(engine, heuristic)), scenarios, episodes, sha256
    )  # fmt: skip
    judged = matches(plan, _played(engine, plan, workers or os.cpu_count() or 1))
    verdict = _document(mine, sha256, suite, who, plan, judged)
    _print(mine, judged, passed=verdict["passed"])
    if json_to is not None:
        write(json_to, json.dumps(verdict, indent=2, allow_nan=False) + "\n", "--json")
    if mine.version is not None:
        registry.store_verdict(mine.version, verdict)
    more = None if verdict["passed"] else episodes_wanted(judged, len(plan.scenarios) * len(plan.seeds))
    if more is not None:
        click.echo(f"what is not met is undecided rather than lost: --episodes {more} may settle it")
    click.echo(_next(mine, suite, who, passed=verdict["passed"]))
    if not verdict["passed"]:
        raise click.exceptions.Exit(1)


def _incumbent(engine: Engine, text: str, registry: Registry) -> tuple[dict[str, str], Contender]:
    """What the verdict says about it, and who plays."""
    if not text.endswith(SUFFIX) and text.partition("@")[0] in engine.policies:
        return {"kind": "policy", "version": text}, contender(engine, text)
    found, champion = named(text, registry), registry.champion()
    number = str(found.version.number) if found.version else ""
    is_champion = text == CHAMPION or (found.version is not None and found.version == champion)
    if is_champion:
        who = {"kind": CHAMPION, "version": number}
    else:
        who = {"kind": "version", "version": number} if number else {"kind": "weights", "version": text}
    return who, _learned(f"{found.label} (champion)" if is_champion else found.label, found.path)


def _learned(label: str, path: Path) -> Contender:
    return Contender(label, LEARNED, {"weights": str(path.absolute())})


def _distinct(incumbent: Contender, heuristic: Contender) -> list[Contender]:
    """The opponents; one where both are the same."""
    is_same = (incumbent.policy, incumbent.options) == (heuristic.policy, heuristic.options)
    return [incumbent] if is_same else [incumbent, heuristic]


def _played(engine: Engine, plan: Plan, workers: int) -> list[Result]:
    console = Console(stderr=True)
    count = len(plan.tasks())
    console.print(
        f"{len(plan.scenarios)} regimes, {len(plan.seeds)} episodes each from seed {plan.seeds.start}, "
        f"{len(plan.contenders)} policies: {count:,} runs", highlight=False, soft_wrap=True,
    )  # fmt: skip
    try:
        with shown("gate", count, console) as report:
            return played(engine.run, plan, workers, report)
    except KeyboardInterrupt:
        click.echo("interrupted: there is no verdict")
        raise click.exceptions.Exit(_INTERRUPTED) from None


def _document(
    mine: Named, sha256: str, suite: str, who: dict[str, str], plan: Plan, judged: Sequence[Match]
) -> dict[str, Any]:
    return {
        "candidate": mine.label,
        "sha256": sha256,
        "suite": suite,
        "incumbent": who,
        **verdict_of(judged),
        "manifest": manifest.origin() | manifest.of_plan(plan),
    }


def _print(mine: Named, judged: Sequence[Match], *, passed: bool) -> None:
    for match in judged:
        rows = [
            {"regime": cost.row.scenario, "cost": interval(cost.row), "cost is": cost.word,
             "P99": interval(p99.row), "P99 is": p99.word}
            for cost, p99 in zip(match.regimes[::2], match.regimes[1::2], strict=True)
        ]  # fmt: skip
        print_table(
            rows, ("regime", "cost", "cost is", "P99", "P99 is"), as_json=False,
            title=f"{mine.label} against {match.opponent}: ratios [95 % interval]",
        )  # fmt: skip
    for match in judged:
        for condition in match.conditions:
            click.echo(_line(condition))
    click.echo(f"{mine.label}: {'pass' if passed else 'fail'}")


def _line(condition: Condition) -> str:
    ratio = condition.ratio
    figures = ""
    if ratio is not None and ratio.ratio is not None and ratio.low is not None and ratio.high is not None:
        figures = f": {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], bar {condition.bar:g}"
    return f"{'met    ' if condition.is_met else 'NOT MET'}  {condition.asks}{figures}"


def _next(mine: Named, suite: str, who: dict[str, str], *, passed: bool) -> str:
    if mine.version is None:
        return "not kept: these weights are not registered"
    number = mine.version.number
    if passed and (suite != SUITE or who["kind"] != CHAMPION):
        return f"kept with version {number}; a promotion needs a verdict on {SUITE!r} against the {CHAMPION}"
    return f"kept with version {number}" + (f"; next: ccr policy promote {number}" if passed else "")
