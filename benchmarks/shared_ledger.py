"""How well several routers that share their ledger place, beside one router and beside routers that do not share.

``python -m benchmarks.shared_ledger --days 60``: every setup plays the same drawn days, so each day is a pair.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.claims.days import Drawn
from ccr.policies import POLICIES
from envs.evaluation.manifest import commit
from envs.evaluation.progress import shown
from envs.evaluation.statistics import Ratio, geometric
from envs.scenario import Scenario
from envs.simulator import simulate
from rl.days import Cores

METRICS: Final = ("cost", "p99_s")
SEEDS: Final = 50_000_000
BAR: Final = 1.05
_NEVER: Final = float("inf")
Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setup:
    """Routers before a fleet.

    Args:
        replicas: how many.
        share_s: how often they exchange what they have in flight; 0: never.
        until: when the exchange breaks down, as a share of the day.
    """

    replicas: int
    share_s: float = 0.0
    until: float = _NEVER

    @property
    def words(self) -> str:
        """What it is."""
        if self.replicas == 1:
            return "1 router"
        shared = f"shared every {self.share_s:g} s" if self.share_s else "not shared"
        broken = "" if self.until == _NEVER else f", broken after {self.until:.0%} of the day"
        return f"{self.replicas} routers, {shared}{broken}"

    def of(self, day: Scenario, length_s: float) -> Scenario:
        """A day with these routers."""
        until_s = self.until * length_s
        return replace(day, replicas=self.replicas, share_s=self.share_s, share_until_s=until_s)


def setups(share_s: float) -> list[Setup]:
    """One router, which all others are compared with, comes first."""
    several = [Setup(replicas, share) for replicas in (4, 8) for share in (share_s, 0.0)]
    return [Setup(1), *several, Setup(4, share_s, until=0.5)]


def _play(task: tuple[Drawn, Setup, str, int]) -> list[float]:
    days, setup, policy, seed = task
    day = days.day(seed)
    length_s = float(day.arrivals(seed).t.max(initial=0.0))
    metrics = simulate(setup.of(day, length_s), POLICIES[policy](), seed).metrics()
    return [metrics[name] for name in METRICS]


def played(
    cores: Cores, days: Drawn, wanted: list[Setup], policy: str, first: int, count: int, console: Console
) -> Figures:
    """Figures of every setup on every day, shape ``(setups, days, len(METRICS))``."""
    tasks = [(days, setup, policy, first + k) for setup in wanted for k in range(count)]
    found = []
    with shown(days.words, len(tasks), console) as report:
        for task, figures in zip(tasks, cores.map(_play, tasks, 2), strict=True):
            found.append(figures)
            report(1, task[1].words)
    return np.array(found).reshape(len(wanted), count, len(METRICS))


def compared(wanted: list[Setup], figures: Figures) -> list[dict[str, Any]]:
    """Each setup against one router, and against the same number of routers that do not share."""
    at = {setup: k for k, setup in enumerate(wanted)}
    rows = []
    for setup in wanted[1:]:
        row: dict[str, Any] = {"setup": setup.words} | asdict(setup)
        for name, other in (("one", wanted[0]), ("unshared", Setup(setup.replicas))):
            row[name] = {
                metric: _facts(geometric(figures[at[setup], :, m], figures[at[other], :, m]))
                for m, metric in enumerate(METRICS)
            }
        rows.append(row)
    return rows


def _facts(found: Ratio) -> dict[str, Any]:
    return {"ratio": found.ratio, "low": found.low, "high": found.high, "n": found.n}


def _cell(facts: dict[str, Any]) -> str:
    return f"{facts['ratio']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}]"


def table(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    """For people."""
    lines = [
        f"| {kind} | cost against 1 router | P99 against 1 router | cost against not sharing |",
        "|---|---|---|---|",
    ]
    for row in rows:
        one, unshared = row["one"], row["unshared"]
        lines.append(
            f"| {row['setup']} | {_cell(one['cost'])} | {_cell(one['p99_s'])} | {_cell(unshared['cost'])} |"
        )
    return lines


@click.command()
@click.option("--days", type=click.IntRange(min=8), default=60, show_default=True, help="Days of each kind.")
@click.option("--first", type=int, default=SEEDS, show_default=True, help="Seed of the first day.")
@click.option("--share", type=click.FloatRange(min=0.0, min_open=True), default=0.1, show_default=True,
              help="Seconds between two exchanges.")  # fmt: skip
@click.option("--policy", type=click.Choice(sorted(POLICIES)), default="learned", show_default=True)
@click.option("--cores", type=click.IntRange(min=0), default=0, help="Processes; 0: one for each core.")
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the figures."
)
def main(*, days: int, first: int, share: float, policy: str, cores: int, out: Path | None) -> None:
    """Routers that share their ledger against one router, and against routers that do not, on the same drawn days."""
    wanted, console = setups(share), Console(stderr=True)
    kinds = (Drawn(hidden=False), Drawn(hidden=True))
    document: dict[str, Any] = {
        "command": f"python -m benchmarks.shared_ledger --days {days} --first {first} --share {share:g} --policy {policy}",
        "commit": commit(),
        "bar": BAR,
        "rows": {},
    }
    with Cores(cores) as pool:
        for kind in kinds:
            rows = compared(wanted, played(pool, kind, wanted, policy, first, days, console))
            document["rows"][kind.words] = rows
            click.echo("\n".join([*table(kind.words, rows), ""]))
            shared = next(row for row in rows if row["replicas"] == 4)
            verdict = "met" if shared["one"]["cost"]["ratio"] <= BAR else "missed"
            click.echo(f"four routers that share against one: at most {BAR:g} is {verdict}\n")
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
