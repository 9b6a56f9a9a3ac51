"""The store in a Redis server, 6.2 or later: short timeouts, no retries, no scripts, all keys under one prefix."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from router.store.store import (
    Delivered,
    Entry,
    FencedError,
    Lease,
    StoreDownError,
    StoreFullError,
    checked,
)

TIMEOUT_S: Final = 0.05
STREAM_LENGTH: Final = 100_000
#: How long it is remembered what a producer appended last; its spool is replayed long before.
_PRODUCER_S: Final = 7 * 86_400
_STALE_INDEX_S: Final = 3600.0


class RedisStore:
    """The seam of :class:`router.store.store.Store` in Redis. Nothing is connected before the first call.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        prefix: of all keys and channels.
        timeout_s: of each step of a call.
        stream_length: entries that a stream keeps, about; the oldest give way.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "ccr",
        timeout_s: float = TIMEOUT_S,
        stream_length: int = STREAM_LENGTH,
        wall: Callable[[], float] = time.time,
    ) -> None:
        checked(prefix)
        self.is_up = True
        self._prefix = prefix
        self._stream_length = stream_length
        self._wall = wall
        timeouts: dict[str, Any] = {"socket_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}
        if not url.startswith("unix"):
            timeouts["socket_connect_timeout"] = timeout_s
        self._redis = redis.Redis.from_url(url, **timeouts)
        self._last: dict[tuple[str, str], int] = {}
        self._hints: dict[str, Any] = {}

    # The stream

    def append(self, stream: str, producer: str, entries: Sequence[Entry]) -> int:
        """As the seam says: the entries and the number of the last one are written in one transaction."""
        checked(stream, producer)
        key, marker = self._key("stream", stream), self._key("last", stream, producer)
        last = self._last.pop((stream, producer), None)  # known again only when this call has ended well
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            if last is None:
                # An earlier call may still lie unread in the server's socket: the transaction fails if it gets through.
                pipe.watch(marker)
                last = int(pipe.get(marker) or -1)
                pipe.multi()
            new = [entry for entry in entries if entry.number > last]
            if new:
                for number, data in new:
                    pipe.xadd(
                        key, {f"{producer}:{number}": data}, maxlen=self._stream_length, approximate=True
                    )
                last = new[-1].number
                pipe.set(marker, last, ex=_PRODUCER_S)
                pipe.execute()
        self._last[stream, producer] = last
        return len(new)

    def read(self, stream: str, group: str, consumer: str, most: int, idle_s: float) -> list[Delivered]:
        """As the seam says."""
        checked(stream, group, consumer)
        key = self._key("stream", stream)
        with self._call():
            try:
                return self._claimed(key, group, consumer, most, idle_s) or self._new(
                    key, group, consumer, most
                )
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._redis.xgroup_create(key, group, id="0", mkstream=True)
                return self._new(key, group, consumer, most)

    def acknowledge(self, stream: str, group: str, positions: Sequence[str]) -> None:
        """As the seam says."""
        checked(stream, group)
        if positions:
            with self._call():
                self._redis.xack(self._key("stream", stream), group, *positions)

    def _claimed(self, key: str, group: str, consumer: str, most: int, idle_s: float) -> list[Delivered]:
        found: Any = self._redis.xautoclaim(
            key, group, consumer, min_idle_time=int(1e3 * idle_s), start_id="0-0", count=most
        )
        gone = [position for position, fields in found[1] if not fields]  # the stream was cut meanwhile (6.2)
        if gone:
            self._redis.xack(key, group, *gone)
        return [_delivered(position, fields) for position, fields in found[1] if fields]

    def _new(self, key: str, group: str, consumer: str, most: int) -> list[Delivered]:
        found: Any = self._redis.xreadgroup(group, consumer, {key: ">"}, count=most)
        entries = found[key.encode()] if isinstance(found, dict) else found[0][1] if found else []
        if isinstance(found, dict):
            entries = [entry for part in entries for entry in part]
        return [_delivered(position, fields) for position, fields in entries]

    # Blobs and pointers

    def put_blob(self, data: bytes) -> str:
        """As the seam says."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._call():
            self._redis.set(self._key("blob", sha256), data)
        return sha256

    def blob(self, sha256: str) -> bytes | None:
        """As the seam says."""
        checked(sha256)
        return self._get(self._key("blob", sha256))

    def drop_blob(self, sha256: str) -> None:
        """As the seam says."""
        checked(sha256)
        with self._call():
            self._redis.delete(self._key("blob", sha256))

    def pointer(self, name: str) -> bytes | None:
        """As the seam says."""
        checked(name)
        return self._get(self._key("pointer", name))

    def point(self, name: str, expected: bytes | None, value: bytes, lease: Lease) -> None:
        """As the seam says: pointer and lease are watched, and the transaction fails if either changes."""
        checked(name, lease.name)
        held, key = self._key("lease", lease.name), self._key("pointer", name)
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(held, key)
            if pipe.get(held) != _lease_value(lease):
                raise FencedError(
                    f"lease {lease.name!r} with token {lease.token} is over: somebody else may have it"
                )
            if pipe.get(key) != expected:
                raise FencedError(f"pointer {name!r} has moved; read it again")
            pipe.multi()
            pipe.set(key, value)
            pipe.execute()

    def lease(self, name: str, owner: str, length_s: float) -> Lease | None:
        """As the seam says."""
        checked(name, owner)
        with suppress(FencedError):  # another was quicker
            return self._taken(name, owner, length_s)
        return None

    def _taken(self, name: str, owner: str, length_s: float) -> Lease | None:
        key, counter = self._key("lease", name), self._key("token", name)
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(key, counter)
            holder, _, token = _text(pipe.get(key)).rpartition("|")
            if holder and holder != owner:
                return None
            lease = Lease(name, owner, int(token) if holder else self._new_token(pipe.get(counter)))
            pipe.multi()
            pipe.set(key, _lease_value(lease), px=int(1e3 * length_s))
            pipe.set(counter, lease.token)
            pipe.execute()
        return lease

    def release(self, lease: Lease) -> None:
        """As the seam says."""
        checked(lease.name)
        key = self._key("lease", lease.name)
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(key)
            if pipe.get(key) == _lease_value(lease):
                pipe.multi()
                pipe.delete(key)
                pipe.execute()

    def _new_token(self, last: Any) -> int:
        return max(int(last or 0) + 1, int(self._wall()))

    def hint(self, name: str) -> None:
        """As the seam says."""
        checked(name)
        with self._call():
            self._redis.publish(self._key("hint", name), b"")

    def hinted(self, name: str) -> bool:
        """As the seam says; a listener that breaks is made again the next time."""
        checked(name)
        try:
            listener = self._hints.get(name)
            if listener is None:
                listener = self._hints[name] = self._redis.pubsub(ignore_subscribe_messages=True)
                listener.subscribe(self._key("hint", name))
            was_hinted = False
            while listener.connection is not None and listener.connection.can_read(timeout=0):
                was_hinted |= listener.get_message(timeout=0) is not None
        except (redis.RedisError, OSError):
            self._forget(name)
            return False
        return was_hinted

    def _forget(self, name: str) -> None:
        listener = self._hints.pop(name, None)
        if listener is not None:
            listener.close()

    # Small keys

    def put(self, family: str, key: str, value: bytes, expires_s: float) -> None:
        """As the seam says; an index beside the values spares a walk over all keys."""
        checked(family, key)
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._key("small", family, key), value, px=max(int(1e3 * expires_s), 1))
            pipe.zadd(self._key("index", family), {key: self._wall() + expires_s})
            pipe.execute()

    def values(self, family: str) -> Mapping[str, bytes]:
        """As the seam says."""
        checked(family)
        index = self._key("index", family)
        with self._call():
            # Whether a value is there, its own expiry decides, by the server's clock; the index forgets an hour later.
            self._redis.zremrangebyscore(index, "-inf", self._wall() - _STALE_INDEX_S)
            names: Any = self._redis.zrange(index, 0, -1)
            keys = [_text(name) for name in names]
            found: Any = self._redis.mget([self._key("small", family, key) for key in keys]) if keys else []
        return {key: value for key, value in zip(keys, found, strict=True) if value is not None}

    def drop(self, family: str, key: str) -> None:
        """As the seam says."""
        checked(family, key)
        with self._call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._key("small", family, key))
            pipe.zrem(self._key("index", family), key)
            pipe.execute()

    def close(self) -> None:
        """As the seam says."""
        for name in list(self._hints):
            self._forget(name)
        self._redis.close()

    def _get(self, key: str) -> bytes | None:
        with self._call():
            found: Any = self._redis.get(key)
        return None if found is None else bytes(found)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Say what Redis says in the words of the seam."""
        try:
            yield
        except redis.WatchError as error:
            raise FencedError("somebody else changed it at the same moment") from error
        except redis.RedisError as error:
            self.is_up = False
            if isinstance(error, redis.exceptions.OutOfMemoryError) or "MISCONF" in str(
                error
            ):  # or a full disk
                raise StoreFullError(f"Redis takes nothing more: {error}") from error
            raise StoreDownError(f"Redis does not answer as it should: {error}") from error
        self.is_up = True


def _delivered(position: bytes, fields: Mapping[bytes, bytes]) -> Delivered:
    ((name, data),) = fields.items()
    producer, _, number = name.decode().rpartition(":")
    return Delivered(position.decode(), producer, int(number), data)


def _lease_value(lease: Lease) -> bytes:
    return f"{lease.owner}|{lease.token}".encode()


def _text(value: Any) -> str:
    return bytes(value or b"").decode()
