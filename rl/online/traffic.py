"""The latest requests, in columns: what the fleet is trained and examined on next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rl.online.batch import Batch

#: Of the latest requests so many are kept, some 20 MB; and none that is older.
MOST: Final = 400_000
WINDOW_S: Final = 900.0
_KIND: Final = np.dtype(
    [("at_s", "<f8"), ("model", "<u8"), ("session", "<u8"), ("prompt", "<f4"), ("output", "<f4")]
)


@dataclass(slots=True)
class Traffic:
    """Requests in a ring.

    Args:
        most: that are kept.
    """

    most: int = MOST
    _rows: NDArray[np.void] | None = None
    _next: int = 0

    def add(self, batch: Batch) -> None:
        """Take in the requests that ended; what was generated of those that were not answered is not known."""
        rows = np.zeros(int(batch.is_end.sum()), dtype=_KIND)
        for name, values in (("at_s", batch.at_s), ("model", batch.model), ("session", batch.session),
                             ("prompt", batch.prompt_tokens), ("output", batch.output_tokens)):  # fmt: skip
            rows[name] = values[batch.is_end]
        rows = rows[rows["model"] != 0][-self.most :]
        if self._rows is None:
            self._rows = np.zeros(self.most, dtype=_KIND)
        self._rows[(self._next + np.arange(len(rows))) % self.most] = rows
        self._next += len(rows)

    def latest(self, since_s: float) -> NDArray[np.void]:
        """The requests that came since then, in order of arrival."""
        if self._rows is None:
            return np.zeros(0, dtype=_KIND)
        rows = self._rows[: min(self._next, self.most)]
        rows = rows[rows["at_s"] >= since_s]
        return rows[np.argsort(rows["at_s"], kind="stable")]


def save(rows: NDArray[np.void], path: Path) -> None:
    """Write requests into a file of arrays, without pickle."""
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def load(path: Path) -> NDArray[np.void]:
    """Read them."""
    rows: NDArray[np.void] = np.load(path, allow_pickle=False)
    return rows
