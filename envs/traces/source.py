"""A file to read rows from: opened whatever its packing, line by line, with what was left out counted."""

import csv
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from ccr.errors import TraceError
from envs.traces.rows import BadRow, Dropped, Row

#: Bytes of the longest line: 120,000 tokens as a chain of 16-token blocks take about 60 KiB.
MAX_LINE_BYTES = 2**20
_GZIP = b"\x1f\x8b"
_GIT_LFS = b"version https://git-lfs"
_LINES_BETWEEN_REPORTS = 4096

Line = tuple[int, bytes]
#: Told which share of the work is done, now and then.
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Head:
    """What a format is told by.

    Args:
        path: the file or directory.
        lines: its first two lines that are not blank, without line ends; none of a directory.
    """

    path: Path
    lines: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The first line as the header of a CSV file."""
        fields = csv_fields(self.lines[0].encode()) if self.lines else []
        return () if isinstance(fields, BadRow) else tuple(one.strip() for one in fields)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the first line, if it is a JSON object."""
        record = json_object(self.lines[0].encode()) if self.lines else {}
        return frozenset() if isinstance(record, BadRow) else frozenset(record)


@dataclass(slots=True)
class Source:
    """What is read, and how that goes.

    Args:
        path: a file, or a directory for formats that are one.
        skip_bad: count rows that cannot be read instead of stopping at the first.
        remedy: what to do about such a row.
        progress: told which share of the file has been read.
        rows_read: so far.
        dropped: rows left out so far, by reason.
        notes: what the source says of itself, for the header.
    """

    path: Path
    skip_bad: bool = False
    remedy: str = "Correct the row, or leave such rows out with --skip-bad."
    progress: Progress | None = None
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[Line]:
        """Lines that are not blank, with their numbers from 1.

        Raises:
            TraceError: if the file is empty, cannot be read, is a Git LFS pointer or breaks off.
        """
        number = 0
        is_empty = True
        try:
            with _opened(self.path) as (raw, stream):
                size = self.path.stat().st_size
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        raise TraceError(
                            f"{self.path}, line {number} is longer than {MAX_LINE_BYTES} bytes; is this a trace?"
                        )
                    if self.progress and number % _LINES_BETWEEN_REPORTS == 0:
                        self.progress(raw.tell() / size)
                    if line.strip():
                        is_empty = False
                        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(
                f"{self.path}: the gzip stream is broken after line {number} ({error}); fetch or write the file again"
            ) from error
        except OSError as error:
            raise TraceError(f"cannot read {self.path}: {error.strerror or error}") from error
        if is_empty:
            raise TraceError(f"{self.path} is empty; a trace has a line per request")

    def rows(
        self, records: Iterable[tuple[int, Any | BadRow]], row_of: Callable[[Any], Row]
    ) -> Iterator[Row]:
        """What ``row_of`` makes of each record, with what is left out counted.

        Raises:
            TraceError: at a row that cannot be read, unless such rows are skipped.
        """
        for line, record in records:
            self.rows_read += 1
            try:
                if isinstance(record, BadRow):
                    raise record
                row = row_of(record)
            except Dropped as dropped:
                self.dropped[dropped.reason] += 1
                continue
            except BadRow as bad:
                if not self.skip_bad:
                    raise TraceError(f"{self.path}, line {line}: {bad.story}. {self.remedy}") from None
                self.dropped[bad.reason] += 1
                continue
            row.line = line
            yield row


def head_of(path: Path) -> Head:
    """The beginning of a file, to tell its format by."""
    if path.is_dir():
        return Head(path, ())
    lines = Source(path).lines()
    try:
        first = [line for _, line in zip(range(2), (line for _, line in lines), strict=False)]
    finally:
        lines.close()  # type: ignore[attr-defined]  # it is a generator: this closes the file
    return Head(path, tuple(line.decode(errors="replace").rstrip("\r\n") for line in first))


def sha256_of(path: Path) -> str:
    """Hash of a file; of a directory, that of the listing ``HASH  NAME`` of the files in it, sorted by name."""
    if path.is_dir():
        listing = "".join(
            f"{sha256_of(one)}  {one.name}\n" for one in sorted(path.iterdir()) if one.is_file()
        )
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_fields(line: bytes) -> list[str] | BadRow:
    """The fields of one line; in a trace no field spans lines."""
    try:
        text = line.decode().rstrip("\r\n")
        return text.split(",") if '"' not in text else next(csv.reader([text], strict=True))
    except UnicodeDecodeError:
        return BadRow("not UTF-8", "this is not UTF-8 text")
    except csv.Error as error:
        return BadRow("not CSV", f"this is not CSV ({error})")


def csv_records(
    lines: Iterable[Line], columns: Sequence[str], wanted: Sequence[str]
) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The fields of each line in the order of ``wanted``; a column that the file lacks is empty.

    Args:
        lines: without the header.
        columns: of the header.
        wanted: columns to take.
    """
    places = [columns.index(column) if column in columns else -1 for column in wanted]
    for number, line in lines:
        fields = csv_fields(line)
        if isinstance(fields, BadRow):
            yield number, fields
        elif len(fields) != len(columns):
            story = f"{len(fields)} fields under {len(columns)} columns"
            yield number, BadRow("wrong number of fields", story)
        else:
            yield number, [fields[place] if place >= 0 else "" for place in places]


def json_records(lines: Iterable[Line]) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """The object on each line."""
    for number, line in lines:
        yield number, json_object(line)


def json_object(line: bytes) -> Mapping[str, Any] | BadRow:
    """The object on a line."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BadRow("not JSON", f"this is not JSON ({error})")
    if not isinstance(record, dict):
        return BadRow("not an object", f"expected a JSON object, found a {type(record).__name__}")
    return record


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file, and its bytes unzipped when they are zipped, whatever its name says."""
    with path.open("rb") as raw:
        beginning = raw.read(len(_GIT_LFS))
        raw.seek(0)
        if beginning == _GIT_LFS:
            raise TraceError(
                f"{path} is a Git LFS pointer, not the trace; run `git lfs pull` in the repository it came from"
            )
        if beginning.startswith(_GZIP):
            with gzip.open(raw) as unzipped:
                yield raw, cast("BinaryIO", unzipped)
        else:
            yield raw, raw
