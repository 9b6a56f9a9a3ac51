"""Segments on disk: appended in whole lines, sealed in order of time, bounded; used by one thread."""

import fcntl
import os
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ccr import log
from ccr.errors import CCRError
from ccr.segments import BREATH, PART, TORN, index, name_of, segment_at, segments
from ccr.version import __version__

LOCK: Final = ".recording.lock"
TEMPORARY: Final = ".tmp"
#: Parts that may be open, and the copy that sealing makes: the least room a recording works in.
LEAST_SEGMENTS: Final = 4
_log = log.get("record")


class RecordingError(CCRError):
    """A recording cannot be made, or not now; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much disk a recording may take.

    Args:
        max_bytes: of all segments in the directory, those of earlier recordings too.
        segment_bytes: of one segment.
    """

    max_bytes: int = 2**30
    segment_bytes: int = 64 * 2**20


class _Sealed(NamedTuple):
    path: Path
    size: int


class _Part:
    """The segment of one kind that is being written; every byte of it belongs to a whole line."""

    def __init__(self, path: Path, header: bytes) -> None:
        self.path = path
        self.size = 0
        self.rows = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self.write(header, 0)
        except OSError:
            self.close()
            raise

    def write(self, data: bytes, rows: int) -> None:
        """Append whole lines, or nothing.

        Raises:
            OSError: if the disk takes them not, or not all; what it took of them is cut off again.
        """
        try:
            _write_all(self._file, data)
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)
        self.rows += rows

    def close(self) -> None:
        """Once is enough."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Writer:
    """One recording on disk.

    Args:
        directory: made if need be; one recorder at a time may use it.
        limits: of the disk.

    Raises:
        RecordingError: if it cannot be written to, or another recorder does.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.recording = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self.deleted = 0
        self._limits = limits
        self._parts: dict[str, _Part] = {}
        self._numbers: dict[str, int] = {}
        self._lock = -1
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(directory)
            for path in directory.glob(f"*{TEMPORARY}"):
                if segment_at(path.with_name(path.name.removesuffix(TEMPORARY))):
                    path.unlink()
            self._sealed = deque(_by_age(directory))
            self._left = {
                one.path: one.path.stat().st_size for one in segments(directory) if not one.is_sealed
            }
        except OSError as error:
            self.abandon()
            raise RecordingError(
                f"cannot record into {directory}: {error.strerror or error}. Give a directory on the router's machine "
                "that the router may write to"
            ) from error

    @property
    def held_bytes(self) -> int:
        """Bytes of all segments in the directory."""
        sealed, parts = list(self._sealed), list(self._parts.values())
        return (
            sum(one.size for one in sealed) + sum(part.size for part in parts) + sum([*self._left.values()])
        )

    def recover(self) -> None:
        """Seal what a recorder that was killed left behind."""
        for path in list(self._left):
            _log.info("record.recovering", segment=path.name)
            self._seal(path, {})
            del self._left[path]
        for path in self.directory.glob(
            f"*{PART}"
        ):  # a crash came after the segment, before the end of its part
            if segment_at(path) is not None:
                path.unlink()

    def append(self, kind: str, lines: Iterable[bytes]) -> None:
        """Write rows.

        Args:
            kind: of the rows.
            lines: one row each, without newlines.

        Raises:
            OSError: if the disk does not take them; none of them is there then.
        """
        lines = [*lines, b""]
        data = b"\n".join(lines)
        part = self._parts.get(kind)
        if part is not None and part.rows and part.size + len(data) > self._limits.segment_bytes:
            self.seal(kind, {})
            part = None
        self._make_room(len(data))
        (part or self._begin(kind)).write(data, len(lines) - 1)

    def seal(self, kind: str, dropped: dict[str, int]) -> None:
        """Close the segment being written: in order of time, with its counts in the header, and safely on the disk.

        Args:
            kind: whose segment.
            dropped: rows that were lost since the last one, by reason.

        Raises:
            OSError: if the disk does not take it; the part stays.
        """
        part = self._parts.get(kind)
        if part is not None:
            part.close()
            self._seal(part.path, dropped)
            del self._parts[kind]

    def close(self, dropped: dict[str, int]) -> None:
        """Seal everything and let go of the directory.

        Args:
            dropped: requests that were lost, by reason.

        Raises:
            OSError: as :meth:`seal`.
        """
        try:
            for kind in list(self._parts):
                self.seal(kind, dropped if kind == "requests" else {})
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything as it is."""
        for part in self._parts.values():
            part.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _begin(self, kind: str) -> _Part:
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        path = self.directory / (name_of(self.recording, kind, number) + PART)
        part = self._parts[kind] = _Part(path, _header(self.recording, kind, number))
        return part

    def _seal(self, part: Path, dropped: dict[str, int]) -> None:
        segment = segment_at(part)
        assert segment is not None, part  # noqa: S101 - for the type checker: it was found, or made, by that name
        found = index(part, _breathe)
        if found.torn:
            dropped = {**dropped, TORN: found.torn}
        header = _header(segment.recording, segment.kind, segment.number, len(found.times), dropped)
        self._make_room(len(header) + int(found.lengths.sum()))
        final = part.with_name(part.name.removesuffix(PART))
        temporary = final.with_name(final.name + TEMPORARY)
        try:
            size = _copy(part, temporary, header, found.in_order())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(self.directory)
        part.unlink()
        self._sealed.append(_Sealed(final, size))

    def _make_room(self, size: int) -> None:
        """Delete the oldest segments until so many bytes more are allowed."""
        while self._sealed and self.held_bytes + size > self._limits.max_bytes:
            oldest = self._sealed.popleft()
            oldest.path.unlink(missing_ok=True)
            self.deleted += 1
            _log.info("record.segment_deleted", segment=oldest.path.name, max_bytes=self._limits.max_bytes)


def _header(
    recording: str, kind: str, number: int, rows: int | None = None, dropped: dict[str, int] | None = None
) -> bytes:
    """The first line of a segment; the counts are not known before it is sealed."""
    content = {
        "ccr_trace": 1,
        "kind": kind,
        "source": f"ccr-autopilot {__version__}",
        "licence": "",
        "sha256_source": "",
        "rows_read": rows,
        "rows_dropped": dropped or {},
        "block_tokens": None,
        "recording": recording,
        "segment": number,
    }
    return msgspec.json.encode(content) + b"\n"


def _copy(source: Path, target: Path, header: bytes, order: Iterator[tuple[int, int]]) -> int:
    """Write the rows in this order, and wait until they are on the disk; returns the bytes."""
    taken, put = os.open(source, os.O_RDONLY | os.O_CLOEXEC), -1
    try:
        put = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        size, batch = len(header), [header]
        for start, length in order:
            batch.append(os.pread(taken, length, start))
            size += length
            if len(batch) >= BREATH:
                _write_all(put, b"".join(batch))
                batch.clear()
                _breathe()
        _write_all(put, b"".join(batch))
        os.fsync(put)
        return size
    finally:
        os.close(taken)
        if put >= 0:
            os.close(put)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _breathe() -> None:
    """Let the thread that serves requests have the interpreter."""
    time.sleep(0)


def _locked(directory: Path) -> int:
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise RecordingError(
            f"another router, or another recording, writes into {directory}; give each its own"
        ) from None
    return file


def _by_age(directory: Path) -> Iterable[_Sealed]:
    sealed = [(one.path.stat(), one.path) for one in segments(directory) if one.is_sealed]
    return [_Sealed(path, stat.st_size) for stat, path in sorted(sealed, key=lambda one: one[0].st_mtime_ns)]


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
