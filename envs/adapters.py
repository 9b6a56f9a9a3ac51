"""Which LoRA adapters are on the card, and which has to leave for the next.

Engines reserve memory for a number of adapter slots when they start, so a change of adapters moves no KV cache.
"""

from math import inf

from envs.lane import Key, Queue


class Adapters:
    """The adapter slots of a node.

    Args:
        slots: how many adapters may be on the card.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.resident: list[Queue] = []

    @property
    def free(self) -> bool:
        """Whether one more adapter has a slot."""
        return len(self.resident) < self._slots

    def make_slot(self, key: Key) -> list[Queue] | None:
        """Who has to leave so that a slot is free; ``None`` when it is not possible yet.

        An idle adapter leaves, least preferred and least recently used first. When there is none, such a busy one is
        closed to work younger than ``key`` and drains; work at an infinite ``key`` closes nobody.
        """
        if self.free:
            self.reopen()
            return []
        victim = min(
            self.resident,
            key=lambda q: (q.busy_for(key), q.closed_after is None, q.weight, q.last_used_s),
        )
        self.reopen()
        if not victim.busy_for(key):
            return [victim]
        if key[0] < inf:
            victim.closed_after = key
        return None

    def reopen(self) -> None:
        """Nobody has to leave any more."""
        for queue in self.resident:
            queue.closed_after = None
