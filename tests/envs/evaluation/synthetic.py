"""A simulator with planted effects: latencies are lognormal, each seed has good and bad days, a policy scales them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from envs.episode import FAILED, OK, REJECTED, Episode
from envs.evaluation.engine import Engine

#: Factor on every latency.
FACTORS = {
    "base": 1.0,
    "same": 1.0,
    "three_per_cent": 0.97,
    "half": 0.5,
    "slow": 1.6,
    "picky": 0.8,
    "hopeless": 1.0,
}
REQUESTS = 300


@dataclass(frozen=True)
class Between:
    low: float
    high: float
    log: bool = False


def run(scenario, policy, seed, options, *, requests=REQUESTS):
    """Equal arrivals and days under every policy; noise of its own for each."""
    day = np.random.default_rng([seed, crc32(scenario.encode())])
    mine = np.random.default_rng([seed, crc32(scenario.encode()), 1 + list(FACTORS).index(policy)])
    weather = np.exp(0.3 * day.normal())
    luck = np.exp(0.05 * mine.normal())
    ideal_s = np.exp(day.normal(0.0, 0.4, requests))
    factor = FACTORS[policy] * weather * luck * _penalty(options)
    total_s = 1.5 * factor * ideal_s * np.exp(mine.normal(0.0, 0.5, requests))
    status = np.full(requests, OK)
    if policy == "picky":
        status[::10] = REJECTED
    if policy == "hopeless":
        status[:] = FAILED
    served = status == OK
    return Episode(
        scenario=scenario, policy=policy, seed=seed,
        arrived_s=np.cumsum(day.exponential(0.5, requests)),
        total_s=np.where(served, total_s, np.nan), ttft_s=np.where(served, 0.2 * total_s, np.nan), ideal_s=ideal_s,
        node=np.where(status == REJECTED, -1, 0), status=status, cold=mine.random(requests) < 0.02,
        counted=np.arange(requests) >= 10, evictions=int(mine.integers(0, 4)), loads=5, peak_gib=14.0,
        span_s=0.5 * requests,
    )  # fmt: skip


def _penalty(options):
    """Lowest, 0.7, at weight 8 and slope 0.25; 1 at their defaults 2 and 0.5."""
    if not options:
        return 1.0
    away = np.log2(options["weight"] / 8.0) ** 2 / 4.0 + 16.0 * (options["slope"] - 0.25) ** 2
    return 0.7 * np.exp(np.log(1.0 / 0.7) * away / 2.0)


def run_without_effect(scenario, policy, seed, options):
    """Options change nothing: whatever a search finds is chance."""
    return run(scenario, "base" if not options else "same", seed, {})


def failing(scenario, policy, seed, options):
    if (scenario, policy, seed) == ("calm", "half", 3):
        raise ValueError("the queue has 7 ends")
    return run(scenario, policy, seed, options)


def dying(scenario, policy, seed, options):
    if (scenario, policy, seed) == ("calm", "half", 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return run(scenario, policy, seed, options)


def stuck(scenario, policy, seed, options):
    """Seed 0 is quick; later ones never end by themselves, and say where they are."""
    if seed and "CCR_TEST_STARTED" in os.environ:
        Path(os.environ["CCR_TEST_STARTED"], f"stuck-{policy}-{seed}").touch()
    while seed:
        time.sleep(60.0)
    return run(scenario, policy, seed, options)


def an_engine(run=run, **changes):
    facts = {
        "run": run,
        "scenarios": {
            "calm": "Nobody should lose.",
            "storm <b>": "A scenario & its name need escaping.",
            "rush": "",
        },
        "suites": {"smoke": ("calm", "rush"), "train": ("calm", "rush")},
        "policies": tuple(FACTORS),
        "tunable": {"base": {"weight": Between(0.5, 50.0, log=True), "slope": Between(0.0, 1.0)}},
        "defaults": lambda policy: {"weight": 2.0, "slope": 0.5},
        "of_trace": lambda path: f"trace:{path}",
    }
    return Engine(**(facts | changes))
