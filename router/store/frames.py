"""Files of whole frames: appended in one write each, checked by CRC, cut off where a crash tore one, bounded.

Bytes that were written survive the end of the process, however it ends; they are not synchronised with the disk, so
the end of the machine may take the last seconds.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("<II")  # bytes, CRC-32 of them
_SUFFIX: Final = ".frames"
LARGEST_BYTES: Final = 2**20
"""Of one frame; a length above it is damage."""
SEGMENT_BYTES: Final = 4 * 2**20


class Frame(NamedTuple):
    """What was appended, and where it is.

    Args:
        segment: number of its file.
        end: offset behind it.
        data: as appended.
    """

    segment: int
    end: int
    data: bytes


def packed(data: bytes) -> bytes:
    """The frame around some bytes."""
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def unpacked(raw: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The frames in some bytes: the offset behind each and its content; ends before the first that is not whole."""
    while offset + _HEAD.size <= len(raw):
        length, crc = _HEAD.unpack_from(raw, offset)
        end = offset + _HEAD.size + length
        data = raw[offset + _HEAD.size : end]
        if length > LARGEST_BYTES or len(data) < length or zlib.crc32(data) != crc:
            return
        yield end, data
        offset = end


def segments(directory: Path) -> list[int]:
    """Numbers of the files there, oldest first."""
    return sorted(int(path.stem) for path in directory.glob(f"*{_SUFFIX}"))


def path_of(directory: Path, segment: int) -> Path:
    """Where a segment is."""
    return directory / f"{segment:012d}{_SUFFIX}"


def frames(directory: Path, segment: int = 0, offset: int = 0) -> Iterator[Frame]:
    """All whole frames from a place on; files that vanish meanwhile are passed over.

    Args:
        directory: of the files.
        segment: where to begin; a number that is gone begins with the next one.
        offset: in that segment.
    """
    for number in segments(directory):
        if number < segment:
            continue
        start = offset if number == segment else 0
        try:
            with path_of(directory, number).open("rb") as file:
                file.seek(start)
                raw = file.read()
        except FileNotFoundError:
            continue
        for end, data in unpacked(raw):
            yield Frame(number, start + end, data)


class FrameLog:
    """The writing end; one process at a time.

    Args:
        directory: made if need be.
        max_bytes: of all segments; the oldest give way.
        segment_bytes: of one.

    ``newest`` is the number of the segment last written to; numbers are never used again while it lives.

    Raises:
        OSError: if the directory cannot be written to.
    """

    def __init__(self, directory: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(max_bytes // 4, 1))
        self._sizes = {number: path_of(directory, number).stat().st_size for number in segments(directory)}
        self.newest = max(self._sizes, default=0)
        self._file = -1

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    def append(self, contents: Sequence[bytes]) -> list[int]:
        """Append frames: all, or none.

        Returns:
            Segments that were deleted to make room.

        Raises:
            OSError: if the disk does not take them.
        """
        raw = b"".join(map(packed, contents))
        self._make_writable(len(raw))
        try:
            _write_all(self._file, raw)
        except OSError:
            os.ftruncate(self._file, self._sizes[self.newest])
            raise
        self._sizes[self.newest] += len(raw)
        return self._make_room()

    def remove(self, segment: int) -> None:
        """Delete a segment."""
        path_of(self.directory, segment).unlink(missing_ok=True)
        if segment == self.newest:
            self.close()
        self._sizes.pop(segment, None)

    def close(self) -> None:
        """Close the file; the next append begins another."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _make_writable(self, more: int) -> None:
        """Begin a segment where one is full, and after a start, so that nothing ever follows a torn frame."""
        size = self._sizes.get(self.newest, 0)
        if self._file < 0 or (size and size + more > self._segment_bytes):
            self.close()
            path = path_of(self.directory, self.newest + 1)
            self._file = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            self.newest += 1
            self._sizes[self.newest] = 0

    def _make_room(self) -> list[int]:
        gone = []
        for number in sorted(self._sizes):
            if self.size <= self._max_bytes or number == self.newest:
                break
            self.remove(number)
            gone.append(number)
        return gone


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def locked(path: Path, how: int) -> int:
    """A file that is locked until it is closed, or its process ends.

    Args:
        path: made if need be, and its directory.
        how: for ``flock``.

    Raises:
        BlockingIOError: if another process has it and ``how`` says not to wait.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, how)
    except OSError:
        os.close(file)
        raise
    return file
