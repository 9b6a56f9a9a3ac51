"""Policies in real time, on emulated A10 nodes behind the real router, under ``ccr replay``: ``python -m benchmarks.contest``.

Nodes, router and client are processes of their own. Every policy gets the same trace; the order of the policies is turned
round for the second half of the runs, so that what the machine does meanwhile falls on all alike. Times are emulated.
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import uvloop

from benchmarks.report import commit
from ccr.cli import print_table
from ccr.reward import slo_s
from envs.scenario import Floats
from envs.scenarios import MODELS, arrivals_of, plain
from envs.traces.synth import Workload, draw
from envs.traces.trace import Trace, read, write
from router.demo.stage import Stage, Wanted, built
from router.demo.workload import PATIENCE_S
from router.load import open_session

POLICIES: Final = ("round_robin", "least_request", "article", "least_cost", "learned")
WARMUP_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played.

    Args:
        policies: by name.
        seconds: of traffic in each run, emulated.
        rate: requests per second and node, emulated.
        speed: emulated seconds per second.
        seeds: of the traces; each is played twice by every policy.
    """

    policies: tuple[str, ...]
    seconds: float
    rate: float
    speed: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One policy on one trace; emulated seconds.

    Args:
        policy: its name.
        seed: of the trace.
        latency_s: of the requests that were answered.
        promised_s: within which each of *all* requests should have been, shape ``(r,)``.
        kept: how many were.
        refused: answered with 429.
        errors: everything else that was no answer.
        late_p99_s: how late the client itself was.
    """

    policy: str
    seed: int
    latency_s: Floats
    promised_s: Floats
    kept: int
    refused: int
    errors: int
    late_p99_s: float


async def played(nodes: int, plan: Plan) -> list[Run]:
    """Every policy on every trace, once in order and once in reverse."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="ccr-contest-") as folder:
        async with (
            open_session() as session,
            built(Wanted(plan.speed, nodes, 1, learner=False), session) as stage,
        ):
            for seed in plan.seeds:
                trace = Path(folder) / f"trace-{seed}.csv"
                write(a_trace(nodes, plan, seed), trace)
                for policy in (*plan.policies, *reversed(plan.policies)):
                    runs.append(await _run(stage, trace, policy, seed, plan))
                    click.echo(
                        f"{nodes} nodes, seed {seed}: {json.dumps(row(nodes, policy, runs[-1:]))}", err=True
                    )
    return runs


def a_trace(nodes: int, plan: Plan, seed: int) -> Trace:
    """Bursty conversations with six models of drifting popularity, at the rate for so many nodes."""
    workload = Workload(
        models=MODELS[:6], rate=plan.rate * nodes, duration_s=plan.seconds + WARMUP_S, drift=0.3
    )
    return draw(workload, seed)


async def _run(stage: Stage, trace: Path, policy: str, seed: int, plan: Plan) -> Run:
    await stage.reset_nodes()
    await stage.use_policy(policy)
    samples = trace.with_suffix(".samples.csv")
    command = [sys.executable, "-m", "ccr", "replay", str(trace), "--target", stage.url, "--rate-scale", str(plan.speed),
               "--timeout", f"{PATIENCE_S / plan.speed:.0f}s", "--samples", str(samples)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221 - nothing else is to run
    if done.returncode:
        raise click.ClickException(f"ccr replay failed: {done.stderr.strip()[-500:]}")
    await stage.in_flight()
    return counted(samples, trace, policy, seed, plan.speed)


def counted(samples: Path, path: Path, policy: str, seed: int, speed: float) -> Run:
    """What came of the requests after the warm-up."""
    trace = read(path)
    scenario = plain("contest", "Nothing but the models.", models=MODELS[:6])
    arrivals = arrivals_of(trace, tuple(scenario.models))
    promised_s = slo_s(scenario.ideal_s(arrivals))
    with samples.open(newline="") as file:
        by_line = {int(line["line"]): line for line in csv.DictReader(file)}
    rows = [by_line[j + 2] for j in range(len(trace))]  # the first line is the header
    counts = trace.t >= WARMUP_S
    is_ok = np.array([not line["error"] for line in rows])
    total_s = speed * np.array([float(line["ended_s"]) - float(line["due_s"]) for line in rows])
    late_s = speed * np.array([float(line["sent_s"]) - float(line["due_s"]) for line in rows])
    refused = np.array([line["error"] == "http_429" for line in rows])
    return Run(
        policy, seed, total_s[counts & is_ok], promised_s[counts], int((counts & is_ok & (total_s <= promised_s)).sum()),
        int((counts & refused).sum()), int((counts & ~is_ok & ~refused).sum()), float(np.quantile(late_s, 0.99)),
    )  # fmt: skip


def row(nodes: int, policy: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of a policy over its runs: percentiles of all latencies together, shares of all requests offered."""
    latency_s = np.concatenate([run.latency_s for run in runs])
    offered = sum(len(run.promised_s) for run in runs)
    return {
        "nodes": nodes, "policy": policy, "requests": offered,
        "p50_ms": round(1e3 * float(np.quantile(latency_s, 0.5))),
        "p99_ms": round(1e3 * float(np.quantile(latency_s, 0.99))),
        "mean_ms": round(1e3 * float(latency_s.mean())),
        "slo": round(sum(run.kept for run in runs) / offered, 4),
        "refused": sum(run.refused for run in runs), "errors": sum(run.errors for run in runs),
        "p99_ms_of_runs": [round(1e3 * float(np.quantile(run.latency_s, 0.99))) for run in runs],
        "slo_of_runs": [round(run.kept / len(run.promised_s), 4) for run in runs],
        "client_late_p99_ms": round(1e3 * max(run.late_p99_s for run in runs)),
    }  # fmt: skip


def rows_of(nodes: int, plan: Plan, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row for each policy."""
    for policy in plan.policies:
        yield row(nodes, policy, [run for run in runs if run.policy == policy])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", default="4,8", show_default=True, help="Sizes of the fleet, by commas.")
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="By commas.")
@click.option(
    "--seconds", type=click.FloatRange(30.0), default=180.0, show_default=True, help="Emulated, of each run."
)
@click.option(
    "--rate", type=float, default=1.1, show_default=True, help="Requests per emulated second and node."
)
@click.option(
    "--speed",
    type=float,
    default=6.0,
    show_default=True,
    help="Of 4 nodes; more of them run slower in proportion.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Traces.")
@click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON there as well."
)
def main(
    nodes: str, policies: str, seconds: float, rate: float, speed: float, seeds: int, json_to: Path | None
) -> None:
    """Let policies serve the same traffic in real time, order-balanced, and compare P99 and kept promises."""
    names = tuple(policies.split(","))
    plan = Plan(names, seconds, rate, speed, tuple(range(1, seeds + 1)))
    found: list[dict[str, Any]] = []
    for count in map(int, nodes.split(",")):
        scaled = replace(plan, speed=speed * min(1.0, 4.0 / count))
        rows = list(rows_of(count, scaled, uvloop.run(played(count, scaled))))
        found += [{**each, "speed": scaled.speed} for each in rows]
        print_table(
            rows, ("policy", "requests", "p50_ms", "p99_ms", "mean_ms", "slo", "refused", "errors", "client_late_p99_ms"),
            as_json=False, title=f"{count} nodes, {rate:g} requests per second and node, emulated milliseconds",
        )  # fmt: skip
    if json_to is not None:
        command = " ".join(["python -m benchmarks.contest", *sys.argv[1:]])
        json_to.write_text(
            json.dumps({"command": command, "commit": commit(), "rows": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
