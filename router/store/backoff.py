"""When to try again: later each time, and never all at the same moment."""

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.1
LONGEST_S: Final = 5.0


class Backoff:
    """Says when the next try is due; after a success at once, after failures later and later.

    Args:
        first_s: longest wait after the first failure; doubled by each one after it.
        longest_s: of all waits.
        draw: in [0, 1): full jitter, so that replicas do not come back together.
    """

    def __init__(
        self,
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._draw = draw
        self._failures = 0
        self._due_s = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether to try."""
        return self._failures == 0 or now_s >= self._due_s

    def succeeded(self) -> None:
        """It worked."""
        self._failures = 0

    def failed(self, now_s: float) -> None:
        """It did not."""
        most_s = min(self._first_s * 2.0 ** min(self._failures, 30), self._longest_s)
        self._failures += 1
        self._due_s = now_s + most_s * self._draw()
