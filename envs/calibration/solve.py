"""A few constants from many relative errors: robust, bounded, and honest about what the data cannot tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]
Errors = Callable[[Mapping[str, float]], Floats]

# Repeats of a profile cell differ by 1 % (p90/p50, median of the cells) to 11 % (95th percentile). Errors well above
# 2 % are the shape of the model, not noise: from there on they count linearly, not squared. Other scales were tried
# with the errors on left-out models in view (docs/calibration.md).
_ROBUST_SCALE = 0.02
# Data made without noise would otherwise claim to know everything.
_NOISE_FLOOR = 0.01
_NEAR_BOUND = 1e-3
_ZOOMS = 4
_POINTS = 7


@dataclass(frozen=True, slots=True)
class Range:
    """Where a constant may be.

    Args:
        start: first guess, and the value kept when the data cannot tell.
        low: least plausible value.
        high: greatest plausible value.
        weak: standard error above which the data cannot tell: relative, or in the constant's unit when ``linear``.
        linear: fitted as it is, not as its logarithm; for constants that may be 0.
        step: of the numerical derivative, like ``weak``.
        grid: first values to try where the errors jump, as those of a replay do: one request more in a batch
            moves all that follow, and a slope says nothing. Empty: follow the slope.
    """

    start: float
    low: float
    high: float
    weak: float = 0.25
    linear: bool = False
    step: float = 1e-4
    grid: tuple[float, ...] = ()

    def coordinate(self, value: float) -> float:
        """Where the solver sees ``value``."""
        return value if self.linear else log(value)

    def value(self, coordinate: float) -> float:
        """What the solver means by ``coordinate``."""
        return coordinate if self.linear else exp(coordinate)


@dataclass(frozen=True, slots=True)
class Constant:
    """A fitted constant.

    Args:
        name: of the constant.
        value: the estimate, in its unit.
        error: its standard error, same unit, if the errors of the rows were independent: a lower limit.
        note: why not to trust it; empty otherwise.
    """

    name: str
    value: float
    error: float
    note: str = ""


def fit_constants(errors: Errors, ranges: Mapping[str, Range]) -> dict[str, Constant]:
    """The constants that make the errors small.

    A constant that the data cannot tell from the others, or at all, keeps its start, and the rest is fitted again.

    Args:
        errors: relative errors of the predictions under given values, shape ``(rows,)``, the same rows each time.
        ranges: the constants to find.

    Returns:
        In the order of ``ranges``.
    """
    kept: dict[str, Constant] = {}
    found: dict[str, Constant] = {}
    while free := {name: span for name, span in ranges.items() if name not in kept}:
        fixed = {name: constant.value for name, constant in kept.items()}
        found, spread = _solve(errors, free, fixed)
        weakest = max(free, key=lambda name: spread[name] / ranges[name].weak)
        if spread[weakest] <= ranges[weakest].weak:
            break
        start = ranges[weakest].start
        kept[weakest] = Constant(weakest, start, inf, "the data cannot tell: kept as it was")
        found = {}
    return {name: kept.get(name) or found[name] for name in ranges}


def _solve(
    errors: Errors, free: Mapping[str, Range], fixed: Mapping[str, float]
) -> tuple[dict[str, Constant], dict[str, float]]:
    spans = list(free.values())
    low, start, high = (
        np.array([span.coordinate(getattr(span, field)) for span in spans])
        for field in ("low", "start", "high")
    )

    def residuals(x: Floats) -> Floats:
        return errors({**fixed, **_values(free, x)})

    def jacobian(x: Floats) -> Floats:
        return np.column_stack(
            [_slope(residuals, x, i, low, high, span.step) for i, span in enumerate(spans)]
        )

    if all(span.grid for span in spans):
        at = _zoom(lambda x: _cost(residuals(x)), spans, start)
        cost, slopes = _cost(residuals(at)), _weights(residuals(at))[:, None] * jacobian(at)
    else:
        solution = least_squares(
            residuals,
            start,
            jac=jacobian,
            bounds=(low, high),
            loss="soft_l1",
            f_scale=_ROBUST_SCALE,
            x_scale="jac",
        )
        at, cost, slopes = solution.x, solution.cost, solution.jac
    spread = dict(zip(free, _spread(slopes, cost), strict=True))
    at_bound = (at - low < _NEAR_BOUND) | (high - at < _NEAR_BOUND)
    constants = {
        name: Constant(
            name,
            value,
            spread[name] * (1.0 if free[name].linear else value),
            _bound_note(free[name], value) if at_bound[i] else "",
        )
        for i, (name, value) in enumerate(_values(free, at).items())
    }
    return constants, spread


def _zoom(cost: Callable[[Floats], float], spans: Sequence[Range], start: Floats) -> Floats:
    """The lowest point of a jagged cost: each coordinate in turn on its grid, then between the best one's neighbours."""
    at = start.copy()
    grids = [np.array([span.coordinate(value) for value in span.grid]) for span in spans]
    for _ in range(1 + _ZOOMS):
        for i, grid in enumerate(grids):
            costs = [cost(np.concatenate([at[:i], [x], at[i + 1 :]])) for x in grid]
            best = int(np.argmin(costs))
            at[i] = grid[best]
            grids[i] = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], _POINTS)
    return at


def _cost(residuals: Floats) -> float:
    """Half the squares of small errors, linear in large ones: ``soft_l1`` of scipy."""
    total: float = _ROBUST_SCALE**2 * np.sum(np.sqrt(1.0 + (residuals / _ROBUST_SCALE) ** 2) - 1.0)
    return float(total)


def _weights(residuals: Floats) -> Floats:
    """Root of the curvature of :func:`_cost` by each error."""
    weights: Floats = (1.0 + (residuals / _ROBUST_SCALE) ** 2) ** -0.75
    return weights


def _values(free: Mapping[str, Range], x: Floats) -> dict[str, float]:
    return {name: span.value(float(at)) for (name, span), at in zip(free.items(), x, strict=True)}


def _slope(
    residuals: Callable[[Floats], Floats], x: Floats, i: int, low: Floats, high: Floats, step: float
) -> Floats:
    """The central difference along one coordinate, one-sided at a bound, shape ``(rows,)``."""
    up, down = x.copy(), x.copy()
    up[i], down[i] = min(x[i] + step, high[i]), max(x[i] - step, low[i])
    slope: Floats = (residuals(up) - residuals(down)) / (up[i] - down[i])
    return slope


def _spread(jacobian: Floats, cost: float) -> list[float]:
    """Standard errors of the coordinates; infinite along directions the data do not see."""
    rows, columns = jacobian.shape
    if rows <= columns:
        return [inf] * columns
    _, singular, directions = np.linalg.svd(jacobian, full_matrices=False)
    seen = singular > 1e-9 * max(1.0, float(singular.max()))
    variance = max(2 * cost / (rows - columns), _NOISE_FLOOR**2)
    weights = np.divide(variance, singular**2, where=seen, out=np.full(columns, inf))[:, None]
    # A direction that is not seen does not concern a constant that has no part in it.
    parts = directions**2
    terms = np.multiply(parts, weights, where=parts > 1e-18, out=np.zeros_like(parts))
    return [float(total) for total in np.sqrt(terms.sum(axis=0))]


def _bound_note(span: Range, value: float) -> str:
    if span.linear and value <= span.low + _NEAR_BOUND:
        return ""  # an overhead of 0 is an answer.
    return f"at the end of its plausible range ({span.low:g} to {span.high:g})"
