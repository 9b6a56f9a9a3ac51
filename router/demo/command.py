"""The command ``ccr demo``: start everything, compare policies, print the table, stay up."""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console

from ccr.cli import print_table
from ccr.errors import ConfigError
from ccr.policies import POLICIES
from router.click_types import DURATION
from router.demo import drift
from router.demo.contest import Result, Rules, background, measure, went_wrong
from router.demo.learner import Learning
from router.demo.stage import Stage, Wanted, built
from router.load import open_session

#: The usual two, the founding article's, the best of the tuned heuristics, and the router's default.
COMPARED = ("round_robin", "least_request", "article", "least_cost", "learned")
_COLUMNS = ("policy", "requests", "errors", "p50_ms", "p99_ms", "qps", "cold_starts", "peak_gpu_gib")
_PHASES = ("phase", "requests", "p50_ms", "p95_ms", "p99_ms")
_TOLD_EVERY_S = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Show:
    """What the demo was asked for.

    Args:
        policies: to compare, in order.
        rules: of the comparison.
        speed: emulated seconds per second.
        nodes: how many.
        leave: end after the table.
        keep_load: leave a light load running.
        json_to: where the figures go; ``None``: nowhere.
        command: as it was typed, for the JSON.
        learner: whether one learns meanwhile, where it is installed.
        full: whether router and learner share a real Redis.
        drift: instead of comparing policies, make a node slow in the middle of a load.
        plot: where the picture of that goes.
    """

    policies: tuple[str, ...]
    rules: Rules
    speed: float
    nodes: int
    leave: bool
    keep_load: bool
    json_to: Path | None
    command: str
    learner: bool = True
    full: bool = False
    drift: bool = False
    plot: Path = Path("drift.svg")


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0.5), default=30.0, show_default=True,
              help="How long each policy is measured, on the wall clock.")  # fmt: skip
@click.option("--warm-up", "warmup_s", type=DURATION,
              help="Load before that, not measured, for each policy.  [default: a sixth of --seconds, at least 2 s]")  # fmt: skip
@click.option(
    "--clients", type=click.IntRange(min=1), default=50, show_default=True, help="Clients in a closed loop."
)
@click.option("--think-time", "think_s", type=DURATION, default="5s", show_default=True,
              help="Mean think time of a client, in emulated time.")  # fmt: skip
@click.option("--speed", type=click.FloatRange(min=0.1, max=100.0), default=10.0, show_default=True,
              help="Emulated seconds per second.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(1, 16), default=4, show_default=True, help="Emulated A10 nodes.")
@click.option("--policies", default=",".join(COMPARED), show_default=True, help="What to compare.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of requests and think times.")
@click.option(
    "--exit", "leave", is_flag=True, help="End after the table; exit code 1 if a request failed or got lost."
)
@click.option("--keep-load", is_flag=True, help="Leave a light load running after the table.")
@click.option("--no-learner", is_flag=True, help="Without a learner beside the router.")
@click.option("--full", is_flag=True, help="Router and learner share a real Redis instead of a directory.")
@click.option("--drift", "drifts", is_flag=True,
              help="Instead of comparing policies, make a node four times as slow in the middle of a load, and draw latency.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), default=Path("drift.svg"),
              show_default=True, help="Where --drift draws it.")  # fmt: skip
@click.option("--json", "json_to", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              help="Write the figures to this file.")  # fmt: skip
def demo(
    seconds: float, warmup_s: float | None, clients: int, think_s: float, speed: float, nodes: int, policies: str,
    seed: int, leave: bool, keep_load: bool, no_learner: bool, full: bool, drifts: bool, plot: Path, json_to: Path | None,
) -> None:  # fmt: skip
    """Run emulated GPU nodes, the router and a load on this machine, and compare policies.

    A learner runs beside the router where it is installed: what it publishes and finds out is told while traffic flows.

    Every policy starts from empty nodes and gets the same requests. The nodes are emulated NVIDIA A10s that take as
    long as the fitted timing model says; they run faster than the clock, and times in the table are emulated times.
    Afterwards everything stays up to be tried, until Ctrl-C.
    """
    names = _names(policies)
    rules = Rules(
        seconds=seconds,
        warmup_s=max(seconds / 6.0, 2.0) if warmup_s is None else warmup_s,
        clients=clients,
        think_s=think_s,
        seed=seed,
    )
    show = Show(
        names, rules, speed, nodes, leave, keep_load, json_to, shlex.join(["ccr", *sys.argv[1:]]),
        not no_learner, full, drifts, plot,
    )  # fmt: skip
    if status := uvloop.run(_run(show)):
        sys.exit(status)


def _names(policies: str) -> tuple[str, ...]:
    names = tuple(name for name in (word.strip() for word in policies.split(",")) if name)
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise click.BadParameter(
            f"no policy is called {' or '.join(unknown)}; there are {', '.join(POLICIES)}",
            param_hint="--policies",
        )
    if not names or len(set(names)) < len(names):
        raise click.BadParameter("name each policy once, separated by commas", param_hint="--policies")
    return names


async def _run(show: Show) -> int:
    """The demo; its exit code."""
    caught: list[signal.Signals] = []
    me = asyncio.current_task()
    assert me is not None  # noqa: S101 - we run in one

    def end(number: signal.Signals) -> None:
        caught.append(number)
        me.cancel()

    for number in _SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await _perform(show)
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]


async def _perform(show: Show) -> int:
    console = Console(stderr=True)
    console.print(f"starting {show.nodes} emulated A10 nodes and the router ...", highlight=False)
    wanted = Wanted(show.speed, show.nodes, show.rules.seed, show.learner, show.full)
    async with open_session() as session, built(wanted, session) as stage, _told(stage, console):
        if show.drift:
            return await _drift(stage, show, console)
        results = [await measure(stage, policy, show.rules, console) for policy in show.policies]
        in_flight = await stage.in_flight()
        _report(show, results, in_flight, None if stage.learning is None else stage.learning.status())
        if show.leave:
            return int(went_wrong(results, in_flight))
        _invite(stage)
        with suppress(asyncio.CancelledError):  # Ctrl-C ends the demo as it should end
            await _stay(stage, show)
    return 0


async def _drift(stage: Stage, show: Show, console: Console) -> int:
    """One node becomes slow; exit code 1 if nothing could be measured."""
    seen = await drift.drifted(stage, show.rules, console)
    drift.save(seen, show.plot)
    if show.json_to is not None:
        _write(show.json_to, {**seen.as_json(), "learner": seen.learner, "command": show.command})
    print_table(
        seen.rows(),
        _PHASES,
        as_json=False,
        title=f"{seen.node} becomes {drift.FACTOR:g} times as slow, and stays so",
    )
    click.echo(
        f"Share of the requests that go there: {seen.share_before:.0%} before, {seen.share_after:.0%} after. Times are "
        f"emulated. The picture: {show.plot}"
    )
    for line in [] if stage.learning is None else stage.learning.lines():
        click.echo(line)
    return int(not all(seen.phases().values()))


@asynccontextmanager
async def _told(stage: Stage, console: Console) -> AsyncIterator[None]:
    """What the learner is at, again and again."""

    async def tell(learning: Learning) -> None:
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            for line in await asyncio.to_thread(learning.lines):
                console.print(line, highlight=False, soft_wrap=True)

    task = None if stage.learning is None else asyncio.create_task(tell(stage.learning))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _stay(stage: Stage, show: Show) -> None:
    """Keep everything up, and the light load going, until somebody ends it or a child dies."""
    load = asyncio.create_task(background(stage, show.rules)) if show.keep_load else None
    try:
        while True:
            stage.children.check()
            await asyncio.sleep(1.0)
    finally:
        if load is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)


def _report(
    show: Show, results: Sequence[Result], in_flight: int, learner: dict[str, Any] | None = None
) -> None:
    rows = [result.row(show.speed) for result in results]
    if show.json_to is not None:
        document = {
            "policies": {row["policy"]: row for row in rows},
            "in_flight": in_flight,
            "learner": learner,
            "unit": f"emulated time: wall clock x {show.speed:g}",
            "seed": show.rules.seed,
            "speed": show.speed,
            "seconds": show.rules.seconds,
            "clients": show.rules.clients,
            "think_s": show.rules.think_s,
            "command": show.command,
        }
        _write(show.json_to, document)
    print_table(
        rows, _COLUMNS, as_json=False,
        title=f"{show.rules.clients} clients, {show.rules.seconds * show.speed:.0f} emulated seconds each",
    )  # fmt: skip
    click.echo(
        f"Times and rates are emulated: {show.speed:g} emulated seconds pass in one. Latency is that of answered "
        f"requests. In flight afterwards: {in_flight}."
    )
    for result in results:
        if result.summary.errors:
            click.echo(f"{result.policy}: errors: {result.summary.errors_by_kind}")
        if result.machine_too_busy:
            click.echo(
                f"{result.policy}: this machine was too busy (timers fired {result.lag_p99_s * 1000:.0f} ms late, "
                f"{result.lag_p99_s * show.speed * 1000:.0f} emulated ms); use a smaller --speed"
            )


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give --json another place") from error


def _invite(stage: Stage) -> None:
    """What to try, ready to be copied."""
    model = stage.models[0].name
    admin = f"CCR_ADMIN__TOKEN={stage.token} CCR_ADMIN_URL={stage.admin_url}"
    click.echo(f"""
Everything is still up. Try, in another terminal:

  curl -N {stage.url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "stream": true, "max_tokens": 32, "messages": [{{"role": "user", "content": "hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{stage.url}/v1", api_key="unused")
  client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "hello"}}])

  curl {stage.url}/metrics
  {admin} ccr status
  {admin} ccr policy use hot_cold
  {admin} ccr decisions
  {admin} ccr why REQUEST_ID

  nodes: {"  ".join(node.url for node in stage.nodes)}
  admin API, with the token as bearer: {stage.admin_url}/docs

Ctrl-C ends it.""")
