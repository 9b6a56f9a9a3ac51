"""What came of a load: counts of everything, exact percentiles, in bounded memory."""

import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

_RECENT = 1000
_MOST_KEYS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended, as its client saw it.

    Args:
        error: empty when the answer was complete and well-formed; else a short kind: ``no_connection``, ``reset``,
            ``timeout``, ``http_503``, ``bad_answer``, ``truncated``, ``stream_error``, ``unfinished``.
        status: HTTP status; 0 when there was none.
        ttft_s: from sending to the first token; ``None`` unless it was a stream that had one.
        node: who answered, from the header ``x-ccr-node``; empty when the answer does not say.
        prompt_tokens: as the server counted; 0 when it did not tell.
        output_tokens: as the server counted; 0 when it did not tell.
    """

    error: str = ""
    status: int = 0
    ttft_s: float | None = None
    node: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its answer; times are seconds since the load began.

    Args:
        due_s: when it should have been sent: its place in the schedule of an open loop, the moment of sending
            in a closed one. Latency counts from here.
        sent_s: when it was sent.
        ended_s: when the answer was complete, or failed.
        model: as the request named it.
        answer: how it ended.
        number: of the shot.
    """

    due_s: float
    sent_s: float
    ended_s: float
    model: str
    answer: Answer
    number: int = 0

    @property
    def total_s(self) -> float:
        """Latency: from when it was due to the end of the answer."""
        return self.ended_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """From when it was due to the first token; ``None`` when there is none to speak of."""
        waited_s = self.sent_s - self.due_s
        return None if self.answer.ttft_s is None else waited_s + self.answer.ttft_s


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a load is measured.

    A request belongs to the measurement when it was due inside the window. Those under way at the end are
    awaited for up to ``drain_s`` and counted with their full latency; what is unfinished then is an error.

    Args:
        warmup_s: from the start of the load to the start of the window.
        measure_s: length of the window; ``inf``: until the requests run out.
        drain_s: longest wait for requests under way at the end.
    """

    warmup_s: float = 0.0
    measure_s: float = math.inf
    drain_s: float = 60.0

    @property
    def end_s(self) -> float:
        """Seconds from the start of the load to the end of the window."""
        return self.warmup_s + self.measure_s

    def holds(self, moment_s: float) -> bool:
        """Whether a moment is inside."""
        return self.warmup_s <= moment_s < self.end_s


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a load; times in seconds.

    Args:
        requests: due inside the window: ``ok`` + ``errors``.
        ok: answered completely.
        errors: everything else.
        errors_by_kind: the same by kind.
        p50_s, p99_s, mean_s: latency of the requests that were answered; a failure has none, so read them
            together with ``errors``. Percentiles are nearest-rank: values that were seen.
        ttft_p50_s, ttft_p99_s: the same for the time to first token of streams; NaN without streams.
        qps: answers that ended inside the window, per second of it.
        seconds: length of the window.
        finished_late: due inside the window, answered after its end; they count in all but ``qps``.
        late_p99_s: how much later than due requests were sent: the load client's own delay.
        prompt_tokens, output_tokens: of the answered requests, as the server counted.
        by_node, by_model: answered requests.
        kept: latencies the percentiles come from; below ``ok`` they come from a uniform sample.
    """

    requests: int
    ok: int
    errors: int
    errors_by_kind: dict[str, int]
    p50_s: float
    p99_s: float
    mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    qps: float
    seconds: float
    finished_late: int
    late_p99_s: float
    prompt_tokens: int
    output_tokens: int
    by_node: dict[str, int]
    by_model: dict[str, int]
    kept: int

    def in_ms(self, scale: float = 1.0) -> dict[str, Any]:
        """Plain values for tables and JSON: times in milliseconds, unknown ones ``None``.

        Args:
            scale: what one second of the clock stands for; rates are divided by it.
        """
        times = ("p50", "p99", "mean", "ttft_p50", "ttft_p99", "late_p99")
        return {
            "requests": self.requests,
            "ok": self.ok,
            "errors": self.errors,
            **{f"{name}_ms": _ms(getattr(self, f"{name}_s") * scale) for name in times},
            "qps": round(self.qps / scale, 3),
            "seconds": round(self.seconds * scale, 3),
            "finished_late": self.finished_late,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "errors_by_kind": self.errors_by_kind,
            "by_node": self.by_node,
            "by_model": self.by_model,
            "percentiles_from": self.kept,
        }


def percentile(ordered: Sequence[float], per_cent: float) -> float:
    """The nearest-rank percentile: the smallest value with at least ``per_cent`` of all at or below it.

    Args:
        ordered: ascending.
        per_cent: in (0, 100].

    Returns:
        NaN when there are no values.
    """
    if not ordered:
        return math.nan
    rank = math.ceil(len(ordered) * per_cent / 100.0 - 1e-9)
    return ordered[max(rank, 1) - 1]


@dataclass(slots=True)
class _Reservoir:
    """A uniform sample of at most ``size`` values (Vitter's algorithm R); all of them as long as they fit."""

    size: int
    rng: Random
    seen: int = 0
    total: float = 0.0
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, value: float) -> None:
        self.seen += 1
        self.total += value
        if len(self.values) < self.size:
            self.values.append(value)
        elif (slot := self.rng.randrange(self.seen)) < self.size:
            self.values[slot] = value

    @property
    def mean(self) -> float:
        return self.total / self.seen if self.seen else math.nan


class Tally:
    """Counts samples as they come in.

    Args:
        window: what is measured.
        keep: latencies kept for the percentiles.
        on_sample: also told of each sample, warm-up included.
    """

    def __init__(
        self, window: Window, keep: int = 200_000, on_sample: Callable[[Sample], None] | None = None
    ) -> None:
        self.window = window
        self.in_flight = 0
        self.finished = 0
        self.failed = 0
        self._on_sample = on_sample
        self._latency, self._ttft, self._late = (_Reservoir(keep, Random(0)) for _ in range(3))
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._errors: Counter[str] = Counter()
        self._by_node: Counter[str] = Counter()
        self._by_model: Counter[str] = Counter()
        self._answered_inside = 0
        self._finished_late = 0
        self._prompt_tokens = 0
        self._output_tokens = 0

    def began(self) -> None:
        """A request was sent."""
        self.in_flight += 1

    def add(self, sample: Sample) -> None:
        """A request ended, one way or the other."""
        self.in_flight -= 1
        self.finished += 1
        self._recent.append(sample.total_s)
        if self._on_sample:
            self._on_sample(sample)
        if sample.answer.error:
            self.failed += 1
        elif self.window.holds(sample.ended_s):
            self._answered_inside += 1
        if self.window.holds(sample.due_s):
            self._measure(sample)

    def recent_s(self, per_cent: float) -> float:
        """A percentile of the last thousand latencies, for people who watch; NaN before the first."""
        return percentile(sorted(self._recent), per_cent)

    def summary(self, elapsed_s: float) -> Summary:
        """The figures.

        Args:
            elapsed_s: how long the load ran, from its start to the end of the last request; a window that was
                not reached to its end is only that long.
        """
        window_s = min(max(elapsed_s - self.window.warmup_s, 0.0), self.window.measure_s)
        latencies, ttfts, late = (sorted(kept.values) for kept in (self._latency, self._ttft, self._late))
        errors = self._errors.total()
        return Summary(
            requests=self._latency.seen + errors,
            ok=self._latency.seen,
            errors=errors,
            errors_by_kind=dict(self._errors.most_common()),
            p50_s=percentile(latencies, 50),
            p99_s=percentile(latencies, 99),
            mean_s=self._latency.mean,
            ttft_p50_s=percentile(ttfts, 50),
            ttft_p99_s=percentile(ttfts, 99),
            qps=self._answered_inside / window_s if window_s else 0.0,
            seconds=window_s,
            finished_late=self._finished_late,
            late_p99_s=percentile(late, 99),
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            by_node=dict(self._by_node.most_common()),
            by_model=dict(self._by_model.most_common()),
            kept=len(latencies),
        )

    def _measure(self, sample: Sample) -> None:
        answer = sample.answer
        self._late.add(sample.sent_s - sample.due_s)
        if answer.error:
            _count(self._errors, answer.error)
            return
        self._latency.add(sample.total_s)
        if sample.ttft_s is not None:
            self._ttft.add(sample.ttft_s)
        self._finished_late += sample.ended_s >= self.window.end_s
        self._prompt_tokens += answer.prompt_tokens
        self._output_tokens += answer.output_tokens
        _count(self._by_node, answer.node or "unknown")
        _count(self._by_model, sample.model)


def _count(counts: Counter[str], key: str) -> None:
    """Count under ``key``, or under ``other`` once there are too many: keys may come from a server."""
    counts[key if key in counts or len(counts) < _MOST_KEYS else "other"] += 1


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1000.0, 3)
