"""What a comparison keeps of a run: its figures, and a sketch of its latencies; never every request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from envs.episode import OK, Episode
from envs.evaluation.plan import Run, Task

#: Where the latencies are sketched: the body evenly, then ever finer into the tail up to P99.9.
LEVELS: Final = tuple(
    float(level)
    for level in np.concatenate([np.linspace(0.0, 0.9, 37)[:-1], 1.0 - np.geomspace(0.1, 1e-3, 41)])
)


@dataclass(frozen=True, slots=True)
class Result:
    """One run, small enough to keep thousands of them.

    Args:
        scenario: its name.
        label: of the contender.
        seed: of the run.
        metrics: see :meth:`envs.episode.Episode.metrics`.
        latency_s: quantiles of the latency of served requests at :data:`LEVELS`; empty if none was served.
    """

    scenario: str
    label: str
    seed: int
    metrics: Mapping[str, float]
    latency_s: tuple[float, ...]


def measure(run: Run, task: Task) -> Result:
    """Do one run and keep what is needed."""
    episode = run(task.scenario, task.contender.policy, task.seed, task.contender.options)
    return Result(task.scenario, task.contender.label, task.seed, episode.metrics(), _latencies(episode))


def _latencies(episode: Episode) -> tuple[float, ...]:
    served_s = episode.total_s[episode.counted & (episode.status == OK)]
    return tuple(np.quantile(served_s, LEVELS).tolist()) if len(served_s) else ()
