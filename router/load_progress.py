"""Progress of a load for people: a moving line on a terminal, a line now and then elsewhere; on standard error."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column

from router.load import Clock
from router.load_tally import Tally

_REDRAW_S = 0.25
_PLAIN_LINE_EVERY_S = 10.0


@asynccontextmanager
async def shown(
    label: str, tally: Tally, console: Console, *, scale: float = 1.0, clock: Clock = time.perf_counter
) -> AsyncIterator[None]:
    """Show the progress of the load that runs inside.

    Args:
        label: what runs.
        tally: of the load.
        console: where to show it; a terminal gets a moving line.
        scale: what one second of the clock stands for in the latencies shown.
        clock: seconds.
    """
    follow = _moving if console.is_terminal else _plain
    task = asyncio.create_task(follow(label, tally, console, scale, clock))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def describe(tally: Tally, elapsed_s: float, scale: float = 1.0) -> str:
    """The state of a load in a few words."""
    p50, p99 = (_ms(tally.recent_s(per_cent) * scale) for per_cent in (50, 99))
    phase = "warm-up, " if elapsed_s < tally.window.warmup_s else ""
    return (
        f"{phase}{tally.finished:,} requests, {tally.failed:,} errors, {tally.in_flight:,} in flight, "
        f"recent P50 {p50} P99 {p99} ms"
    )


async def _moving(label: str, tally: Tally, console: Console, scale: float, clock: Clock) -> None:
    start_s = clock()
    end_s = tally.window.end_s
    total = None if math.isinf(end_s) else end_s
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(16),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    ]
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task(label, total=total, state="")
        while True:
            elapsed_s = clock() - start_s
            progress.update(
                task, completed=min(elapsed_s, end_s), state=describe(tally, elapsed_s, scale), refresh=True
            )
            await asyncio.sleep(_REDRAW_S)


async def _plain(label: str, tally: Tally, console: Console, scale: float, clock: Clock) -> None:
    start_s = clock()
    console.print(f"{label}: started", highlight=False)
    while True:
        await asyncio.sleep(_PLAIN_LINE_EVERY_S)
        elapsed_s = clock() - start_s
        console.print(
            f"{label}: {elapsed_s:.0f} s, {describe(tally, elapsed_s, scale)}",
            highlight=False,
            soft_wrap=True,
        )


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000.0:,.0f}"
