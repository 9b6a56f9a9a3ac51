"""``ccr traces import|synth|describe|cut``."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ccr.cli import print_table
from ccr.errors import CCRError, ConfigError, TraceError
from envs.traces import READERS
from envs.traces.convert import Cut, cut_trace, detected, import_trace
from envs.traces.describe import describe as statistics
from envs.traces.describe import summary
from envs.traces.header import Header
from envs.traces.reader import Wishes
from envs.traces.synth import Switch, Workload, draw
from envs.traces.trace import read, write

_DEFAULT = Workload()
_FILE = click.Path(path_type=Path)
_OUT = click.option(
    "-o", "--out", type=_FILE, required=True, help="File to write: .csv or .jsonl, or one of these and .gz."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the header of the new trace as JSON.")
_SCALE = click.option(
    "--scale-rate", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
    help="How much denser the requests shall come.",
)  # fmt: skip


@click.command("import")
@click.argument("format_", metavar="FORMAT", type=click.Choice(["auto", *READERS]))
@click.argument("file", type=_FILE)
@_OUT
@click.option(
    "--from",
    "from_h",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Hours of the source to leave out at its start.",
)
@click.option(
    "--hours", type=click.FloatRange(0, min_open=True), help="How many hours to import. Default: to the end."
)
@click.option("--model", default="", help="Model id, for sources that name none. Default: the format's name.")
@click.option(
    "--block-tokens", type=click.IntRange(1), help="Tokens of a prefix block, for sources that do not say."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Of the draw, for formats that hold parameters (servegen). Default: 0.",
)
@_SCALE
@click.option("--recording", default="", help="Which recording, where a directory holds several.")
@click.option(
    "--note", "notes", multiple=True, help="What the header shall say beside it, such as what ran; repeat it."
)
@click.option(
    "--skip-bad", is_flag=True, help="Count rows that cannot be read and leave them out, instead of stopping."
)
@_JSON
def import_(
    *,
    format_: str,
    file: Path,
    out: Path,
    from_h: float,
    hours: float | None,
    model: str,
    block_tokens: int | None,
    seed: int | None,
    scale_rate: float,
    recording: str,
    notes: tuple[str, ...],
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Convert a public request trace to the format of this project.

    FORMAT is one of those listed, or `auto`; FILE is the file as published, gzipped or not, or for servegen and for
    a recording of the router its directory. Rows that are of no use (failed, without tokens) are left out and counted by reason. Imported requests
    are arrivals and shapes; they say nothing about how any node here would have served them.
    """  # fmt: skip
    with _refusing():
        form = detected(file) if format_ == "auto" else format_
        if seed is not None and not READERS[form].is_generated:
            raise ConfigError(f"{form} is a record, nothing is drawn; leave --seed out")
        from_s = from_h * 3600
        wishes = Wishes(
            model=model, seed=seed or 0, from_s=from_s, rate_scale=scale_rate, block_tokens=block_tokens or 0, recording=recording,
            until_s=from_s + hours * 3600 if hours else float("inf"), notes=notes,
        )  # fmt: skip
        with _progress(f"importing {form}") as progress:
            header = import_trace(form, file, out, wishes, skip_bad=skip_bad, progress=progress)
        _report(header, out, as_json=as_json)


@click.command("cut")
@click.argument("file", type=_FILE)
@_OUT
@click.option(
    "--from",
    "from_s",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds of the trace to leave out at its start.",
)
@click.option(
    "--to",
    "until_s",
    type=click.FloatRange(0, min_open=True),
    help="Second of the trace at which to stop. Default: its end.",
)
@click.option(
    "--models", default="", help="Model ids, or names for all versions, with commas between. Default: all."
)
@click.option(
    "--every", type=click.IntRange(1), default=1, show_default=True, help="Keep one request in so many."
)
@click.option("--limit", type=click.IntRange(1), help="Most requests to keep. Default: all.")
@click.option(
    "--most-tokens",
    type=click.IntRange(1),
    help="Leave out requests with more tokens, prompt and answer together. Default: keep them.",
)
@_SCALE
@click.option(
    "--default-prompt",
    type=click.IntRange(1),
    help="Prompt tokens where they are unknown. Default: they stay unknown.",
)
@click.option(
    "--default-output",
    type=click.IntRange(1),
    help="Output tokens where they are unknown. Default: they stay unknown.",
)
@click.option("--drop-unknown", is_flag=True, help="Leave out requests whose model or lengths are unknown.")
@_JSON
def cut(
    *,
    file: Path,
    out: Path,
    from_s: float,
    until_s: float | None,
    models: str,
    every: int,
    limit: int | None,
    most_tokens: int | None,
    scale_rate: float,
    default_prompt: int | None,
    default_output: int | None,
    drop_unknown: bool,
    as_json: bool,
) -> None:
    """Take a part of a trace; its times begin at 0.

    Prefixes are those of the whole trace: a turn still counts as repeating what was said in turns that were cut off.
    """
    with _refusing():
        wanted = Cut(
            from_s=from_s,
            until_s=float("inf") if until_s is None else until_s,
            models=frozenset(one.strip() for one in models.split(",") if one.strip()),
            every=every,
            limit=limit,
            most_tokens=most_tokens,
            rate_scale=scale_rate,
            default_prompt=default_prompt or 0,
            default_output=default_output or 0,
            drop_unknown=drop_unknown,
        )
        with _progress("cutting") as progress:
            header = cut_trace(file, out, wanted, progress=progress)
        _report(header, out, as_json=as_json)


@click.command("synth")
@_OUT
@click.option(
    "--models",
    default=",".join(_DEFAULT.models),
    show_default=True,
    help="Model ids with commas between, the most popular first. The name's first word tells the lengths: chat, support, code, summary, extract, translate.",
)
@click.option(
    "--rate", default=_DEFAULT.rate, show_default=True, help="Mean requests per second, all models together."
)
@click.option("--duration", default=_DEFAULT.duration_s, show_default=True, help="Seconds.")
@click.option(
    "--zipf",
    default=_DEFAULT.zipf,
    show_default=True,
    help="Popularity falls as one over rank to this power.",
)
@click.option(
    "--drift",
    default=_DEFAULT.drift,
    show_default=True,
    help="How far log-popularity goes at each step (standard deviation).",
)
@click.option(
    "--swaps",
    default=_DEFAULT.swaps,
    show_default=True,
    help="Pairs of models that trade popularity at each step.",
)
@click.option(
    "--drift-every", default=_DEFAULT.drift_s, show_default=True, help="Seconds between such steps."
)
@click.option(
    "--cv",
    default=_DEFAULT.cv,
    show_default=True,
    help="Burstiness of a model's conversations: variation of their gaps; 1 is Poisson.",
)
@click.option(
    "--burst-factor",
    default=_DEFAULT.burst_factor,
    show_default=True,
    help="How much higher a model's rate is in its bursts; 1: no bursts.",
)
@click.option("--burst-seconds", default=_DEFAULT.burst_s, show_default=True, help="Mean length of a burst.")
@click.option(
    "--burst-share", default=_DEFAULT.burst_share, show_default=True, help="Share of the time in bursts."
)
@click.option(
    "--diurnal", default=_DEFAULT.diurnal, show_default=True, help="Amplitude of the daily wave, 0 to 1."
)
@click.option("--day", default=_DEFAULT.day_s, show_default=True, help="Length of its day, seconds.")
@click.option(
    "--switch",
    "switches",
    multiple=True,
    metavar="FROM=TO:AT[:RAMP]",
    help="Traffic of one model id moves to another, from second AT on, within RAMP seconds; repeat it.",
)
@click.option(
    "--release-every",
    default=_DEFAULT.release_every_s,
    show_default=True,
    help="Mean seconds between new versions of models drawn at random; 0: none.",
)
@click.option(
    "--release-ramp",
    default=_DEFAULT.release_ramp_s,
    show_default=True,
    help="Seconds until all traffic has moved to a new version.",
)
@click.option(
    "--think",
    default=_DEFAULT.think_s,
    show_default=True,
    help="Mean seconds from an answer to the next turn of the conversation.",
)
@click.option(
    "--priorities",
    default="0=1",
    show_default=True,
    metavar="P=SHARE,...",
    help="Share of the conversations of each priority.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@_JSON
@click.pass_context
def synth(
    context: click.Context,
    *,
    out: Path,
    models: str,
    rate: float,
    duration: float,
    zipf: float,
    drift: float,
    swaps: int,
    drift_every: float,
    cv: float,
    burst_factor: float,
    burst_seconds: float,
    burst_share: float,
    diurnal: float,
    day: float,
    switches: tuple[str, ...],
    release_every: float,
    release_ramp: float,
    think: float,
    priorities: str,
    seed: int,
    as_json: bool,
) -> None:
    """Draw a bursty workload of many models, with drifting popularity, new versions and conversations."""
    with _refusing():
        workload = Workload(
            models=tuple(one.strip() for one in models.split(",")),
            duration_s=duration,
            rate=rate,
            zipf=zipf,
            drift=drift,
            swaps=swaps,
            drift_s=drift_every,
            cv=cv,
            burst_factor=burst_factor,
            burst_s=burst_seconds,
            burst_share=burst_share,
            diurnal=diurnal,
            day_s=day,
            switches=tuple(_switch(one) for one in switches),
            release_every_s=release_every,
            release_ramp_s=release_ramp,
            think_s=think,
            priorities=_priorities(priorities),
        )
        trace = draw(workload, seed)
        if not len(trace):
            raise TraceError("not a single request was drawn; give a higher --rate or a longer --duration")
        trace = replace(trace, header=replace(trace.header, notes=(f"drawn by: {_command_line(context)}",)))
        write(trace, out)
        _report(trace.header, out, as_json=as_json)


@click.command("describe")
@click.argument("file", type=_FILE)
@click.option(
    "--json",
    "json_out",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the statistics to this file as JSON; `-` for standard output.",
)
@click.option("--plot", "picture", type=_FILE, help="Also draw a picture (.png, .svg, .pdf).")
def describe(*, file: Path, json_out: Path | None, picture: Path | None) -> None:
    """Show the statistics of a trace: rate, burstiness, models, lengths, sessions, outcomes."""
    with _refusing():
        with _progress("reading") as progress:
            trace = read(file, is_complete=False, progress=progress)
        found = statistics(trace)
        if picture is not None:
            _plot(trace, picture, f"{file.name}: {len(trace):,} requests")
        if json_out is not None:
            _write_json(found, json_out)
        if json_out is None or str(json_out) != "-":
            print_table(summary(found), ("what", "value"), as_json=False, title=file.name)
            print_table(
                found["models"][:20], tuple(found["models"][0]) if found["models"] else (), as_json=False
            )


def _plot(trace: Any, path: Path, title: str) -> None:
    try:
        from envs.traces.plot import plot  # noqa: PLC0415 - matplotlib takes a second to import, and may be missing
    except ImportError as error:
        raise TraceError(
            f"a plot needs matplotlib ({error}); install it with `pip install 'ccr-autopilot[simulator]'`"
        ) from error
    plot(trace, path, title)


def _write_json(found: dict[str, Any], out: Path) -> None:
    text = json.dumps(found, indent=2)
    if str(out) == "-":
        click.echo(text)
        return
    try:
        out.write_text(text + "\n")
    except OSError as error:
        raise TraceError(f"cannot write {out}: {error.strerror or error}") from error


def _report(header: Header, out: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(header.as_json(), indent=2))
        return
    rows = [("written to", str(out)), ("requests", f"{header.rows:,}"), ("source", header.source)]
    if header.rows_read:
        rows.append(("rows read", f"{header.rows_read:,}"))
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in header.rows_dropped.items()]
    rows += [("sha256 of the source", header.sha256_source)] if header.sha256_source else []
    rows += [("licence", header.licence)] if header.licence else []
    rows += [("note", note) for note in header.notes]
    print_table([{"what": what, "value": value} for what, value in rows], ("what", "value"), as_json=False)


@contextmanager
def _refusing() -> Iterator[None]:
    """Our errors as one message and exit code 1."""
    try:
        yield
    except CCRError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float], None] | None]:
    """A bar on a terminal, nothing elsewhere; on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _switch(text: str) -> Switch:
    models, _, times = text.partition(":")
    before, is_move, after = models.partition("=")
    try:
        at_s, ramp_s = map(float, times.split(":") if ":" in times else (times, "0"))
    except ValueError:
        at_s = -1.0
    if (
        not (before and is_move and after)
        or not 0.0 <= at_s < float("inf")
        or not 0.0 <= ramp_s < float("inf")
    ):
        raise ConfigError(
            f"--switch {text!r} is none; write FROM=TO:AT or FROM=TO:AT:RAMP, such as a@1=a@2:300:60"
        )
    return Switch(before, after, at_s, ramp_s)


def _priorities(text: str) -> dict[int, float]:
    try:
        pairs = [one.split("=") for one in text.split(",")]
        return {int(priority): float(share) for priority, share in pairs}
    except ValueError:
        raise ConfigError(
            f"--priorities {text!r} is none; write P=SHARE,P=SHARE, such as 0=0.9,-1=0.1"
        ) from None


def _command_line(context: click.Context) -> str:
    """The options that were given, as one would type them; not where to write."""
    words = ["ccr", "traces", "synth"]
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name in {"out", "as_json"} or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[param.name or ""]
        for one in value if isinstance(value, tuple) else (value,):
            words += [param.opts[-1], f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(words)
