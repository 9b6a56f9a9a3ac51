"""Whether a prompt goes on where its conversation left off, as a node that only sees bytes can tell."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Final, NamedTuple

MAX_CONVERSATIONS: Final = 10_000
"""Conversations whose last prompt is remembered; the least recently heard is forgotten first."""


class _Said(NamedTuple):
    length: int
    digest: bytes


class Conversations:
    """The last prompt of each conversation with each model, as a fingerprint."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, str], _Said] = OrderedDict()

    def goes_on(self, model: str, session: str, prompt: bytes) -> bool:
        """Whether the prompt begins with the whole of the conversation's last one; from now on it is the last.

        Clients repeat what was said and send the answer back before they add to it, so such a prompt repeats the
        context of its predecessor. One that was shortened or edited does not, and engines find nothing of it.
        """
        last = self._said.pop((model, session), None)
        self._said[model, session] = _Said(len(prompt), _digest(prompt))
        if len(self._said) > MAX_CONVERSATIONS:
            self._said.popitem(last=False)
        return last is not None and last.digest == _digest(prompt[: last.length])


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()
