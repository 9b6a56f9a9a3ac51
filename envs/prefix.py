"""The prefix cache of a node: contexts of finished sequences, kept for the next turn of their session."""

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

#: Model id and session.
_Name = tuple[str, str]


@dataclass(slots=True)
class _Context:
    tokens: int
    kv: int  # bytes of each.


class PrefixCache:
    """What sessions left behind, in KV cache that running sequences do not need.

    The least recently used context goes first, and from its end, as an engine frees the blocks of a prefix.
    """

    def __init__(self) -> None:
        self._contexts: dict[_Name, _Context] = {}  # least recently used first.
        self.bytes = 0

    @property
    def tokens(self) -> int:
        """Tokens of all contexts."""
        return sum(context.tokens for context in self._contexts.values())

    def held(self, model: str, session: str) -> int:
        """Tokens there are of a session's last context."""
        context = self._contexts.get((model, session))
        return context.tokens if context else 0

    def put(self, model: str, session: str, tokens: int, kv: int) -> None:
        """Keep a context of ``tokens``, ``kv`` bytes each, in place of the session's older one."""
        self.take(model, session)
        self._contexts[model, session] = _Context(tokens, kv)
        self.bytes += tokens * kv

    def take(self, model: str, session: str) -> None:
        """Remove a session's context: its sequence runs, or a newer one replaces it."""
        context = self._contexts.pop((model, session), None)
        if context is not None:
            self.bytes -= context.tokens * context.kv

    def drop(self, models: Collection[str]) -> None:
        """Forget every context of these models: their weights have left."""
        for model, session in [name for name in self._contexts if name[0] in models]:
            self.take(model, session)

    def trim(self, room: float) -> None:
        """Keep no more than ``room`` bytes."""
        while self.bytes > room and self._contexts:
            name, oldest = next(iter(self._contexts.items()))
            surplus = ceil((self.bytes - room) / oldest.kv)
            if surplus >= oldest.tokens:
                self.take(*name)
            else:
                oldest.tokens -= surplus
                self.bytes -= surplus * oldest.kv
