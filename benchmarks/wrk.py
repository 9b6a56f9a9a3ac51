"""wrk as the closed-loop generator: one thread, a fixed POST, results as JSON instead of prose."""

import json
import shutil
from pathlib import Path
from typing import Any

_MARK = "RESULT "


def binary() -> str | None:
    """Path of wrk, or ``None`` where it is not installed."""
    return shutil.which("wrk")


def command(wrk: str, folder: Path, port: int, path: str, body: str, seconds: int) -> list[str]:
    """What runs 50 connections for some whole seconds; writes its script into ``folder``."""
    script = folder / "post.lua"
    script.write_text(_script(body))
    url = f"http://127.0.0.1:{port}{path}"
    return [wrk, "-t1", "-c50", f"-d{seconds}s", "--timeout", "5s", "-s", str(script), url]


def parse(output: str) -> dict[str, Any]:
    """The result in the words of ``benchmarks.loadgen.run``.

    Raises:
        ValueError: if wrk printed no result.
    """
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise ValueError(f"wrk printed no result: {output[-500:]!r}")
    raw = json.loads(line.removeprefix(_MARK))
    failed = raw["status"] + raw["socket"]
    elapsed_s = raw["duration_us"] / 1e6
    return {
        "answered": raw["requests"] - raw["status"],
        "failed": failed,
        "unfinished": 0,
        "chunks": 0,
        "elapsed_s": elapsed_s,
        "rate_per_s": (raw["requests"] - raw["status"]) / elapsed_s,
        "latency_ms": {"p50": raw["p50_us"] / 1e3, "p99": raw["p99_us"] / 1e3, "max": raw["max_us"] / 1e3},
    }


def _script(body: str) -> str:
    return f"""
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = {_lua(body)}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{_MARK}{{"requests":%d,"duration_us":%d,"status":%d,"socket":%d,"p50_us":%d,"p99_us":%d,"max_us":%d}}\\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""


def _lua(text: str) -> str:
    if "]==]" in text:
        raise ValueError("a body with ]==] in it would end the script's string")
    return f"[==[{text}]==]"
