"""From samples to checked numbers: finite, not negative, within what the quantity can be."""

import math
from collections.abc import Iterable, Mapping, Sequence

from ccr.errors import TelemetryError
from router.prometheus_text import MALFORMED, TOO_LARGE, Sample

Series = Mapping[str, Sequence[Sample]]

#: More sequences than any engine holds.
COUNT_LIMIT = 1e6
#: Rounding and blocks in transfer put a full cache a little above 1, which is taken as 1. Anything above this
#: is another unit (percent), and is refused.
FRACTION_TOLERANCE = 0.01
BYTES_LIMIT = 2.0**50
SECONDS_LIMIT = 1e6
MAX_MODELS = 1_000
MAX_ID_CHARS = 256

_GIB = 2.0**30


def first(series: Series, *names: str) -> Sequence[Sample]:
    """The samples of the first of the names that is present; empty if none is."""
    return next((series[name] for name in names if name in series), ())


def where(samples: Sequence[Sample], label: str, value: str) -> list[Sample]:
    """The samples that carry the label with the value."""
    return [sample for sample in samples if sample[0].get(label) == value]


def count(samples: Sequence[Sample]) -> float | None:
    """Their sum, a number of sequences; ``None`` if there are none."""
    return _sum(samples, COUNT_LIMIT)


def gib(samples: Sequence[Sample]) -> float | None:
    """Their sum, from bytes to GiB; ``None`` if there are none."""
    total = _sum(samples, BYTES_LIMIT)
    return None if total is None else total / _GIB


def fraction(samples: Sequence[Sample]) -> float | None:
    """The largest of them, in [0, 1]; ``None`` if there are none."""
    values = [_within(value, 1.0 + FRACTION_TOLERANCE) for _, value in samples]
    return min(max(values), 1.0) if values else None


def mean_fraction(samples: Sequence[Sample]) -> float | None:
    """Their mean, in [0, 1]; ``None`` if there are none."""
    values = [fraction([sample]) or 0.0 for sample in samples]
    return sum(values) / len(values) if values else None


def free_gib(total_gib: float | None, used_gib: float | None) -> float | None:
    """What is left; ``None`` unless both are known.

    Raises:
        TelemetryError: ``out_of_range`` if more is used than there is.
    """
    if total_gib is None or used_gib is None:
        return None
    if used_gib > total_gib:
        raise TelemetryError("out_of_range", f"{used_gib:.2f} GiB used of {total_gib:.2f}")
    return total_gib - used_gib


def seconds_by(samples: Sequence[Sample], label: str) -> dict[str, float]:
    """Label value -> seconds."""
    return {identifier(labels.get(label, "")): _within(value, SECONDS_LIMIT) for labels, value in samples}


def ids_by(samples: Sequence[Sample], label: str) -> frozenset[str]:
    """Label values of the samples that are not zero."""
    return ids(labels.get(label, "") for labels, value in samples if _within(value, COUNT_LIMIT))


def ids(values: Iterable[str]) -> frozenset[str]:
    """The values as a set of model ids."""
    found = frozenset(identifier(value) for value in values)
    if len(found) > MAX_MODELS:
        raise TelemetryError(TOO_LARGE, f"{len(found)} models; at most {MAX_MODELS} are read")
    return found


def identifier(value: str) -> str:
    """The value, if it can be a model id."""
    if not 0 < len(value) <= MAX_ID_CHARS:
        raise TelemetryError(MALFORMED, f"a model id of {len(value)} characters")
    return value


def started(samples: Sequence[Sample]) -> str:
    """When the process started, as a name of its incarnation; empty unless exactly one process tells."""
    if len(samples) != 1:
        return ""
    return f"{_within(samples[0][1], math.inf):.2f}"


def _sum(samples: Sequence[Sample], limit: float) -> float | None:
    if not samples:
        return None
    return _within(sum(_within(value, limit) for _, value in samples), limit)


def _within(value: float, limit: float) -> float:
    if not math.isfinite(value):
        raise TelemetryError("not_finite", f"a value is {value}")
    if value < 0.0:
        raise TelemetryError("negative", f"a value is {value:g}")
    if value > limit:
        raise TelemetryError("out_of_range", f"a value is {value:g}, above {limit:g}")
    return value
