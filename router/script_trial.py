"""Run one operator script on made nodes and requests, confined: the inside of the canary's subprocess."""

import json
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypedDict, TypeVar, TypeVarTuple

import numpy as np

from ccr.errors import ScriptError
from ccr.policies.script import ScriptPolicy, batch_hint_s, compile_script
from ccr.policies.script_gate import check_script, imported_modules
from ccr.policies.time_guard import ScriptTimeoutError
from ccr.types import Fleet, NodeSpec, Request

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CPU_LIMIT_S = 1
MEMORY_LIMIT_BYTES = 512 * 2**20
# A busy machine may take the processor away twice in the middle of a good decision, but hardly three times in a row.
ATTEMPTS = 3


class Job(TypedDict):
    """What the canary writes to the subprocess.

    Attributes:
        path: folders that hold this project and numpy.
        source: the script's text.
        filename: for messages.
    """

    path: list[str]
    source: str
    filename: str


class Verdict(TypedDict):
    """What it reads back: what is wrong with the script, empty if nothing is."""

    problem: str


@dataclass(frozen=True, slots=True)
class Case:
    """A made fleet that real fleets look like at times."""

    what: str
    fleet: Fleet


def main(job: Job) -> None:
    """Judge the script of ``job``, and write the verdict to standard output."""
    verdict = Verdict(problem=problem_of(job["source"], job["filename"]))
    os.write(1, json.dumps(verdict).encode())


def problem_of(source: str, filename: str) -> str:
    """What is wrong with the script, in words; empty if nothing is. Confines the process for good."""
    try:
        for module in imported_modules(check_script(source, filename)):
            import_module(module)  # the gate's list only; afterwards no file can be opened
        confine()
        try_on_made_nodes(compile_script(source, filename))
    except ScriptError as error:
        return str(error)
    return ""


def confine() -> None:
    """Take from this process what a script does not need: processor time, memory, files, children."""
    used_s = math.floor(time.process_time() + 0.5)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_CPU: CPU_LIMIT_S + used_s,
        resource.RLIMIT_AS: MEMORY_LIMIT_BYTES + used_bytes,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        hard = (
            value + 1 if limit == resource.RLIMIT_CPU else value
        )  # where both are equal SIGKILL comes, not SIGXCPU
        resource.setrlimit(limit, (value, hard))


def try_on_made_nodes(policy: ScriptPolicy) -> None:
    """Ask the script for every made fleet and request.

    Raises:
        ScriptError: if it fails on any, takes too long, changes what it was handed, or contradicts itself.
    """
    for case in CASES:
        for request in REQUESTS:
            try:
                _try(policy, request, case.fleet)
            except ScriptError as error:
                raise ScriptError(f"{error} (tried on {case.what})") from error
    for count in (1, 4, 16):
        _in_time(_hint, policy, [REQUESTS[0]] * count)


def _try(policy: ScriptPolicy, request: Request, fleet: Fleet) -> None:
    first = _in_time(policy.scores, request, fleet)
    again = _in_time(policy.scores, request, fleet)
    if not np.array_equal(first, again):
        raise ScriptError(
            f"{policy.path}: score answers differently when asked the same again; "
            "it must not remember anything, and must not depend on the order of a set"
        )


def _hint(policy: ScriptPolicy, requests: Sequence[Request]) -> None:
    failures: list[ScriptError] = []
    batch_hint_s(policy, requests, failures.append)
    if failures:
        raise failures[0]


def _in_time(ask: Callable[[*Ts], T], *args: *Ts) -> T:
    for _ in range(ATTEMPTS - 1):
        with suppress(ScriptTimeoutError):
            return ask(*args)
    return ask(*args)


def _made(count: int, row: Mapping[str, object]) -> Fleet:
    """A fleet of nodes whose columns grow from node to node, every second one with the model."""
    return Fleet.of([_row(i, row) for i in range(count)])


def _row(i: int, row: Mapping[str, object]) -> dict[str, object]:
    spec = NodeSpec(
        f"made-{i}", f"http://192.0.2.{i + 1}:8000", tags=frozenset({"canary"} if i % 4 == 3 else ()),
        labels={"gpu": "A10", "zone": "ab"[i % 2]},
    )  # fmt: skip
    grown = {name: value * (1 + i) if isinstance(value, float) else value for name, value in row.items()}
    return {"spec": spec, "loaded": {REQUESTS[0].model} if i % 2 else (), **grown}


REQUESTS = (
    Request(
        id="made", model="llama-7b-int8@3", name="llama-7b-int8", version="3", session="s1", priority=1,
        tenant="team", prompt_tokens=900, output_tokens=256, headers={"x-model-name": "llama-7b-int8"},
    ),
    Request(id="bare", model="unknown", priority=-1),
)  # fmt: skip

CASES = (
    Case("one idle node whose memory is not known", Fleet.of([{"spec": NodeSpec("made-0", "http://192.0.2.1:8000")}])),
    Case("four idle nodes", _made(4, {"gpu_total_gib": 24.0, "gpu_free_gib": 3.0})),
    Case(
        "16 busy nodes",
        _made(
            16,
            {
                "inflight": 4.0, "qps": 30.0, "latency_s": 0.5, "gpu_free_gib": 0.1, "gpu_total_gib": 22.5,
                "running": 4.0, "waiting": 9.0, "kv_used": 0.06, "telemetry_age_s": 0.3,
            },
        ),
    ),
    Case("64 nodes that have not reported for hours", _made(64, {"qps": 0.01, "telemetry_age_s": 9000.0})),
)  # fmt: skip
