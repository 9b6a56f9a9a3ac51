"""Foreign traces into ours, and traces into parts of themselves; row by row, so a trace may be larger than memory."""

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path

from ccr.errors import TraceError
from envs.traces import READERS
from envs.traces.ccr_format import CcrFormat
from envs.traces.files import columns_of, header_of, ordered, rows_of, write_rows
from envs.traces.header import Header
from envs.traces.reader import Reader, Wishes
from envs.traces.recording import Recording
from envs.traces.rows import COLUMNS, RECORDED_COLUMNS, Row
from envs.traces.source import Progress, Source, head_of, sha256_of

#: How far back, in rows, a row may come too late and still be put in its place.
REORDER_ROWS = 65_536
# A tenth of a microsecond: the finest stamps that any of the formats has.
_DIGITS = 7


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a trace, and how.

    Args:
        from_s: seconds to leave out at the start.
        until_s: where to stop.
        models: ids or names to keep; none: all.
        every: keep one request in so many.
        limit: most requests to keep; ``None`` for all.
        most_tokens: leave out requests with more, prompt and answer together; ``None``: keep them.
        rate_scale: how much denser the requests shall be, > 0.
        default_prompt: prompt tokens where they are unknown; 0: leave them unknown.
        default_output: output tokens where they are unknown; 0: leave them unknown.
        drop_unknown: leave out requests whose model or lengths are unknown.
    """

    from_s: float = 0.0
    until_s: float = math.inf
    models: frozenset[str] = frozenset()
    every: int = 1
    limit: int | None = None
    most_tokens: int | None = None
    rate_scale: float = 1.0
    default_prompt: int = 0
    default_output: int = 0
    drop_unknown: bool = False


def detected(path: Path) -> str:
    """The format of a file, told by its beginning.

    Raises:
        TraceError: if it is none, or could be several.
    """
    head = head_of(path)
    found = [name for name, reader in READERS.items() if reader.recognises(head)]
    if len(found) == 1:
        return found[0]
    begins = (
        f"it begins {head.lines[0][:120]!r}"
        if head.lines
        else "it is a directory without chunk-I-trace.csv or a recording"
    )
    what = f"could be {' or '.join(found)}" if found else "is none of the formats that can be read"
    raise TraceError(f"{path} {what}; {begins}. Formats: {', '.join(READERS)}.")


def import_trace(
    form: str,
    path: Path,
    out: Path,
    wishes: Wishes,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Header:
    """Read a trace of a known format and write it as one of ours.

    Args:
        form: a key of :data:`READERS`, or ``auto``.
        path: what to read.
        out: where to write; nothing appears there unless all went well.
        wishes: which part, and how.
        skip_bad: count rows that cannot be read instead of stopping at the first.
        progress: told which share of the file has been read, now and then.

    Returns:
        The header of the new trace.

    Raises:
        TraceError: naming file, line, reason and remedy.
    """
    form = detected(path) if form == "auto" else form
    reader = READERS[form]
    source = Source(path, skip_bad=skip_bad, progress=progress)
    moved = _Moved()
    rows = _windowed(_in_order(reader.rows(source, wishes), path, moved), wishes.from_s, wishes.until_s)
    if not reader.scales_rate:
        rows = _scaled(rows, wishes.rate_scale)

    def header(count: int) -> Header:
        _refuse_nothing(count, path, source)
        return _header(form, reader, source, wishes, moved, count)

    return write_rows(out, rows, header, _columns(reader, path))


def cut_trace(path: Path, out: Path, cut: Cut, *, progress: Progress | None = None) -> Header:
    """Write a part of a trace, with times from 0.

    Raises:
        TraceError: naming file, line, reason and remedy; also if nothing is left.
    """
    source = Source(
        path, progress=progress, remedy="`ccr traces import ccr --skip-bad` leaves such rows out."
    )
    rows = _windowed(ordered(rows_of(source), path), cut.from_s, cut.until_s)
    rows = (row for row in rows if not cut.models or cut.models & {row.model, f"{row.model}@{row.version}"})
    rows = islice(rows, 0, None, cut.every)
    rows = _short_enough(_completed(rows, cut, source), cut.most_tokens, source)
    rows = _scaled(_from_zero(islice(rows, cut.limit)), cut.rate_scale)

    def header(count: int) -> Header:
        _refuse_nothing(count, path, source)
        old = header_of(path)
        dropped = {**old.rows_dropped}
        for reason, number in source.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
        return replace(old, rows=count, rows_dropped=dropped, notes=(*old.notes, f"cut: {_words(cut)}"))

    return write_rows(out, rows, header, columns_of(path))


def _columns(reader: Reader, path: Path) -> Sequence[str]:
    """Columns of a CSV file for what this reader reads."""
    if isinstance(reader, CcrFormat):
        return columns_of(path)
    return (*COLUMNS, *RECORDED_COLUMNS) if isinstance(reader, Recording) else COLUMNS


@dataclass(slots=True)
class _Moved:
    """How many rows came too late and were put in their place."""

    rows: int = 0


def _in_order(rows: Iterable[Row], path: Path, moved: _Moved) -> Iterator[Row]:
    """The rows sorted by time, ties as they came; times from 0 at the latest."""
    key = attrgetter("t")
    waiting: list[Row] = []
    origin_s: float | None = None
    passed_s = -math.inf
    for row in rows:
        if row.t < passed_s:
            raise TraceError(
                f"{path}, line {row.line}: the time goes back by {passed_s - row.t:g} s, past more than {REORDER_ROWS} "
                "rows. Sort the file by time first."
            )
        if waiting and row.t < waiting[-1].t:
            insort(waiting, row, key=key)
            moved.rows += 1
        else:
            waiting.append(row)
        if len(waiting) >= 2 * REORDER_ROWS:
            origin_s = min(0.0, waiting[0].t) if origin_s is None else origin_s
            passed_s = waiting[REORDER_ROWS - 1].t
            yield from _shifted(waiting[:REORDER_ROWS], origin_s)
            del waiting[:REORDER_ROWS]
    if waiting:
        yield from _shifted(waiting, min(0.0, waiting[0].t) if origin_s is None else origin_s)


def _shifted(rows: Sequence[Row], origin_s: float) -> Iterator[Row]:
    for row in rows:
        row.t = round(row.t - origin_s, _DIGITS)
        yield row


def _windowed(rows: Iterable[Row], from_s: float, until_s: float) -> Iterator[Row]:
    """Rows with ``from_s <= t < until_s``, times counted from there."""
    for row in rows:
        if row.t >= until_s:
            return
        if row.t >= from_s:
            row.t = round(row.t - from_s, _DIGITS) if from_s else row.t
            yield row


def _from_zero(rows: Iterable[Row]) -> Iterator[Row]:
    start_s: float | None = None
    for row in rows:
        start_s = row.t if start_s is None else start_s
        row.t = round(row.t - start_s, _DIGITS)
        yield row


def _scaled(rows: Iterable[Row], rate_scale: float) -> Iterator[Row]:
    """Time runs ``rate_scale`` times faster."""
    for row in rows:
        if rate_scale != 1.0:
            row.t = round(row.t / rate_scale, _DIGITS)
        yield row


def _completed(rows: Iterable[Row], cut: Cut, source: Source) -> Iterator[Row]:
    for row in rows:
        row.prompt_tokens = row.prompt_tokens or cut.default_prompt or None
        if row.output_tokens is None and cut.default_output:
            row.output_tokens = cut.default_output
        missing = (
            "model" if not row.model else "length" if None in {row.prompt_tokens, row.output_tokens} else ""
        )
        if cut.drop_unknown and missing:
            source.dropped[f"unknown {missing}"] += 1
            continue
        yield row


def _short_enough(rows: Iterable[Row], most_tokens: int | None, source: Source) -> Iterator[Row]:
    for row in rows:
        if most_tokens is not None and (row.prompt_tokens or 0) + (row.output_tokens or 0) > most_tokens:
            source.dropped[f"longer than {most_tokens} tokens"] += 1
            continue
        yield row


def _refuse_nothing(count: int, path: Path, source: Source) -> None:
    if count == 0:
        reasons = ", ".join(f"{number} {reason}" for reason, number in source.dropped.items())
        raise TraceError(
            f"nothing is left of {path}: {source.rows_read} rows read"
            + (f", dropped: {reasons}" if reasons else "")
            + ". Choose another part, or look at the file."
        )


def _header(form: str, reader: Reader, source: Source, wishes: Wishes, moved: _Moved, count: int) -> Header:
    notes = [*reader.notes, *source.notes]
    if wishes.from_s > 0.0 or wishes.until_s < math.inf:
        notes.append(f"from {wishes.from_s:g} s to {wishes.until_s:g} s of the source")
    if wishes.rate_scale != 1.0:
        notes.append(f"rate scaled by {wishes.rate_scale:g}")
    if moved.rows:
        notes.append(f"{moved.rows} rows came out of order and were sorted in")
    notes += wishes.notes
    old = header_of(source.path) if isinstance(reader, CcrFormat) else None
    if old is not None and old.source:
        return replace(
            old, rows=count, notes=(*old.notes, *notes), block_tokens=old.block_tokens or wishes.block_tokens,
            rows_dropped={**old.rows_dropped, **source.dropped},
        )  # fmt: skip
    return Header(
        source=f"{form}: {source.path.resolve().name}",
        licence=reader.licence,
        sha256_source=sha256_of(source.path),
        rows_read=source.rows_read,
        rows_dropped=dict(sorted(source.dropped.items())),
        block_tokens=reader.block_tokens or wishes.block_tokens,
        generated=reader.is_generated,
        seed=wishes.seed if reader.is_generated else None,
        notes=tuple(notes),
        rows=count,
    )


def _words(cut: Cut) -> str:
    """What differs from taking everything."""
    whole = Cut()
    changed = {
        name: getattr(cut, name) for name in Cut.__slots__ if getattr(cut, name) != getattr(whole, name)
    }
    texts = {name: " ".join(sorted(value)) if name == "models" else value for name, value in changed.items()}
    return ", ".join(f"{name} {value}" for name, value in texts.items()) or "everything"
