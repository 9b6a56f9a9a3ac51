"""Paired comparisons: the ratio of a policy to the baseline on the same arrivals, and how sure we are of it.

Episodes with different seeds are independent; the requests inside one are not. So an episode is one
observation, however many requests it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

CONFIDENCE: Final = 0.95
ALPHA: Final = 1.0 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class Ratio:
    """A policy relative to the baseline.

    Args:
        ratio: below 1 the policy has less; ``None`` where the baseline is 0 or nothing was measured.
        low: lower end of the 95 % interval; ``None`` where there is none: one pair, or a ratio of 0.
        high: upper end.
        p: two-sided, of no difference; ``None`` with fewer than two pairs.
        sign: of the difference: -1, 0 or 1.
        n: pairs that entered.
    """

    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    sign: int
    n: int

    def verdict(self, *, higher_is_better: bool) -> str | None:
        """``better``, ``worse`` or ``tie`` (the interval covers 1); ``None`` with fewer than two pairs."""
        if self.p is None:
            return None
        if self.p >= ALPHA:
            return "tie"
        return "better" if (self.sign > 0) == higher_is_better else "worse"


def geometric(policy: Floats, baseline: Floats) -> Ratio:
    """Geometric mean of the paired ratios; interval from the t-distribution on their logs.

    Args:
        policy: per episode, shape ``(n,)``; what is not finite and positive has no ratio and drops out.
        baseline: of the same episodes.
    """
    kept = np.isfinite(policy) & np.isfinite(baseline) & (policy > 0.0) & (baseline > 0.0)
    return _of_logs(np.log(policy[kept]) - np.log(baseline[kept]))


def of_means(policy: Floats, baseline: Floats) -> Ratio:
    """Ratio of the means, for figures that may be 0; interval by the delta method on its log, paired.

    Where a mean is 0 the log has no interval: the verdict is then that of the paired differences.

    Args:
        policy: per episode, shape ``(n,)``; what is not finite drops out.
        baseline: of the same episodes.
    """
    kept = np.isfinite(policy) & np.isfinite(baseline)
    policy, baseline = policy[kept], baseline[kept]
    if not len(policy):
        return _of_logs(policy)
    above, below = float(policy.mean()), float(baseline.mean())
    if above > 0.0 and below > 0.0:
        # The first-order influence of each episode on log(mean / mean), shifted to have that as its mean.
        return _of_logs(np.log(above / below) + policy / above - baseline / below)
    mean, _, p = _t(policy - baseline)
    return Ratio(above / below if below else None, None, None, p, int(np.sign(mean)), len(policy))


def over_scenarios(log_ratios: Floats) -> Ratio:
    """The average scenario: geometric mean over all, with seeds as the independent observations.

    Args:
        log_ratios: shape ``(scenarios, seeds)``; seeds that are not finite everywhere drop out.
    """
    per_seed = log_ratios.mean(axis=0)
    return _of_logs(per_seed[np.isfinite(per_seed)])


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which differences hold when all were looked at: Holm's step-down correction at 5 % for the whole family."""
    order = np.argsort(p_values, kind="stable")
    holds = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] >= ALPHA / (len(p_values) - rank):
            break
        holds[index] = True
    return holds


def _of_logs(logs: Floats) -> Ratio:
    if not len(logs):
        return Ratio(None, None, None, None, 0, 0)
    mean, half, p = _t(logs)
    low, high = (None, None) if half is None else (float(np.exp(mean - half)), float(np.exp(mean + half)))
    return Ratio(float(np.exp(mean)), low, high, p, int(np.sign(mean)), len(logs))


def _t(values: Floats) -> tuple[float, float | None, float | None]:
    """Mean, half width of its interval, and p of a mean of 0."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, None, None
    error = float(values.std(ddof=1)) / n**0.5
    # Equal up to rounding is equal: a policy against itself must not be significant.
    if error <= 1e-12 * max(1.0, abs(mean)):
        return (0.0, 0.0, 1.0) if abs(mean) <= 1e-12 else (mean, 0.0, 0.0)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, n - 1)) * error
    return mean, half, float(2.0 * stats.t.sf(abs(mean) / error, n - 1))
