"""Every claim about the learned policy, measured: ``python -m benchmarks.claims`` writes docs/results.json and docs/results.md.

All comparisons are paired on days that nothing was trained or chosen on. A claim that is not met is written down as such.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ccr.policies import POLICIES
from ccr.policies.learned import Learned
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import HOLD_SHARE, PRIORITY, REJECT_COST, Network, blank
from ccr.policy import Policy
from ccr.weights import load
from envs.evaluation.manifest import commit
from envs.randomised import randomised, varied
from envs.scenario import Scenario
from envs.scenarios import scenario_of
from envs.simulator import simulate
from rl.days import EXAM_SEEDS, TRAINING_SEEDS, Cores, Day
from rl.theta import search

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
_RETUNED: Final = (18, 12, 8)  # generations, candidates, days of the weights tuned for one kind of deployment
_SWITCHED_OFF: Final = 1e3
_METRICS: Final = ("cost", "mean_s", "p99_s", "slo", "goodput", "reject_rate")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Days of one kind.

    Args:
        name: of a scenario, or ``drawn``: fleets drawn at random.
        replicas: routers; 0: as it comes.
        hidden: whether the speeds of the nodes are hidden from the routers; ``None``: as it comes.
        nodes: least and most nodes of a drawn fleet.
    """

    name: str = "drawn"
    replicas: int = 0
    hidden: bool | None = None
    nodes: tuple[int, int] = (4, 12)

    def day(self, seed: int) -> Scenario:
        """The scenario of a seed."""
        scenario = randomised(seed, nodes=self.nodes) if self.name == "drawn" else scenario_of(self.name)
        attempt = seed
        while self.hidden is not None and any(node.is_hidden for node in scenario.nodes) != self.hidden:
            attempt += 7_919  # the same traffic with other constants, until the draw is of this kind
            scenario = varied(scenario, attempt)
        return replace(scenario, replicas=self.replicas) if self.replicas else scenario


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A policy that processes can share.

    Args:
        name: in the table of policies; with a network, what it is called here.
        network: of a learned one.
    """

    name: str
    network: Network | None = None

    def make(self) -> Policy:
        """The policy."""
        return POLICIES[self.name]() if self.network is None else Learned(self.network)


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the report.

    Args:
        id: short and stable.
        claim: in words.
        bar: in words.
        value: measured.
        low: lower end of the 95 % interval; ``None`` where there is none.
        high: upper end.
        n: pairs behind it.
        met: whether the bar is met; ``None``: not measured.
        command: that measures it.
    """

    id: str
    claim: str
    bar: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    met: bool | None
    command: str = "python -m benchmarks.claims"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Geometric mean of paired ratios and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


Figures = NDArray[np.float64]


def _play(task: tuple[Deployment, Contender, int]) -> list[float]:
    deployment, contender, seed = task
    metrics = simulate(deployment.day(seed), contender.make(), seed).metrics()
    return [metrics[name] for name in _METRICS]


class Bench:
    """Plays days, and remembers what it has played.

    Args:
        cores: play them.
        days: pairs of each comparison.
        console: is told.
    """

    def __init__(self, cores: Cores, days: int, console: Console) -> None:
        self._cores = cores
        self._days = days
        self._console = console
        self._known: dict[tuple[Deployment, str], Figures] = {}

    def figures(self, deployment: Deployment, contender: Contender, days: int = 0) -> Figures:
        """Of every day, shape ``(days, len(_METRICS))``."""
        key = (deployment, contender.name)
        if key not in self._known:
            count = days or self._days
            self._console.print(f"{contender.name} on {deployment}: {count} days", highlight=False)
            tasks = [(deployment, contender, EXAM_SEEDS + k) for k in range(count)]
            self._known[key] = np.array(list(self._cores.map(_play, tasks, 2)))
        return self._known[key]

    def ratio(self, deployment: Deployment, new: Contender, old: Contender, metric: str = "cost") -> Ratio:
        """Of one against another."""
        column = _METRICS.index(metric)
        a, b = (self.figures(deployment, each)[:, column] for each in (new, old))
        usable = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
        logs = np.log(a[usable] / b[usable])
        error = 1.96 * logs.std(ddof=1) / math.sqrt(len(logs))
        mean = logs.mean()
        value, low, high = (float(np.exp(each)) for each in (mean, mean - error, mean + error))
        return Ratio(value, low, high, len(logs))

    def mean(self, deployment: Deployment, contender: Contender, metric: str) -> Ratio:
        """Of one, with the interval of the mean."""
        values = self.figures(deployment, contender)[:, _METRICS.index(metric)]
        error = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        return Ratio(
            float(values.mean()), float(values.mean() - error), float(values.mean() + error), len(values)
        )

    def retuned(self, deployment: Deployment, start: Network) -> Contender:
        """The analytic cost with weights tuned for this kind of deployment alone."""
        name = f"tuned for {deployment.replicas} routers" + (", hidden speeds" if deployment.hidden else "")
        self._console.print(name, highlight=False)
        generations, population, days = _RETUNED
        plain = blank(start.theta)
        plain.scalars[:] = start.scalars
        found = search(
            plain, lambda k: [_KindOfDay(TRAINING_SEEDS + 9_000_000 + k * days + i, kind=deployment) for i in range(days)],
            self._cores, generations=generations, population=population, seed=0, report=lambda *_: None,
        )  # fmt: skip
        return Contender(name, found)


@dataclass(frozen=True, slots=True)
class _KindOfDay(Day):
    kind: Deployment = Deployment()

    def make(self) -> Scenario:
        """A day of that kind."""
        return self.kind.day(self.seed)


def no_extras(network: Network) -> Network:
    """The same policy that neither refuses nor holds nor reorders."""
    scalars = network.scalars.copy()
    scalars[[REJECT_COST, HOLD_SHARE]] = _SWITCHED_OFF
    scalars[PRIORITY] = 0.0
    extra = np.zeros_like(network.extra)
    return network._replace(scalars=scalars, extra=extra, extra_bias=np.zeros_like(network.extra_bias))


def without_network(network: Network) -> Network:
    """The tuned cost alone: what the network is measured against."""
    plain = blank(network.theta)
    plain.scalars[:] = network.scalars
    return plain


def claims(bench: Bench, ours: Contender, tuned: Contender) -> list[Claim]:
    """All of them.

    Args:
        bench: plays.
        ours: the learned policy.
        tuned: the tuned analytic cost that the network was added to.
    """
    article, selfish, heuristic = Contender("article"), Contender("least_latency"), Contender("least_cost")
    found: list[Claim] = []
    for load_ in ("medium", "high"):
        for metric, words in (("mean_s", "mean latency"), ("p99_s", "P99")):
            got = bench.ratio(Deployment(load_), ours, article, metric)
            found.append(
                _below(
                    f"article-{load_}-{metric}",
                    f"{words} against the article's score, {load_} load",
                    got,
                    0.60,
                )
            )
    slo = bench.mean(Deployment("high"), ours, "slo")
    found.append(
        Claim(
            "slo-high",
            "kept promises at high load",
            ">= 0.97",
            slo.value,
            slo.low,
            slo.high,
            slo.n,
            slo.value >= 0.97,
        )
    )
    for load_, bar in (("medium", 0.85), ("high", 0.70)):
        got = bench.ratio(Deployment(load_), ours, selfish)
        found.append(
            _below(f"selfish-{load_}", f"cost against greedy predicted latency, {load_} load", got, bar)
        )
    one = Deployment(replicas=1, hidden=False)
    found.append(
        _below(
            "residual-one-router",
            "cost of network against tuned cost alone, one router, full information",
            bench.ratio(one, ours, tuned),
            1.02,
        )
    )
    found.append(
        _below("residual-one-router-p99", "P99 of the same", bench.ratio(one, ours, tuned, "p99_s"), 1.05)
    )
    for replicas, bar in ((4, 0.93), (8, 0.88)):
        kind = Deployment(replicas=replicas, hidden=False)
        best = bench.retuned(kind, tuned.network or blank(np.array(LeastCost().theta)))
        got = bench.ratio(kind, ours, best)
        found.append(
            _below(
                f"unshared-{replicas}",
                f"cost against cost weights tuned for {replicas} routers with unshared ledgers",
                got,
                bar,
            )
        )
        found.append(
            _below(
                f"one-policy-{replicas}",
                f"one policy for all against weights tuned for exactly {replicas} routers",
                got,
                1.00,
            )
        )
        hidden = Deployment(replicas=replicas, hidden=True)
        best = bench.retuned(hidden, tuned.network or blank(np.array(LeastCost().theta)))
        found.append(
            _below(
                f"hidden-{replicas}",
                f"cost against the same, retuned, {replicas} routers and hidden node speeds",
                bench.ratio(hidden, ours, best),
                0.88,
            )
        )
        found.append(
            _below(
                f"hidden-{replicas}-p99", "P99 of the same", bench.ratio(hidden, ours, best, "p99_s"), 0.90
            )
        )
    best = bench.retuned(one, tuned.network or blank(np.array(LeastCost().theta)))
    found.append(
        _below(
            "one-policy-1",
            "one policy for all against weights tuned for exactly 1 router",
            bench.ratio(one, ours, best),
            1.00,
        )
    )
    found.append(
        _below(
            "zero-shot-32",
            "32 nodes, never trained on, against tuned cost alone",
            bench.ratio(Deployment("fleet-32"), ours, tuned),
            1.03,
        )
    )
    plain = (
        Contender("learned, sending everything", no_extras(ours.network))
        if ours.network is not None
        else heuristic
    )
    for metric, words in (("goodput", "goodput"), ("slo", "kept promises over all offered")):
        got = bench.ratio(Deployment("overload-4.2"), ours, plain, metric)
        found.append(
            Claim(
                f"refuse-{metric}",
                f"{words} at 4.2 req/s per node against the same policy that refuses nothing",
                ">= 1.2",
                got.value,
                got.low,
                got.high,
                got.n,
                got.value >= 1.2,
            )
        )
    for load_ in ("steady", "medium"):
        got = bench.mean(Deployment(load_), ours, "reject_rate")
        found.append(
            Claim(
                f"refused-{load_}",
                f"share refused below saturation, {load_} load",
                "<= 0.005",
                got.value,
                got.low,
                got.high,
                got.n,
                got.value <= 0.005,
            )
        )
    return found


def of_traces(bench: Bench, ours: Contender, traces: Sequence[Path]) -> list[Claim]:
    """Claims on public traces, which nothing was trained on."""
    found = []
    for path in traces:
        kind = Deployment(f"trace:{path.resolve()}")
        name = path.name.partition(".")[0]
        for metric, bar in (("cost", 1.00), ("p99_s", 1.05)):
            got = bench.ratio(kind, ours, Contender("least_cost"), metric)
            found.append(
                _below(
                    f"trace-{name}-{metric}", f"{metric} on {name} against the best tuned heuristic", got, bar
                )
            )
    return found


def _below(name: str, words: str, got: Ratio, bar: float) -> Claim:
    return Claim(name, words, f"<= {bar:.2f}", got.value, got.low, got.high, got.n, got.value <= bar)


def page(found: Sequence[Claim], facts: dict[str, Any]) -> str:
    """docs/results.md."""
    lines = ["# What the learned policy does, and what it does not", ""]
    lines += [
        f"Written by `python -m benchmarks.claims` ({facts['weights']}, commit {facts['commit']}, {facts['days']} paired held-out days",
        "for each line unless it says otherwise). Ratios below 1 are better unless the bar says otherwise.",
        "",
    ]
    lines += ["| claim | bar | measured | 95 % interval | pairs | met |", "|---|---|---|---|---|---|"]
    for one in found:
        value = "-" if one.value is None else f"{one.value:.3f}"
        interval = "-" if one.low is None or one.high is None else f"[{one.low:.3f}, {one.high:.3f}]"
        met = {True: "yes", False: "**no**", None: "not measured"}[one.met]
        lines.append(f"| {one.claim} | {one.bar} | {value} | {interval} | {one.n} | {met} |")
    missed = [one for one in found if one.met is False]
    lines += ["", f"{sum(one.met is True for one in found)} of {len(found)} bars are met."]
    if missed:
        lines += ["", "## Where learning does not help, or not enough", ""]
        lines += [
            f"- {one.claim}: {one.value:.3f} where {one.bar} was wanted."
            for one in missed
            if one.value is not None
        ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="[default: those shipped]"
)
@click.option(
    "--days", type=click.IntRange(min=8), default=100, show_default=True, help="Pairs of each comparison."
)
@click.option("--trace", "traces", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A public trace to compare on; again for more.")  # fmt: skip
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DOCS,
    show_default=False,
    help="Directory.  [default: docs]",
)
def main(weights: Path | None, days: int, traces: tuple[Path, ...], out: Path) -> None:
    """Measure every claim and write the report."""
    path = weights or Path(str(_shipped()))
    loaded = load(path)
    ours, tuned = (
        Contender("learned", loaded.network),
        Contender("tuned cost", without_network(loaded.network)),
    )
    console = Console(stderr=True)
    with Cores() as cores:
        bench = Bench(cores, days, console)
        found = claims(bench, ours, tuned) + of_traces(bench, ours, traces)
    facts = {"weights": f"weights {loaded.version}", "commit": commit()[:12], "days": days}
    document = {"facts": facts, "claims": [asdict(one) for one in found]}
    (out / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    (out / "results.md").write_text(page(found, facts))
    console.print(
        f"{sum(one.met is True for one in found)} of {len(found)} bars are met; see {out / 'results.md'}"
    )


def _shipped() -> Path:
    return Path(str(files("ccr") / "data" / "champion.npz"))


if __name__ == "__main__":
    main()
