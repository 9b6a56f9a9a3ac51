"""Signed texts: a signature, a line break, and what it covers; nothing is looked at before its signature."""

import hashlib
import hmac
from typing import Final

LARGEST_BYTES: Final = 16 * 1024
"""Longer texts are not even checked: what is signed here has a few hundred bytes, a few thousand at most."""
_MAC_BYTES: Final = 32


def sealed(text: bytes, key: bytes, domain: bytes) -> bytes:
    """The text as it is stored.

    Args:
        text: to sign.
        key: shared by those who sign and those who read.
        domain: what kind of text it is: the signature of one kind is none of another.
    """
    return _mac(text, key, domain).hex().encode() + b"\n" + text


def unsealed(data: bytes, key: bytes, domain: bytes, largest: int = LARGEST_BYTES) -> bytes | None:
    """The text; ``None`` if its signature is not of our key, or it is too long.

    Args:
        data: as it is stored.
        key: as it was signed with.
        domain: as it was signed for.
        largest: in bytes, signature included.
    """
    mac, _, text = data[: largest + 1].partition(b"\n")
    if len(data) > largest or not hmac.compare_digest(mac, _mac(text, key, domain).hex().encode()):
        return None
    return text


def _mac(text: bytes, key: bytes, domain: bytes) -> bytes:
    derived = hashlib.sha256(key).digest()
    return hmac.new(derived, domain + text, hashlib.sha256).digest()[:_MAC_BYTES]
