"""Hold the simulator against the real-time emulator on the same requests: ``python -m benchmarks.validation``.

Two questions, because a fleet is chaotic: one request that goes elsewhere can bring a load that delays the next hundred.
*Followed*: sent where the router sent them, do the requests take as long in simulation? *Free*: left to itself, does the
simulated router, with the same draws, end up with the same latencies? The range over other draws says how much of a
difference is luck.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
import uvloop

from benchmarks.real_time import Run, in_real_time, without_sessions
from ccr import log
from ccr.cli import print_table
from ccr.picker import GREEDY, Picker
from ccr.policies import POLICIES
from ccr.policy import Policy
from ccr.types import Fleet, Request, Scores
from envs.episode import Episode
from envs.scenario import Floats, Scenario, draws
from envs.scenarios import MODELS, plain
from envs.simulator import Replica, Simulator
from envs.traces.synth import Workload

#: What is compared: name -> of the latencies and the times to first token of the requests that count, in seconds.
METRICS: Final[Mapping[str, Callable[[Floats, Floats], float]]] = {
    "mean_s": lambda total_s, ttft_s: float(total_s.mean()),  # noqa: ARG005 - one shape for all
    "p50_s": lambda total_s, ttft_s: float(np.median(total_s)),  # noqa: ARG005
    "p99_s": lambda total_s, ttft_s: float(np.quantile(total_s, 0.99)),  # noqa: ARG005
    "ttft_mean_s": lambda total_s, ttft_s: float(ttft_s.mean()),  # noqa: ARG005
    "ttft_p99_s": lambda total_s, ttft_s: float(np.quantile(ttft_s, 0.99)),  # noqa: ARG005
}
#: Two of six models at home on each node, so that a load is an event and not the rule.
_WARM: Final = ((0, 2), (1, 3), (0, 4), (1, 5))
_OTHER_DRAWS: Final = 4


def a_day(seconds: float = 150.0, rate: float = 0.4) -> Scenario:
    """Four A10, six models, Poisson arrivals of single requests at ``rate`` per second and node."""
    models = MODELS[:6]
    scenario = plain(
        "validation", "Four A10, six models, medium load.",
        nodes=4, rate=rate, models=models, workload=Workload(cv=1.0, drift=0.0), duration_s=seconds,
    )  # fmt: skip
    nodes = tuple(
        replace(node, warm=tuple(models[m] for m in warm))
        for node, warm in zip(scenario.nodes, _WARM, strict=True)
    )
    # A reading is on its way for a few milliseconds of the wall clock.
    return replace(
        scenario,
        nodes=nodes,
        arrivals=without_sessions(scenario.arrivals),
        warmup_s=10.0,
        telemetry_delay_s=0.01,
    )


class Heard(Simulator):
    """The simulator, with the requests as a router heard them on the wire, and with draws that are given.

    On the wire the prompt's length is estimated from the bytes of the whole body, and the client gives its limit, which
    an emulated node generates to the end; the scenario's own requests have the exact length and no limit.

    Args:
        scenario: as of :class:`Simulator`.
        policy: likewise.
        seed: likewise.
        run: where the requests are from.
        u: the draw of each decision; by default those of the run, shape ``(r,)``.
    """

    def __init__(
        self, scenario: Scenario, policy: Policy, seed: int, run: Run, u: Floats | None = None
    ) -> None:
        super().__init__(scenario, policy, seed)
        self._heard = [attempt.request for attempt in run.asked]
        self._u = np.array([attempt.decision.u for attempt in run.asked]) if u is None else u

    def _request(self, j: int, replica: Replica) -> Request:
        return replace(self._heard[j], id=str(j), seq=replica.seq)


@dataclass(frozen=True, slots=True)
class Followed:
    """Each request to the node it went to.

    Args:
        node: by request, shape ``(r,)``.
    """

    node: Sequence[int]
    name: str = "followed"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """One for its node, zero for the others, shape ``(len(fleet),)``."""
        scores: Scores = (np.arange(len(fleet)) == self.node[int(request.id)]).astype(np.float64)
        return scores


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one policy.

    Args:
        policy: name.
        metric: key of :data:`METRICS`.
        real: measured over all runs, in node seconds.
        followed: simulated, on the nodes the router chose.
        followed_off: its difference, as a fraction of ``real``.
        free: simulated, on the nodes the simulated router chose with the same draws.
        free_off: its difference, as a fraction of ``real``.
        low: least of ``free`` under other draws.
        high: most of it.
        plain: simulated with the scenario's own requests and draws, as ``ccr evaluate`` does.
        requests: measured.
    """

    policy: str
    metric: str
    real: float
    followed: float
    followed_off: float
    free: float
    free_off: float
    low: float
    high: float
    plain: float
    requests: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What is known of a policy.

    Args:
        rows: the figures.
        same_node: share of the requests that the free simulation, with the router's draws, sent to the same node.
        taken_s: median over the requests of real minus followed latency: what sockets and the event loop take.
        late_p99_s: how late the clients were.
        failures: requests without an answer.
    """

    rows: tuple[Row, ...]
    same_node: float
    taken_s: float
    late_p99_s: float
    failures: int


def compared(scenario: Scenario, policy: str, seeds: Sequence[int], speed: float) -> Compared:
    """The scenario in real time with each seed, and in simulation."""
    runs = [uvloop.run(in_real_time(scenario, policy, seed, speed)) for seed in seeds]
    real = [run.episode for run in runs]
    followed = [_simulated(scenario, Followed(run.episode.node.tolist()), run) for run in runs]
    free = [_simulated(scenario, POLICIES[policy](), run) for run in runs]
    others = [
        [_simulated(scenario, POLICIES[policy](), run, draws(1000 * k, len(run.asked))) for run in runs]
        for k in range(1, _OTHER_DRAWS + 1)
    ]
    plainly = [Simulator(scenario, POLICIES[policy](), seed).run() for seed in seeds]
    taken_s = np.concatenate([a.total_s - b.total_s for a, b in zip(real, followed, strict=True)])
    return Compared(
        rows=tuple(_rows(policy, real, followed, free, plainly, others)),
        same_node=float(np.mean(np.concatenate([a.node == b.node for a, b in zip(real, free, strict=True)]))),
        taken_s=float(np.nanmedian(taken_s)),
        late_p99_s=max(run.late_p99_s for run in runs),
        failures=sum(int(np.isnan(episode.total_s).sum()) for episode in real),
    )


def _simulated(scenario: Scenario, policy: Policy, run: Run, u: Floats | None = None) -> Episode:
    return Heard(scenario, policy, run.episode.seed, run, u).run()


def _rows(
    policy: str, real: Sequence[Episode], followed: Sequence[Episode], free: Sequence[Episode],
    plainly: Sequence[Episode], others: Sequence[Sequence[Episode]],
) -> Iterator[Row]:  # fmt: skip
    requests = sum(int(episode.counted.sum()) for episode in real)
    for metric, figure in METRICS.items():
        sets = (real, followed, free, plainly, *others)
        was, close, alone, unheard, *lucky = (figure(*_pooled(episodes)) for episodes in sets)
        yield Row(
            policy=policy, metric=metric, real=was,
            followed=close, followed_off=close / was - 1.0,
            free=alone, free_off=alone / was - 1.0,
            low=min(lucky), high=max(lucky), plain=unheard, requests=requests,
        )  # fmt: skip


def _pooled(episodes: Sequence[Episode]) -> tuple[Floats, Floats]:
    """Latency and time to first token of the requests that count and were answered."""
    kept = [episode.counted & ~np.isnan(episode.total_s) for episode in episodes]
    total_s = np.concatenate([episode.total_s[here] for episode, here in zip(episodes, kept, strict=True)])
    ttft_s = np.concatenate([episode.ttft_s[here] for episode, here in zip(episodes, kept, strict=True)])
    return total_s, ttft_s


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--policies", default="least_request,least_cost", show_default=True, help="By commas.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs, from seed 1 on.")
@click.option(
    "--seconds", type=click.FloatRange(20.0), default=150.0, show_default=True, help="Node time of a run."
)
@click.option("--rate", type=float, default=0.4, show_default=True, help="Requests per second and node.")
@click.option("--speed", type=float, default=5.0, show_default=True, help="Node seconds per second.")
@click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON there as well."
)
def validate(
    policies: str, seeds: int, seconds: float, rate: float, speed: float, json_to: Path | None
) -> None:
    """Compare, print a table for each policy."""
    log.configure("console", "warning")
    names = policies.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        raise click.BadParameter(f"no policy is called {', '.join(unknown)}; there are {', '.join(POLICIES)}")
    found: dict[str, Compared] = {}
    scenario = a_day(seconds, rate)
    for policy in names:
        click.echo(f"{policy}: {seeds} runs of {seconds / speed:.0f} s ...", err=True)
        found[policy] = one = compared(scenario, policy, range(1, seeds + 1), speed)
        print_table(
            [asdict(row) for row in one.rows],
            (
                "metric",
                "real",
                "followed",
                "followed_off",
                "free",
                "free_off",
                "low",
                "high",
                "plain",
                "requests",
            ),
            as_json=False,
            title=policy,
        )
        click.echo(
            f"same node {one.same_node:.0%}; sockets and loop {1e3 * one.taken_s:.0f} ms, clients late by "
            f"{1e3 * one.late_p99_s:.0f} ms (p99), in node time; {one.failures} failed"
        )
    if json_to is not None:
        json_to.write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=2) + "\n")


if __name__ == "__main__":
    validate()
