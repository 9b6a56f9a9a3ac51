"""Compiles the simulator before processes share it, for each of them would do it again: ``python -m envs.ahead``."""

import shutil
import sys
import time
from pathlib import Path
from typing import Final, TextIO

import numba

from ccr.policies.least_cost import LeastCost
from envs.scenarios import plain
from envs.simulator import simulate

_DONE: Final = "complete"
_KEPT: Final = 3
"""Versions of the compiled simulator that stay in the cache, each some 100 MB."""


def compile_ahead(out: TextIO) -> None:
    """Compile what is not in this user's cache yet, and say so, for it takes a minute or two.

    Args:
        out: where to say it.
    """
    cache = Path(numba.config.CACHE_DIR)  # type: ignore[attr-defined]  # set when the module is read
    mark = cache / _DONE
    if mark.exists():
        return
    out.write("compiling the simulator (a minute or two, once for each version of it) ... ")
    out.flush()
    started_s = time.perf_counter()
    simulate(plain("ahead", "", nodes=2, rate=0.5, duration_s=5.0), LeastCost(), 0, engine="compiled")
    mark.touch()
    forget_old_versions(cache)
    out.write(f"{time.perf_counter() - started_s:.0f} s\n")
    out.flush()


def forget_old_versions(current: Path) -> None:
    """Remove what earlier versions left beside the current one, but for the latest."""
    others = [place for place in current.parent.iterdir() if place.is_dir() and place != current]
    others.sort(key=lambda place: place.stat().st_mtime, reverse=True)
    for place in others[_KEPT - 1 :]:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    compile_ahead(sys.stdout)
