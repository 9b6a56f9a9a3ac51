"""``ccr replay``: send a request trace to a router or a node, at its own times or from a number of clients."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import uvloop
from rich.console import Console

from ccr.cli import print_table
from ccr.errors import CCRError, TraceError
from router.click_types import BASE_URL, DURATION
from router.load import ChatClient, closed_loop, open_loop, open_session
from router.load_mix import Shot
from router.load_progress import shown
from router.load_tally import Sample, Summary, Tally, Window
from router.replay_reader import Arrival, read

_COLUMNS = ("requests", "errors", "p50_ms", "p99_ms", "ttft_p50_ms", "ttft_p99_ms", "qps")
#: Columns of ``--samples``: a row per request, in the order in which they ended; seconds from the start of the replay.
SAMPLE_COLUMNS = (
    "line", "model", "due_s", "sent_s", "ttft_s", "ended_s", "prompt_tokens", "output_tokens", "node", "status", "error",
)  # fmt: skip
# A client this late measures itself too; people should know.
_LATE_S = 0.020
#: Why a recorded row is left out: the router refused the request before it knew a model to ask for.
NO_MODEL = "refused without a model when recorded"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a trace becomes requests.

    Args:
        trace: the file, or the directory of a recording.
        start_s: trace time at which to begin.
        duration_s: seconds of the trace to send.
        limit: most requests to send; 0 for all.
        rate_scale: how much faster than recorded to send, > 0.
        model: asked for instead of every row's own; empty: the row's.
        model_map: asked for instead of some.
        default_prompt: prompt length where the trace does not tell.
        default_output: answer length where the trace does not tell, or the request had failed.
        stream: whether to ask for streams.
        skip_bad: leave rows out that cannot be read.
    """

    trace: Path
    start_s: float = 0.0
    duration_s: float = math.inf
    limit: int = 0
    rate_scale: float = 1.0
    model: str = ""
    model_map: dict[str, str] = field(default_factory=dict)
    default_prompt: int = 128
    default_output: int = 64
    stream: bool = True
    skip_bad: bool = False


@dataclass(slots=True)
class Reading:
    """What was met on the way through a trace.

    Args:
        skipped: rows left out, by reason.
        filled: lengths that the trace did not tell and the plan did, by column.
        sent: requests made.
    """

    skipped: "Counter[str]" = field(default_factory=Counter)
    filled: "Counter[str]" = field(default_factory=Counter)
    sent: int = 0


def schedule(plan: Plan, reading: Reading) -> Iterator[tuple[float, Shot]]:
    """Seconds from the start of the replay, and what to send then; read as it is needed.

    Raises:
        TraceError: if the trace cannot be read, or a row names no model and the plan does not either. A recorded
            request that ended without a model is left out and counted.
    """
    for arrival in read(plan.trace, reading.skipped, skip_bad=plan.skip_bad):
        if arrival.t < plan.start_s:
            continue
        if arrival.t >= plan.start_s + plan.duration_s or (plan.limit and reading.sent >= plan.limit):
            return
        model = plan.model or plan.model_map.get(arrival.model, arrival.model)
        if not model and arrival.status:
            reading.skipped[NO_MODEL] += 1
            continue
        reading.sent += 1
        yield (arrival.t - plan.start_s) / plan.rate_scale, _shot(arrival, model, plan, reading)


def _shot(arrival: Arrival, model: str, plan: Plan, reading: Reading) -> Shot:
    if not model:
        raise TraceError(
            f"{plan.trace}, line {arrival.line}: model is empty; say which to ask for with --model"
        )
    reading.filled["prompt_tokens"] += arrival.prompt_tokens is None
    reading.filled["output_tokens"] += not arrival.output_tokens
    return Shot(
        model=model,
        prompt_tokens=arrival.prompt_tokens or plan.default_prompt,
        output_tokens=arrival.output_tokens or plan.default_output,
        version=arrival.version,
        session=arrival.session,
        priority=arrival.priority,
        stream=plan.stream,
        number=arrival.line,
    )


async def run(
    plan: Plan, reading: Reading, target: str, *, clients: int = 0, think_s: float = 0.0, timeout_s: float = 60.0,
    api_key: str = "", ignore_eos: bool = False, seed: int = 0, console: Console | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> Summary:  # fmt: skip
    """Send a trace and sum up.

    Args:
        plan: what to send.
        reading: filled on the way.
        target: base URL.
        clients: 0 for the trace's own times; else a closed loop of so many, in the trace's order.
        think_s: mean think time of the clients.
        timeout_s: longest wait for an answer.
        api_key: sent as a bearer token.
        ignore_eos: ask for exactly the recorded lengths.
        seed: of the think times.
        console: where progress is shown.
        on_sample: told of each request when it ended.
    """
    tally = Tally(Window(drain_s=timeout_s + 1.0), on_sample=on_sample)
    requests = schedule(plan, reading)
    async with (
        open_session() as session,
        shown(plan.trace.name, tally, console or Console(stderr=True)),
    ):
        send = ChatClient(session, target, timeout_s=timeout_s, api_key=api_key, ignore_eos=ignore_eos)
        if clients:
            shots = (shot for _, shot in requests)
            elapsed_s = await closed_loop(send, [shots] * clients, tally, think_s=think_s, seed=seed)
        else:
            elapsed_s = await open_loop(send, requests, tally)
    return tally.summary(elapsed_s)


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--target", type=BASE_URL, required=True, help="Base URL of a router or a node.")
@click.option("--from", "start_s", type=DURATION, default="0s", help="Trace time at which to begin.")
@click.option("--duration", "duration_s", type=DURATION, help="Length of the part to send, in trace time.")
@click.option("--limit", type=click.IntRange(min=1), help="Most requests to send.")
@click.option(
    "--rate-scale", type=click.FloatRange(min=0.0, min_open=True), default=1.0, show_default=True,
    help="Send so many times faster than recorded.",
)  # fmt: skip
@click.option(
    "--clients", type=click.IntRange(min=1), help="Closed loop: so many clients, in the trace's order."
)
@click.option("--think-time", "think_s", type=DURATION, help="Mean think time of the clients.")
@click.option("--model", default="", help="Ask for this model, whatever the trace says.")
@click.option("--model-map", "mapped", multiple=True, metavar="A=B", help="Ask for B where the trace says A.")
@click.option("--default-prompt", type=click.IntRange(min=1), default=128, show_default=True,
              help="Prompt tokens where the trace does not tell.")  # fmt: skip
@click.option("--default-output", type=click.IntRange(min=1), default=64, show_default=True,
              help="Output tokens where the trace does not tell.")  # fmt: skip
@click.option("--stream/--no-stream", default=True, show_default=True, help="Ask for streamed answers.")
@click.option("--ignore-eos", is_flag=True, help="Ask for exactly the recorded lengths (vLLM, SGLang).")
@click.option("--timeout", "timeout_s", type=DURATION, default="60s", show_default=True, help="Per request.")
@click.option(
    "--api-key", envvar="CCR_API_KEY", default="", help="Bearer token; better given as CCR_API_KEY."
)
@click.option("--seed", default=0, show_default=True, help="Of the think times.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out, and count them, instead of stopping.")
@click.option("--samples", "samples_to", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              help="Write a row of CSV for each request there.")  # fmt: skip
@click.option("--json", "json_to", is_flag=False, flag_value="-", metavar="[PATH]",
              type=click.Path(dir_okay=False, writable=True, allow_dash=True),
              help="Write JSON, to PATH or to standard output.")  # fmt: skip
def replay(
    trace: Path, target: str, start_s: float, duration_s: float | None, limit: int | None, rate_scale: float,
    clients: int | None, think_s: float | None, model: str, mapped: tuple[str, ...], default_prompt: int,
    default_output: int, stream: bool, ignore_eos: bool, timeout_s: float, api_key: str, seed: int,
    skip_bad: bool, samples_to: Path | None, json_to: str | None,
) -> None:  # fmt: skip
    """Send a request TRACE to a router or a node, and measure.

    TRACE is CSV or JSON lines, gzipped or not, in the trace format's `requests` columns, or the directory of a
    recording. Requests go out at the trace's own times and latency counts from those times, unless --clients asks for
    a closed loop. Prompts are made up at the recorded lengths; a trace holds no text.
    """
    if think_s is not None and not clients:
        raise click.UsageError("--think-time belongs to a closed loop: give --clients too")
    if clients and rate_scale != 1.0:
        raise click.UsageError("--rate-scale scales the trace's own times, which --clients does not keep")
    plan = Plan(
        trace=trace, start_s=start_s, duration_s=math.inf if duration_s is None else duration_s, limit=limit or 0,
        rate_scale=rate_scale, model=model, model_map=_pairs(mapped), default_prompt=default_prompt,
        default_output=default_output, stream=stream, skip_bad=skip_bad,
    )  # fmt: skip
    reading = Reading()
    with _written(samples_to) as on_sample:
        summary = uvloop.run(
            run(
                plan, reading, target, clients=clients or 0, think_s=think_s or 0.0, timeout_s=timeout_s,
                api_key=api_key, ignore_eos=ignore_eos, seed=seed, on_sample=on_sample,
            )
        )  # fmt: skip
    _report(summary, reading, json_to)


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[Sample], None] | None]:
    """Something that writes samples to a file."""
    if path is None:
        yield None
        return
    try:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(SAMPLE_COLUMNS)
            yield lambda sample: rows.writerow(_row(sample))
    except OSError as error:
        raise CCRError(f"cannot write {path}: {error.strerror or error}") from error


def _row(sample: Sample) -> tuple[object, ...]:
    answer, ttft_s = sample.answer, sample.ttft_s
    return (
        sample.number, sample.model, round(sample.due_s, 6), round(sample.sent_s, 6),
        "" if ttft_s is None else round(sample.due_s + ttft_s, 6), round(sample.ended_s, 6),
        answer.prompt_tokens, answer.output_tokens, answer.node, answer.status, answer.error,
    )  # fmt: skip


def _pairs(mapped: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(pair.split("=", 1) for pair in mapped if "=" in pair)
    if len(pairs) < len(mapped) or not all(pairs) or not all(pairs.values()):
        raise click.BadParameter("write A=B, each A once", param_hint="--model-map")
    return pairs


def _report(summary: Summary, reading: Reading, json_to: str | None) -> None:
    figures = summary.in_ms()
    notes = {
        "rows_skipped": dict(reading.skipped),
        "lengths_filled": {k: n for k, n in reading.filled.items() if n},
    }
    if json_to == "-":
        click.echo(json.dumps(figures | notes, indent=2))
    else:
        print_table([figures], _COLUMNS, as_json=False, title="Replay")
        _explain(summary, notes)
    if json_to not in {None, "-"}:
        Path(str(json_to)).write_text(json.dumps(figures | notes, indent=2) + "\n")
    if not reading.sent:
        raise TraceError(
            "the trace has no request in the part that was asked for; see --from, --duration, --skip-bad"
        )
    if not summary.ok:
        raise CCRError(
            f"no request was answered ({_counts(summary.errors_by_kind)}); is the target right, and up?"
        )


def _explain(summary: Summary, notes: dict[str, dict[str, int]]) -> None:
    """What the table alone would hide."""
    for text, counts in (
        ("errors", summary.errors_by_kind),
        ("rows left out", notes["rows_skipped"]),
        ("lengths the trace does not tell, filled from the defaults", notes["lengths_filled"]),
    ):
        if counts:
            click.echo(f"{text}: {_counts(counts)}")
    if summary.late_p99_s > _LATE_S:
        click.echo(
            f"this client was late: 1 % of requests went out {summary.late_p99_s * 1000:.0f} ms or more after they "
            "were due, and their latency counts from then; use a machine with free cores, or a smaller --rate-scale"
        )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
