"""Progress of many runs for people: a moving bar with the time left on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, str], None]
"""Called with the runs finished since the last call, and a few words on the state."""

_PLAIN_LINE_EVERY_S = 10.0


@contextmanager
def shown(
    label: str, total: int, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Show the progress of what runs inside.

    Args:
        label: what runs.
        total: runs.
        console: where to show it; a terminal gets a moving bar.
        clock: seconds.
    """
    if not console.is_terminal:
        yield _plain(label, total, console, clock)
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
    ) as progress:  # fmt: skip
        bar = progress.add_task(label, total=total, state="")
        yield lambda done, state: progress.update(bar, advance=done, state=state)


def _plain(label: str, total: int, console: Console, clock: Callable[[], float]) -> Report:
    finished, started_s = 0, clock()
    spoken_s = started_s

    def report(done: int, state: str) -> None:
        nonlocal finished, spoken_s
        finished += done
        now_s = clock()
        if now_s - spoken_s >= _PLAIN_LINE_EVERY_S:
            spoken_s = now_s
            left_s = (now_s - started_s) * (total - finished) / max(finished, 1)
            console.print(
                f"{label}: {finished:,} of {total:,}, about {left_s:.0f} s left {state}".rstrip(),
                highlight=False, soft_wrap=True,
            )  # fmt: skip

    return report
