"""Claims that are not played: how long training took, how long a decision takes, and what was measured in real time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.claims.claims import Claim, judged
from benchmarks.claims.table import Bar
from ccr.weights import Weights
from envs.evaluation.statistics import Ratio

_TRAIN: Final = "make train"
_DECIDE: Final = "ccr bench decide --nodes 8,64 --json FILE"
_CONTEST: Final = "python -m benchmarks.contest --json FILE"
#: Nodes -> microseconds.
_DECISIONS: Final = {8: 40.0, 64: 100.0}
#: Rival -> how much longer the P99 may be, and the share of its kept promises that has to be reached; a tie is enough with the tuned one.
_RIVALS: Final = {
    "round_robin": (1.0, 1.0), "least_request": (1.0, 1.0), "article": (1.0, 1.0), "least_cost": (1.05, 0.98),
}  # fmt: skip
_FLEETS: Final = (4, 8)


def training(weights: Weights) -> Claim:
    """How long it took to train these weights, as their manifest says."""
    wall_s = weights.manifest["training"].get("wall_s")
    minutes = None if wall_s is None else float(wall_s) / 60.0
    return judged("training", "training on two cores, minutes", Bar(15.0), _exactly(minutes), _TRAIN)


def decisions(path: Path | None) -> list[Claim]:
    """The time of a decision with its features, from what ``ccr bench decide`` wrote."""
    rows = {row["nodes"]: row for row in _rows(path) if row["policy"] == "learned"}
    return [
        judged(
            f"decide-{nodes}", f"decision with features among {nodes} nodes, P99 in microseconds", Bar(most),
            _exactly(rows.get(nodes, {}).get("p99_us")), _DECIDE,
        )
        for nodes, most in _DECISIONS.items()
    ]  # fmt: skip


def real_time(path: Path | None) -> list[Claim]:
    """The learned policy in real time, from what ``python -m benchmarks.contest`` wrote."""
    rows = {(row["nodes"], row["policy"]): row for row in _rows(path)}
    fleets = sorted({nodes for nodes, _ in rows}) or _FLEETS
    return [claim for nodes in fleets for claim in _in_real_time(nodes, rows)]


def _in_real_time(nodes: int, rows: Mapping[tuple[int, str], Mapping[str, Any]]) -> list[Claim]:
    return [
        judged(
            f"real-time-{nodes}-{metric.removesuffix('_ms')}-{rival}",
            f"{words} against {rival}, in real time, {nodes} emulated nodes", bar,
            _ratio(rows.get((nodes, "learned"), {}).get(metric), rows.get((nodes, rival), {}).get(metric)), _CONTEST,
        )
        for rival, (longer, kept) in _RIVALS.items()
        for metric, words, bar in (("p99_ms", "P99", Bar(longer)), ("slo", "kept promises", Bar(kept, at_least=True)))
    ]  # fmt: skip


def sizes(weights: Weights, path: Path) -> dict[str, float]:
    """What training gave and what it took, in numbers: name -> how many."""
    facts = weights.manifest["training"]
    budget = facts.get("budget", {})
    return {
        "trained numbers": sum(array.size for array in weights.network),
        "bytes of the file": path.stat().st_size,
        "features of a node": len(weights.network.node),
        "features of a request": len(weights.network.request),
    } | {
        f"budget: {name}": float(budget[name])
        for name in (
            "generations",
            "population",
            "days",
            "rounds",
            "lessons",
            "decisions",
            "epochs",
            "steps",
            "exam",
        )
        if name in budget
    }


def _rows(path: Path | None) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["rows"]) if path is not None else []


def _exactly(value: float | None) -> Ratio:
    return Ratio(value, None, None, None, 0, 0 if value is None else 1)


def _ratio(value: float | None, reference: float | None) -> Ratio:
    return _exactly(value / reference if value is not None and reference else None)
