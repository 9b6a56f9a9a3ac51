"""The command line: a literal table of commands, each imported only when it is used."""

import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from ccr.errors import CCRError
from ccr.version import __version__

#: Command -> (where it is, one line of help). The help stands here so that ``ccr --help`` imports nothing.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("router.cli:serve", "Run the router."),
    "demo": ("router.demo:demo", "Emulated nodes, the router, a load, and a comparison of policies."),
    "node": ("envs.cli:node", "Run emulated GPU nodes."),
    "replay": ("router.replay:replay", "Send a request trace to a router or a node."),
    "status": ("router.cli:status", "Show the nodes of a running router."),
    "decisions": ("router.cli:decisions", "Show the latest decisions of a running router."),
    "why": ("router.why:why", "Show why a request went where it went."),
    "drain": ("router.cli:drain", "Take a node out of rotation, or put it back."),
    "policy list": (
        "rl.policy_cli:list_",
        "List the trained versions: which serves, and how each was judged.",
    ),
    "policy show": ("rl.policy_cli:show", "Show the policy of a running router, or a trained version."),
    "policy diff": ("rl.policy_cli:diff", "Show what differs between two trained versions."),
    "policy gate": ("rl.gate_cli:gate", "Judge a trained version against the one that serves."),
    "policy promote": ("rl.policy_cli:promote", "Make a trained version the champion."),
    "policy rollback": ("rl.policy_cli:rollback", "Make the champion what it was before."),
    "policy use": ("router.cli:policy_use", "Put a policy of a running router in force."),
    "policy reload": ("router.cli:policy_reload", "Make a running router read its operator script again."),
    "learner status": (
        "router.learner_cli:status",
        "Show what is published, who serves what, and what was rolled back.",
    ),
    "learner pause": (
        "router.learner_cli:pause",
        "Let the learner publish nothing; what serves goes on serving.",
    ),
    "learner resume": ("router.learner_cli:resume", "Let the learner publish again; clear rollbacks."),
    "config": ("router.cli:config", "Check a config file, or show what is in force."),
    "key": ("router.cli:key", "Make API keys."),
    "traces record": ("router.recording.cli:record", "Record what a running router does."),
    "traces import": ("envs.traces.cli:import_", "Turn a public trace, or a router's recording, into ours."),
    "traces synth": ("envs.traces.cli:synth", "Draw a bursty workload of many models."),
    "traces describe": ("envs.traces.cli:describe", "Statistics and a picture of a trace."),
    "traces cut": ("envs.traces.cli:cut", "Take a part of a trace."),
    "calibrate": ("envs.calibration.cli:calibrate", "Fit node constants to profiles, traces and loads."),
    "evaluate": ("envs.evaluation.cli:evaluate", "Compare policies in simulation, on the same arrivals."),
    "drill": (
        "rl.drills.cli:drill",
        "Let something drift or somebody lie in simulation, and judge what becomes of it.",
    ),
    "learn": ("rl.online.cli:command", "Learn from running routers: correct constants, retrain, publish."),
    "train": ("rl.cli:command", "Train the routing policy in simulation."),
    "bench decide": ("router.deciding:decide", "Measure how long one decision takes."),
    "tune": ("envs.tuning.cli:tune", "Fit the weights of a policy in simulation."),
}

#: Group of commands -> one line of help.
GROUPS: Mapping[str, str] = {
    "policy": "Switch the policy of a running router; compare, judge and promote trained ones.",
    "learner": "Look at the learner, pause it, and clear rollbacks.",
    "bench": "Measure the router's own speed.",
    "traces": "Record, import, draw, describe and cut request traces.",
}


WIDE = 220
"""Columns of a table that nobody looks at on a terminal."""


class LazyGroup(click.Group):
    """Looks commands up in :data:`COMMANDS`.

    Args:
        within: the group this is; empty for ``ccr`` itself.
        kwargs: click's.
    """

    def __init__(self, *, within: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._within = f"{within} " if within else ""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order of the table."""
        return list(self.lines())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now."""
        entry = COMMANDS.get(self._within + cmd_name)
        if entry is None:
            if self._within or cmd_name not in GROUPS:
                return None
            return LazyGroup(name=cmd_name, within=cmd_name, help=GROUPS[cmd_name])
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines().items()))

    def lines(self) -> dict[str, str]:
        """Name -> help, for what stands directly in this group."""
        lines: dict[str, str] = {}
        for command, (_, text) in COMMANDS.items():
            name, _, rest = command.removeprefix(self._within).partition(" ")
            if command.startswith(self._within):
                lines.setdefault(name, GROUPS[name] if rest else text)
        return lines


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ccr-autopilot")
def cli() -> None:
    """CCR Autopilot routes inference requests to GPU nodes with a policy that learns from what happened."""


def main() -> None:
    """Entry point of ``ccr`` and ``ccr-autopilot``: errors of ours are one clear message and exit code 1."""
    try:
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except CCRError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if isinstance(status, int) and status:  # a command that ended early says so by this
        sys.exit(status)


def print_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, title: str = ""
) -> None:
    """Rows as a table for people, or as a JSON list for programs.

    Args:
        rows: what to print.
        columns: the keys people see, in order; JSON gets every key.
        as_json: which of the two.
        title: above the table.
    """
    rows = list(rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only people need it, and it is slow to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        is_number = bool(rows) and all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*[_cell(row.get(column)) for column in columns])
    # Into a pipe or a file goes the whole table, not what would fit on an 80-column screen.
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if abs(value) < 10.0:  # a propensity or a latency is nothing but its small digits
            return f"{value:.3g}"
        return f"{value:,.1f}" if abs(value) < 1000.0 else f"{value:,.0f}"
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(str(item) for item in sorted(value, key=str))
    return str(value)
