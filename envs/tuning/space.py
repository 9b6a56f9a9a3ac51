"""Weights as points of the unit cube, so that one step size suits all of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ccr.errors import ConfigError
from envs.evaluation.engine import Range

Point = NDArray[np.float64]

# What is tried is what is written down: nobody wants 3.2189470125 in a config.
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Space:
    """The weights of a policy and where they may lie.

    Args:
        ranges: option -> range.

    Raises:
        ConfigError: if a range is empty, or logarithmic and not above 0.
    """

    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        for name, one in self.ranges.items():
            if not one.low < one.high or (one.log and one.low <= 0.0):
                raise ConfigError(
                    f"the range of {name!r} is {one.low:g} to {one.high:g}{' on a log scale' if one.log else ''}: "
                    "low must be below high, and above 0 on a log scale"
                )

    def __len__(self) -> int:
        return len(self.ranges)

    def options(self, point: Point) -> dict[str, float]:
        """The options at a point, shape ``(len(self),)``; outside the cube means at its wall."""
        return {
            name: _rounded(_at(one, float(x)))
            for (name, one), x in zip(self.ranges.items(), np.clip(point, 0.0, 1.0), strict=True)
        }

    def point(self, options: Mapping[str, float]) -> Point:
        """The point of some options, shape ``(len(self),)``; clipped into the cube.

        Args:
            options: has every name of ``ranges``; others are ignored.
        """
        return np.clip([_of(one, options[name]) for name, one in self.ranges.items()], 0.0, 1.0)


def _at(one: Range, x: float) -> float:
    return one.low * (one.high / one.low) ** x if one.log else one.low + x * (one.high - one.low)


def _of(one: Range, value: float) -> float:
    if not one.log:
        return (value - one.low) / (one.high - one.low)
    # A weight that is switched off, 0, lies below every factor: the wall is the nearest there is.
    return math.log(value / one.low) / math.log(one.high / one.low) if value > 0.0 else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
