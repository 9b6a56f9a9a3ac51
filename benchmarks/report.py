"""What was measured, as a document with its origin, as tables, and against the targets."""

import importlib.metadata
import operator
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measures import Measured
from benchmarks.stats import Spread, spreads
from benchmarks.systems import Place

_PACKAGES = (
    "ccr-autopilot",
    "aiohttp",
    "fastapi",
    "httptools",
    "msgspec",
    "numpy",
    "starlette",
    "uvicorn",
    "uvloop",
)
#: Below this share of its core a program was not the limit.
_SATURATED = 0.9
#: Repeats further apart than this share of their median are worth a word.
_NOISY = 0.25
_COLUMNS = {
    "rate_per_s": "per s", "ratio": "x", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "p999_ms": "p99.9 ms", "max_ms": "max ms", "added_ms": "added ms",
    "added_p50_ms": "added p50 ms", "added_p99_ms": "added p99 ms",
    "first_p50_ms": "first p50 ms", "first_p99_ms": "first p99 ms",
    "added_first_p50_ms": "added first p50 ms", "added_first_p99_ms": "added first p99 ms",
    "chunk_p50_ms": "chunk p50 ms", "chunk_p99_ms": "chunk p99 ms", "chunks_per_s": "chunks/s",
    "p50_us": "p50 us", "p99_us": "p99 us", "added_us": "added us", "record_us": "thread us", "peak_mb": "peak MB",
    "first_answer_s": "s", "cpu_us": "CPU us", "cpu_us_per_chunk": "CPU us/chunk", "server_busy": "busy", "core_idle": "idle", "generator_busy": "gen. busy",
    "rss_mb": "RSS MB", "pss_mb": "PSS MB", "failed": "failed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What the router should reach, per core.

    Args:
        measure: name of the measure.
        system: whose number counts.
        metric: which of its numbers, by its median.
        at_least: true when more is better.
        value: in the metric's unit.
        beside: the reference a ratio is meant for; empty for absolute numbers.
    """

    measure: str
    system: str
    metric: str
    at_least: bool
    value: float
    beside: str = ""


TARGETS = (
    Target("decide-8", "learned", "p99_us", False, 40.0),
    Target("decide-64", "learned", "p99_us", False, 100.0),
    Target("feedback", "told", "added_us", False, 20.0),
    Target("learner", "embedded", "rate_per_s", True, 2_000),
    Target("learner", "embedded", "peak_mb", False, 700.0),
    Target("learner", "redis", "rate_per_s", True, 2_000),
    Target("learner", "redis", "peak_mb", False, 700.0),
    Target("route", "router", "rate_per_s", True, 20_000),
    Target("route", "router", "ratio", True, 0.15, beside="nginx"),
    Target("proxy", "router", "ratio", True, 0.08, beside="nginx"),
    Target("latency", "router", "added_p50_ms", False, 0.4),
    Target("latency", "router", "added_p99_ms", False, 1.0),
    Target("proxy", "router", "pss_mb", False, 80.0),
    Target("swap", "near", "added_ms", False, 1.0),
)


def origin(place: Place, seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Where the numbers come from: without it a benchmark is a rumour."""
    return {
        "command": " ".join(["python -m benchmarks.bench", *arguments]),
        "commit": commit(),
        "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpu": _cpu_name(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
        "pinned": asdict(place.cores),
        "python": platform.python_version(),
        "packages": dict(_versions(_PACKAGES)),
        "tools": {"nginx": _said(place.nginx), "wrk": _said(place.wrk)},
    }


def document(about: Mapping[str, Any], measured: Iterable[Measured]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    measures = {
        each.name: {
            "what": each.what,
            "reference": each.reference,
            "ratio_of": each.ratio_of,
            "systems": {
                system: {metric: asdict(spread) for metric, spread in metrics.items()}
                for system, metrics in spreads(each.repeats).items()
            },
        }
        for each in measured
    }
    return {"about": dict(about), "measures": measures, "notes": notes(measures), "targets": judged(measures)}


def judged(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target beside the value; ``met`` is null where it was not measured, or cannot be."""
    verdicts = []
    for target in TARGETS:
        measure = measures.get(target.measure, {})
        spread = measure.get("systems", {}).get(target.system, {}).get(target.metric)
        comparable = not target.beside or measure.get("reference") == target.beside
        value = spread["median"] if spread and comparable else None
        reaches = operator.ge if target.at_least else operator.le
        met = None if value is None else reaches(value, target.value)
        verdicts.append({**asdict(target), "measured": value, "met": met})
    return verdicts


def notes(measures: Mapping[str, Any]) -> list[str]:
    """What a reader must know before quoting a number."""
    found = []
    for name, measure in measures.items():
        for system, metrics in measure["systems"].items():
            found += [f"{name}, {system}: {note}" for note in _doubts(metrics)]
    return found


def _doubts(metrics: Mapping[str, Any]) -> Iterable[str]:
    middle = {key: spread["median"] for key, spread in metrics.items()}
    rate, busy = metrics.get("rate_per_s"), middle.get("server_busy")
    if failed := metrics.get("failed", {}).get("high"):
        yield f"up to {failed:g} requests of a run failed"
    if middle.get("generator_busy", 0.0) > _SATURATED:
        yield f"the load generator was busy for {middle['generator_busy']:.0%} of its core: it is the limit"
    if rate and busy is None:
        yield "the ceiling of nodes and load generator on their core"
    if rate and busy is not None and busy < _SATURATED:
        yield _waited(busy, middle["core_idle"])
    if not rate and busy is not None and (others := 1.0 - busy - middle["core_idle"]) > 1.0 - _SATURATED:
        yield f"other programs took {others:.0%} of its core: the machine was not quiet"
    if rate and Spread(**rate).width > _NOISY:
        yield f"repeats differ by {Spread(**rate).width:.0%}: the machine was not quiet"


def _waited(busy: float, idle: float) -> str:
    if idle > 1.0 - _SATURATED:
        return f"used {busy:.0%} of its core, {idle:.0%} idle: nodes and load generator set the pace"
    return f"used {busy:.0%} of its core, other programs the rest: the machine was not quiet"


def render(whole: Mapping[str, Any]) -> str:
    """Tables for people, in Markdown."""
    about = whole["about"]
    machine = about["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average_at_start']} at start"
    lines = [
        f"{where}; commit {about['commit']}; Python {about['python']}; {about['command']}",
        "Medians over the repeats, lowest and highest in brackets. Compare within a table only.",
    ]
    for name, measure in whole["measures"].items():
        lines += ["", f"{name}: {measure['what']}", "", *_table(measure)]
    if whole["notes"]:
        lines += ["", *(f"- {note}" for note in whole["notes"])]
    return "\n".join([*lines, "", *_target_lines(whole["targets"])])


def _table(measure: Mapping[str, Any]) -> list[str]:
    systems = measure["systems"]
    metrics = [key for key in _COLUMNS if any(key in row for row in systems.values())]
    ratio = f"{_COLUMNS[measure['ratio_of']]} x {measure['reference']}"
    head = ["system", *(ratio if key == "ratio" else _COLUMNS[key] for key in metrics)]
    rows = [[name, *(_cell(row.get(key)) for key in metrics)] for name, row in sorted(systems.items())]
    return _aligned([head, *rows])


def _target_lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["target", "wanted", "measured", ""]]
    for target in targets:
        wanted = f"{'>=' if target['at_least'] else '<='} {_number(target['value'])}"
        value = "-" if target["measured"] is None else _number(target["measured"])
        verdict = {True: "pass", False: "miss", None: "not measured"}[target["met"]]
        what = f"{target['measure']} {_COLUMNS[target['metric']]} {target['beside']}".rstrip()
        rows.append([what, wanted, value, verdict])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    low, high = _number(spread["low"]), _number(spread["high"])
    middle = _number(spread["median"])
    return middle if low == high else f"{middle} ({low} - {high})"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def commit() -> str:
    """Of the code that is measured, with ``+changes`` if it was changed since; ``none`` outside a checkout."""
    folder = Path(__file__).parent
    found = _run(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"])
    if not found:
        return "none"
    return found + ("+changes" if _run(["git", "-C", str(folder), "status", "--porcelain"]) else "")


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return ""
    return (done.stdout or done.stderr).strip() if done.returncode == 0 else ""


def _said(tool: str | None) -> str | None:
    """First line of the tool's version; wrk tells it with exit code 1."""
    if tool is None:
        return None
    done = subprocess.run([tool, "-v"], capture_output=True, text=True, timeout=10, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
