"""Drills in real time: ``python -m benchmarks.live_drills NAME``, see docs/drills.md.

The days of ``ccr drill``, on emulated nodes behind the real router: a fleet that the router knows well, then the drift,
then a while in which nothing is counted, then the traffic that counts. Two arms live through each day, on equal traffic
and equal noise: from the drift on, one forgets before every decision what its router has learned since. Their order is
turned round from day to day, so that what the machine does meanwhile falls on both alike.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
import uvloop
from rich.console import Console

from benchmarks.real_time import Happening, Run, in_real_time
from ccr import log
from ccr.book import ANSWERS, SPEED, Book
from ccr.cli import print_table
from ccr.fleet import LiveFleet
from ccr.picker import Picker
from ccr.policies.learned import Learned
from ccr.types import Fleet, Request, Scores
from envs.emulator import NodeServer
from envs.episode import FAILED, OK
from envs.evaluation import manifest
from envs.evaluation.progress import shown
from envs.evaluation.statistics import Ratio, geometric, of_means
from envs.scenario import Floats
from rl.drills.drifts import DOUBLED, DRIFTS, Case, Times
from rl.drills.judge import interval_of
from rl.drills.play import FROZEN, ONLINE
from router.app import Router

#: Seeds of days, as of ``ccr drill``.
SEEDS: Final = 50_000_000
POLICY: Final = "learned"
ARMS: Final = (FROZEN, ONLINE)
FACTOR: Final = 2.0
"""By which loads of ``load-doubled`` take longer."""
STREAM_INTERVAL: Final = 64
"""Tokens that nodes send together: faster than life, a machine would do little else than pass on tokens."""
TELEMETRY_S: Final = 1.0
"""Node seconds between two readings of a node, for the same reason."""
KEPT: Final = ("cost", "mean_s", "p50_s", "p99_s", "slo", "reject_rate", "failures")


class Known(NamedTuple):
    """What a router has learned of its nodes and models, as :class:`rl.drills.play.Calibration` without replicas.

    Args:
        speed: observed time per token over the expected one, and the answers it rests on, shape ``(2, n)``.
        load_s: seconds of loads, shape ``(M, n)``.
        output_tokens: mean lengths of answers, shape ``(M,)``.
        share: of the recent requests, shape ``(M,)``.
    """

    speed: Floats
    load_s: Floats
    output_tokens: Floats
    share: Floats

    @classmethod
    def of(cls, book: Book) -> "Known":
        """As it is now."""
        speed = book.load[[SPEED, ANSWERS]]
        return cls(speed.copy(), book.load_s.copy(), book.output_tokens.copy(), book.share.copy())

    def put(self, book: Book) -> None:
        """Forget what was learned since."""
        book.load[[SPEED, ANSWERS]] = self.speed
        book.load_s[:] = self.load_s
        book.output_tokens[:] = self.output_tokens
        book.share[:] = self.share
        book.stale[:] = True  # what evictions cost was made of these


@dataclass(frozen=True, slots=True)
class Forgetful:
    """The trained policy, before a book that is put back to what it knew.

    Args:
        learned: decides.
        fleet: whose book it is.
        known: what it knew.
        name: as in the table.
    """

    learned: Learned
    fleet: LiveFleet
    known: Known
    name: str = POLICY
    picker: Picker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "picker", self.learned.picker)

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """As the trained policy's, shape ``(len(fleet) + 2,)``."""
        self.known.put(_book(self.fleet))
        return self.learned.scores(request, fleet)

    def priority(self, look: Any, chosen: int, arrived_s: float) -> int | None:
        """As the trained policy's."""
        return self.learned.priority(look, chosen, arrived_s)


def freeze(_: Sequence[NodeServer], router: Router) -> None:
    """From now on the router's book learns nothing that a decision could see."""
    policies = router.dispatch.policies
    learned = policies.engine.policy
    if not isinstance(learned, Learned):
        raise TypeError(f"policy {learned.name!r} serves, and only {POLICY!r} can be frozen")
    known = Known.of(_book(router.fleet))
    policies.engine = replace(policies.engine, policy=Forgetful(learned, router.fleet, known))


def _book(fleet: LiveFleet) -> Book:
    if fleet.expected is None:
        raise RuntimeError("the router keeps no book")
    return fleet.expected.book


# -- one day ---------------------------------------------------------------------------------------------------------


def drift_of(name: str, case: Case) -> Callable[[Sequence[NodeServer], Router], None]:
    """What happens to the nodes of a day; changes of the traffic are in its arrivals."""

    def happens(nodes: Sequence[NodeServer], _: Router) -> None:
        for trouble in case.scenario.troubles:
            nodes[trouble.node].fault("slow", factor=trouble.factor)
        if name == "load-doubled":
            model = list(case.scenario.models)[DOUBLED]
            for node in nodes:
                node.app.life.driver.slow_loads(model, FACTOR)

    return happens


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played.

    Args:
        name: in :data:`rl.drills.drifts.DRIFTS`.
        seeds: of the paired days.
        times: of a day.
        speed: node seconds for each second.
    """

    name: str
    seeds: Sequence[int]
    times: Times
    speed: float

    def case(self, seed: int) -> Case:
        """A day."""
        return DRIFTS[self.name].case(seed, self.times)


async def lived(
    plan: Plan, case: Case, arm: str, seed: int, answered: Callable[[], None] = lambda: None
) -> Run:
    """One arm of one day.

    Args:
        plan: what is played.
        case: the day.
        arm: in :data:`ARMS`.
        seed: of noise and draws.
        answered: called for every request that is over.
    """
    at_s = plan.times.drift_s
    happenings = [Happening(at_s, drift_of(plan.name, case))]
    if arm == FROZEN:
        happenings.insert(0, Happening(at_s, freeze))
    scenario = replace(case.scenario, troubles=(), telemetry_period_s=TELEMETRY_S)
    return await in_real_time(
        scenario, POLICY, seed, plan.speed, happenings=happenings, stream_interval=STREAM_INTERVAL, answered=answered,
    )  # fmt: skip


def ordered(pair: int) -> tuple[str, ...]:
    """The arms of a pair in the order in which they are played."""
    return ARMS if pair % 2 == 0 else ARMS[::-1]


def played(plan: Plan, console: Console) -> dict[str, list[Run]]:
    """Every day under both arms, one after the other; figures of each run are shown as it ends."""
    found: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    requests = len(ARMS) * sum(len(plan.case(seed).arrivals.t) for seed in plan.seeds)
    with shown(f"{plan.name}, requests", requests, console) as report:
        for pair, seed in enumerate(plan.seeds):
            case = plan.case(seed)
            for arm in ordered(pair):
                run = uvloop.run(lived(plan, case, arm, seed, lambda: report(1, "")))
                found[arm].append(run)
                figures = run.episode.metrics()
                console.print(
                    f"pair {pair + 1} of {len(plan.seeds)}, {arm}: cost {figures['cost']:.3f}, P99 {figures['p99_s']:.2f} s, "
                    f"promises kept {figures['slo']:.1%}, client late by {run.late_p99_s:.3f} s at P99",
                    highlight=False, soft_wrap=True,
                )  # fmt: skip
    return found


# -- what came of it -------------------------------------------------------------------------------------------------


def document(plan: Plan, found: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """What ``--json`` writes.

    Args:
        plan: what was played.
        found: by arm, a run for each seed.
    """
    each = {arm: [run.episode.metrics() for run in runs] for arm, runs in found.items()}
    columns = {
        arm: {name: np.array([one[name] for one in rows]) for name in KEPT} for arm, rows in each.items()
    }
    frozen, online = columns[FROZEN], columns[ONLINE]
    return {
        "drill": plan.name, "seeds": {"first": plan.seeds[0], "count": len(plan.seeds)},
        "speed": plan.speed, "times": plan.times._asdict(), "stream_interval": STREAM_INTERVAL, "telemetry_s": TELEMETRY_S,
        "order": [ordered(pair) for pair in range(len(plan.seeds))],
        "arms": {arm: _arm(columns[arm], found[arm]) for arm in ARMS},
        "ratios": {
            "cost": _ratio(geometric(online["cost"], frozen["cost"]), higher_is_better=False),
            "p99_s": _ratio(geometric(online["p99_s"], frozen["p99_s"]), higher_is_better=False),
            "slo": _ratio(of_means(online["slo"], frozen["slo"]), higher_is_better=True),
        },
    }  # fmt: skip


def _arm(columns: Mapping[str, Floats], runs: Sequence[Run]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, values in columns.items():
        mean, low, high = interval_of(values)
        rows[name] = {"mean": mean, "low": low, "high": high, "each": values.tolist()}
    late_s, stall_s = [run.late_p99_s for run in runs], [run.stall_s for run in runs]
    return rows | {
        "late_p99_s": {"most": max(late_s), "each": late_s}, "stall_s": {"most": max(stall_s), "each": stall_s},
        "counted": int(sum(run.episode.counted.sum() for run in runs)),
        "answered": int(sum((run.episode.status[run.episode.counted] == OK).sum() for run in runs)),
        "failed": int(sum((run.episode.status == FAILED).sum() for run in runs)),
    }  # fmt: skip


def _ratio(found: Ratio, *, higher_is_better: bool) -> dict[str, Any]:
    verdict = found.verdict(higher_is_better=higher_is_better)
    return {"value": found.ratio, "low": found.low, "high": found.high, "n": found.n, "verdict": verdict}


def _print(told: Mapping[str, Any]) -> None:
    names = ("cost", "mean_s", "p99_s", "slo", "reject_rate")
    print_table(
        [
            {"arm": arm} | {name: round(rows[name]["mean"], 4) for name in names}
            | {"late_p99_s": round(rows["late_p99_s"]["most"], 3), "failed": rows["failed"]}
            for arm, rows in told["arms"].items()
        ],
        ("arm", *names, "late_p99_s", "failed"), as_json=False,
        title=f"{told['drill']} in real time: {told['seeds']['count']} pairs at {told['speed']:g} times life, node seconds",
    )  # fmt: skip
    for name, ratio in told["ratios"].items():
        if ratio["value"] is None:
            continue
        interval = "" if ratio["low"] is None else f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        click.echo(
            f"{name}, online / frozen: {ratio['value']:.3f}{interval} {ratio['verdict'] or '(one pair)'}"
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice(list(DRIFTS)))
@click.option("--pairs", type=click.IntRange(1), default=6, show_default=True, help="Paired days.")
@click.option("--speed", type=click.FloatRange(0.0, min_open=True), default=8.0, show_default=True,
              help="Node seconds for each second.")  # fmt: skip
@click.option("--seed-base", type=click.IntRange(0), default=SEEDS, show_default=True, help="The first seed.")
@click.option("--warm-up", type=click.FloatRange(0.0), default=60.0, show_default=True,
              help="Node seconds before the drift.")  # fmt: skip
@click.option("--settle", type=click.FloatRange(0.0), default=60.0, show_default=True,
              help="Node seconds after it that are not counted.")  # fmt: skip
@click.option("--counted", type=click.FloatRange(0.0, min_open=True), default=390.0, show_default=True,
              help="Node seconds that are.")  # fmt: skip
@click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON there as well."
)
def main(
    name: str, pairs: int, speed: float, seed_base: int, warm_up: float, settle: float, counted: float,
    json_to: Path | None,
) -> None:  # fmt: skip
    """Let a drift NAME befall emulated nodes in real time, before a router that goes on learning and one that does not."""
    if json_to is not None and not json_to.resolve().parent.is_dir():
        raise click.BadParameter(f"there is no directory {json_to.resolve().parent}", param_hint="--json")
    log.configure("console", "warning")
    times = Times(warm_up, warm_up + settle, warm_up + settle + counted)
    plan = Plan(name, range(seed_base, seed_base + pairs), times, speed)
    origin = manifest.origin() | {"command": " ".join(["python -m benchmarks.live_drills", *sys.argv[1:]])}
    told = document(plan, played(plan, Console(stderr=True))) | origin
    _print(told)
    if json_to is not None:
        json_to.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
