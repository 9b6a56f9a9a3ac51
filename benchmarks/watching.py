"""How often good weights are rolled back, and how soon bad ones: ``python -m benchmarks.watching``.

A fleet of queues in plain Python, under the judge and the guard of the router. Eight nodes serve one request after the other, hold
three of six models each and load the others; one is slower than anybody knows. Traffic wanders (AR(1) on the logarithm of
the rate), and every ten minutes or so comes a burst of two to three times as many requests for up to two minutes. Every
hour or so a node runs at half its speed for minutes, and one fails all it has. What is expected of a
request is off by a third either way. A *good* version ranks nodes by what it expects, with weights a little other than those
before it. It is on trial when bursts and slow nodes come, as in life.
"""

import heapq
import json
import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import click

from ccr.watch import CROWD, EVERY_S, STRAINS, Facts, Judge, Tally, is_avoidable

NODES: Final = 8
MODELS: Final = 6
HELD: Final = 3
LOAD_S: Final = 4.0
MEAN_S: Final = 1.2
"""Seconds of the average request on a node that is as fast as is thought."""
TRIAL_S: Final = 180.0
GUARD: Final = 2.0
LEAST_BOUND: Final = 4
_LEAST_REST: Final = 0.1
"""Of a request that takes longer than expected, this share is always still to come."""
PATIENCE_S: Final = 20.0
"""A request that has to wait longer on every node is refused, as admission does."""
_POPULAR: Final = [1.0 / (k + 1) for k in range(MODELS)]


@dataclass(slots=True)
class Node:
    """A queue.

    Args:
        slow: time per request as a multiple of what is expected.
        free_s: when it has done what it has.
        inflight: of its requests in order: when it ends, when it began to be served, how long it is expected to be.
        held: models, latest last.
    """

    slow: float = 1.0
    free_s: float = 0.0
    inflight: deque[tuple[float, float, float]] = field(default_factory=deque)
    held: list[int] = field(default_factory=list)

    def backlog_s(self, now_s: float) -> float:
        """What is expected before another request: what is known to be there, not what was once thought to be over by now."""
        while self.inflight and self.inflight[0][0] <= now_s:
            self.inflight.popleft()
        if not self.inflight:
            return max(self.free_s - now_s, 0.0)
        _, began_s, guess_s = self.inflight[0]
        rest_s = max(guess_s - (now_s - began_s), _LEAST_REST * guess_s)
        return rest_s + sum(guess_s for _, _, guess_s in islice(self.inflight, 1, None))


@dataclass(frozen=True, slots=True)
class View:
    """What a version may look at: shape ``(NODES,)`` each.

    Args:
        latency_s: expected.
        cold: whether the model has to be loaded.
        busy: requests there.
    """

    latency_s: list[float]
    cold: list[bool]
    busy: list[int]


Version = Callable[[View], list[float]]
"""The lower the better."""


def good(rng: random.Random) -> Version:
    """Expected latency, and a penalty for a load and for company, each a little other in every version."""
    load, company = rng.uniform(0.5, 3.0), rng.uniform(0.0, 0.4)
    return lambda view: [
        s + load * c + company * b for s, c, b in zip(view.latency_s, view.cold, view.busy, strict=True)
    ]


def worst(_: random.Random) -> Version:
    """The node that is expected to take longest."""
    return lambda view: [-s for s in view.latency_s]


def one_node(rng: random.Random) -> Version:
    """Always the same."""
    chosen = rng.randrange(NODES)
    return lambda _: [float(n != chosen) for n in range(NODES)]


def thrashing(rng: random.Random) -> Version:
    """A node that does not have the weights, whenever there is one."""
    by = good(rng)
    return lambda view: [s - 1e3 * c for s, c in zip(by(view), view.cold, strict=True)]


def at_random(rng: random.Random) -> Version:
    """Any node: bad, but not absurd."""
    return lambda _: [rng.random() for _ in range(NODES)]


def unusable(rng: random.Random) -> Version:
    """NaN; the fallback decides."""
    by = good(rng)

    def scores(view: View) -> list[float]:
        found = by(view)
        found[0] = math.nan
        return found

    return scores


BAD: Final = {
    "worst node": worst,
    "one node": one_node,
    "loads all the time": thrashing,
    "NaN": unusable,
    "at random": at_random,
}


class Fleet:
    """The queues, the traffic and the judge.

    Args:
        seed: of everything.
        load: requests as a share of what the nodes can do, on average.
        burst_at_s: when there is a burst besides those that are drawn.
    """

    def __init__(self, seed: int, load: float = 0.55, burst_at_s: float = math.inf) -> None:
        self.rng = rng = random.Random(seed)
        self.now_s = 0.0
        self.nodes = [Node(slow=1.3 if n == 0 else rng.uniform(0.9, 1.1)) for n in range(NODES)]
        for n, node in enumerate(self.nodes):
            node.held = [(n + k) % MODELS for k in range(HELD)]
        self.version: Version = good(rng)
        self.judge = Judge()
        self.tally = Tally()
        self.requests = 0
        self._rate_per_s = load * NODES / MEAN_S
        self._wander, self._wandered_s = 0.0, 0.0
        self._bursts = [(burst_at_s, burst_at_s + 120.0, 3.0)]
        self._burst_s = rng.expovariate(1 / 600.0)
        self._slow_s, self._crash_s = rng.expovariate(1 / 3600.0), rng.expovariate(1 / 3600.0)
        self._heals: list[tuple[float, int, float]] = []
        self._ends: list[tuple[float, int, int, bool, bool]] = []
        self._judge_s = EVERY_S

    def publish(self, version: Version) -> None:
        """These weights, on trial."""
        self.version = version
        self._ends.clear()  # what others decided is not held against it
        self.tally = Tally()
        self.judge.begin(on_trial=True)
        self._judge_s = self.now_s + EVERY_S

    def until(self, end_s: float) -> float | None:
        """Run; when something was confirmed to be too high, or ``None``."""
        while True:
            arrives_s = self.now_s + self.rng.expovariate(self._rate())
            while self._judge_s <= arrives_s:
                if self._judge_s > end_s:
                    self.now_s = end_s
                    return None
                self._end_until(self._judge_s)
                self.now_s = self._judge_s
                self._judge_s += EVERY_S
                breaches = self.judge.tick(self.tally)
                self.tally = Tally()
                if breaches:
                    self.breaches = breaches
                    return self.now_s
            self.now_s = arrives_s
            self._troubles()
            self._arrive()

    def passes(self) -> None:
        """The trial is over."""
        self.judge.passed()

    def _rate(self) -> float:
        passed_s = self.now_s - self._wandered_s
        if passed_s > 5.0:
            kept = math.exp(-passed_s / 300.0)
            self._wander = kept * self._wander + self.rng.gauss(0.0, 0.25 * math.sqrt(1.0 - kept * kept))
            self._wandered_s = self.now_s
        if self.now_s > self._burst_s:
            length_s = self.rng.uniform(20.0, 120.0)
            self._bursts.append((self.now_s, self.now_s + length_s, self.rng.uniform(2.0, 3.0)))
            self._burst_s = self.now_s + length_s + self.rng.expovariate(1 / 600.0)
        factor = max(
            (times for from_s, to_s, times in self._bursts if from_s <= self.now_s < to_s), default=1.0
        )
        return self._rate_per_s * factor * math.exp(self._wander)

    def _troubles(self) -> None:
        if self.now_s > self._slow_s:
            n = self.rng.randrange(NODES)
            self._heals.append((self.now_s + self.rng.uniform(120.0, 600.0), n, self.nodes[n].slow))
            self.nodes[n].slow *= 2.0
            self._slow_s = self.now_s + self.rng.expovariate(1 / 3600.0)
        for heal in [one for one in self._heals if one[0] <= self.now_s]:
            self._heals.remove(heal)
            self.nodes[heal[1]].slow = heal[2]
        if self.now_s > self._crash_s:
            n = self.rng.randrange(NODES)
            self._ends = [
                (self.now_s, k, at, True, late) if at == n else (s, k, at, f, late)
                for s, k, at, f, late in self._ends
            ]
            heapq.heapify(self._ends)
            self.nodes[n].inflight.clear()
            self.nodes[n].free_s = self.now_s + 10.0
            self._crash_s = self.now_s + self.rng.expovariate(1 / 3600.0)

    def _arrive(self) -> None:
        rng, now_s = self.rng, self.now_s
        model = rng.choices(range(MODELS), _POPULAR)[0]
        work_s = MEAN_S * rng.lognormvariate(-0.32, 0.8)
        guess_s = work_s * rng.lognormvariate(0.0, 0.3)
        cold = [model not in node.held for node in self.nodes]
        latency_s = [
            node.backlog_s(now_s) + LOAD_S * is_cold + guess_s
            for node, is_cold in zip(self.nodes, cold, strict=True)
        ]
        if min(latency_s) > PATIENCE_S + guess_s:
            return
        busy = [len(node.inflight) for node in self.nodes]
        view = View(latency_s, cold, busy)
        scores = self.version(view)
        is_unusable = any(math.isnan(one) for one in scores)
        scores = latency_s if is_unusable else scores
        drawn = min(range(NODES), key=scores.__getitem__)
        bound = max(math.ceil(GUARD * (sum(busy) + 1.0) / NODES), LEAST_BOUND)
        chosen = drawn
        if busy[drawn] + 1 > bound:
            chosen = min(
                (n for n in range(NODES) if busy[n] + 1 <= bound), key=scores.__getitem__, default=drawn
            )
        promise_s, best_s = 2.5 * guess_s + 2.0, min(latency_s)
        warm = [n for n in range(NODES) if not cold[n]]
        found = Facts(
            strain=bisect_right(STRAINS, best_s / promise_s),
            promised_s=promise_s,
            avoidable=is_avoidable(latency_s[chosen], best_s, promise_s),
            cold=cold[chosen] and any(latency_s[n] <= max(promise_s, latency_s[chosen]) for n in warm),
            guarded=chosen != drawn,
            unusable=is_unusable,
            crowd=chosen if busy[chosen] >= CROWD and any(busy[n] == 0 for n in warm) else -1,
        )
        self.tally.decided(found)
        self._serve(chosen, model, work_s, guess_s, found, 2.5 * work_s + 2.0)

    def _serve(
        self, chosen: int, model: int, work_s: float, guess_s: float, found: Facts, promise_s: float
    ) -> None:
        node, now_s = self.nodes[chosen], self.now_s
        if model in node.held:
            node.held.remove(model)
            load_s = 0.0
        else:
            node.held.pop(0)
            load_s = LOAD_S * self.rng.lognormvariate(0.0, 0.2)
        node.held.append(model)
        begins_s = max(node.free_s, now_s)
        node.free_s = begins_s + load_s + work_s * node.slow
        node.inflight.append((node.free_s, begins_s, guess_s + (LOAD_S if load_s else 0.0)))
        self.requests += 1
        late = node.free_s - now_s > promise_s
        # What is late is known when the promise is over, not when the answer comes at last.
        known_s = now_s + promise_s if late else node.free_s
        heapq.heappush(self._ends, (known_s, found.strain, chosen, False, late))

    def _end_until(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            _, strain, _, failed, late = heapq.heappop(self._ends)
            self.tally.ended(strain, missed=late or failed, failed=failed)


def false_alarms(seed: int, hours: float, load: float) -> tuple[int, int, float, list[str]]:
    """Versions that are all good, a new one every ten minutes: rollbacks, versions, hours, and what they were for."""
    fleet, rolled, versions, said = Fleet(seed, load), 0, 0, []
    fleet.until(900.0)
    while fleet.now_s < 3600.0 * hours:
        versions += 1
        fleet.publish(good(fleet.rng))
        begun_s = fleet.now_s
        at_s = fleet.until(begun_s + TRIAL_S)
        if at_s is None:
            fleet.passes()
            at_s = fleet.until(begun_s + 600.0)
        if at_s is not None:
            rolled += 1
            said.append("; ".join(map(str, fleet.breaches)))
    return rolled, versions, fleet.now_s / 3600.0, said


def burst_alarms(seed: int, load: float) -> int:
    """A burst of three times as many requests that begins with the trial of a good version: rollbacks."""
    fleet = Fleet(seed, load, burst_at_s=1200.0)
    fleet.until(1200.0)
    fleet.publish(good(fleet.rng))
    return int(fleet.until(1200.0 + TRIAL_S) is not None)


def delay_s(seed: int, kind: str, load: float) -> float:
    """From its publication to the rollback of a bad version; infinite where it takes longer than a trial."""
    fleet = Fleet(seed, load)
    fleet.until(1200.0)
    fleet.publish(BAD[kind](fleet.rng))
    at_s = fleet.until(1200.0 + TRIAL_S)
    return math.inf if at_s is None else at_s - 1200.0


def measured(runs: int, hours: float, load: float) -> dict[str, object]:
    """Everything, over so many seeds."""
    found = [false_alarms(seed, hours, load) for seed in range(runs)]
    bursts = sum(burst_alarms(10_000 + seed, load) for seed in range(runs))
    delays = {kind: sorted(delay_s(20_000 + seed, kind, load) for seed in range(runs)) for kind in BAD}
    return {
        "runs": runs, "load": load, "hours": sum(one[2] for one in found), "versions": sum(one[1] for one in found),
        "false_rollbacks": sum(one[0] for one in found), "for": [why for one in found for why in one[3]][:20],
        "burst_runs": runs, "burst_rollbacks": bursts,
        "delays_s": {
            kind: {
                "p50": seconds[len(seconds) // 2], "p95": seconds[int(0.95 * len(seconds))], "longest": seconds[-1],
                "within_30_s": sum(one <= 30.0 for one in seconds) / len(seconds),
            }
            for kind, seconds in delays.items()
        },
    }  # fmt: skip


@click.command()
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True)
@click.option("--hours", type=float, default=1.0, show_default=True, help="Of each run of good versions.")
@click.option(
    "--load",
    "loads",
    type=float,
    multiple=True,
    default=(0.55,),
    show_default=True,
    help="Share of what the nodes can do.",
)
@click.option("--json", "json_to", type=click.Path(dir_okay=False, path_type=Path))
def main(runs: int, hours: float, loads: tuple[float, ...], json_to: Path | None) -> None:
    """How often good weights are rolled back, and how soon bad ones."""
    found = [measured(runs, hours, load) for load in loads]
    if json_to is not None:
        json_to.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
