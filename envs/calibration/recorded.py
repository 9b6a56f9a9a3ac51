"""Requests and telemetry as they were recorded: what a node was asked, when, and how long it took."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccr.errors import TraceError, UnknownModelError
from ccr.timing import ModelSpec
from envs.calibration.rows import Row, read_rows
from envs.calibration.shapes import Shapes, shape_of

_REQUESTS = ("t", "model", "node", "prompt_tokens", "output_tokens", "total_ms")
_TELEMETRY = ("t", "node", "running")
# No engine takes a decode step in less: a first byte this close to the end came with the whole answer.
_LEAST_STEP_S = 1e-3


@dataclass(frozen=True, slots=True)
class Served:
    """One request that a node answered.

    Args:
        line: in the trace.
        at_s: when the router handed it to the node, from the start of the trace.
        node: who answered.
        model: key of its shape.
        shape: its architecture.
        prompt_tokens: at least 1.
        output_tokens: 0 for an embedding.
        first_s: from dispatch to the first token; ``None`` where the answer was not streamed.
        total_s: from dispatch to the end.
        cold: whether the weights were not resident.
        session: conversation; empty for none.
        prefix_tokens: leading prompt tokens that repeat what the conversation said to this node before, whether the
            node still has them or not.
    """

    line: int
    at_s: float
    node: str
    model: str
    shape: ModelSpec
    prompt_tokens: int
    output_tokens: int
    first_s: float | None
    total_s: float
    cold: bool
    session: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a node showed at a moment.

    Args:
        t: seconds from the start of the trace.
        running: sequences in its batches.
        kv_used: used fraction of its KV cache; ``None`` where unknown.
    """

    t: float
    running: float
    kv_used: float | None


def read_served(path: Path, shapes: Shapes) -> tuple[dict[str, list[Served]], Counter[str]]:
    """Answered requests by node, in order of dispatch, and why the others were left out.

    Args:
        path: request rows of the trace format, or the directory of a recording.
        shapes: of the models.

    Raises:
        TraceError: a row that cannot be, or a trace without outcomes.
    """
    skipped: Counter[str] = Counter()
    served: dict[str, list[Served]] = {}
    for row in read_rows(path, _REQUESTS, "requests", skipped):
        if reason := _unusable(row):
            skipped[reason] += 1
        else:
            request = _served(row, shapes)
            served.setdefault(request.node, []).append(request)
    if not served:
        why = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise TraceError(
            f"{path.name} has no row to fit on ({why}). Imported public traces are arrivals only: record one from your own nodes"
        )
    in_order = {
        node: list(_continued(sorted(requests, key=lambda request: request.at_s)))
        for node, requests in sorted(served.items())
    }
    return in_order, skipped


def read_samples(path: Path) -> dict[str, list[Sample]]:
    """Telemetry by node, in order of time.

    Raises:
        TraceError: naming the line and the reason.
    """
    samples: dict[str, list[Sample]] = {}
    for row in read_rows(path, _TELEMETRY, "telemetry"):
        if not row.has("running"):
            continue
        kv_used = row.optional("kv_used_frac")
        if kv_used is not None and kv_used > 1:
            raise row.wrong(f"kv_used_frac is {kv_used:g}; it is a fraction")
        sample = Sample(row.number("t"), row.number("running"), kv_used)
        samples.setdefault(row.required_text("node"), []).append(sample)
    for rows in samples.values():
        rows.sort(key=lambda sample: sample.t)
    return samples


def models_of(requests: Sequence[Served]) -> Mapping[str, ModelSpec]:
    """``{model: shape}`` in order of first use."""
    return {request.model: request.shape for request in requests}


def _unusable(row: Row) -> str:
    """Why a row says nothing about its node; empty when it does."""
    status = row.text("status", "ok")
    if status != "ok":
        return f"with status {status}"
    for name in ("node", "prompt_tokens", "output_tokens", "total_ms"):
        if not row.has(name):
            return f"without {name}"
    return ""


def _served(row: Row, shapes: Shapes) -> Served:
    queue_s = (row.optional("queue_ms") or 0.0) / 1000
    total_s = row.above_zero("total_ms") / 1000 - queue_s
    first_ms = row.optional("ttft_ms")
    first_s = None if first_ms is None else first_ms / 1000 - queue_s
    if total_s <= 0 or (first_s is not None and not 0 < first_s <= total_s + 1e-9):
        raise row.wrong(
            f"queue {row.text('queue_ms', '0')}, first token {row.text('ttft_ms', '-')} and end {row.text('total_ms')} ms "
            "are all from arrival, in this order"
        )
    output_tokens = row.whole("output_tokens")
    if first_s is not None and total_s - first_s < _LEAST_STEP_S * (output_tokens - 1):
        first_s = None
    model, shape = _model(row, shapes)
    return Served(
        row.line, row.number("t") + queue_s, row.text("node"), model, shape,
        row.whole("prompt_tokens", 1), output_tokens, first_s, total_s, _is_cold(row),
        row.text("session"), row.whole("prefix_tokens") if row.has("prefix_tokens") else 0,
    )  # fmt: skip


def _continued(requests: Iterable[Served]) -> Iterator[Served]:
    """The requests of a node, with what their prompts repeat where the trace does not tell.

    It holds no text. Clients send all that was said before with every turn, so a prompt at least as long as the
    conversation's last one to the same model is taken to begin with it; a shorter one was cut, and repeats nothing.
    """
    last: dict[tuple[str, str], int] = {}
    for request in requests:
        if not request.session:
            yield request
            continue
        said = last.get((request.model, request.session), request.prompt_tokens + 1)
        last[request.model, request.session] = request.prompt_tokens
        goes_on = not request.prefix_tokens and said <= request.prompt_tokens
        yield replace(request, prefix_tokens=request.prompt_tokens) if goes_on else request


def _model(row: Row, shapes: Shapes) -> tuple[str, ModelSpec]:
    name, version = row.required_text("model"), row.text("version")
    versioned = row.text("model_id") or (f"{name}@{version}" if version else name)
    try:
        return shape_of(shapes, versioned, name)
    except UnknownModelError as error:
        raise row.wrong(str(error)) from error


def _is_cold(row: Row) -> bool:
    word = row.text("cold_start", "0").lower()
    if word not in ("0", "1", "true", "false"):
        raise row.wrong(f"cold_start is {word!r}; it is 0 or 1")
    return word in ("1", "true")
