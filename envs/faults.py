"""What can be made to go wrong with a node, on purpose."""

from dataclasses import dataclass
from typing import Any

from envs.dialect import BadAskError, Body

KINDS = (
    "none", "slow", "hang", "http", "die_after_chunks", "die", "freeze_telemetry", "garbage_telemetry",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, until the next.

    Args:
        kind: ``slow``: node time runs ``factor`` times slower. ``hang``: connections are accepted and nothing is
            answered, running streams stall. ``http``: every inference request gets ``status`` at once.
            ``die_after_chunks``: a stream is reset after ``chunks`` tokens (with 0, so is a whole answer).
            ``die``: stop listening and reset every connection. ``freeze_telemetry``: /metrics repeats what it last
            showed. ``garbage_telemetry``: /metrics shows what no parser takes. ``none``: all is well.
        factor: of ``slow``, above 0.
        status: of ``http``, 400-599.
        retry_after_s: of ``http`` with 429 or 503, whole seconds.
        chunks: of ``die_after_chunks``, from 0.
    """

    kind: str = "none"
    factor: float = 10.0
    status: int = 500
    retry_after_s: int = 1
    chunks: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadAskError(f"unknown fault {self.kind!r}; choose from {', '.join(KINDS)}", "kind")
        if not self.factor > 0:
            raise BadAskError(f"'factor' is {self.factor!r}; give a number above 0", "factor")
        if not 400 <= self.status <= 599:
            raise BadAskError(f"'status' is {self.status!r}; give an error, 400-599", "status")
        if self.chunks < 0 or self.retry_after_s < 0:
            raise BadAskError("'chunks' and 'retry_after_s' cannot be negative")


_NUMBERS = {"factor": float, "status": int, "retry_after_s": int, "chunks": int}


def parse(body: Body) -> Fault:
    """The fault a JSON body describes; raises :class:`BadAskError`."""
    unknown = sorted(set(body) - {"kind", *_NUMBERS})
    if unknown:
        raise BadAskError(f"a fault has no {unknown[0]!r}; it has kind, {', '.join(_NUMBERS)}", unknown[0])
    kind = body.get("kind")
    numbers: dict[str, Any] = {
        name: _number(body, name, cast) for name, cast in _NUMBERS.items() if name in body
    }
    return Fault(kind if isinstance(kind, str) else str(kind), **numbers)


def _number(body: Body, name: str, cast: type[float] | type[int]) -> float | int:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or cast(value) != value:
        raise BadAskError(
            f"{name!r} is {value!r}; give {'a number' if cast is float else 'a whole number'}", name
        )
    return cast(value)
