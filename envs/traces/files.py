"""Traces on disk: CSV or JSON lines, gzipped or not; read row by row, written whole or not at all."""

import csv
import gzip
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import msgspec

from ccr.errors import TraceError
from envs.traces.header import Header, beside, header_beside, header_from
from envs.traces.rows import COLUMNS, EXTRA_COLUMNS, BadRow, Row, checked
from envs.traces.source import Head, Line, Source, csv_fields, csv_records, head_of, json_object, json_records

_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
_NEEDED = ("t", "model")
_GZIP_LEVEL = 6


def rows_of(source: Source) -> Iterator[Row]:
    """The rows of a trace file in the order they stand in.

    Raises:
        TraceError: naming file, line, reason and remedy.
    """
    lines = source.lines()
    first = next(lines)
    if first[1].lstrip().startswith(b"{"):
        records = json_records(lines if _is_header(first[1]) else _with(first, lines))
        return source.rows(records, checked)
    columns = _csv_columns(first[1], source.path)
    taken = [column for column in columns if column in {*COLUMNS, *EXTRA_COLUMNS}]
    return source.rows(
        csv_records(lines, columns, taken), lambda fields: checked(dict(zip(taken, fields, strict=True)))
    )


def header_of(path: Path) -> Header:
    """The header of a trace file; empty where it has none."""
    head = head_of(path)
    if not head.lines:
        raise TraceError(f"{path} is a directory, not a trace; `ccr traces import` makes one of it")
    line = head.lines[0].encode()
    if not line.lstrip().startswith(b"{"):
        _csv_columns(line, path)
        return header_beside(path)
    record = json_object(line)
    return header_from(record, path) if not isinstance(record, BadRow) and "ccr_trace" in record else Header()


def columns_of(path: Path) -> tuple[str, ...]:
    """The columns to write for what is in a trace file: those of the format, and the extra ones it has."""
    head = head_of(path)
    extra = head.columns if not head.lines[0].lstrip().startswith("{") else EXTRA_COLUMNS
    return COLUMNS + tuple(column for column in EXTRA_COLUMNS if column in extra)


def is_trace(head: Head) -> bool:
    """Whether a file is one of ours."""
    keys = head.keys
    if "ccr_trace" in keys:
        return True
    return set(_NEEDED) <= set(head.columns) or set(_NEEDED) <= keys


def ordered(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The rows, refused where time goes back."""
    before_s = 0.0
    for row in rows:
        if row.t < before_s:
            raise TraceError(
                f"{path}, line {row.line}: t is {row.t:g} after {before_s:g}; rows must be in order of arrival. "
                f"`ccr traces import ccr {path.name} -o OUT` sorts them."
            )
        before_s = row.t
        yield row


def write_rows(
    path: Path, rows: Iterable[Row], header: Callable[[int], Header], columns: Sequence[str] = COLUMNS
) -> Header:
    """Write a trace; until the last row is written there is no file of that name, or still the old one.

    Args:
        path: ends in ``.csv``, ``.jsonl``, or one of these and ``.gz``.
        rows: in order of arrival.
        header: given the number of rows written, the header; called when all are.
        columns: of a CSV file.

    Raises:
        TraceError: if the name does not tell the format or the file cannot be written.
    """
    if not path.name.endswith(_SUFFIXES):
        raise TraceError(f"cannot tell the format of {path.name!r}; let it end in {', '.join(_SUFFIXES)}")
    try:
        return (_write_csv if ".csv" in path.suffixes else _write_jsonl)(path, rows, header, columns)
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}") from error


def _write_csv(
    path: Path, rows: Iterable[Row], header: Callable[[int], Header], columns: Sequence[str]
) -> Header:
    count = 0
    fields_of = attrgetter(*columns)
    with _replacing(path) as file:
        with _packed(file, path) as packed, _text(packed) as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow(fields_of(row))
                count += 1
        made = header(count)
        # First this one: a header that does not fit the rows is noticed by their number.
        with _replacing(beside(path)) as aside:
            aside.write(msgspec.json.format(msgspec.json.encode(made.as_json())) + b"\n")
    return made


def _write_jsonl(
    path: Path, rows: Iterable[Row], header: Callable[[int], Header], _: Sequence[str]
) -> Header:
    """The header counts what follows it, so the rows are written first and copied behind it."""
    count = 0
    encode = msgspec.json.Encoder().encode
    with _replacing(path) as file, tempfile.TemporaryFile(dir=path.parent) as body:
        with _packed(cast("BinaryIO", body), path) as packed:
            for row in rows:
                packed.write(encode(_record(row)) + b"\n")
                count += 1
        made = header(count)
        with _packed(file, path) as packed:
            packed.write(encode(made.as_json()) + b"\n")
        body.seek(0)
        shutil.copyfileobj(body, file)  # gzip streams one behind the other are one gzip file
    return made


def _record(row: Row) -> dict[str, Any]:
    """What a row knows; what is unknown has no key."""
    record = {
        column: value
        for column in (*COLUMNS, *EXTRA_COLUMNS)
        if (value := getattr(row, column)) is not None and value != ""
    }
    if row.candidates:
        record["candidates"] = msgspec.Raw(row.candidates.encode())
    return record


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when it is complete; if not, nothing has happened."""
    handle, place = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(place)
    try:
        with os.fdopen(handle, "wb") as file:
            yield cast("BinaryIO", file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _packed(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """Zips what is written if the name of ``path`` says so; the same rows give the same bytes."""
    if path.suffix != ".gz":
        yield file
        return
    with (
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed,
        io.BufferedWriter(packed, 2**16) as buffered,
    ):
        yield cast("BinaryIO", buffered)


@contextmanager
def _text(file: BinaryIO) -> Iterator[TextIO]:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=False)
    yield text
    text.flush()
    text.detach()


def _is_header(line: bytes) -> bool:
    record = json_object(line)
    return not isinstance(record, BadRow) and "ccr_trace" in record


def _with(first: Line, lines: Iterator[Line]) -> Iterator[Line]:
    yield first
    yield from lines


def _csv_columns(line: bytes, path: Path) -> list[str]:
    """The header of a CSV trace."""
    fields = csv_fields(line)
    columns = [] if isinstance(fields, BadRow) else [field.strip() for field in fields]
    missing = [column for column in _NEEDED if column not in columns]
    if missing:
        raise TraceError(
            f"{path} has no column {' and no column '.join(missing)}; its first line is {line[:200].decode(errors='replace').strip()!r}. "
            f"Convert it with `ccr traces import auto {path.name} -o OUT` first."
        )
    if len(set(columns)) < len(columns):
        raise TraceError(f"{path} names a column twice in its header: {', '.join(columns)[:200]}")
    return columns
