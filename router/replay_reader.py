"""Requests of a trace: CSV or JSON lines, gzipped or not, or a recording as the router left it; checked row by row.

The columns are those of the trace format's ``requests`` kind (``docs/traces.md``). Read here: ``t``, ``model``,
``version``, ``prompt_tokens``, ``output_tokens``, ``session``, ``priority``, and ``status``, which tells a request that
was recorded from one that is only planned; the others are outcomes and are not looked at. An empty field is unknown,
and stays so.
"""

import csv
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from ccr.errors import TraceError
from ccr.segments import PART
from ccr.segments import rows as recorded_rows

#: Bytes of the longest line: 120,000 tokens as a chain of 16-token prefix blocks take about 60 KiB.
MAX_LINE_BYTES = 2**17
_GZIP = b"\x1f\x8b"
_GIT_LFS = b"version https://git-lfs"
_NEEDED = ("t", "model")
_MAX_TOKENS = 10**8
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Arrival:
    """One row: a request that arrived.

    Args:
        line: where it stands in the file, from 1; of a recording, which row.
        t: seconds from the start of the trace.
        model: what the client asked for; empty when unknown.
        version: the version it insisted on; empty when none.
        prompt_tokens: length of the prompt; ``None`` when unknown.
        output_tokens: length of the answer; ``None`` when unknown, 0 when it failed.
        session: conversation id; empty when single-shot or unknown.
        priority: 0 is normal.
        status: how it ended when it was recorded; empty when it was not.
    """

    line: int
    t: float
    model: str
    version: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    session: str = ""
    priority: int = 0
    status: str = ""


class _BadRow(Exception):
    """Why a row is refused: a short reason to count by, and the whole story."""

    def __init__(self, reason: str, story: str) -> None:
        self.reason, self.story = reason, story
        super().__init__(story)


def read(path: Path, skipped: "Counter[str] | None" = None, *, skip_bad: bool = False) -> Iterator[Arrival]:
    """The requests in a trace, one at a time.

    Args:
        path: a file, a segment of a recording, or the directory of one.
        skipped: counts what is left out, by reason: lines that a crash tore.
        skip_bad: leave out, and count, rows that cannot be used; else the first one raises.

    Raises:
        TraceError: naming file, line, reason and remedy.
    """
    skipped = Counter() if skipped is None else skipped
    before_s = -math.inf
    for line, row in _records(path, skipped):
        try:
            arrival = _arrival(line, row, before_s)
        except _BadRow as bad:
            if not skip_bad:
                raise TraceError(
                    f"{path}, line {line}: {bad.story}. Correct the row, or leave such rows out with --skip-bad."
                ) from None
            skipped[bad.reason] += 1
            continue
        before_s = arrival.t
        yield arrival


def _records(path: Path, skipped: "Counter[str]") -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    """Rows with their numbers; those of a recording in order of time over all its segments."""
    if path.is_dir() or path.name.endswith(PART):
        yield from enumerate(recorded_rows(path, skipped), 1)
        return
    with _opened(path) as stream:
        yield from _rows(stream, path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped when they are zipped, whatever its name says."""
    try:
        with path.open("rb") as raw:
            head = raw.read(len(_GIT_LFS))
            raw.seek(0)
            if head == _GIT_LFS:
                raise TraceError(
                    f"{path} is a Git LFS pointer, not the trace; run `git lfs pull` where it came from"
                )
            if head.startswith(_GZIP):
                with gzip.open(raw) as unzipped:
                    yield cast("BinaryIO", unzipped)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path} is a broken gzip file ({error}); fetch or write it again") from error
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise TraceError(f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes; is this a trace?")
        if line.strip():
            yield number, line


def _rows(stream: BinaryIO, path: Path) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    lines = _lines(stream, path)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path} is empty; a trace has a header line and a row per request")
    if first[1].lstrip().startswith(b"{"):
        yield from _json_rows(first, lines, path)
    else:
        yield from _csv_rows(first, lines, path)


def _json_rows(
    first: tuple[int, bytes], lines: Iterator[tuple[int, bytes]], path: Path
) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    row = _object(first[1])
    if isinstance(row, dict) and "ccr_trace" in row:
        _check_header(row, path)
    else:
        yield first[0], row
    for number, line in lines:
        yield number, _object(line)


def _object(line: bytes) -> Mapping[str, Any] | _BadRow:
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        return _BadRow("not JSON", f"this is not JSON ({error})")
    if not isinstance(row, dict):
        return _BadRow("not an object", f"expected an object, found a {type(row).__name__}")
    return row


def _check_header(header: Mapping[str, Any], path: Path) -> None:
    if header["ccr_trace"] != 1:
        raise TraceError(f"{path} is a trace of format {header['ccr_trace']!r}; this version reads format 1")
    if header.get("kind", "requests") != "requests":
        raise TraceError(f"{path} holds {header['kind']!r} records; a replay needs `requests`")


def _csv_rows(
    first: tuple[int, bytes], lines: Iterator[tuple[int, bytes]], path: Path
) -> Iterator[tuple[int, Mapping[str, Any] | _BadRow]]:
    columns = _csv_fields(first[1])
    if isinstance(columns, _BadRow):
        raise TraceError(f"{path}, line {first[0]}: {columns.story}; is this a trace?")
    columns = [column.strip() for column in columns]
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise TraceError(
            f"{path} has no column {' and no column '.join(missing)}; its header is {', '.join(columns)[:200]}. "
            "Convert it to the trace format first."
        )
    if len(set(columns)) < len(columns):
        raise TraceError(f"{path} names a column twice in its header: {', '.join(columns)[:200]}")
    for number, line in lines:
        fields = _csv_fields(line)
        if isinstance(fields, list) and len(fields) != len(columns):
            fields = _BadRow("wrong number of fields", f"{len(fields)} fields under {len(columns)} columns")
        yield number, fields if isinstance(fields, _BadRow) else dict(zip(columns, fields, strict=True))


def _csv_fields(line: bytes) -> list[str] | _BadRow:
    """The fields of one line; a field of this format never spans lines."""
    try:
        return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True))
    except UnicodeDecodeError:
        return _BadRow("not UTF-8", "this is not UTF-8 text")
    except csv.Error as error:
        return _BadRow("not CSV", f"this is not CSV ({error})")


def _arrival(line: int, row: Mapping[str, Any] | _BadRow, before_s: float) -> Arrival:
    if isinstance(row, _BadRow):
        raise row
    t = _number(row, "t")
    if t is None:
        raise _BadRow("t is missing", "t is missing; it is the arrival in seconds")
    if t < before_s:
        raise _BadRow("t goes back", f"t is {t:g} after {before_s:g}; rows must be in order of arrival")
    return Arrival(
        line=line,
        t=t,
        model=_name(row, "model"),
        version=_name(row, "version"),
        prompt_tokens=_count(row, "prompt_tokens", 1),
        output_tokens=_count(row, "output_tokens", 0),
        session=_name(row, "session"),
        priority=_count(row, "priority", -_MAX_TOKENS) or 0,
        status=_name(row, "status"),
    )


def _number(row: Mapping[str, Any], column: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0.0):
        raise _BadRow(
            f"{column} is no time",
            f"{column} is {_short(value)}; expected seconds from the start of the trace, >= 0",
        )
    return number


def _count(row: Mapping[str, Any], column: str, least: int) -> int | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= _MAX_TOKENS:
        expected = f"a whole number >= {least}" if least >= 0 else "a whole number"
        raise _BadRow(
            f"{column} is no count", f"{column} is {_short(value)}; expected {expected}, or nothing"
        )
    return number


def _name(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else None
    if text is None or len(text) > _MAX_NAME or not text.isprintable():
        raise _BadRow(
            f"{column} is no name",
            f"{column} is {_short(value)}; expected printable text of at most {_MAX_NAME} characters",
        )
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
