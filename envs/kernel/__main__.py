"""Compile the simulator ahead of its first use: ``python -m envs.kernel``; at once when nothing has changed."""

import sys
import time

from ccr.policies.least_cost import LeastCost
from envs.scenarios import plain
from envs.simulator import simulate


def main() -> None:
    """Run one small episode, which compiles everything that is not in the cache."""
    started_s = time.perf_counter()
    sys.stdout.write("compiling the simulator (a minute or two the first time) ... ")
    sys.stdout.flush()
    simulate(plain("warm-up", "", nodes=2, rate=0.5, duration_s=5.0), LeastCost(), 0, engine="compiled")
    sys.stdout.write(f"{time.perf_counter() - started_s:.0f} s\n")


if __name__ == "__main__":
    main()
