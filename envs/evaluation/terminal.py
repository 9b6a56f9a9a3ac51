"""The comparison on a terminal: one compact table per scenario, then the average, then what to keep in mind."""

import sys
from collections.abc import Sequence
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccr.cli import WIDE
from envs.evaluation.comparison import ALL, Comparison, Row
from envs.evaluation.metrics import METRICS
from envs.evaluation.statistics import ALPHA

_VALUES: Final = ("mean_s", "p50_s", "p99_s", "ttft_p99_s", "slo", "cold_starts", "reject_rate")
_STYLES: Final = {"better": "green", "worse": "red", "tie": "dim", "baseline": "bold"}


def show(comparison: Comparison, metrics: Sequence[str]) -> None:
    """Print it all.

    Args:
        comparison: to print.
        metrics: whose ratios to print; the first one gives the verdict.
    """
    # Into a pipe or a file goes the whole table, not what would fit on an 80-column screen.
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for scenario in comparison.scenarios:
        console.print(_table(comparison, scenario, metrics))
    averaged = [metric for metric in metrics if METRICS[metric].positive]
    if averaged and len(comparison.scenarios) > 1 and comparison.plan.challengers:
        console.print(_summary(comparison, averaged))
    for line in notes(comparison, metrics[0]):
        click.echo(line)


def notes(comparison: Comparison, metric: str) -> list[str]:
    """What a careful reader wants to know before believing the verdicts."""
    plan = comparison.plan
    looked_at = len(comparison.scenarios) * len(plan.challengers)
    meaning = (
        f"Ratios are to {plan.baseline} on the same arrivals, [low, high] is the 95 % interval over seeds; "
        f"verdicts are about {metric}, a tie is an interval that covers 1."
    )
    lines = [meaning]
    if looked_at > 1:
        lines.append(
            f"{looked_at} comparisons: expect {ALPHA * looked_at:.1f} better or worse by chance alone"
            f"{_doubtful(comparison, metric)}."
        )
    pairs = [comparison.row(name, label, metric).against.n for name in comparison.scenarios for label in plan.labels]  # fmt: skip
    if pairs and min(pairs) < 2:
        lines.append("One seed has no interval and no verdict; use --seeds 20 or more.")
    return lines


def interval(row: Row) -> str:
    """The ratio with its interval: ``0.92 [0.90, 0.95]``."""
    ratio = row.against
    if ratio.ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2f}"
    digits = 3 if ratio.ratio < 2.0 else 2
    return f"{ratio.ratio:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


def counted(n: int, one: str, many: str = "") -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def number(value: float | None) -> str:
    """Three digits, or a whole number."""
    if value is None:
        return "-"
    if value == 0.0 or abs(value) >= 100.0:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def _table(comparison: Comparison, scenario: str, metrics: Sequence[str]) -> Table:
    plan = comparison.plan
    table = _framed(f"{scenario}  ({counted(len(comparison.seeds[scenario]), 'seed')})")
    table.add_column("policy", no_wrap=True)
    for metric in metrics:
        table.add_column(_over(metric), justify="right", no_wrap=True)
    for metric in _VALUES:
        table.add_column(METRICS[metric].short, justify="right")
    table.add_column("verdict")
    for label in plan.labels:
        ratios = [comparison.row(scenario, label, metric) for metric in metrics]
        verdict = ratios[0].verdict
        table.add_row(
            label,
            *["1" if verdict == "baseline" else interval(row) for row in ratios],
            *[number(comparison.row(scenario, label, metric).value) for metric in _VALUES],
            _verdict(verdict),
        )
    return table


def _summary(comparison: Comparison, metrics: Sequence[str]) -> Table:
    table = _framed(f"{ALL}, each with the same weight")
    table.add_column("policy", no_wrap=True)
    for metric in metrics:
        table.add_column(_over(metric), justify="right", no_wrap=True)
    table.add_column("verdict")
    for rows in zip(*[comparison.summary(metric) for metric in metrics], strict=True):
        table.add_row(rows[0].policy, *map(interval, rows), _verdict(rows[0].verdict))
    return table


def _over(metric: str) -> str:
    """Head of a column of ratios, which have no unit."""
    return f"{METRICS[metric].short.removesuffix(' s')} ratio"


def _framed(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def _verdict(word: str | None) -> Text:
    return Text(word or "-", style=_STYLES.get(word or "", ""))


def _doubtful(comparison: Comparison, metric: str) -> str:
    if not any(row.metric == metric and row.verdict in {"better", "worse"} for row in comparison.rows):
        return ""
    doubtful = comparison.doubtful(metric)
    if not doubtful:
        return "; those found all hold after Holm's correction for that"
    named = ", ".join(f"{row.policy} on {row.scenario}" for row in doubtful)
    return f"; after Holm's correction for that these do not hold: {named}"
