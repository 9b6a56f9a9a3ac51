"""What the arms of a drill cost, what was recovered, and whether the bars are met."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envs.evaluation.statistics import CONFIDENCE, Ratio, geometric, of_means
from rl.drills.play import FROZEN, ONLINE, TRUTH
from rl.drills.poison import HONEST, POISONED, Figures, Limit, Poison

Floats = NDArray[np.float64]

#: What is kept of an episode.
KEPT: Final = ("cost", "mean_s", "p99_s", "slo", "reject_rate")
TIE: Final = 1.02
"""What online may cost relative to frozen where nothing drifts."""
RECOVERED: Final = 0.8
_RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that is asked of a drill.

    Args:
        id: short and stable.
        bar: in words.
        value: measured; ``None``: there was nothing to measure.
        low: lower end of the 95 % interval, where there is one.
        high: upper end.
        met: whether it is met.
    """

    id: str
    bar: str
    value: float | None
    low: float | None
    high: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """Share of what the truth would have gained that learning gained.

    Args:
        value: of the mean costs; ``None``: the truth gained nothing that could be told from chance.
        low: lower end of the 95 % interval, by the bootstrap over pairs.
        high: upper end.
        words: for people.
    """

    value: float | None
    low: float | None
    high: float | None
    words: str


def recovered(frozen: Floats, online: Floats, truth: Floats) -> Recovered:
    """(frozen - online) / (frozen - truth) of the mean costs; an argument has shape ``(pairs,)``."""
    against = geometric(truth, frozen)
    if against.high is None or against.high >= 1.0:
        return Recovered(None, None, None, "nothing to recover: frozen costs no more than the truth")
    drawn = np.random.default_rng(0).integers(len(frozen), size=(_RESAMPLES, len(frozen)))
    gained, possible = (frozen - online)[drawn].mean(axis=1), (frozen - truth)[drawn].mean(axis=1)
    kept = possible > 0.0
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(gained[kept] / possible[kept], (tail, 100.0 - tail))
    value = float((frozen - online).mean() / (frozen - truth).mean())
    return Recovered(value, float(low), float(high), f"{value:.0%} [{low:.0%}, {high:.0%}]")


def drift_bars(online: Ratio, found: Recovered | None) -> tuple[Bar, ...]:
    """What is asked of a drift drill.

    Args:
        online: its cost relative to frozen.
        found: what was recovered; ``None`` where nothing drifts.
    """
    value, low, high = online.ratio, online.low, online.high
    if found is None:
        words = f"cost of online over frozen where nothing drifts <= {TIE:g}, the whole interval"
        return (Bar("never-worse", words, value, low, high, high is not None and high <= TIE),)
    is_better = high is not None and high < 1.0
    return (
        Bar("better", "cost of online over frozen, interval below 1", value, low, high, is_better),
        Bar(
            "recovered", f"share of the truth's gain that online has >= {RECOVERED:g}", found.value, found.low,
            found.high, found.value is not None and found.value >= RECOVERED,
        ),
    )  # fmt: skip


def drift_document(
    name: str, seeds: Sequence[int], figures: Mapping[str, Floats], *, recovers: bool
) -> dict[str, Any]:
    """What ``--json`` writes of a drift drill.

    Args:
        name: of the drill.
        seeds: of the pairs.
        figures: by arm, columns as :data:`KEPT`, shape ``(pairs, len(KEPT))``.
        recovers: whether there is something to win back.
    """
    costs = {arm: rows[:, 0] for arm, rows in figures.items()}
    pairs = {
        "online/frozen": geometric(costs[ONLINE], costs[FROZEN]),
        "truth/frozen": geometric(costs[TRUTH], costs[FROZEN]),
        "online/truth": geometric(costs[ONLINE], costs[TRUTH]),
    }
    found = recovered(costs[FROZEN], costs[ONLINE], costs[TRUTH]) if recovers else None
    return {
        "drill": name,
        "seeds": {"first": seeds[0], "count": len(seeds)},
        "arms": {
            arm: {
                metric: _mean(rows[:, k]) | ({"each": rows[:, k].tolist()} if metric == "cost" else {})
                for k, metric in enumerate(KEPT)
            }
            for arm, rows in figures.items()
        },
        "ratios": {
            pair: _ratio(ratio) for pair, ratio in pairs.items()
        },
        "recovered": asdict(found) if found is not None else None,
        "bars": [asdict(bar) for bar in drift_bars(pairs["online/frozen"], found)],
    }  # fmt: skip


def _mean(values: Floats) -> dict[str, float | None]:
    """Mean and its interval."""
    ratio = interval_of(values)
    return {"mean": ratio[0], "low": ratio[1], "high": ratio[2]}


def interval_of(values: Floats) -> tuple[float, float | None, float | None]:
    """Mean of independent values and its 95 % interval by Student's t, which one value has none of."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, n - 1)) * float(values.std(ddof=1)) / n**0.5
    return mean, mean - half, mean + half


def poison_document(
    poison: Poison, seeds: Sequence[int], found: Mapping[str, Sequence[Figures]]
) -> dict[str, Any]:
    """What ``--json`` writes of a poisoning drill.

    Args:
        poison: the drill.
        seeds: of the pairs.
        found: by arm, the figures of each pair.
    """
    columns = {
        arm: {name: np.array([each[name] for each in rows]) for name in rows[0]}
        for arm, rows in found.items()
    }
    ratios = {name: of_means(columns[POISONED][name], columns[HONEST][name]) for name in columns[HONEST]}
    return {
        "drill": poison.name,
        "seeds": {"first": seeds[0], "count": len(seeds)},
        "arms": {
            arm: {name: _mean(values) | {"most": float(values.max())} for name, values in each.items()}
            for arm, each in columns.items()
        },
        "ratios": {
            f"{name}, poisoned/honest": _ratio(ratio) for name, ratio in ratios.items() if ratio.ratio is not None
        },
        "recovered": None,
        "bars": [asdict(_limit(limit, columns[POISONED][limit.figure], ratios[limit.figure])) for limit in poison.limits],
    }  # fmt: skip


def _limit(limit: Limit, values: Floats, ratio: Ratio) -> Bar:
    if limit.relative:
        is_met = ratio.ratio is not None and ratio.ratio <= limit.most
        return Bar(limit.figure, limit.words, ratio.ratio, ratio.low, ratio.high, is_met)
    if limit.of_each:
        most = float(values.max())
        return Bar(limit.figure, limit.words, most, None, None, most <= limit.most)
    mean, low, high = interval_of(values)
    return Bar(limit.figure, limit.words, mean, low, high, mean <= limit.most)


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {
        "value": ratio.ratio, "low": ratio.low, "high": ratio.high, "n": ratio.n,
        "verdict": ratio.verdict(higher_is_better=False),
    }  # fmt: skip
