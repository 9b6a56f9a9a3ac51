"""A request trace in columns: what the simulator replays and what is drawn, read from and written to files."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccr.errors import TraceError
from envs.traces.files import header_of, ordered, rows_of, write_rows
from envs.traces.header import Header
from envs.traces.rows import COLUMNS, OUTCOME_COLUMNS, RECORDED_COLUMNS, Row
from envs.traces.source import Progress, Source

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

#: Stands for "unknown" or "none" in a column of whole numbers.
UNKNOWN = -1

_SKIP = "Correct the row, or leave such rows out with `ccr traces import ccr {name} -o OUT --skip-bad`."


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What became of recorded requests; every column has shape ``(r,)``.

    Args:
        node: that served it; empty when unknown.
        queue_ms: from arrival until it was first scheduled; NaN when unknown, as in the two below.
        ttft_ms: from arrival to the first token.
        total_ms: from arrival to the end.
        cold_start: 1 where the model was not resident, 0 where it was, -1 where that is unknown.
        status: how it ended; empty when unknown.
        policy: that chose the node; empty when unknown.
        propensity: probability of that choice, in (0, 1]; NaN when unknown.
        candidates: JSON list of ``{"node", "score"}`` as text; empty when unknown.
    """

    node: Texts
    queue_ms: Floats
    ttft_ms: Floats
    total_ms: Floats
    cold_start: Ints
    status: Texts
    policy: Texts
    propensity: Floats
    candidates: Texts

    def take(self, index: "NDArray[np.intp] | NDArray[np.bool_] | slice") -> "Outcomes":
        """The outcomes of some of the requests."""
        return Outcomes(*[getattr(self, name)[index] for name in self.__slots__])


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival; every column has shape ``(r,)`` and cannot be written to.

    Args:
        models: distinct ids, ``name`` or ``name@version``.
        t: arrival, seconds from the start of the trace, never falling.
        model: index into ``models``.
        prompt_tokens: length of the prompt; -1 where unknown (see :func:`read`).
        output_tokens: length of the answer; 0 where the request failed, -1 where unknown.
        session: number of the conversation, -1 where there is none.
        prefix_tokens: leading tokens of the prompt that repeat what the session has said before; where the source
            has no sessions, what any earlier request has said. -1 where unknown.
        priority: 0 is normal.
        header: where it comes from.
        outcomes: what became of the requests, when they were recorded.

    Raises:
        TraceError: if the columns do not fit together.
    """

    models: tuple[str, ...]
    t: Floats
    model: NDArray[np.int32]
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints
    prefix_tokens: Ints
    priority: Ints
    header: Header = field(default_factory=Header)
    outcomes: Outcomes | None = None

    def __post_init__(self) -> None:
        for name in ("t", "model", "prompt_tokens", "output_tokens", "session", "prefix_tokens", "priority"):
            column = getattr(self, name)
            if column.shape != self.t.shape:
                raise TraceError(f"column {name} has shape {column.shape}, t has {self.t.shape}")
            view = column.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        if len(self) and (self.t[0] < 0.0 or (np.diff(self.t) < 0.0).any() or not np.isfinite(self.t[-1])):
            raise TraceError("t must be in order of arrival, finite and not negative; sort the rows by t")
        if len(self) and not 0 <= int(self.model.min()) <= int(self.model.max()) < len(self.models):
            raise TraceError(f"model must be an index into the {len(self.models)} models")

    def __len__(self) -> int:
        return int(self.t.size)

    @property
    def span_s(self) -> float:
        """From the start of the trace to its last arrival."""
        return float(self.t[-1]) if len(self) else 0.0

    def take(self, index: "NDArray[np.intp] | NDArray[np.bool_] | slice") -> "Trace":
        """The trace of some of its requests, at their own times and with all models."""
        return replace(
            self,
            t=self.t[index],
            model=self.model[index],
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            session=self.session[index],
            prefix_tokens=self.prefix_tokens[index],
            priority=self.priority[index],
            outcomes=self.outcomes and self.outcomes.take(index),
        )


def read(
    path: Path, limit: int | None = None, *, is_complete: bool = True, progress: Progress | None = None
) -> Trace:
    """The trace in a file.

    Args:
        path: CSV or JSON lines, gzipped or not.
        limit: rows to read; ``None`` for all.
        is_complete: refuse rows whose model or lengths, or the block size behind their prefixes, are unknown: what
            is needed to simulate them. If false they are -1, and the model's id is empty.
        progress: told which share of the file has been read, now and then.

    Raises:
        TraceError: naming file, line, reason and remedy.
    """
    header = header_of(path)
    source = Source(path, remedy=_SKIP.format(name=path.name), progress=progress)
    columns = _Columns(path, header.block_tokens, is_complete=is_complete)
    for row in islice(ordered(rows_of(source), path), limit):
        columns.add(row)
    found = len(columns.t)
    if header.rows is not None and found != header.rows and (limit is None or found < limit):
        raise TraceError(
            f"{path} has {found} rows, its header says {header.rows}: the file is cut off, or the header belongs to "
            "another. Write the trace again, or delete the header file beside it."
        )
    return columns.trace(header)


def write(trace: Trace, path: Path) -> None:
    """Write a trace whole or not at all; the file's name tells the format.

    Raises:
        TraceError: if the name does not tell the format, or the file cannot be written.
    """
    extra: tuple[str, ...] = ("prefix_tokens",) if (trace.prefix_tokens > 0).any() else ()
    if trace.outcomes is not None:
        extra += RECORDED_COLUMNS
    write_rows(path, _rows(trace), lambda rows: replace(trace.header, rows=rows), COLUMNS + extra)


def numbered(values: Ints) -> Ints:
    """The values replaced by numbers from 0 in order of first appearance; negative ones stay, shape ``(r,)``."""
    known, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    is_negative = known < 0
    rank = np.argsort(np.argsort(np.where(is_negative, values.size, first), kind="stable"))
    result: Ints = np.where(is_negative, known, rank)[inverse].astype(np.int64)
    return result


class _Columns:
    """Collects rows: eight bytes a field, not an object."""

    def __init__(self, path: Path, block_tokens: int, *, is_complete: bool) -> None:
        self._path = path
        self._is_complete = is_complete
        self._prefixes = _Prefixes(block_tokens)
        self._models: dict[str, int] = {}
        self._sessions: dict[str, int] = {}
        self._outcomes: dict[str, Any] = {}
        self.t = array("d")
        self.model = array("i")
        self.prompt, self.output, self.session, self.prefix, self.priority = (array("q") for _ in range(5))

    def add(self, row: Row) -> None:
        """Take a row in, or refuse it."""
        if self._is_complete:
            self._check(row)
        model = f"{row.model}@{row.version}" if row.version else row.model
        self.t.append(row.t)
        self.model.append(self._models.setdefault(model, len(self._models)))
        self.prompt.append(UNKNOWN if row.prompt_tokens is None else row.prompt_tokens)
        self.output.append(UNKNOWN if row.output_tokens is None else row.output_tokens)
        session = self._sessions.setdefault(row.session, len(self._sessions)) if row.session else UNKNOWN
        self.session.append(session)
        self.prefix.append(self._prefixes.tokens(row, session))
        self.priority.append(row.priority or 0)
        if self._outcomes or any(getattr(row, column) not in {"", None} for column in OUTCOME_COLUMNS):
            self._add_outcome(row)

    def trace(self, header: Header) -> Trace:
        """What was collected."""
        return Trace(
            models=tuple(self._models),
            t=np.frombuffer(self.t, np.float64) if self.t else np.empty(0),
            model=np.array(self.model, np.int32),
            prompt_tokens=np.array(self.prompt, np.int64),
            output_tokens=np.array(self.output, np.int64),
            session=np.array(self.session, np.int64),
            prefix_tokens=np.array(self.prefix, np.int64),
            priority=np.array(self.priority, np.int64),
            header=header,
            outcomes=Outcomes(**{name: np.array(column) for name, column in self._outcomes.items()})
            if self._outcomes
            else None,
        )

    def _check(self, row: Row) -> None:
        where = f"{self._path}, line {row.line}"
        name = self._path.name
        if not row.model:
            raise TraceError(
                f"{where}: the row names no model. Leave such rows out with `ccr traces cut {name} -o OUT "
                "--drop-unknown`, or name one with `ccr traces import ccr --model NAME`."
            )
        for column, option in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
            if getattr(row, column) is None:
                raise TraceError(
                    f"{where}: {column} is unknown, so the request cannot be simulated. Choose a length with "
                    f"`ccr traces cut {name} -o OUT --default-{option} N`, or leave such rows out with --drop-unknown."
                )
        if row.prefix_blocks and row.prefix_tokens is None and not self._prefixes.block_tokens:
            raise TraceError(
                f"{where}: the row has prefix_blocks, but no header tells how many tokens a block has. "
                f"Say so with `ccr traces import ccr {name} -o OUT --block-tokens N`."
            )

    def _add_outcome(self, row: Row) -> None:
        if not self._outcomes:
            earlier = len(self.t) - 1
            for column in OUTCOME_COLUMNS:
                self._outcomes[column] = _empty(column, earlier)
        for column, values in self._outcomes.items():
            value = getattr(row, column)
            values.append(_missing(column) if value is None else value)


class _Prefixes:
    """Derives how much of a prompt has been said before from chains of block ids."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._chains: dict[int, list[str]] = {}
        self._seen: set[str] = set()

    def tokens(self, row: Row, session: int) -> int:
        """Leading tokens seen before; -1 if the size of a block is unknown."""
        if row.prefix_tokens is not None or not row.prefix_blocks:
            return row.prefix_tokens or 0
        if not self.block_tokens:
            return UNKNOWN
        chain = row.prefix_blocks.split()
        blocks = self._repeated(chain, session) if session >= 0 else self._known(chain)
        repeated = blocks * self.block_tokens
        return repeated if row.prompt_tokens is None else min(repeated, row.prompt_tokens)

    def _repeated(self, chain: list[str], session: int) -> int:
        """Leading blocks that are those of the session's previous prompt."""
        previous = self._chains.get(session, [])
        self._chains[session] = chain
        return next(
            (i for i, (a, b) in enumerate(zip(chain, previous, strict=False)) if a != b),
            min(len(chain), len(previous)),
        )

    def _known(self, chain: list[str]) -> int:
        """Leading blocks that any earlier prompt without a session had."""
        known = next((i for i, block in enumerate(chain) if block not in self._seen), len(chain))
        self._seen.update(chain[known:])
        return known


_IS_TEXT = {"node", "status", "policy", "candidates"}


def _missing(column: str) -> float | int:
    return UNKNOWN if column == "cold_start" else np.nan


def _empty(column: str, rows: int) -> "list[str] | array[Any]":
    if column in _IS_TEXT:
        return [""] * rows
    return array("q" if column == "cold_start" else "d", [_missing(column)] * rows)


def _rows(trace: Trace) -> Iterator[Row]:
    names = [model.rpartition("@")[::2] if "@" in model else (model, "") for model in trace.models]
    columns: Iterable[tuple[float, int, int, int, int, int, int]] = zip(
        trace.t.tolist(), trace.model.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(),
        trace.session.tolist(), trace.prefix_tokens.tolist(), trace.priority.tolist(), strict=True,
    )  # fmt: skip
    for i, (t, model, prompt, output, session, prefix, priority) in enumerate(columns):
        row = Row(
            t=t,
            model=names[model][0],
            version=names[model][1],
            prompt_tokens=prompt if prompt >= 0 else None,
            output_tokens=output if output >= 0 else None,
            session=str(session) if session >= 0 else "",
            prefix_tokens=prefix if prefix > 0 else None,
            priority=priority or None,
        )
        if trace.outcomes is not None:
            _fill_outcome(row, trace.outcomes, i)
        yield row


def _fill_outcome(row: Row, outcomes: Outcomes, i: int) -> None:
    for column in OUTCOME_COLUMNS:
        value = getattr(outcomes, column)[i].item()
        if column in _IS_TEXT or (value == value and value != UNKNOWN):  # noqa: PLR0124 - NaN is not itself
            setattr(row, column, value)
