"""Records the trace that comes with the package: ``python -m benchmarks.recorded``.

Emulated A10 nodes and the router are processes of their own, as an operator starts them. A drawn workload goes through
them in real time, `ccr traces record` has the router write down what it does, and that is imported as one file.
"""

import asyncio
import json
import secrets
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import uvloop

from ccr.errors import CCRError
from ccr.segments import segments
from envs.traces.convert import import_trace
from envs.traces.header import Header
from envs.traces.reader import Wishes
from router.demo.children import Child, Children
from router.demo.stage import free_ports
from router.demo.workload import PATIENCE_S, EmulatedNode, ServedModel, router_config
from router.load_tally import Summary
from router.replay import Plan, Reading, run

OUT: Final = Path(__file__).parent.parent / "envs" / "data" / "recorded.csv.gz"
#: What the clients ask for: bursts, conversations, and a model that gives way to its new version halfway.
_WORKLOAD: Final = (
    "ccr traces synth --rate 3.6 --duration {seconds:g} --cv 2.5 --burst-factor 4 --burst-seconds 20 "
    "--burst-share 0.15 --switch chat-7b@1=chat-7b@2:{half:g}:60 --think 12 --priorities 0=0.9,1=0.1 --seed {seed}"
)
#: As in the simulator: HTTP and tokeniser, assumed.
_OVERHEAD_MS: Final = 20
#: A client this late would be seen in the times to the first token.
_LATE_S: Final = 0.020
_LONGEST_RECORDING_MIN: Final = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to record.

    Args:
        seconds: of arrivals, in node time.
        seed: of the workload and of the noise in load times.
        nodes: emulated A10.
        policy: of the router.
        exploration: share of its decisions that go to any safe node: what learning from them needs.
        speed: node seconds per second. What the machine itself takes counts that many times in the times written down: above 1
            they are no record of an A10 any more, only a quick way to try this program.
    """

    seconds: float = 420.0
    seed: int = 1
    nodes: int = 4
    policy: str = "least_cost"
    exploration: float = 0.1
    speed: float = 1.0

    @property
    def workload(self) -> str:
        """The command that draws the arrivals."""
        return _WORKLOAD.format(seconds=self.seconds, half=self.seconds / 2, seed=self.seed)


_DEFAULT: Final = Wanted()


@dataclass(frozen=True, slots=True)
class _Fleet:
    """What runs."""

    children: Children
    url: str
    config: Path
    token: str


def record(wanted: Wanted, out: Path) -> tuple[Header, Summary]:
    """Record a trace and write it.

    Returns:
        Its header, and what the clients saw.

    Raises:
        CCRError: if a process does not come up or dies, or a request fails.
    """
    with Children() as children:
        workload, recording = children.directory / "workload.csv.gz", children.directory / "emulated-a10"
        subprocess.run(
            [sys.executable, "-m", *shlex.split(wanted.workload), "-o", str(workload)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        summary = uvloop.run(_recorded(wanted, children, workload, recording))
        notes = (
            f"arrivals drawn by: {wanted.workload}", f"served in real time by {_words(wanted)}",
            f"sent to the router at most {1000 * summary.late_p99_s:.1f} ms late (P99)",
            "recorded by: python -m benchmarks.recorded; evidence of the timing model of an A10, not of an A10",
        )  # fmt: skip
        header = import_trace("recording", recording, out, Wishes(notes=notes))
    if header.rows != summary.requests or header.rows_dropped:
        raise CCRError(
            f"{out} has {header.rows} rows and {dict(header.rows_dropped)} dropped, the clients sent "
            f"{summary.requests} requests: the recording is not complete; record again"
        )
    return header, summary


async def _recorded(wanted: Wanted, children: Children, workload: Path, recording: Path) -> Summary:
    """Send the workload through the fleet while the router records."""
    async with _started(wanted, children) as fleet:
        recorder = _recorder(fleet, "--out", str(recording), "--minutes", str(_LONGEST_RECORDING_MIN))
        await children.until(recorder, "begin to record", lambda: asyncio.to_thread(_begun, recording))
        plan = Plan(trace=workload, rate_scale=wanted.speed)
        summary = await run(plan, Reading(), fleet.url, timeout_s=PATIENCE_S / wanted.speed + 5.0)
        stopped = _recorder(fleet, "--stop")
        if await asyncio.to_thread(stopped.process.wait) or await asyncio.to_thread(recorder.process.wait):
            raise CCRError(f"the recording failed: {recorder.log.read_text()}{stopped.log.read_text()}")
    if summary.errors:
        raise CCRError(f"{summary.errors} requests failed ({summary.errors_by_kind}); nothing is written")
    return summary


def _recorder(fleet: _Fleet, *arguments: str) -> Child:
    """``ccr traces record``, beside us."""
    name = "recorder" if "--out" in arguments else "end of the recording"
    return fleet.children.start(
        name,
        ["traces", "record", "--config", str(fleet.config), *arguments],
        {"CCR_ADMIN__TOKEN": fleet.token},
    )


def _begun(recording: Path) -> bool | None:
    """Whether the first telemetry was written."""
    return True if recording.is_dir() and segments(recording) else None


@asynccontextmanager
async def _started(wanted: Wanted, children: Children) -> AsyncIterator[_Fleet]:
    """The nodes and the router before them, answering."""
    nodes, models = await _nodes(wanted, children)
    port, admin_port = free_ports(2)
    document = router_config(nodes, models, speed=wanted.speed, port=port, admin_port=admin_port)
    document["policy"] = {
        "name": wanted.policy,
        "exploration": wanted.exploration,
        "exploration_budget": 1.0,  # what is recorded is to be learned from, whatever it costs
    }
    config, token = children.directory / "router.yaml", secrets.token_urlsafe(24)
    config.write_text(json.dumps(document, indent=2))  # JSON is YAML
    router = children.start("router", ["serve", "--config", str(config)], {"CCR_ADMIN__TOKEN": token})
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        await children.until(router, "answer /readyz", lambda: _ready(session, url))
    yield _Fleet(children, url, config, token)


async def _nodes(
    wanted: Wanted, children: Children
) -> tuple[tuple[EmulatedNode, ...], tuple[ServedModel, ...]]:
    options = {
        "--port": 0, "--count": wanted.nodes, "--speed": wanted.speed, "--overhead-ms": _OVERHEAD_MS,
        "--seed": wanted.seed,
    }  # fmt: skip
    child = children.start(
        "nodes", ["node", "--json", *(str(word) for pair in options.items() for word in pair)]
    )
    found = await children.until(child, "say where they are", lambda: _announced(child))
    nodes = tuple(EmulatedNode(f"a10-{i}", node["url"]) for i, node in enumerate(found["nodes"], 1))
    return nodes, tuple(
        ServedModel(model, one["gib"], one["load_s"]) for model, one in found["models"].items()
    )


async def _announced(child: Child) -> Any:
    """What ``ccr node --json`` printed, once it is whole."""
    try:
        return json.loads(child.out.read_bytes())
    except json.JSONDecodeError:
        return None


async def _ready(session: aiohttp.ClientSession, url: str) -> bool | None:
    try:
        async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=1.0)) as response:
            return True if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None


def _words(wanted: Wanted) -> str:
    """The fleet, as the header tells it."""
    speed = "" if wanted.speed == 1.0 else f" at {wanted.speed:g} times their speed"
    return (
        f"{wanted.nodes} emulated A10 (graph preset, engine_swap loads, {_OVERHEAD_MS} ms overhead, seed {wanted.seed})"
        f"{speed} behind {wanted.policy} with exploration {wanted.exploration:g}"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), default=OUT,
              help="Where the trace goes.  [default: that of the package]")  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(10.0), default=_DEFAULT.seconds, show_default=True, help="Of arrivals."
)
@click.option("--seed", type=click.IntRange(0), default=_DEFAULT.seed, show_default=True,
              help="Of the workload and of the load times.")  # fmt: skip
def main(out: Path, seconds: float, seed: int) -> None:
    """Record a bursty workload on four emulated A10 nodes, in real time."""
    try:
        header, summary = record(Wanted(seconds=seconds, seed=seed), out)
    except CCRError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: {header.rows:,} requests, {out.stat().st_size / 2**10:,.0f} KiB")
    if summary.late_p99_s > _LATE_S:
        click.echo("this machine was too busy: its delays are in the latencies; record again when it is idle")


if __name__ == "__main__":
    main()
