"""The store as files in a directory: for one router and the learner beside it, on one machine, without a server.

Several processes may use it; one of them appends to a stream. What changes in more than one step does so under a lock
that the kernel releases when its holder dies.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from router.store.frames import FrameLog, frames, locked
from router.store.store import (
    Delivered,
    Entry,
    FencedError,
    Lease,
    StoreDownError,
    StoreError,
    StoreFullError,
    checked,
)
from router.store.stored import decoded, encoded

STREAM_BYTES: Final = 64 * 2**20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_EXPIRY: Final = struct.Struct("<d")  # seconds since 1970, before a small value
_T = TypeVar("_T")


class _Held(msgspec.Struct):
    """A lease in its file."""

    owner: str
    token: int
    until_s: float


class _Batch(msgspec.Struct):
    """Entries delivered together and not acknowledged yet.

    Args:
        positions: of those that are not.
        begin: segment and offset where they begin.
        at_s: when they were delivered, seconds since 1970.
    """

    positions: list[str]
    begin: tuple[int, int]
    at_s: float


class _Group(msgspec.Struct):
    """How far a group of consumers is."""

    segment: int = 0
    offset: int = 0
    pending: list[_Batch] = []


@dataclass(slots=True)
class _Writer:
    """The writing end of a stream, and what each producer appended last."""

    log: FrameLog
    last: dict[str, int]
    lock: int


class EmbeddedStore:
    """The seam of :class:`router.store.store.Store` in a directory.

    Args:
        directory: made if need be, mode 0700.
        stream_bytes: of one stream; the oldest entries give way.
        wall: seconds since 1970, for what expires.

    Raises:
        StoreDownError: if the directory cannot be used.
    """

    def __init__(
        self, directory: Path, stream_bytes: int = STREAM_BYTES, wall: Callable[[], float] = time.time
    ) -> None:
        self.is_up = True
        self._directory = directory
        self._stream_bytes = stream_bytes
        self._wall = wall
        self._writers: dict[str, _Writer] = {}
        self._seen: dict[str, int] = {}
        with self._disk():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # The stream

    def append(self, stream: str, producer: str, entries: Sequence[Entry]) -> int:
        """As the seam says."""
        checked(stream, producer)
        with self._disk():
            writer = self._writers.get(stream) or self._writer(stream)
            last = writer.last.get(producer, -1)
            new = [entry for entry in entries if entry.number > last]
            if new:
                writer.log.append([encoded(producer, entry) for entry in new])
                writer.last[producer] = new[-1].number
        return len(new)

    def read(self, stream: str, group: str, consumer: str, most: int, idle_s: float) -> list[Delivered]:
        """As the seam says."""
        checked(stream, group, consumer)
        with self._disk(), self._locked():
            path, now_s = self._group_path(stream, group), self._wall()
            state = _read(path, _Group) or _Group()
            found = self._again(stream, state, idle_s, now_s) or self._next(stream, state, most, now_s)
            _write(path, state)
        return found

    def acknowledge(self, stream: str, group: str, positions: Sequence[str]) -> None:
        """As the seam says."""
        checked(stream, group)
        done = frozenset(positions)
        with self._disk(), self._locked():
            path = self._group_path(stream, group)
            state = _read(path, _Group) or _Group()
            for batch in state.pending:
                batch.positions = [one for one in batch.positions if one not in done]
            state.pending = [batch for batch in state.pending if batch.positions]
            _write(path, state)

    def _next(self, stream: str, state: _Group, most: int, now_s: float) -> list[Delivered]:
        """What no consumer has seen."""
        begin = state.segment, state.offset
        new = islice(frames(self._path("streams", stream), *begin), most)
        found = [_delivered(*frame) for frame in new]
        if found:
            state.pending.append(_Batch([one.position for one in found], begin, now_s))
            state.segment, state.offset = _place(found[-1].position)
        return found

    def _again(self, stream: str, state: _Group, idle_s: float, now_s: float) -> list[Delivered]:
        """What is left of a batch that was delivered too long ago, as far as it is still there."""
        batch = next((one for one in state.pending if now_s - one.at_s >= idle_s), None)
        if batch is None:
            return []
        wanted, last = set(batch.positions), _place(batch.positions[-1])
        there = takewhile(
            lambda frame: (frame.segment, frame.end) <= last,
            frames(self._path("streams", stream), *batch.begin),
        )
        found = [one for one in (_delivered(*frame) for frame in there) if one.position in wanted]
        batch.positions, batch.at_s = [one.position for one in found], now_s
        if not found:
            state.pending.remove(batch)
        return found

    def _writer(self, stream: str) -> _Writer:
        directory = self._path("streams", stream)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = locked(directory / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        last: dict[str, int] = {}
        for frame in frames(directory):
            stored = decoded(frame.data)
            last[stored.producer] = stored.number
        writer = self._writers[stream] = _Writer(FrameLog(directory, self._stream_bytes), last, lock)
        return writer

    # Blobs and pointers

    def put_blob(self, data: bytes) -> str:
        """As the seam says."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._disk():
            _put_file(self._path("blobs", sha256), data)
        return sha256

    def blob(self, sha256: str) -> bytes | None:
        """As the seam says."""
        checked(sha256)
        with self._disk():
            return _bytes(self._path("blobs", sha256))

    def drop_blob(self, sha256: str) -> None:
        """As the seam says."""
        checked(sha256)
        with self._disk():
            self._path("blobs", sha256).unlink(missing_ok=True)

    def pointer(self, name: str) -> bytes | None:
        """As the seam says."""
        checked(name)
        with self._disk():
            return _bytes(self._path("pointers", name))

    def point(self, name: str, expected: bytes | None, value: bytes, lease: Lease) -> None:
        """As the seam says."""
        checked(name, lease.name)
        with self._disk(), self._locked():
            held = self._held(lease.name)
            if held is None or (held.owner, held.token) != (lease.owner, lease.token):
                raise FencedError(
                    f"lease {lease.name!r} with token {lease.token} is over: somebody else may have it"
                )
            path = self._path("pointers", name)
            if _bytes(path) != expected:
                raise FencedError(f"pointer {name!r} has moved; read it again")
            _put_file(path, value)

    def lease(self, name: str, owner: str, length_s: float) -> Lease | None:
        """As the seam says."""
        checked(name, owner)
        with self._disk(), self._locked():
            held, now_s = self._held(name), self._wall()
            if held is not None and held.owner != owner:
                return None
            token = held.token if held is not None else self._new_token(name, now_s)
            _write(self._path("leases", name), _Held(owner, token, now_s + length_s))
        return Lease(name, owner, token)

    def release(self, lease: Lease) -> None:
        """As the seam says."""
        with self._disk(), self._locked():
            held = self._held(lease.name)
            if held is not None and (held.owner, held.token) == (lease.owner, lease.token):
                _write(self._path("leases", lease.name), _Held(held.owner, held.token, 0.0))

    def _held(self, name: str) -> _Held | None:
        held = _read(self._path("leases", name), _Held)
        return held if held is not None and self._wall() < held.until_s else None

    def _new_token(self, name: str, now_s: float) -> int:
        last = _read(self._path("leases", name), _Held)
        return max(last.token + 1 if last else 1, int(now_s))

    def hint(self, name: str) -> None:
        """Nothing to do: whoever looks sees the file change."""
        checked(name)

    def hinted(self, name: str) -> bool:
        """As the seam says."""
        changed_ns = 0
        with suppress(OSError):
            changed_ns = self._path("pointers", name).stat().st_mtime_ns
        before, self._seen[name] = self._seen.get(name, 0), changed_ns
        return changed_ns != before

    # Small keys

    def put(self, family: str, key: str, value: bytes, expires_s: float) -> None:
        """As the seam says."""
        checked(family, key)
        with self._disk():
            _put_file(self._path("keys", family) / key, _EXPIRY.pack(self._wall() + expires_s) + value)

    def values(self, family: str) -> Mapping[str, bytes]:
        """As the seam says."""
        checked(family)
        found, now_s = {}, self._wall()
        with self._disk():
            for path in self._path("keys", family).glob("*"):
                raw = _bytes(path) or _EXPIRY.pack(0.0)
                if now_s < _EXPIRY.unpack_from(raw)[0]:
                    found[path.name] = raw[_EXPIRY.size :]
        return found

    def drop(self, family: str, key: str) -> None:
        """As the seam says."""
        checked(family, key)
        with self._disk():
            (self._path("keys", family) / key).unlink(missing_ok=True)

    def close(self) -> None:
        """As the seam says."""
        for writer in self._writers.values():
            writer.log.close()
            os.close(writer.lock)
        self._writers.clear()

    # Files

    def _path(self, kind: str, name: str) -> Path:
        return self._directory / kind / name

    def _group_path(self, stream: str, group: str) -> Path:
        return self._path("groups", f"{stream}.{group}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; each step in here is short."""
        file = locked(self._directory / "lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(file)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say what the disk says in the words of the seam."""
        try:
            yield
        except BlockingIOError:
            raise StoreError(
                f"another router appends to the store in {self._directory}; give each its own"
            ) from None
        except OSError as error:
            self.is_up = False
            why = f"the store in {self._directory} fails: {error.strerror or error}"
            raise (StoreFullError if error.errno in _FULL else StoreDownError)(why) from error
        self.is_up = True


def _delivered(segment: int, end: int, data: bytes) -> Delivered:
    return Delivered(f"{segment}:{end}", *msgspec.structs.astuple(decoded(data)))


def _place(position: str) -> tuple[int, int]:
    segment, _, end = position.partition(":")
    return int(segment), int(end)


def _read(path: Path, kind: type[_T]) -> _T | None:
    raw = _bytes(path)
    return None if raw is None else msgspec.json.decode(raw, type=kind)


def _write(path: Path, state: msgspec.Struct) -> None:
    _put_file(path, msgspec.json.encode(state))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _put_file(path: Path, data: bytes) -> None:
    """Write all of it, or leave what was there; parts of it are never to be seen."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
