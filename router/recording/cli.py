"""``ccr traces record``: ask a running router to write traces, and show how it goes."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ccr.cli import print_table
from ccr.errors import CCRError
from ccr.segments import KINDS
from ccr.settings import load
from router.cli import ADMIN, CONFIG, JSON, AdminClient

PATH: Final = "/admin/record"
#: Time between two looks at the recording.
LOOK_S: Final = 0.5
PLAIN_LINE_EVERY_S: Final = 10.0
_Show = Callable[[dict[str, Any]], None]


@click.command("record")
@CONFIG
@ADMIN
@JSON
@click.option("--out", "out", type=click.Path(path_type=Path, file_okay=False),
              help="Directory for the recording, on the router's machine.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0.0, min_open=True), default=10.0, show_default=True,
              help="How long; Ctrl-C ends it sooner.")  # fmt: skip
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True,
              help="What to record; repeat for more; as configured if left out.")  # fmt: skip
@click.option("--stop", is_flag=True, help="End the recording that is under way, whoever began it.")
def record(
    config_path: Path | None, admin_url: str | None, out: Path | None, minutes: float, kinds: tuple[str, ...],
    *, stop: bool, as_json: bool,
) -> None:  # fmt: skip
    """Record what a running router does: requests with their decisions, telemetry, loads; never a prompt.

    The router writes, so the directory is one of its machine. It ends by itself after the time given, even if this
    command is gone. What the files mean: docs/recording.md.
    """
    client = AdminClient(load(config_path), admin_url)
    if stop:
        found = _until_ended(client, client.call("POST", f"{PATH}/stop"))
    elif out is None:
        raise click.UsageError("say where to with --out DIRECTORY")
    else:
        body: dict[str, Any] = {"directory": str(out.absolute()), "length_s": 60.0 * minutes}
        client.call("POST", PATH, body | ({"kinds": list(kinds)} if kinds else {}))
        found = _follow(client)
    _report(found, as_json=as_json)


def _follow(client: AdminClient) -> dict[str, Any]:
    """Show the recording until it ends; Ctrl-C ends it."""
    found: dict[str, Any] = client.call("GET", PATH)
    try:
        with _shown(Console(stderr=True)) as show:
            while found["state"] == "recording":
                show(found)
                time.sleep(LOOK_S)
                found = client.call("GET", PATH)
    except KeyboardInterrupt:
        found = client.call("POST", f"{PATH}/stop")
    return _until_ended(client, found)


def _until_ended(client: AdminClient, found: dict[str, Any]) -> dict[str, Any]:
    with suppress(KeyboardInterrupt):  # the router finishes without being watched
        while found["state"] == "finishing":
            time.sleep(LOOK_S)
            found = client.call("GET", PATH)
    return found


@contextmanager
def _shown(console: Console) -> Iterator[_Show]:
    """How to show progress: a moving line on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("recording"), BarColumn(bar_width=24), TimeRemainingColumn(),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
    )  # fmt: skip
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("recording", total=None, state="")

        def show(found: dict[str, Any]) -> None:
            progress.update(
                task,
                total=found["length_s"],
                completed=found["elapsed_s"],
                state=describe(found),
                refresh=True,
            )

        yield show


def _plain(console: Console) -> _Show:
    due_s = 0.0

    def show(found: dict[str, Any]) -> None:
        nonlocal due_s
        if found["elapsed_s"] >= due_s:
            due_s = found["elapsed_s"] + PLAIN_LINE_EVERY_S
            line = f"recording: {found['elapsed_s']:.0f} s, {describe(found)}"
            console.print(line, highlight=False, soft_wrap=True)

    return show


def describe(found: dict[str, Any]) -> str:
    """The state of a recording in a few words."""
    rows = ", ".join(f"{number:,} {kind}" for kind, number in found["rows"].items())
    return f"{rows}, {found['bytes'] / 2**20:,.1f} MiB, {sum(found['dropped'].values()):,} dropped"


def _report(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found["state"] == "off":
        click.echo("nothing is being recorded")
    else:
        rows = [{"kind": kind, "rows": number} for kind, number in found["rows"].items()]
        print_table(rows, ["kind", "rows"], as_json=False, title="Recording")
        _explain(found)
    if found["state"] == "failed":
        raise CCRError(f"the recording ended early: {found['error']}")


def _explain(found: dict[str, Any]) -> None:
    """Where it is, and what a table of rows would hide."""
    click.echo(f"{found['directory']}/{found['recording']}.*: {found['bytes'] / 2**20:,.1f} MiB")
    lost = [f"{number:,} {reason}" for reason, number in found["dropped"].items() if number]
    if lost:
        click.echo(f"left out: {', '.join(lost)}")
    if found["unfinished"]:
        click.echo(f"{found['unfinished']:,} requests were under way at the end and are not in it")
    if found["segments_deleted"]:
        click.echo(f"{found['segments_deleted']:,} oldest segments gave way to `record.max_bytes`")
