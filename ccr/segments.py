"""Recorded traces on disk: which segments there are, and their rows in order of time, whatever a crash left behind.

A recording is a directory of segments ``RECORDING.KIND.NUMBER.jsonl``: a header line and a row per line, in order of ``t``.
The segment being written ends in ``.part``: its rows stand in the order in which they ended, and a crash may have torn
its last line.
"""

import heapq
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ccr.errors import TraceError

KINDS: Final = ("requests", "telemetry", "loads")
PART: Final = ".part"
TORN: Final = "torn line"
#: Rows looked at between two chances for other threads to run.
BREATH: Final = 256
_NAME = re.compile(
    r"([0-9]{8}T[0-9]{6}Z-[0-9a-f]{4})\.(requests|telemetry|loads)\.([0-9]{6})\.jsonl(\.part)?"
)
_ROW = re.compile(rb'\{"t":([0-9][0-9.e+-]*)[,}]')


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a recording.

    Args:
        path: where it is.
        recording: which recording it belongs to.
        kind: one of :data:`KINDS`.
        number: counts from 1 for each kind.
        is_sealed: whether it is complete and in order; false for the one being written, or left by a crash.
    """

    path: Path
    recording: str
    kind: str
    number: int
    is_sealed: bool


@dataclass(frozen=True, slots=True)
class Index:
    """Where the whole rows of a segment are.

    Args:
        times: ``t`` of each row, seconds, shape ``(n,)``.
        starts: byte offset of each row, shape ``(n,)``.
        lengths: bytes of each row with its newline, shape ``(n,)``.
        torn: lines that are not whole rows.
    """

    times: NDArray[np.float64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    torn: int

    def in_order(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each row by time; rows of one time as they were written."""
        order = np.argsort(self.times, kind="stable")
        return zip(self.starts[order].tolist(), self.lengths[order].tolist(), strict=True)


def name_of(recording: str, kind: str, number: int) -> str:
    """The file name of a sealed segment."""
    return f"{recording}.{kind}.{number:06d}.jsonl"


def segment_at(path: Path) -> Segment | None:
    """What a file's name says it is; ``None`` if it is no segment."""
    match = _NAME.fullmatch(path.name)
    return match and Segment(path, match[1], match[2], int(match[3]), is_sealed=match[4] is None)


def segments(directory: Path) -> list[Segment]:
    """The segments in a directory by recording, kind and number.

    A ``.part`` beside its sealed segment is left out: the crash came between the two.

    Raises:
        TraceError: if the directory cannot be read.
    """
    try:
        found = [segment for path in directory.iterdir() if (segment := segment_at(path)) is not None]
    except OSError as error:
        raise TraceError(f"cannot read {directory}: {error.strerror or error}") from error
    sealed = {segment.path.name for segment in found if segment.is_sealed}
    kept = [one for one in found if one.is_sealed or one.path.name.removesuffix(PART) not in sealed]
    return sorted(kept, key=lambda one: (one.recording, one.kind, one.number))


def index(path: Path, breathe: Callable[[], None] = lambda: None) -> Index:
    """Find the rows of a segment; what is no whole row is counted and left out.

    Args:
        path: the segment.
        breathe: called now and then, for a thread that must not hold up others.

    Raises:
        OSError: if it cannot be read.
    """
    times, starts, lengths, torn = array("d"), array("q"), array("q"), 0
    with path.open("rb") as stream:
        header = stream.readline()
        torn += bool(header) and not header.endswith(b"\n")
        at = len(header)
        for number, line in enumerate(stream):
            match = _ROW.match(line) if line.endswith(b"}\n") and b"\0" not in line else None
            if match is None:
                torn += 1
            else:
                times.append(float(match[1]))
                starts.append(at)
                lengths.append(len(line))
            at += len(line)
            if number % BREATH == 0:
                breathe()
    return Index(np.array(times), np.array(starts, np.int64), np.array(lengths, np.int64), torn)


def rows(
    path: Path, skipped: "Counter[str]", kind: str = "requests", recording: str = ""
) -> Iterator[dict[str, Any]]:
    """The rows of a recording in order of time, of all its segments or of one.

    Args:
        path: a directory that holds a recording, or one segment.
        skipped: counts what was left out, by reason: the line that a crash tore.
        kind: which rows, where ``path`` is a directory.
        recording: which recording, where the directory holds several.

    Raises:
        TraceError: if there is no such recording, or a sealed segment is damaged; names file and line.
    """
    # A request that lasts long ends in a later segment than its neighbours: segments overlap at their edges.
    parts = [_rows_of(one, skipped) for one in _wanted(path, kind, recording)]
    yield from heapq.merge(*parts, key=lambda row: float(row["t"]))


def headers(path: Path, kind: str = "requests", recording: str = "") -> list[dict[str, Any]]:
    """What the segments of a recording say of themselves, in order; one whose header a crash tore says nothing.

    Args:
        path: a directory that holds a recording, or one segment.
        kind: of the segments, where ``path`` is a directory.
        recording: which recording, where the directory holds several.

    Raises:
        TraceError: as :func:`rows`.
    """
    return [head for one in _wanted(path, kind, recording) if (head := _header_of(one))]


def _wanted(path: Path, kind: str, recording: str) -> list[Path]:
    """The segments that are meant."""
    if not path.is_dir():
        return [path]
    wanted = [one for one in segments(path) if one.kind == kind and recording in {"", one.recording}]
    found = sorted({one.recording for one in wanted})
    if not found:
        raise TraceError(f"{path} holds no recorded {kind}; record some with `ccr traces record`")
    if len(found) > 1:
        raise TraceError(f"{path} holds {len(found)} recordings ({', '.join(found)}); say which one is meant")
    return [one.path for one in wanted]


def _header_of(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            line = stream.readline()
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
    if path.name.endswith(PART) and not line.endswith(b"\n"):
        return {}
    return _checked_header(line, path)


def _rows_of(path: Path, skipped: "Counter[str]") -> Iterator[dict[str, Any]]:
    try:
        yield from _part_rows(path, skipped) if path.name.endswith(PART) else _sealed_rows(path)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error


def _part_rows(path: Path, skipped: "Counter[str]") -> Iterator[dict[str, Any]]:
    found = index(path)
    if found.torn:
        skipped[TORN] += found.torn
    with path.open("rb") as stream:
        for start, length in found.in_order():
            stream.seek(start)
            yield _row(stream.read(length), path, f"at byte {start}")


def _sealed_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        _checked_header(stream.readline(), path)
        for number, line in enumerate(stream, 2):
            yield _row(line, path, f"line {number}")


def _checked_header(line: bytes, path: Path) -> dict[str, Any]:
    header = _row(line, path, "line 1")
    if header.get("ccr_trace") != 1:
        raise TraceError(f"{path}, line 1: not the header of a trace of format 1; is this a recording?")
    return header


def _row(line: bytes, path: Path, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}, {where}: {error}; the file is damaged, take it from a copy") from error
    if not isinstance(row, dict):
        raise TraceError(f"{path}, {where}: expected an object, found a {type(row).__name__}")
    return row
