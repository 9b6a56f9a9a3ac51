"""Where numbers come from: command, commit, versions, seeds, machine."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ccr.version import __version__
from envs.evaluation.plan import Plan

_PACKAGES: Final = ("numpy", "numba", "scipy", "cmaes")
_HERE: Final = Path(__file__).resolve().parents[2]


def origin() -> dict[str, Any]:
    """What every result carries: the command as it was typed, the code and the machine it ran on."""
    return {
        "command": shlex.join(["ccr", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {"ccr-autopilot": __version__, "python": platform.python_version()} | _versions(),
        "machine": {"cpu_count": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def of_plan(plan: Plan) -> dict[str, Any]:
    """What was compared."""
    return {
        "baseline": plan.baseline,
        "policies": {
            one.label: {"policy": one.policy, "options": dict(one.options)} for one in plan.contenders
        },
        "scenarios": list(plan.scenarios),
        "seeds": {"base": plan.seeds.start, "count": len(plan.seeds)},
    }


def commit() -> str:
    """Of the code that runs, with ``-dirty`` if it was changed since; empty outside a checkout."""
    if not (_HERE / ".git").exists():
        return ""
    return _git("rev-parse", "--short=12", "HEAD") + ("-dirty" if _git("status", "--porcelain") else "")


def flat(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The manifest as lines for people: nested names are joined with a dot."""
    lines: dict[str, str] = {}
    for name, value in manifest.items():
        if isinstance(value, Mapping) and value:
            lines |= flat(value, f"{prefix}{name}.")
        elif value not in ({}, [], ""):
            lines[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [git, "-C", str(_HERE), *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip()
