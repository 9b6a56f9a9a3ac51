"""A registered version of the policy, the moves of the champion, and when a version may become it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ccr.errors import CCRError

CHAMPION: Final = "champion"
"""Alias of the version that passed the gate and was promoted."""
CHALLENGER: Final = "challenger"
"""Alias of the version that was trained last."""
SUITE: Final = "full"
"""A verdict counts for a promotion when it was reached on these scenarios."""
#: What a version keeps of its latest verdict -> what it is; lists and promotions need no more.
GATE: Mapping[str, str] = MappingProxyType(
    {
        "passed": "whether every condition was met",
        "when": "it was reached, ISO 8601",
        "sha256": "of the arrays that were judged",
        "suite": "of scenarios",
        "incumbent": "kind and version of whom it was judged against",
        "against_heuristic": "cost ratio to the best heuristic, with its interval",
        "artefact": "where all of it is, among the files of the version's run",
    }
)


class RegistryError(CCRError):
    """The registry cannot be used, has no such version, or refuses a promotion; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is kept of a training run, beside its weights.

    Args:
        params: what it was asked to do.
        metrics: what came out.
        curves: name -> values, step by step.
        artefacts: files to keep with it, such as a report.
        name: of the run; the version of the weights without one.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    artefacts: Sequence[Path] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version.

    Args:
        number: counted by the registry, from 1.
        label: the version that the weights' own manifest gives.
        aliases: that point to it.
        created_at: when it was registered, ISO 8601.
        sha256: of its arrays.
        run_id: the run that made it.
        gate: of its latest verdict, see :data:`GATE`; empty before the first.
    """

    number: int
    label: str
    aliases: tuple[str, ...]
    created_at: str
    sha256: str
    run_id: str
    gate: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Move:
    """The champion changed.

    Args:
        action: ``promote`` or ``rollback``.
        version: the champion from then on; ``None``: the shipped weights.
        before: the one until then; ``None``: the shipped weights.
        who: user and machine.
        when: ISO 8601.
        why: in the operator's words.
        forced: whether it went past the gate.
    """

    action: str
    version: int | None
    before: int | None
    who: str
    when: str
    why: str = ""
    forced: bool = False


def objection_to(version: Version, champion: Version | None) -> str:
    """Why a version may not become champion; empty if it may.

    Args:
        version: to be promoted.
        champion: the present one; ``None``: the shipped weights.
    """
    gate = version.gate
    if not gate:
        return "it has no verdict"
    if gate["passed"] is not True:
        return f"it did not pass the gate on {gate['when'][:10]}"
    if gate["sha256"] != version.sha256:
        return "its verdict is about other weights"
    if gate["suite"] != SUITE:
        return f"its verdict is on the suite {gate['suite']!r}, not {SUITE!r}"
    now = str(champion.number) if champion else ""
    if gate["incumbent"] != {"kind": CHAMPION, "version": now}:
        return "its verdict is not against the present champion, " + (
            f"version {now}" if now else "the shipped weights"
        )
    return ""


def standing(history: Sequence[Move]) -> list[Move]:
    """The promotions that were not rolled back, oldest first."""
    found: list[Move] = []
    for move in history:
        if move.action == "promote":
            found.append(move)
        elif found:
            found.pop()
    return found


def gate_of(tag: str) -> dict[str, Any]:
    """The gate's part of a version out of its tag; empty where there is none, or somebody wrote something else there."""
    try:
        found = json.loads(tag)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and set(GATE) <= set(found) else {}
