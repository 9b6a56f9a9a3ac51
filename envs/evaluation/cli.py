"""``ccr evaluate``: compare policies on the same arrivals."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ccr.errors import ConfigError
from envs.evaluation import manifest
from envs.evaluation.choice import TRAINING_SEEDS, known, scenario_names, the_plan, words
from envs.evaluation.comparison import Comparison
from envs.evaluation.engine import Engine, simulator
from envs.evaluation.metrics import METRICS
from envs.evaluation.parallel import Workers
from envs.evaluation.plan import Plan, Run
from envs.evaluation.progress import shown
from envs.evaluation.result import Result
from envs.evaluation.terminal import show

_SEEDS = 20
_SMOKE_SEEDS = 6
_SMOKE = "smoke"
_INTERRUPTED = 130

OUT = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--suite", help="Scenarios to compare on, as a set.  [default: smoke, unless others are named]")
@click.option("--policies", default="", help="What to compare, separated by commas: NAME, or NAME@FILE with "
              "options that tuning wrote, or weights (learned@FILE.npz).  [default: all]")  # fmt: skip
@click.option("--scenarios", default="", help="Scenarios to compare on, separated by commas.")
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A trace file to compare on.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1),
              help=f"Runs of each policy on each scenario.  [default: {_SEEDS}; {_SMOKE_SEEDS} for the suite smoke]")  # fmt: skip
@click.option("--seed-base", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--baseline", default="",
              help="What the others are compared with.  [default: hot_cold if it is compared, else the first]")  # fmt: skip
@click.option("--metric", "metrics", default="cost", show_default=True,
              help="Whose ratios the table shows, separated by commas; the first gives the verdict.")  # fmt: skip
@click.option("--json", "json_to", type=OUT, help="Write every figure to this file.")
@click.option("--html", "html_to", type=OUT, help="Write a report with plots to this file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.pass_obj
def evaluate(
    engine: Engine | None, suite: str | None, policies: str, scenarios: str, trace: Path | None, seeds: int | None,
    seed_base: int, baseline: str, metrics: str, json_to: Path | None, html_to: Path | None, workers: int | None,
) -> None:  # fmt: skip
    """Compare policies in the simulator: the same arrivals for everyone, ratios with 95 % intervals over seeds.

    Every policy runs on every scenario with every seed, on all cores. Ctrl-C shows what is finished. The result is
    the same for any number of processes.
    """
    engine = engine or simulator()
    shown_metrics = _metrics(metrics)
    names = words(scenarios)
    if suite is None and not names and trace is None:
        suite = _SMOKE
    count = seeds or (_SMOKE_SEEDS if suite == _SMOKE else _SEEDS)
    chosen = scenario_names(engine, suite, names, trace)
    plan = the_plan(engine, words(policies), chosen, baseline, range(seed_base, seed_base + count))
    _writable(json_to, html_to)
    if plan.seeds.stop > TRAINING_SEEDS:
        click.echo(
            f"note: seeds from {TRAINING_SEEDS:,} are for training; what was tuned on them looks too good"
        )
    results = _run(engine.run, plan, workers or os.cpu_count() or 1)
    _report(engine, Comparison(plan, results), shown_metrics, json_to, html_to)
    if len(results) < len(plan.tasks()):
        click.echo(
            f"interrupted after {len(results):,} of {len(plan.tasks()):,} runs; unfinished seeds are left out"
        )
        raise click.exceptions.Exit(_INTERRUPTED)


def document(comparison: Comparison) -> dict[str, Any]:
    """What ``--json`` writes; no NaN in it."""
    return {
        "rows": [row.as_json() for row in comparison.rows],
        "summary": [
            row.as_json()
            for metric, facts in METRICS.items()
            if facts.positive
            for row in comparison.summary(metric)
        ],
        "manifest": manifest.origin() | manifest.of_plan(comparison.plan),
    }


def write(path: Path, text: str, option: str) -> None:
    """Write a result.

    Raises:
        ConfigError: if the file cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give {option} another place") from error


def _run(run: Run, plan: Plan, workers: int) -> list[Result]:
    """The results; fewer than planned after Ctrl-C."""
    tasks = plan.tasks()
    results: list[Result] = []
    try:
        with (
            shown("evaluate", len(tasks), Console(stderr=True)) as report,
            Workers(run, min(workers, len(tasks))) as pool,
        ):
            for _, result in pool.results(tasks):
                results.append(result)
                report(1, "")
    except KeyboardInterrupt:
        return results
    return results


def _report(
    engine: Engine,
    comparison: Comparison,
    metrics: tuple[str, ...],
    json_to: Path | None,
    html_to: Path | None,
) -> None:
    show(comparison, metrics)
    written: Mapping[str, Any] = document(comparison)
    if json_to is not None:
        write(json_to, json.dumps(written, indent=2, allow_nan=False) + "\n", "--json")
    if html_to is not None:
        from envs.evaluation.report import page  # noqa: PLC0415 - matplotlib takes a second to import

        write(html_to, page(comparison, engine.scenarios, written["manifest"]), "--html")
        click.echo(f"report: {html_to}")


def _metrics(text: str) -> tuple[str, ...]:
    metrics = words(text)
    known(metrics, METRICS, "metric")
    if not metrics:
        raise ConfigError(f"--metric is empty; there are {', '.join(METRICS)}")
    return metrics


def _writable(*paths: Path | None) -> None:
    """Say now, not after an hour, that there is no place for the result."""
    for path in paths:
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no directory {path.resolve().parent}")
