"""What a learner tells of itself, in a few lines for people; nothing of it is trusted."""

from collections.abc import Mapping
from typing import Any, Final

_MOST_DRIFTS: Final = 3
_LEAST_ANSWERS: Final = 20


def lines(status: Mapping[str, Any], now_s: float) -> list[str]:
    """Of the value that a learner puts into the store.

    Args:
        status: as it was put.
        now_s: seconds since 1970.
    """
    version, gate = status.get("version"), status.get("gate")
    for_s = max(now_s - float(status.get("since_s", now_s)), 0.0)
    doing = f"{status.get('state', 'unknown')} for {for_s:.0f} s"
    if progress := status.get("progress"):
        doing += f" ({progress['words']}, {progress['share']:.0%})"
    found = [
        f"learner: {doing}; {status.get('records', 0):,} records, {status.get('records_per_s', 0.0):.0f}/s"
    ]
    if version:
        number = version.get("registered")
        where = f"in MLflow as {number}" if number else "not in MLflow yet"
        found.append(
            f"  published: version {version['version']}, {version['name']} ({version['reason']}), {where}"
        )
    found.append(f"  last gate: {gate['words']}" if gate else "  last gate: none yet")
    found.append(
        f"  calibration: {_calibration(status.get('calibration') or {}, status.get('doubted') or [])}"
    )
    drifts = status.get("drift") or []
    found += [
        f"  drift: {one['words']}, since {max(now_s - one['since_s'], 0.0):.0f} s"
        for one in drifts[-_MOST_DRIFTS:]
    ]
    return found if drifts else [*found, "  drift: none"]


def _calibration(found: Mapping[str, Any], doubted: list[str]) -> str:
    nodes = {
        name: one
        for name, one in (found.get("nodes") or {}).items()
        if one.get("answers", 0) >= _LEAST_ANSWERS
    }
    if not nodes:
        return "no node has answered enough yet"
    words = [f"{name} {one['speed']:.2f}x" for name, one in list(nodes.items())[:8]]
    loads = [one["load_s"] for one in (found.get("models") or {}).values() if one.get("load_s") is not None]
    if loads:
        words.append(f"loads {min(loads):.1f}-{max(loads):.1f} s")
    if doubted:
        words.append(f"telemetry doubted: {', '.join(doubted)}")
    return ", ".join(words)
