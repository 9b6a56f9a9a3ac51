"""Whether a candidate may take the incumbent's place: paired episodes on unseen seeds, regime by regime, and a rule.

A regime is a scenario of the suite. The rule wants the candidate better on the whole, and worse nowhere:

1. its cost over all regimes, each with the same weight, is below the incumbent's: the interval's upper end is below 1;
2. no regime is worse, in cost or in P99 latency: no interval lies above 1 once all regimes looked at are allowed for
   (Holm, 5 % for each opponent and figure), unless the ratio is within the margin;
3. the regimes that are not shown to be better are, taken together, not worse: the interval of their mean ends below the
   margin. One regime alone has too few episodes to tell a tie from a small loss; together they have enough.

2 and 3 are asked against the incumbent and against the best heuristic. The margins are 2 % of cost, 5 % of P99.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ccr.errors import CCRError
from envs.evaluation.choice import TRAINING_SEEDS
from envs.evaluation.comparison import Comparison, Row
from envs.evaluation.metrics import METRICS
from envs.evaluation.parallel import Workers
from envs.evaluation.plan import Contender, Plan, Run
from envs.evaluation.result import Result
from envs.evaluation.statistics import Ratio, holm, over_scenarios

LEAST_EPISODES: Final = 100
LEAST_SEEDS: Final = 12
"""Episodes of each regime, at least."""
#: Figure -> the ratio up to which a candidate is not worse.
MARGINS: Mapping[str, float] = MappingProxyType({"cost": 1.02, "p99_s": 1.05})
_FIRST_SEED: Final = 1_000_000
_SPREAD: Final = 8_000_000
_HOPELESS: Final = 30.0  # times the episodes; a difference that small is nobody's concern

BETTER, NOT_WORSE, OPEN, WORSE = "better", "not worse", "open", "worse"
"""What a regime can be; ``open``: the interval covers both a tie and a loss beyond the margin."""


@dataclass(frozen=True, slots=True)
class Regime:
    """A scenario by one figure against one opponent.

    Args:
        row: the figure, with its paired ratio.
        word: what it means: one of the four above.
    """

    row: Row
    word: str


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that the rule asks for.

    Args:
        asks: in words.
        is_met: whether it is so.
        ratio: what it was read off, where that is one ratio.
        bar: what the interval's upper end has to stay below, or at.
    """

    asks: str
    is_met: bool
    ratio: Ratio | None = None
    bar: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As a verdict keeps it."""
        return {"asks": self.asks, "met": self.is_met, "bar": self.bar} | _interval(self.ratio)


@dataclass(frozen=True, slots=True)
class Match:
    """A candidate against one opponent.

    Args:
        opponent: its label.
        overall: figure -> the ratio over all regimes.
        regimes: by scenario, then figure.
        conditions: what the rule asks for here.
    """

    opponent: str
    overall: Mapping[str, Ratio]
    regimes: tuple[Regime, ...]
    conditions: tuple[Condition, ...]


def plan_of(
    candidate: Contender, opponents: Sequence[Contender], scenarios: Sequence[str], episodes: int, sha256: str
) -> Plan:
    """Who meets whom, where and how often.

    Args:
        candidate: to be judged.
        opponents: the incumbent first.
        scenarios: the regimes.
        episodes: at least so many of the candidate in all, and 12 in each regime.
        sha256: of the candidate's weights; its seeds follow from them.
    """
    each = max(LEAST_SEEDS, math.ceil(episodes / len(scenarios)))
    first = first_seed(sha256)
    return Plan((candidate, *opponents), opponents[0].label, tuple(scenarios), range(first, first + each))


def first_seed(sha256: str) -> int:
    """Where a candidate's seeds begin: nobody can train on them, choose them, or meet those of the last candidate."""
    first = _FIRST_SEED + int(sha256[:12], 16) % _SPREAD
    assert first + _FIRST_SEED <= TRAINING_SEEDS  # noqa: S101 - of the constants above
    return first


def played(run: Run, plan: Plan, workers: int, report: Callable[[int, str], None]) -> list[Result]:
    """Every run of a plan; ``report`` is told of each."""
    tasks = plan.tasks()
    results = []
    with Workers(run, min(workers, len(tasks))) as pool:
        for _, result in pool.results(tasks):
            results.append(result)
            report(1, "")
    return results


def matches(plan: Plan, results: Sequence[Result]) -> list[Match]:
    """The candidate, first in the plan, against each of the others; the first of those is the incumbent.

    Raises:
        CCRError: if there are fewer episodes than a verdict needs.
    """
    candidate, *opponents = plan.contenders
    found = []
    for opponent in opponents:
        pair = replace(plan, contenders=(opponent, candidate), baseline=opponent.label)
        comparison = Comparison(pair, results)
        _enough(comparison)
        found.append(_match(comparison, candidate.label, is_incumbent=opponent is opponents[0]))
    return found


def has_passed(judged: Sequence[Match]) -> bool:
    """Whether everything that the rule asks for is so."""
    return all(condition.is_met for match in judged for condition in match.conditions)


def episodes_wanted(judged: Sequence[Match], episodes: int) -> int | None:
    """How many episodes might settle what failed only because its interval is wide; ``None`` where more would not help.

    Args:
        judged: with ``episodes`` paired ones each.
        episodes: so far.
    """
    wanted = 1.0
    for condition in (one for match in judged for one in match.conditions if not one.is_met):
        ratio, bar = condition.ratio, condition.bar
        if ratio is None or bar is None or ratio.ratio is None or ratio.high is None or ratio.ratio >= bar:
            return None
        half, room = math.log(ratio.high / ratio.ratio), math.log(bar / ratio.ratio)
        wanted = max(wanted, (half / room) ** 2)  # an interval narrows with the root of the episodes
    return math.ceil(episodes * wanted / 100.0) * 100 if wanted < _HOPELESS else None


def verdict_of(judged: Sequence[Match]) -> dict[str, Any]:
    """What is decided, and by what; no NaN in it."""
    *_, last = judged
    return {
        "passed": has_passed(judged),
        "rule": {"margins": dict(MARGINS), "least_seeds": LEAST_SEEDS, "least_episodes": LEAST_EPISODES},
        "against_heuristic": _interval(last.overall["cost"]),
        "conditions": [
            {"opponent": match.opponent} | condition.as_json()
            for match in judged
            for condition in match.conditions
        ],
        "overall": [
            {"opponent": match.opponent, "metric": metric} | _interval(ratio)
            for match in judged
            for metric, ratio in match.overall.items()
        ],
        "regimes": [
            {"opponent": match.opponent, "is": regime.word} | regime.row.as_json()
            for match in judged
            for regime in match.regimes
        ],
    }


def _enough(comparison: Comparison) -> None:
    pairs = [len(comparison.seeds[name]) for name in comparison.plan.scenarios]
    if min(pairs) < LEAST_SEEDS or sum(pairs) < LEAST_EPISODES:
        raise CCRError(
            f"a verdict needs {LEAST_EPISODES} paired episodes and {LEAST_SEEDS} in each regime; "
            f"there are {sum(pairs)}, and {min(pairs)} in the least"
        )


def _match(comparison: Comparison, label: str, *, is_incumbent: bool) -> Match:
    opponent = comparison.plan.baseline
    overall = {metric: comparison.summary(metric)[0].against for metric in MARGINS}
    regimes, conditions = [], []
    if is_incumbent:
        is_better = _below(overall["cost"], 1.0, strictly=True)
        conditions.append(
            Condition(f"cost below that of {opponent} over all regimes", is_better, overall["cost"], 1.0)
        )
    for metric, margin in MARGINS.items():
        mine = _regimes(comparison, label, metric, margin)
        regimes += mine
        conditions += _conditions(comparison, mine, metric, margin, label)
    order = {name: place for place, name in enumerate(comparison.plan.scenarios)}
    regimes.sort(key=lambda regime: order[regime.row.scenario])
    return Match(opponent, overall, tuple(regimes), tuple(conditions))


def _regimes(comparison: Comparison, label: str, metric: str, margin: float) -> list[Regime]:
    rows = [comparison.row(name, label, metric) for name in comparison.plan.scenarios]
    # A regime without an interval proves nothing, so it is never the least likely one.
    holds = holm([1.0 if row.against.p is None else row.against.p for row in rows])
    return [
        Regime(row, _word(row.against, margin, holds=hold)) for row, hold in zip(rows, holds, strict=True)
    ]


def _word(against: Ratio, margin: float, *, holds: bool) -> str:
    if _below(against, 1.0, strictly=True):
        return BETTER
    if _below(against, margin):
        return NOT_WORSE
    is_beyond = against.ratio is not None and against.ratio > margin
    return WORSE if holds and is_beyond else OPEN


def _conditions(
    comparison: Comparison, regimes: Sequence[Regime], metric: str, margin: float, label: str
) -> Iterator[Condition]:
    opponent, figure = comparison.plan.baseline, METRICS[metric].label.partition(",")[0]
    worse = [regime.row.scenario for regime in regimes if regime.word == WORSE]
    yield Condition(
        f"{figure} worse than that of {opponent} in no regime"
        + (f"; it is in {', '.join(worse)}" if worse else ""),
        not worse,
    )
    rest = [regime.row.scenario for regime in regimes if regime.word != BETTER]
    if rest:
        logs = np.array([comparison.log_ratios(name, label, metric) for name in rest])
        together = over_scenarios(logs)
        asks = f"{figure} against {opponent}, the regimes where it is not better together ({len(rest)})"
        yield Condition(asks, _below(together, margin), together, margin)


def _below(ratio: Ratio, bar: float, *, strictly: bool = False) -> bool:
    """Whether the whole interval is."""
    if ratio.high is None:
        return False
    return ratio.high < bar if strictly else ratio.high <= bar


def _interval(ratio: Ratio | None) -> dict[str, Any]:
    if ratio is None:
        return {}
    return {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "n": ratio.n}
