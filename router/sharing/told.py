"""What one router tells the others of its ledger: numbers and hashes of names, checked when read, signed where there is a key."""

import hashlib
import hmac
import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ccr.errors import CCRError
from ccr.shared import ADDED, IN_FLIGHT, Part, nothing

FORM: Final = 1
MOST_NODES: Final = 4096
MOST_MODELS: Final = 4096
MOST_PAIRS: Final = 65_536
LARGEST_BYTES: Final = 4 * 2**20
_MOST: Final = 1e9
"""Of any number: seconds, tokens, GiB, requests."""
_LEAST_RATE: Final = 1e-6
_SIGNATURE_BYTES: Final = 32
_ID: Final = np.dtype("<u8")
_NUMBER: Final = np.dtype("<f4")
_COUNT: Final = np.dtype("<u4")
_PLACE: Final = np.dtype("<u2")
Ids = NDArray[np.uint64]


class PartError(CCRError):
    """A part that is not entered; ``reason`` is a short label for a counter."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"part of another router's ledger refused ({reason})")


class Told(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """A part, of nodes at which there is something.

    Arrays are bytes, little-endian: ``nodes`` and ``models`` u8 hashes of their ids; ``load`` (rows of
    :data:`ccr.shared.ADDED`), ``rates`` (finished and sent per second) and ``quiet`` (-1: nothing in flight) f4 by node;
    ``pairs`` u2 positions of model and node, with ``counts`` u4 and ``loading`` f4 for each.
    """

    form: int = FORM
    nodes: bytes
    models: bytes
    load: bytes
    rates: bytes
    quiet: bytes
    pairs: bytes
    counts: bytes
    loading: bytes


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Told).decode


def encode(part: Part, models: Ids, nodes: Ids, key: bytes = b"") -> bytes:
    """A part as bytes.

    Args:
        part: what this router has placed.
        models: hashes of the ids of its rows, shape ``(M,)``.
        nodes: hashes of the ids of its columns, shape ``(n,)``.
        key: signs it, if there is one.
    """
    rates = np.stack([part.done_per_s, part.sent_per_s])
    at = np.flatnonzero((part.load[IN_FLIGHT] > 0.0) | (rates > _LEAST_RATE).any(axis=0))
    rows, columns = np.nonzero(part.inflight[:, at])
    quiet_s = part.quiet_s[at]
    told = _ENCODE(
        Told(
            nodes=nodes[at].astype(_ID).tobytes(),
            models=models.astype(_ID).tobytes(),
            load=part.load[:, at].astype(_NUMBER).tobytes(),
            rates=rates[:, at].astype(_NUMBER).tobytes(),
            quiet=np.where(np.isfinite(quiet_s), quiet_s, -1.0).astype(_NUMBER).tobytes(),
            pairs=np.stack([rows, columns]).astype(_PLACE).tobytes(),
            counts=part.inflight[rows, at[columns]].astype(_COUNT).tobytes(),
            loading=part.loading_s[rows, at[columns]].astype(_NUMBER).tobytes(),
        )
    )
    return signature(told, key) + told


def decode(data: bytes, key: bytes = b"") -> Told:
    """The part, if it makes sense.

    Raises:
        PartError: with reason ``unsigned``, ``unreadable``, ``not_finite`` or ``inconsistent``.
    """
    if len(data) > LARGEST_BYTES:
        raise PartError("unreadable")
    told = data[_SIGNATURE_BYTES:] if key else data
    if key and not hmac.compare_digest(data[:_SIGNATURE_BYTES], signature(told, key)):
        raise PartError("unsigned")
    try:
        found = _DECODE(told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise PartError("unreadable") from None
    if found.form != FORM:
        raise PartError("unreadable")
    if not _shapes_fit(found):
        raise PartError("inconsistent")
    numbers = [np.frombuffer(raw, _NUMBER) for raw in (found.load, found.rates, found.quiet, found.loading)]
    if not all(np.isfinite(one).all() for one in numbers):
        raise PartError("not_finite")
    if not _numbers_fit(found):
        raise PartError("inconsistent")
    return found


def signature(data: bytes, key: bytes) -> bytes:
    """Of the bytes; empty without a key."""
    return hmac.new(key, data, hashlib.sha256).digest() if key else b""


def add(total: Part, told: Told, models: Mapping[int, int], nodes: Mapping[int, int]) -> None:
    """Add a part to others; what is of nodes or models that are not known here is left out.

    Args:
        total: changed.
        told: of :func:`decode`.
        models: row by hash of the id.
        nodes: column by hash of the id.
    """
    column = _places(told.nodes, nodes)
    row = _places(told.models, models)
    here = column >= 0
    at = column[here]
    total.load[:, at] += _numbers(told.load, len(ADDED))[:, here]
    rates = _numbers(told.rates, 2)[:, here]
    total.done_per_s[at] += rates[0]
    total.sent_per_s[at] += rates[1]
    quiet_s = np.frombuffer(told.quiet, _NUMBER)[here]
    total.quiet_s[at] = np.minimum(total.quiet_s[at], np.where(quiet_s >= 0.0, quiet_s, math.inf))
    pairs = np.frombuffer(told.pairs, _PLACE).reshape(2, -1)
    m, n = row[pairs[0]], column[pairs[1]]
    both = (m >= 0) & (n >= 0)
    m, n = m[both], n[both]
    total.inflight[m, n] += np.frombuffer(told.counts, _COUNT)[both]
    loading_s = np.frombuffer(told.loading, _NUMBER)[both]
    total.loading_s[m, n] = np.maximum(total.loading_s[m, n], loading_s)


def summed(parts: list[Told], models: Mapping[int, int], nodes: Mapping[int, int]) -> Part:
    """All of them together; arguments as of :func:`add`."""
    total = nothing(len(models), len(nodes))
    for told in parts:
        add(total, told, models, nodes)
    return total


def _places(raw: bytes, known: Mapping[int, int]) -> NDArray[np.int64]:
    ids = np.frombuffer(raw, _ID).tolist()
    return np.array([known.get(one, -1) for one in ids], dtype=np.int64)


def _numbers(raw: bytes, rows: int) -> NDArray[np.float64]:
    values = np.frombuffer(raw, _NUMBER)
    return values.reshape(rows, len(values) // rows).astype(np.float64)


def _shapes_fit(told: Told) -> bool:
    n, m, p = len(told.nodes) // 8, len(told.models) // 8, len(told.counts) // 4
    fits = (
        len(told.nodes) == 8 * n
        and len(told.models) == 8 * m
        and len(told.load) == 4 * len(ADDED) * n
        and len(told.rates) == 8 * n
        and len(told.quiet) == 4 * n
        and len(told.counts) == len(told.pairs) == len(told.loading) == 4 * p
        and n <= MOST_NODES
        and m <= MOST_MODELS
        and p <= MOST_PAIRS
    )
    if not fits or len(set(np.frombuffer(told.nodes, _ID).tolist())) < n:
        return False
    pairs = np.frombuffer(told.pairs, _PLACE).reshape(2, p)
    return (
        bool((pairs[0] < m).all() and (pairs[1] < n).all())
        and len(set(zip(*pairs.tolist(), strict=True))) == p
    )


def _numbers_fit(told: Told) -> bool:
    """Not negative, not beyond reason, and as many requests by model as by node."""
    n = len(told.nodes) // 8
    load, quiet = np.frombuffer(told.load, _NUMBER), np.frombuffer(told.quiet, _NUMBER)
    others = np.concatenate([load, *(np.frombuffer(raw, _NUMBER) for raw in (told.rates, told.loading))])
    pairs, counts = np.frombuffer(told.pairs, _PLACE).reshape(2, -1), np.frombuffer(told.counts, _COUNT)
    by_node = np.bincount(pairs[1], counts, minlength=n)
    return bool(
        (others >= 0.0).all()
        and (others <= _MOST).all()
        and (quiet <= _MOST).all()
        and ((quiet >= 0.0) | (quiet == -1.0)).all()
        and (by_node == load.reshape(len(ADDED), n)[IN_FLIGHT]).all()
    )
