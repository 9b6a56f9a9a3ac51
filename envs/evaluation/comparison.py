"""From results to rows: every policy on every scenario by every metric, beside the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from envs.evaluation.metrics import METRICS
from envs.evaluation.plan import Plan
from envs.evaluation.result import Result
from envs.evaluation.statistics import Ratio, geometric, holm, of_means, over_scenarios

Floats = NDArray[np.float64]

ALL: Final = "all scenarios"


@dataclass(frozen=True, slots=True)
class Row:
    """One policy by one metric on one scenario.

    Args:
        scenario: its name, or :data:`ALL`.
        policy: label of the contender.
        metric: a key of :data:`envs.evaluation.metrics.METRICS`.
        value: mean over the seeds of the figure per episode; ``None`` where no episode has one.
        against: the baseline.
        verdict: ``better``, ``worse``, ``tie``, ``baseline``; ``None`` with fewer than two pairs.
    """

    scenario: str
    policy: str
    metric: str
    value: float | None
    against: Ratio
    verdict: str | None

    def as_json(self) -> dict[str, Any]:
        """As the file given to ``--json`` has it."""
        ratio = self.against
        return {
            "scenario": self.scenario,
            "policy": self.policy,
            "metric": self.metric,
            "value": self.value,
            "ratio": ratio.ratio,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "n": ratio.n,
            "p": ratio.p,
            "verdict": self.verdict,
        }


class Comparison:
    """Results of a plan, paired: a seed counts in a scenario when every contender has finished it.

    Args:
        plan: what was to be run.
        results: in any order; some may be missing.
    """

    def __init__(self, plan: Plan, results: Sequence[Result]) -> None:
        self.plan = plan
        self._results = {(one.scenario, one.label, one.seed): one for one in results}
        self.seeds: Mapping[str, tuple[int, ...]] = {name: self._paired(name) for name in plan.scenarios}
        self._rows = {
            (row.scenario, row.policy, row.metric): row
            for name in self.scenarios
            for label in plan.labels
            for row in self._judged(name, label)
        }

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Those with at least one seed to compare, in the order of the plan."""
        return tuple(name for name in self.plan.scenarios if self.seeds[name])

    @property
    def rows(self) -> list[Row]:
        """All rows: by scenario, policy, metric."""
        return list(self._rows.values())

    def row(self, scenario: str, label: str, metric: str) -> Row:
        """One of them."""
        return self._rows[scenario, label, metric]

    def values(self, scenario: str, label: str, metric: str) -> Floats:
        """The figure per episode, shape ``(len(seeds[scenario]),)``."""
        return np.array(
            [self._results[scenario, label, seed].metrics[metric] for seed in self.seeds[scenario]]
        )

    def latencies_s(self, scenario: str, label: str) -> Floats:
        """Quantiles of the latency at :data:`envs.evaluation.result.LEVELS`, averaged over the episodes that served anything; may be empty."""
        each = [self._results[scenario, label, seed].latency_s for seed in self.seeds[scenario]]
        served = [quantiles for quantiles in each if quantiles]
        return np.mean(served, axis=0) if served else np.empty(0)

    def log_ratios(self, scenario: str, label: str, metric: str) -> Floats:
        """Log of the paired ratios to the baseline, per episode; only for metrics that are positive."""
        mine = self.values(scenario, label, metric)
        theirs = self.values(scenario, self.plan.baseline, metric)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a figure of 0 has no ratio: not finite, not used
            logs: Floats = np.log(mine) - np.log(theirs)
        return logs

    def summary(self, metric: str = "cost") -> list[Row]:
        """Each challenger over all scenarios, each scenario with the same weight; none without finished seeds."""
        if not self.scenarios:
            return []
        common = self._common_seeds()
        return [self._summed(label, metric, common) for label in self.plan.challengers]

    def doubtful(self, metric: str = "cost") -> list[Row]:
        """Differences that are significant alone but not among all that were looked at (Holm, 5 %)."""
        judged = [
            (row, row.against.p)
            for row in self.rows
            if row.metric == metric and row.policy != self.plan.baseline and row.against.p is not None
        ]
        holds = holm([p for _, p in judged])
        return [
            row
            for (row, _), hold in zip(judged, holds, strict=True)
            if row.verdict in {"better", "worse"} and not hold
        ]

    def _paired(self, scenario: str) -> tuple[int, ...]:
        return tuple(
            seed
            for seed in self.plan.seeds
            if all((scenario, label, seed) in self._results for label in self.plan.labels)
        )

    def _common_seeds(self) -> tuple[int, ...]:
        return tuple(
            seed for seed in self.plan.seeds if all(seed in self.seeds[name] for name in self.scenarios)
        )

    def _judged(self, scenario: str, label: str) -> list[Row]:
        return [self._judge(scenario, label, metric) for metric in METRICS]

    def _judge(self, scenario: str, label: str, metric: str) -> Row:
        facts = METRICS[metric]
        mine = self.values(scenario, label, metric)
        theirs = self.values(scenario, self.plan.baseline, metric)
        against = (geometric if facts.positive else of_means)(mine, theirs)
        verdict = against.verdict(higher_is_better=facts.higher_is_better)
        if label == self.plan.baseline:
            verdict = "baseline"
        return Row(scenario, label, metric, _mean(mine), against, verdict)

    def _summed(self, label: str, metric: str, seeds: Sequence[int]) -> Row:
        picked = [
            self.log_ratios(name, label, metric)[[self.seeds[name].index(seed) for seed in seeds]]
            for name in self.scenarios
        ]
        against = over_scenarios(np.array(picked).reshape(len(picked), len(seeds)))
        higher_is_better = METRICS[metric].higher_is_better
        return Row(ALL, label, metric, None, against, against.verdict(higher_is_better=higher_is_better))


def _mean(values: Floats) -> float | None:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else None
