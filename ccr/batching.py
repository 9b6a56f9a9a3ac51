"""The batching window: same-model requests that arrive together start together.

Off unless a script or the config asks for it, and even then a request is only held when that can pay:
when its model's arrivals are frequent enough that company is expected within the window.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ccr.types import Request

MAX_MODELS = 1024
"""Models whose arrival rate is remembered; the least recently seen is forgotten first."""

Hint = Callable[[Sequence[Request]], float]


@dataclass(slots=True)
class Batch:
    """Requests of one model that wait for each other.

    Args:
        model: their model id.
        due_s: when they start at the latest.
    """

    model: str
    due_s: float
    requests: list[Request] = field(default_factory=list)
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class FixedHint:
    """The hint when only the config asks: wait until ``size`` requests are together or ``max_wait_s`` passed.

    Args:
        max_wait_s: longest wait.
        size: requests that make a full batch.
    """

    max_wait_s: float = 0.010
    size: int = 4

    def __call__(self, requests: Sequence[Request]) -> float:
        """Seconds this batch may still wait."""
        return self.max_wait_s if len(requests) < self.size else 0.0


class BatchingWindow:
    """Collects same-model requests.

    Args:
        hint: seconds a batch may still wait, given its requests; 0 starts it at once.
        rate_window_s: time constant of the arrival rate per model.
    """

    def __init__(self, hint: Hint, rate_window_s: float = 1.0) -> None:
        self._hint = hint
        self._rate_window_s = rate_window_s
        self._open: dict[str, Batch] = {}
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def arrive(self, request: Request, now_s: float) -> Batch | None:
        """The batch the request waits with; ``None`` when it should go at once.

        The returned batch may be closed already: this request made it full, and all of it starts now.
        """
        rate = self._count(request.model, now_s)
        batch = self._open.get(request.model)
        if batch is None:
            wait_s = self._hint([request])
            if rate * wait_s < 1.0:  # fewer than one companion expected: waiting would only cost
                return None
            batch = self._open[request.model] = Batch(request.model, now_s + wait_s)
        batch.requests.append(request)
        wait_s = self._hint(batch.requests)
        batch.due_s = min(batch.due_s, now_s + wait_s)
        if wait_s <= 0.0:
            self.close(batch)
        return batch

    def leave(self, batch: Batch, request: Request) -> None:
        """A waiting request gave up; the others need not know."""
        if request in batch.requests:
            batch.requests.remove(request)
        if not batch.requests:
            self.close(batch)

    def close(self, batch: Batch) -> None:
        """The batch starts; the next request of its model opens a new one."""
        batch.is_closed = True
        if self._open.get(batch.model) is batch:
            del self._open[batch.model]

    def _count(self, model: str, now_s: float) -> float:
        """Arrivals per second of the model before this one, decayed; counts this one."""
        rate, last_s = self._rates.pop(model, (0.0, now_s))
        rate *= math.exp(-max(now_s - last_s, 0.0) / self._rate_window_s)
        self._rates[model] = (rate + 1.0 / self._rate_window_s, now_s)
        if len(self._rates) > MAX_MODELS:
            self._rates.popitem(last=False)
        return rate
