"""The learner on a terminal: one line for what it is at, one table for what it believes."""

import time
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.learner_lines import lines


def screen(status: Mapping[str, Any]) -> RenderableType:
    """What :meth:`rl.online.learner.Learner.status` tells, for people."""
    head = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines(status, time.time())]
    table = Table(box=SIMPLE_HEAD)
    for name in ("node", "speed", "prefill", "overhead ms", "answers", "failures", "telemetry"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for name, one in status["calibration"]["nodes"].items():
        overhead_s, told = one["overhead_s"], one["told"]
        table.add_row(
            name, f"{one['speed']:.2f}", f"{one['prefill']:.2f}", "-" if overhead_s is None else f"{1e3 * overhead_s:.0f}",
            str(one["answers"]), f"{one['failures']:.0%}",
            "doubted" if one["is_doubted"] else "-" if told is None else f"{told:.2f}",
        )  # fmt: skip
    return Group(*head, table)
