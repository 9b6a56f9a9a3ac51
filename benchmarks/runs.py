"""One run: load on one system by a generator on the other core, and what that cost the system."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks import wrk
from benchmarks.loadgen import Plan
from benchmarks.processes import BenchmarkError, idle_s, on_core
from benchmarks.stats import Sample
from benchmarks.systems import Place, System

_GRACE_S = 20.0
_WARM_WRK_S = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What the generator saw, and what the server spent meanwhile.

    Args:
        result: as ``benchmarks.loadgen.run`` returns it.
        cpu_s: processor time of the server; 0 for ``direct``.
        idle_s: time its core had nothing to do.
        memory_mb: resident and proportional set of the server afterwards; zeros for ``direct``.
    """

    result: dict[str, Any]
    cpu_s: float
    idle_s: float
    memory_mb: tuple[float, float]

    @property
    def honesty(self) -> Sample:
        """What says whether the numbers may be quoted: failures, and how busy the own generator was."""
        failed = self.result["failed"] + self.result["unfinished"]
        busy = self.result.get("generator_busy")
        return {"failed": failed} | ({} if busy is None else {"generator_busy": busy})

    def cost(self, name: str, count: int) -> Sample:
        """Processor time per request or chunk, shares of its core, memory; empty for ``direct``."""
        if self.memory_mb == (0.0, 0.0):
            return {}
        return {
            name: self.cpu_s / max(1, count) * 1e6,
            "server_busy": self.cpu_s / self.result["elapsed_s"],
            "core_idle": self.idle_s / self.result["elapsed_s"],
            "rss_mb": self.memory_mb[0],
            "pss_mb": self.memory_mb[1],
        }


def carried_out(place: Place, system: System, plan: Plan) -> Run:
    """The plan, on this system; a closed loop with wrk where it is installed.

    Raises:
        BenchmarkError: if nothing was answered.
    """
    wrk_path = place.wrk if plan.mode == "closed" else None
    if wrk_path:
        _wrk(wrk_path, place, plan, _WARM_WRK_S)
    server = system.server
    if server is not None:
        server.settle()
    idle_before_s = idle_s(place.cores.server)
    before_s = server.cpu_s() if server else 0.0
    seconds = max(1, round(plan.duration_s))
    result = _wrk(wrk_path, place, plan, seconds) if wrk_path else _own(place, plan)
    cpu_s = server.cpu_s() - before_s if server else 0.0
    idle = idle_s(place.cores.server) - idle_before_s
    if not result["answered"] or "latency_ms" not in result:
        raise BenchmarkError(f"{system.name} answered nothing well on POST {plan.path}: {result}")
    return Run(result, cpu_s, idle, server.memory_mb() if server else (0.0, 0.0))


def _wrk(path: str, place: Place, plan: Plan, seconds: int) -> dict[str, Any]:
    command = wrk.command(path, place.folder, plan.ports[0], plan.path, plan.body, seconds)
    return wrk.parse(_output(place, command, b"", seconds).decode())


def _own(place: Place, plan: Plan) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.loadgen"]
    output = _output(place, command, msgspec.json.encode(plan), plan.warm_s + plan.duration_s)
    result: dict[str, Any] = json.loads(output)
    return result


def _output(place: Place, command: list[str], given: bytes, seconds: float) -> bytes:
    with on_core(place.cores.load):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    try:
        output, problem = process.communicate(given, timeout=seconds + _GRACE_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise BenchmarkError(f"the load generator failed ({command[0]}): {problem.decode()[-1000:]}")
    return output
