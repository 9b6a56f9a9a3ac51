"""The measures: each starts what it needs, runs the systems in turn, and returns one sample per system and repeat."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from benchmarks import swap as swaps
from benchmarks.loadgen import Plan
from benchmarks.processes import BenchmarkError, on_core
from benchmarks.runs import carried_out
from benchmarks.stats import Sample, compared
from benchmarks.systems import (
    CHAT,
    FRONTS,
    ROUTE,
    ROUTE_BODY,
    Place,
    System,
    chat_body,
    nodes,
    reference,
)

OPEN_RATE_PER_S = 500.0
DECIDED_NODES = (8, 64)
FED_NODES = 8
DECIDED = ("learned", "least_cost", "article", "hot_cold")
DECIDED_BESIDE = "hot_cold"
"""The policy that decisions are compared with: the heuristic that needs no look at every node."""
STREAMS = 50


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Args:
        repeats: rounds over the systems.
        seconds: of one run, without its warm-up.
        warm_s: of the own generator; wrk warms up for a whole second.
        seed: of the arrivals of the open loop.
    """

    repeats: int
    seconds: int
    warm_s: float
    seed: int

    @property
    def decisions(self) -> int:
        """That are timed for each policy and size of fleet, five times over."""
        return 800 * self.seconds

    @property
    def swaps(self) -> int:
        """Of weights, three seconds apart."""
        return 2 * self.seconds

    @property
    def fed_rounds(self) -> int:
        """Blocks of 200 requests told, and as many untold."""
        return 12 * self.seconds

    @property
    def learned_records(self) -> int:
        """That the learner reads from each store."""
        return 4_000 * self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """The samples of one measure.

    Args:
        name: of the measure.
        what: one line for people.
        reference: the system that ``ratio`` is to; empty when there is none.
        ratio_of: the metric of the ratio.
        repeats: per repeat: system -> sample.
    """

    name: str
    what: str
    reference: str
    ratio_of: str
    repeats: tuple[Mapping[str, Sample], ...]


Measure = Callable[[Place, Effort, Sequence[str]], Iterator[Measured]]


def route(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:
    """Decisions per second, among 4 nodes and among 16; beside an answer that decides nothing."""
    with ExitStack() as stack:
        ports = stack.enter_context(nodes(place, 16))
        fronts = [stack.enter_context(FRONTS[name](place, ports[:4])) for name in systems]
        if "router" in systems:
            wide = stack.enter_context(FRONTS["router"](place, ports))
            fronts.append(System("router-16", wide.ports, wide.server))
        run = partial(_closed, place, effort, ROUTE, ROUTE_BODY)
        yield _measured("route", "POST /route, closed loop, 50 connections", fronts, effort, run)


def proxy(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:
    """Forwarded chat requests per second, with a short prompt and with 16 KB."""
    with ExitStack() as stack:
        fronts = _fronts(stack, place, systems)
        for name, size in (("proxy", 32), ("proxy-16k", 16 * 2**10)):
            run = partial(_closed, place, effort, CHAT, chat_body(size))
            what = f"POST {CHAT}, prompt of {size} bytes, closed loop, 50 connections, 4 nodes"
            yield _measured(name, what, fronts, effort, run)


def latency(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:
    """What is added to a chat request at a modest rate, from the moment it was due."""
    added = {"added_p50_ms": "p50_ms", "added_p99_ms": "p99_ms"}
    with ExitStack() as stack:
        fronts = _fronts(stack, place, systems)
        what = f"POST {CHAT}, open loop (Poisson), {OPEN_RATE_PER_S:g} requests/s, 4 nodes"
        run = partial(_open, place, effort)
        yield _measured("latency", what, fronts, effort, run, "p50_ms", added)


def stream(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:
    """What is added to streams: to the first chunk, and to each one after."""
    added = {"added_first_p50_ms": "first_p50_ms", "added_first_p99_ms": "first_p99_ms"}
    with ExitStack() as stack:
        fronts = _fronts(stack, place, systems, streaming=True)
        what = f"{STREAMS} SSE streams, 20 ms to the first chunk, 32 more 20 ms apart, 4 nodes"
        run = partial(_stream, place, effort)
        yield _measured("stream", what, fronts, effort, run, "cpu_us_per_chunk", added)


def start(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:
    """Seconds from start to the first answer, and memory then."""
    with nodes(place) as ports:
        each = [System(name, ports) for name in systems]
        run = partial(_start, place, ports)
        what = "from start to the first answer to POST /route"
        yield _measured("start", what, each, effort, run, "first_answer_s")


def decide(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:  # noqa: ARG001 - as all measures
    """One decision in a process that does nothing else; policies stand in the place of systems."""
    for n in DECIDED_NODES:
        what = f"one decision among {n} nodes, features and everything else included; policies in turn"
        repeats = (_decided(place, n, effort.decisions) for _ in range(effort.repeats))
        compared_ = tuple(compared(each, DECIDED_BESIDE, "p50_us") for each in repeats)
        yield Measured(f"decide-{n}", what, DECIDED_BESIDE, "p50_us", compared_)


def feedback(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:  # noqa: ARG001 - as all measures
    """A request between the wire and the core, told to the learner and not, in turn."""
    what = f"one request among {FED_NODES} nodes between the wire and the core; told to the learner, and not"
    repeats = (_fed(place, effort.fed_rounds) for _ in range(effort.repeats))
    compared_ = tuple(compared(each, "untold", "p50_us") for each in repeats)
    yield Measured("feedback", what, "untold", "p50_us", compared_)


def swap(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:  # noqa: ARG001 - as all measures
    """Requests near swaps of weights, and away from them."""
    what = f"POST /route and its report, one client; {effort.swaps} swaps of published weights, near them and away from them"
    with nodes(place) as ports:
        repeats = tuple(
            compared(swaps.measured(place, ports, effort.swaps), "away", "p50_ms")
            for _ in range(effort.repeats)
        )
    yield Measured("swap", what, "away", "p50_ms", repeats)


def learner(place: Place, effort: Effort, systems: Sequence[str]) -> Iterator[Measured]:  # noqa: ARG001 - as all measures
    """Records that the learner takes in a second of one core, from each kind of store, and its memory."""
    what = f"records of {FED_NODES} nodes read, checked and learned from in a second of one core; by the store they are in"
    repeats = (_learned(place, effort.learned_records) for _ in range(effort.repeats))
    compared_ = tuple(compared(each, "embedded", "rate_per_s") for each in repeats)
    yield Measured("learner", what, "embedded", "rate_per_s", compared_)


#: Every measure, in the order they run.
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "decide": decide,
        "feedback": feedback,
        "learner": learner,
        "route": route,
        "proxy": proxy,
        "latency": latency,
        "stream": stream,
        "start": start,
        "swap": swap,
    }
)


def in_turn(
    systems: Sequence[System], repeats: int, run: Callable[[System], Sample]
) -> Iterator[dict[str, Sample]]:
    """One sample per system and repeat; every other repeat in reverse, so that drift hits all alike."""
    for repeat in range(repeats):
        order = systems if repeat % 2 == 0 else systems[::-1]
        yield {system.name: run(system) for system in order}


def _measured(
    name: str,
    what: str,
    systems: Sequence[System],
    effort: Effort,
    run: Callable[[System], Sample],
    ratio_of: str = "rate_per_s",
    added: Mapping[str, str] | None = None,
) -> Measured:
    base = reference([system.name for system in systems])
    rounds = in_turn(systems, effort.repeats, run)
    repeats = tuple(compared(each, base, ratio_of, added) for each in rounds)
    return Measured(name, what, base, ratio_of, repeats)


def _fronts(
    stack: ExitStack, place: Place, systems: Sequence[str], *, streaming: bool = False
) -> list[System]:
    ports = stack.enter_context(nodes(place, streaming=streaming))
    fronts = [stack.enter_context(FRONTS[name](place, ports)) for name in systems]
    return [System("direct", ports), *fronts]


def _closed(place: Place, effort: Effort, path: str, body: str, system: System) -> Sample:
    run = carried_out(place, system, _plan(effort, system, mode="closed", path=path, body=body))
    result = run.result
    return {
        "rate_per_s": result["rate_per_s"],
        "p50_ms": result["latency_ms"]["p50"],
        "p99_ms": result["latency_ms"]["p99"],
        **run.cost("cpu_us", result["answered"]),
        **run.honesty,
    }


def _open(place: Place, effort: Effort, system: System) -> Sample:
    plan = _plan(effort, system, mode="open", path=CHAT, body=chat_body(), rate=OPEN_RATE_PER_S)
    run = carried_out(place, system, plan)
    result = run.result
    return {
        "p50_ms": result["latency_ms"]["p50"],
        "p99_ms": result["latency_ms"]["p99"],
        **run.cost("cpu_us", result["answered"]),
        **run.honesty,
    }


def _stream(place: Place, effort: Effort, system: System) -> Sample:
    plan = _plan(effort, system, mode="stream", path=CHAT, body=chat_body(stream=True))
    run = carried_out(place, system, plan)
    result = run.result
    return {
        "first_p50_ms": result["first_ms"]["p50"],
        "first_p99_ms": result["first_ms"]["p99"],
        "chunk_p50_ms": result["chunk_ms"]["p50"],
        "chunk_p99_ms": result["chunk_ms"]["p99"],
        "chunks_per_s": result["chunks"] / result["elapsed_s"],
        **run.cost("cpu_us_per_chunk", result["chunks"]),
        **run.honesty,
    }


def _decided(place: Place, nodes: int, decisions: int) -> dict[str, Sample]:
    out = place.folder / "decide.json"
    command = ["ccr", "bench", "decide", "--nodes", str(nodes), "--policies", ",".join(DECIDED),
               "--decisions", str(decisions), "--json", str(out)]  # fmt: skip
    _said(place, command)
    rows = json.loads(out.read_text())["rows"]
    return {row["policy"]: {"p50_us": row["p50_us"], "p99_us": row["p99_us"]} for row in rows}


def _said(place: Place, command: Sequence[str]) -> str:
    """What a module of ours printed that measures itself, on the core of the server."""
    with on_core(place.cores.server):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _fed(place: Place, rounds: int) -> dict[str, Sample]:
    command = ["benchmarks.feedback", "--nodes", str(FED_NODES), "--rounds", str(rounds), "--json"]
    (row,) = json.loads(_said(place, command))["rows"]
    told = {"p50_us": row["told_us"], "added_us": row["added_us"], "record_us": row["record_us"]}
    return {"untold": {"p50_us": row["untold_us"]}, "told": told}


def _learned(place: Place, records: int) -> dict[str, Sample]:
    rows = json.loads(_said(place, ["benchmarks.learner", "--records", str(max(records, 4_000)), "--json"]))[
        "rows"
    ]
    return {row["store"]: {"rate_per_s": row["per_core_s"], "peak_mb": row["peak_mb"]} for row in rows}


def _start(place: Place, ports: tuple[int, ...], system: System) -> Sample:
    with FRONTS[system.name](place, ports) as front:
        if front.server is None:
            raise BenchmarkError(f"{system.name} starts no program, so it has no start to measure")
        rss_mb, pss_mb = front.server.memory_mb()
        return {"first_answer_s": front.server.first_answer_s, "rss_mb": rss_mb, "pss_mb": pss_mb}


def _plan(effort: Effort, system: System, **how: Any) -> Plan:
    return Plan(ports=system.ports, warm_s=effort.warm_s, duration_s=effort.seconds, seed=effort.seed, **how)
