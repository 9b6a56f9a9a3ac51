"""Tables on disk: CSV or JSON lines, plain or gzipped, or a recording; rows that know their line and refuse in words."""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ccr.errors import TraceError
from ccr.segments import rows as recorded_rows

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table; an empty cell is an unknown value.

    Args:
        path: of the file, or of the directory of a recording.
        line: in the file, from 1; of a recording, which row.
        values: column -> cell.
    """

    path: Path
    line: int
    values: Mapping[str, Any]

    def wrong(self, reason: str) -> TraceError:
        """An error that names the file and the line."""
        return TraceError(f"{self.path.name} line {self.line}: {reason}")

    def has(self, name: str) -> bool:
        """Whether the cell is filled."""
        return self.values.get(name) not in (None, "")

    def text(self, name: str, default: str = "") -> str:
        """A word; ``default`` where the cell is empty."""
        return str(self.values[name]) if self.has(name) else default

    def required_text(self, name: str) -> str:
        """A word that must be there."""
        if not self.has(name):
            raise self.wrong(f"{name} is empty")
        return self.text(name)

    def number(self, name: str, least: float = 0.0) -> float:
        """A finite number of at least ``least``."""
        cell = self.values.get(name)
        try:
            value = float(cell)  # type: ignore[arg-type]  # None and words are what the except is for
        except (TypeError, ValueError):
            raise self.wrong(f"{name} is {cell!r}; it has to be a number") from None
        if not isfinite(value) or value < least:
            raise self.wrong(f"{name} is {cell!r}; it has to be a number of at least {least:g}")
        return value

    def optional(self, name: str, least: float = 0.0) -> float | None:
        """A number, or ``None`` where the cell is empty."""
        return self.number(name, least) if self.has(name) else None

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number of at least ``least``."""
        value = self.number(name, least)
        if value != int(value):
            raise self.wrong(f"{name} is {value:g}; it has to be a whole number")
        return int(value)

    def above_zero(self, name: str) -> float:
        """A finite number above 0."""
        value = self.number(name)
        if value == 0:
            raise self.wrong(f"{name} is 0; a measured time is above 0")
        return value


def read_rows(
    path: Path, columns: Sequence[str], kind: str = "requests", skipped: "Counter[str] | None" = None
) -> list[Row]:
    """Every row of a table.

    Args:
        path: CSV with a header, or JSON lines, with or without a ``ccr_trace`` header line, plain or gzipped; or the
            directory of a recording.
        columns: what the table must have.
        kind: which rows of a recording.
        skipped: counts the lines of a recording that a crash tore.

    Raises:
        TraceError: naming the file, the line and what is wrong.
    """
    rows = list(
        _recorded_rows(path, kind, Counter() if skipped is None else skipped)
        if path.is_dir()
        else _file_rows(path, columns)
    )
    if not rows:
        raise TraceError(f"{path.name} has no rows; it needs the columns {', '.join(columns)}")
    for row in rows:
        if missing := [name for name in columns if name not in row.values]:
            raise row.wrong(f"no {', '.join(missing)}; the row has {', '.join(row.values)}")
    return rows


def _recorded_rows(path: Path, kind: str, skipped: "Counter[str]") -> Iterator[Row]:
    for number, values in enumerate(recorded_rows(path, skipped, kind), start=1):
        yield Row(path, number, values)


def _file_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    text = _text(path)
    return _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text, columns)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path.name} cannot be read as text or gzipped text: {error}") from error


def _csv_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text))
    header = next(lines, [])
    if missing := [name for name in columns if name not in header]:
        raise TraceError(
            f"{path.name} line 1: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}"
        )
    for cells in lines:
        row = Row(path, lines.line_num, dict(zip(header, cells, strict=False)))
        if len(cells) != len(header):
            raise row.wrong(f"{len(cells)} cells under {len(header)} columns")
        yield row


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except ValueError as error:
            raise TraceError(f"{path.name} line {line}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise TraceError(f"{path.name} line {line}: not a JSON object")
        if "ccr_trace" not in values:
            yield Row(path, line, values)
