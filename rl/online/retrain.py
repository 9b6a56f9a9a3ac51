"""The slow loop: theta searched in the simulator fitted to the live fleet, and judged there on days that were not trained on.

A process of its own at the lowest priority: ``python -m rl.online.retrain DIRECTORY`` reads what to do from files there,
tells how far it is, and leaves its result there. Whoever started it decides what becomes of it.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from ccr import weights
from ccr.canary import State
from ccr.policies.learned import Learned
from ccr.policies.network import Network
from ccr.weights import Weights
from envs.ahead import compile_ahead
from envs.evaluation import manifest
from rl import theta
from rl.days import Cores, Day, regret
from rl.online import live
from rl.online.limits import Limits, Step, step

_Task = TypeVar("_Task")
_Found = TypeVar("_Found")

LEAST_EPISODES: Final = 100
#: Upper ends of the intervals that a candidate has to stay below.
COST_BAR: Final = 1.0
P99_BAR: Final = 1.05
_POPULATION: Final = 10
_DAYS: Final = 6  # of a generation
_GENERATIONS: Final = (3, 30)
_ROUND: Final = 20  # episodes between two looks whether it is hopeless
_HOPELESS_AFTER: Final = 40
_SPREAD_SEEDS: Final = 8_000_000
_DONE: Final = "done.json"
_FAR: Final = "progress.json"
_CURRENT: Final = "current.npz"
_FOUND: Final = "found.npz"


@dataclass(frozen=True, slots=True)
class Job:
    """What to do.

    Args:
        seed: of everything drawn.
        search_s: seconds of one core that the search may take, about.
        episodes: of the gate; it can pass only with at least 100.
        version: what the weights are called.
        why: what it was begun for.
    """

    seed: int
    search_s: float = 120.0
    episodes: int = LEAST_EPISODES
    version: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A candidate against what serves, on the same days; ratios are geometric means with 95 % intervals.

    Args:
        has_passed: whether it may be published.
        cost: of cost.
        low: lower end of its interval.
        high: upper end.
        p99: of P99 latency.
        p99_high: upper end of its interval.
        against_heuristic: its cost over that of `least_cost` on these days.
        episodes: played.
        wall_s: how long that took.
        share: of the step that was found; the rest was cut off (:mod:`rl.online.limits`).
        kl: how far what was judged moves the policy, in nats.
        shortened: why it is shorter than what was found; empty where it is not.
    """

    has_passed: bool
    cost: float
    low: float
    high: float
    p99: float
    p99_high: float
    against_heuristic: float
    episodes: int
    wall_s: float
    share: float = 1.0
    kl: float = 0.0
    shortened: str = ""

    def __str__(self) -> str:
        if not self.episodes:
            return f"not passed: {self.shortened}"
        words = "passed" if self.has_passed else "not passed"
        step = f", {self.share:.0%} of the step" if self.shortened else ""
        return (
            f"{words}: cost {self.cost:.3f} [{self.low:.3f}, {self.high:.3f}], "
            f"P99 {self.p99:.3f} (to {self.p99_high:.3f}), {self.episodes} episodes{step}"
        )


class OneCore(Cores):
    """Plays days in this process, one after the other."""

    def __init__(self) -> None:
        """Nothing to start."""

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def map(
        self,
        function: Callable[[_Task], _Found],
        tasks: Iterable[_Task],
        chunk: int = 1,  # noqa: ARG002 - as of several cores
    ) -> Iterable[_Found]:
        """Results in the order of the tasks, as they are asked for."""
        return map(function, tasks)


def searched(
    directory: Path, job: Job, start: Network, report: Callable[[str, float], None], cores: Cores
) -> tuple[Network, int]:
    """The network where a search from what serves ended, and its generations: as many as fit into the time.

    Args:
        directory: of the days.
        job: its seed and time.
        start: what serves.
        report: told in words, and which share is done.
        cores: play the days.
    """
    begun_s = time.perf_counter()
    first = live.TRAINING_SEEDS + job.seed * 10_000
    regret(live.days(directory, first, 1)[0], Learned(start))
    episode_s = (time.perf_counter() - begun_s) / 2.0  # and the heuristic's
    fit = job.search_s / (episode_s * _DAYS * (_POPULATION + 1))
    generations = int(min(max(fit, _GENERATIONS[0]), _GENERATIONS[1]))

    def told(generation: int, cost: float) -> None:
        report(f"searching: candidates cost {cost:.3f} of the heuristic", (generation + 1) / generations)

    found = theta.search(
        start, lambda generation: live.days(directory, first + generation * _DAYS, _DAYS), cores,
        generations=generations, population=_POPULATION, seed=job.seed, report=told,
    )  # fmt: skip
    return found, generations


def judged(
    days: Sequence[Day],
    candidate: Network,
    current: Network,
    report: Callable[[str, float], None],
    cores: Cores,
) -> Verdict:
    """The candidate against what serves; ended early where it can only lose.

    Args:
        days: nobody has trained on them.
        candidate: may take the place of ``current``.
        current: what serves.
        report: told in words, and which share is done.
        cores: play the days.
    """
    begun_s, logs, mine = time.perf_counter(), np.zeros((0, 2)), np.zeros((0, 2))
    for k in range(0, len(days), _ROUND):
        found = cores.regrets(days[k : k + _ROUND], [candidate, current])
        logs, mine = np.concatenate((logs, found[0] - found[1])), np.concatenate((mine, found[0]))
        report("judging", len(logs) / len(days))
        if len(logs) >= _HOPELESS_AFTER and logs[:, 0].mean() - _half(logs)[0] > 0.0:
            break
    means, half = logs.mean(axis=0), _half(logs)
    cost, p99 = (float(np.exp(one)) for one in means)
    low, high, p99_high = (
        float(np.exp(one)) for one in (means[0] - half[0], means[0] + half[0], means[1] + half[1])
    )
    has_passed = len(logs) >= LEAST_EPISODES and high < COST_BAR and p99_high < P99_BAR
    return Verdict(
        has_passed, cost, low, high, p99, p99_high, float(np.exp(mine[:, 0].mean())), len(logs),
        time.perf_counter() - begun_s,
    )  # fmt: skip


def retrained(directory: Path, within: Limits | None = None, cores: Cores | None = None) -> Verdict:
    """Do what the files in the directory say, and leave the weights and the verdict there.

    Args:
        directory: of :func:`prepare`.
        within: how far the policy may move; what is left of the step is what is judged.
        cores: play the days.
    """
    cores, begun_s = cores or OneCore(), time.perf_counter()
    job = Job(**json.loads((directory / "job.json").read_text()))
    current = weights.load(directory / _CURRENT).network

    def report(words: str, share: float) -> None:
        _put(directory / _FAR, {"words": words, "share": round(share, 3)})

    report("preparing", 0.0)
    found, generations = searched(directory, job, current, report, cores)
    kept = step(current, found, states(directory), within)
    facts = _manifest(directory, job, generations, time.perf_counter() - begun_s, kept)
    saved = weights.save(Weights(kept.network, facts), directory / _FOUND)
    if kept.share > 0.0:
        first = live.EXAM_SEEDS + int(saved.sha256[:12], 16) % _SPREAD_SEEDS
        verdict = judged(live.days(directory, first, job.episodes), saved.network, current, report, cores)
    else:
        verdict = Verdict(False, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0, 0.0)
    verdict = replace(verdict, share=kept.share, kl=kept.kl, shortened=kept.reason)
    _put(directory / _DONE, asdict(verdict))
    return verdict


def prepare(
    directory: Path, job: Job, fleet: live.LiveFleet, rows: Any, current: bytes, seen: Sequence[State] = ()
) -> None:
    """Write what :func:`retrained` reads.

    Args:
        directory: of this job alone.
        job: what to do.
        fleet: the live one.
        rows: its traffic.
        current: bytes of the weights that serve.
        seen: states that the fleet was in lately, for the limit.
    """
    live.keep(fleet, rows, directory)
    (directory / _CURRENT).write_bytes(current)
    with (directory / "states.npz").open("wb") as file:
        if seen:
            nodes, request, mask = (list(part) for part in zip(*seen, strict=True))
            sizes = np.array([len(one) for one in mask])
            np.savez(
                file, sizes=sizes, nodes=np.concatenate(nodes), request=request, mask=np.concatenate(mask)
            )
        else:
            np.savez(file)
    _put(directory / "job.json", asdict(job))


def states(directory: Path) -> list[State]:
    """States that the fleet was in lately."""
    with np.load(directory / "states.npz", allow_pickle=False) as arrays:
        if not arrays.files:
            return []
        ends = np.cumsum(arrays["sizes"])[:-1]
        parts = np.split(arrays["nodes"], ends), arrays["request"], np.split(arrays["mask"], ends)
        return [State(*one) for one in zip(*parts, strict=True)]


def far(directory: Path) -> dict[str, Any]:
    """How far it is: ``words``, and the ``share`` that is done."""
    try:
        found: dict[str, Any] = json.loads((directory / _FAR).read_text())
    except (OSError, ValueError):
        return {"words": "starting", "share": 0.0}
    return found


def result(directory: Path) -> tuple[Verdict, Path] | None:
    """What it left; ``None`` if it did not come to its end."""
    try:
        return Verdict(**json.loads((directory / _DONE).read_text())), directory / _FOUND
    except (OSError, ValueError, TypeError):
        return None


def main(arguments: Sequence[str]) -> None:
    """In a process of its own."""
    os.nice(19)
    directory = Path(arguments[0])
    _put(directory / _FAR, {"words": "compiling the simulator, once for each version of it", "share": 0.0})
    compile_ahead(sys.stderr)
    retrained(directory)


def _half(logs: Any) -> Any:
    """Half the width of the 95 % intervals, shape ``(2,)``."""
    return 1.96 * logs.std(axis=0, ddof=1) / math.sqrt(len(logs))


def _manifest(directory: Path, job: Job, generations: int, wall_s: float, kept: Step) -> dict[str, Any]:
    fleet, rows = live.kept(str(directory))
    facts = {
        "command": "ccr learn",
        "seeds": {"draw": job.seed, "training": live.TRAINING_SEEDS, "exam": live.EXAM_SEEDS},
        "stages": [{"stage": "theta", "generations": generations, "why": job.why}],
        "limit": {"share": round(kept.share, 4), "kl": round(kept.kl, 5), "why": kept.reason},
        "scenarios": f"the live fleet: {len(fleet.nodes)} nodes, {len(fleet.models)} models, {len(rows)} recorded requests, varied",
        "wall_s": round(wall_s, 1),
        "commit": manifest.commit(),
        "versions": manifest.origin()["versions"],
    }
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"version": job.version or f"live.{job.seed}", "created_at": created_at, "training": facts}


def _put(path: Path, document: dict[str, Any]) -> None:
    """All of it or nothing."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(document))
    beside.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
