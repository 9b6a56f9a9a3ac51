"""Compiles the simulator before processes share it, for each of them would do it again: ``python -m envs.ahead``."""

import sys
import time
from pathlib import Path
from typing import Final, TextIO

import numba

from ccr.policies.least_cost import LeastCost
from envs.scenarios import plain
from envs.simulator import simulate

_DONE: Final = "complete"


def compile_ahead(out: TextIO) -> None:
    """Compile what is not in this user's cache yet, and say so, for it takes a minute or two.

    Args:
        out: where to say it.
    """
    mark = Path(numba.config.CACHE_DIR)  # type: ignore[attr-defined]  # set when the module is read / _DONE
    if mark.exists():
        return
    out.write("compiling the simulator (a minute or two, once for each version of it) ... ")
    out.flush()
    started_s = time.perf_counter()
    simulate(plain("ahead", "", nodes=2, rate=0.5, duration_s=5.0), LeastCost(), 0, engine="compiled")
    mark.touch()
    out.write(f"{time.perf_counter() - started_s:.0f} s\n")
    out.flush()


if __name__ == "__main__":
    compile_ahead(sys.stdout)
