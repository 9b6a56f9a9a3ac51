"""``ccr train``: from nothing, or from recorded traffic, to weights that the router can serve."""

import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ccr.cli import print_table
from ccr.errors import ConfigError
from ccr.weights import Weights, save
from envs.evaluation import manifest
from envs.evaluation.engine import simulator
from envs.traces.trace import read
from rl.days import SELECTION_SEEDS, TRAINING_SEEDS, Cores
from rl.registry import Registry
from rl.train import Budget, Outcome, Plan, Progress, train
from rl.versions import RunFacts

BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "smoke": Budget(2, 6, 2, 1, 4, 30, 3, 8_192, 8),
        "default": Budget(),
        "long": Budget(generations=60, rounds=5, lessons=960, epochs=30, steps=500_000, exam=300),
    }
)
_PLAIN_LINE_EVERY_S: Final = 10.0
_INTERRUPTED: Final = 130


@click.command("train")
@click.option("--trace", "traces", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Train on this trace as well, every second day; again for more. `recorded` ones come from `ccr traces record`.")  # fmt: skip
@click.option("--budget", type=click.Choice(list(BUDGETS)), default="default", show_default=True,
              help="How much of everything: half a minute, ten minutes, or an hour on two cores.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Of everything drawn.")
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=Path("training"),
              show_default=True, help="Keeps each stage; the same command goes on there after an interruption.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("policy.npz"), show_default=True,
              help="Where the weights go.")  # fmt: skip
@click.option("--version", default="", help="What the weights are called.  [default: the date and the seed]")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--tracking-uri", default="", help="MLflow to log to: sqlite:///FILE or http://HOST:PORT.  [default: "
              "MLFLOW_TRACKING_URI, else a file among the user's data]")  # fmt: skip
@click.option("--no-registry", is_flag=True, help="Write the weights and log nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the stages as JSON.")
def command(
    traces: tuple[Path, ...], budget: str, seed: int, directory: Path, out: Path, version: str, workers: int | None,
    tracking_uri: str, no_registry: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train the routing policy in simulation: tuned weights, a network taught by hindsight, then PPO.

    Each stage is examined on days that nothing was trained on, and only goes on if it beats what it was given. The
    weights are not in force by that: `ccr policy gate` compares them with what is, and `ccr policy promote` puts them
    there.
    """
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {out}: there is no such directory; give --out another place")
    for path in traces:
        read(path)  # refused now rather than in a quarter of an hour
    simulator()  # compiles what is not compiled yet, before processes share it
    plan = Plan(BUDGETS[budget], seed, tuple(f"trace:{path.resolve()}" for path in traces))
    registry = None if no_registry else Registry(tracking_uri)
    started_s = time.monotonic()
    progress = Shown(Console(stderr=True))
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: no process stays, each stage is kept
    try:
        with Cores(workers or 0) as cores, progress:
            outcomes = train(plan, directory, cores, progress)
    except KeyboardInterrupt:
        click.echo(f"interrupted: the same command goes on with what is in {directory}")
        raise click.exceptions.Exit(_INTERRUPTED) from None
    facts = _facts(plan, budget, outcomes, time.monotonic() - started_s, traces)
    name = version or f"{time.strftime('%Y-%m-%d')}.{seed}"
    made = save(
        Weights(outcomes[-1].network, {"version": name, "created_at": _now(), "training": facts}), out
    )
    print_table(
        [_row(each) for each in outcomes], ("stage", "cost", "low", "high", "p99", "against_last", "kept", "wall_s"),
        as_json=as_json, title=f"Cost against the shipped heuristic on {plan.budget.exam} unseen days",
    )  # fmt: skip
    if not as_json:
        click.echo(f"written: {out} (version {made.version}, sha256 {made.sha256[:12]})")
    if registry is None:
        click.echo(f"compare with: ccr evaluate --policies least_cost,learned@{out}", err=as_json)
        return
    metrics = {
        f"{row['stage']}.{name}": float(row[name])
        for row in map(_row, outcomes)
        for name in ("cost", "p99", "wall_s")
    }
    number = registry.register(out, RunFacts(metrics=metrics, curves=progress.curves))
    click.echo(f"registered: version {number}, the challenger; next: ccr policy gate {number}", err=as_json)


class Shown(Progress):
    """Bars on a terminal, a line now and then elsewhere.

    Args:
        console: where.

    Attributes:
        curves: figures of the stages, step by step.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description:>8}"), BarColumn(24), TextColumn("{task.fields[words]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, tuple[TaskID, int]] = {}
        self._spoken_s = time.monotonic()
        self.curves: dict[str, list[float]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, stage: str, total: int) -> None:
        """A new bar."""
        self._tasks[stage] = (self._bars.add_task(stage, total=total, words=""), total)

    def step(self, stage: str, done: int, words: str, **figures: float) -> None:
        """Further on the bar, and on the curves."""
        for name, value in figures.items():
            self.curves.setdefault(f"{stage}.{name}", []).append(value)
        task, total = self._tasks[stage]
        self._bars.update(task, completed=done, words=words)
        if not self._console.is_terminal and time.monotonic() - self._spoken_s >= _PLAIN_LINE_EVERY_S:
            self._spoken_s = time.monotonic()
            self._console.print(f"{stage}: {done:,} of {total:,}, {words}", highlight=False, soft_wrap=True)

    def finish(self, outcome: Outcome) -> None:
        """The bar is full."""
        if outcome.stage in self._tasks:
            task, total = self._tasks[outcome.stage]
            self._bars.update(task, completed=total, words=str(outcome.against_heuristic))
        elif not self._console.is_terminal:
            self._console.print(f"{outcome.stage}: done before", highlight=False)


def _row(outcome: Outcome) -> dict[str, Any]:
    mine, last = outcome.against_heuristic, outcome.against_last
    return {
        "stage": outcome.stage, "cost": round(mine.cost, 3), "low": round(mine.low, 3), "high": round(mine.high, 3),
        "p99": round(mine.p99, 3), "against_last": f"{last.cost:.3f} [{last.low:.3f}, {last.high:.3f}]",
        "kept": outcome.is_kept, "wall_s": round(outcome.wall_s),
    }  # fmt: skip


def _facts(
    plan: Plan, budget: str, outcomes: list[Outcome], wall_s: float, traces: tuple[Path, ...]
) -> dict[str, Any]:
    shown = [f"--trace {path.name}" for path in traces]
    return {
        "command": " ".join(["ccr train", f"--budget {budget}", f"--seed {plan.seed}", *shown]),
        "budget": asdict(plan.budget),
        "seeds": {"draw": plan.seed, "training": TRAINING_SEEDS, "selection": SELECTION_SEEDS},
        "scenarios": "drawn at random (envs.randomised)" + "".join(f", {path.name}" for path in traces),
        "stages": [_row(outcome) for outcome in outcomes],
        "wall_s": round(wall_s, 1),
        "commit": manifest.commit(),
        "versions": manifest.origin()["versions"],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
