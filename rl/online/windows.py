"""The latest numbers of each of many keys, in rings; what is robust about them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.uint64]

_FIRST: Final = 16


class Windows:
    """A ring of numbers for each key, with when they were true and whose they are.

    Args:
        size: numbers kept of each key.
        values: columns of each number.
    """

    def __init__(self, size: int, values: int = 1) -> None:
        self._size = size
        self._rows: dict[int, int] = {}
        self._values = np.zeros((_FIRST, values, size))
        self._at_s = np.full((_FIRST, size), -np.inf)
        self._whose = np.zeros((_FIRST, size), dtype=np.uint64)
        self._next = np.zeros(_FIRST, dtype=np.int64)

    @property
    def keys(self) -> list[int]:
        """All that there are, in the order they came."""
        return list(self._rows)

    def add(self, keys: Ids, values: Floats, at_s: Floats, whose: Ids) -> None:
        """Take in numbers, shape ``(k,)`` or ``(values, k)``; those that are not finite are left out."""
        values = np.atleast_2d(values)
        good = np.isfinite(values).all(axis=0)
        if not good.any():
            return
        keys, values, at_s, whose = keys[good], values[:, good], at_s[good], whose[good]
        order = np.argsort(keys, kind="stable")
        distinct, begins = np.unique(keys[order], return_index=True)
        for key, mine in zip(distinct.tolist(), np.split(order, begins[1:]), strict=True):
            row, some = self._row(key), mine[-self._size :]
            where = (self._next[row] + np.arange(len(some))) % self._size
            self._values[row][:, where] = values[:, some]
            self._at_s[row, where], self._whose[row, where] = at_s[some], whose[some]
            self._next[row] += len(some)

    def latest(self, key: int, since_s: float) -> tuple[Floats, Ids]:
        """The numbers of a key that are not older, shape ``(values, k)``, and whose they are."""
        row = self._rows.get(key)
        if row is None:
            return np.zeros((self._values.shape[1], 0)), np.zeros(0, dtype=np.uint64)
        recent = self._at_s[row] >= since_s
        return self._values[row][:, recent], self._whose[row, recent]

    def _row(self, key: int) -> int:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = len(self._rows)
            if row == len(self._next):
                for name in ("_values", "_at_s", "_whose", "_next"):
                    old = getattr(self, name)
                    setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
                self._at_s[row:] = -np.inf
        return row


def capped(whose: Ids, share: float) -> Floats:
    """Weights under which no one's numbers count for more than a share of all, as far as there are others, shape ``(k,)``.

    Args:
        whose: 0 where nobody is named: each such number stands for itself.
        share: in (0, 1].
    """
    _, place, counts = np.unique(whose, return_inverse=True, return_counts=True)
    most = max(share * len(whose), 1.0)
    weights = np.minimum(1.0, most / counts[place])
    return np.where(whose == 0, 1.0, weights)


def median(values: Floats, weights: Floats) -> float:
    """The weighted median of numbers, shape ``(k,)``, k at least 1."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    at = int(np.searchsorted(total, 0.5 * total[-1]))
    return float(values[order[min(at, len(order) - 1)]])


def clipped_mean(values: Floats, weights: Floats, times: float) -> float:
    """The weighted mean, no number counting for more than so many medians."""
    middle = median(values, weights)
    return float(np.average(np.minimum(values, times * middle), weights=weights))
