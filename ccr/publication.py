"""What is published of weights: which bytes, in which order, signed; whoever can only write to the store steers nobody."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple

from ccr.errors import WeightsError
from ccr.signed import sealed, unsealed

KEPT: Final = 16
"""Published weights that stay in the store, the newest included."""
_DOMAIN: Final = b"ccr publication 1\n"
_LONGEST_TEXT: Final = 128
_HEX: Final = frozenset("0123456789abcdef")
_LONGEST_NUMBER: Final = 2**62


class PublicationError(WeightsError):
    """A manifest is refused; ``reason`` is a short label for a counter."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"published weights are refused ({reason}): {detail}")


class Fence(NamedTuple):
    """What orders publications: one that is not above the last one seen is refused.

    Args:
        epoch: of the publisher; grows when another one takes over.
        version: grows by one with each publication.
    """

    epoch: int
    version: int


NOTHING: Final = Fence(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The manifest of published weights.

    Args:
        epoch: see :class:`Fence`.
        version: see :class:`Fence`.
        sha256: of the file's bytes, which are kept under this name.
        size: of the file, in bytes.
        name: the version that the weights' own manifest tells.
        created_at_s: seconds since 1970.
        reason: why they were published, in a word: ``trained``, ``rollback``.
        kept: names of earlier files that are still there, newest first; what can be rolled back to.
    """

    epoch: int
    version: int
    sha256: str
    size: int
    name: str
    created_at_s: float
    reason: str = "trained"
    kept: tuple[str, ...] = ()

    @property
    def fence(self) -> Fence:
        """Its place in the order."""
        return Fence(self.epoch, self.version)


def signed(publication: Publication, key: bytes) -> bytes:
    """The manifest as it is stored: a signature, and what it covers."""
    text = json.dumps(asdict(publication), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return sealed(text, key, _DOMAIN)


def opened(data: bytes, key: bytes) -> Publication:
    """The manifest; nothing in it is looked at before its signature.

    Args:
        data: as it is stored.
        key: shared by publishers and replicas.

    Raises:
        PublicationError: with reason ``unsigned`` or ``malformed``.
    """
    text = unsealed(data, key, _DOMAIN)
    if text is None:
        raise PublicationError(
            "unsigned",
            "its signature is not of our key; give publishers and replicas the same `publication.key`",
        )
    try:
        return _checked(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PublicationError(
            "malformed", f"{error}; publisher and replica are of different releases"
        ) from None


def check_blob(publication: Publication, data: bytes) -> None:
    """Refuse bytes that are not the published ones.

    Raises:
        PublicationError: with reason ``corrupt``.
    """
    if len(data) != publication.size or hashlib.sha256(data).hexdigest() != publication.sha256:
        raise PublicationError("corrupt", f"the bytes are not those of version {publication.version}")


def _checked(found: Any) -> Publication:
    """What a publisher of ours signed fits; it is checked all the same.

    Raises:
        ValueError: naming what does not.
    """
    expected = {field.name for field in fields(Publication)}
    if not isinstance(found, Mapping) or set(found) != expected:
        raise ValueError(f"it does not hold {', '.join(sorted(expected))} and nothing else")
    kept = found["kept"]
    if not isinstance(kept, list) or len(kept) > KEPT:
        raise ValueError(f"it keeps more than {KEPT} files")
    for name in ("epoch", "version", "size"):
        _check_number(name, found[name])
    for name in ("name", "reason"):
        if not (
            isinstance(found[name], str) and found[name].isprintable() and len(found[name]) <= _LONGEST_TEXT
        ):
            raise ValueError(f"{name} is not a short text")
    for sha256 in (found["sha256"], *kept):
        if not (isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= _HEX):
            raise ValueError("a SHA-256 is none")
    return Publication(**{**found, "kept": tuple(kept), "created_at_s": float(found["created_at_s"])})


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LONGEST_NUMBER:
        raise ValueError(f"{name} is not a number above 0")
