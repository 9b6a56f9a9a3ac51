"""The little arithmetic a benchmark needs: percentiles, spread over repeats, ratios."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: One run of one system: metric (with its unit as suffix) -> value.
Sample = Mapping[str, float]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed (nearest rank).

    Args:
        ordered: ascending.
        share: in (0, 1].

    Raises:
        ValueError: if there are no values; a percentile of nothing is not 0.
    """
    if not ordered:
        raise ValueError("there is no percentile of no values: nothing was measured")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over the repeats.

    Args:
        median: the value to quote.
        low: smallest.
        high: largest.
        values: in the order they were measured.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), tuple(values))

    @property
    def width(self) -> float:
        """Largest minus smallest, as a share of the median; 0 when the median is 0."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0


def compared(
    samples: Mapping[str, Sample], reference: str, ratio_of: str, added: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """One repeat with what only makes sense beside the others: the ratio, and what is added to direct.

    Args:
        samples: system -> sample of this repeat.
        reference: the system ratios are to; without it there are no ratios.
        ratio_of: the metric of the ratio.
        added: name of an added metric -> metric of which the one of system ``direct`` is taken away.
    """
    whole = {name: dict(sample) for name, sample in samples.items()}
    base = samples.get(reference, {}).get(ratio_of, 0.0)
    direct = samples.get("direct")
    for name, sample in samples.items():
        if direct is not None and name != "direct":
            whole[name] |= {key: sample[of] - direct[of] for key, of in (added or {}).items()}
        if base > 0.0 and ratio_of in sample:
            whole[name]["ratio"] = sample[ratio_of] / base
    return whole


def spreads(repeats: Sequence[Mapping[str, Sample]]) -> dict[str, dict[str, Spread]]:
    """System -> metric -> spread, from one mapping of samples per repeat."""
    values: dict[str, dict[str, list[float]]] = {}
    for repeat in repeats:
        for system, sample in repeat.items():
            for metric, value in sample.items():
                values.setdefault(system, {}).setdefault(metric, []).append(value)
    return {
        system: {metric: Spread.of(found) for metric, found in metrics.items()}
        for system, metrics in values.items()
    }
