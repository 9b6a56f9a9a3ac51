"""An entry in a file: who appended it, its number, its bytes."""

from typing import Final

import msgspec

from router.store.store import Entry


class Stored(msgspec.Struct, array_like=True):
    """What a frame holds."""

    producer: str
    number: int
    data: bytes


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Stored).decode


def encoded(producer: str, entry: Entry) -> bytes:
    """The entry as bytes."""
    return _ENCODE(Stored(producer, *entry))


def decoded(data: bytes) -> Stored:
    """The entry; what is in a whole frame was put there by :func:`encoded`."""
    return _DECODE(data)
