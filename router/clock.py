"""The router's clock: the wall's, or a faster one before nodes that are emulated faster than life."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Clock:
    """What the router takes for time; what is about the fleet is measured and slept by it.

    Args:
        now_s: monotonic seconds.
        speed: how many of them pass in one of the wall.
        rest: waits, for seconds of the wall.
    """

    now_s: Callable[[], float] = time.monotonic
    speed: float = 1.0
    rest: Callable[[float], Awaitable[object]] = asyncio.sleep

    @classmethod
    def at(cls, speed: float) -> "Clock":
        """A clock of this speed; all of one machine with one speed agree."""
        return WALL if speed == 1.0 else cls(lambda: time.monotonic() * speed, speed)

    def on_the_wall_s(self, length_s: float) -> float:
        """What a wall clock measures meanwhile."""
        return length_s / self.speed

    def from_the_wall_s(self, length_s: float) -> float:
        """What this clock measures meanwhile."""
        return length_s * self.speed

    def since_1970(self, wall_s: float) -> Callable[[float], float]:
        """Turns moments of this clock into seconds since 1970, without jumps.

        Args:
            wall_s: seconds since 1970, now.
        """
        offset_s = wall_s - self.on_the_wall_s(self.now_s())
        return lambda moment_s: offset_s + self.on_the_wall_s(moment_s)

    async def sleep(self, length_s: float) -> None:
        """Return after this many of its seconds."""
        await self.rest(self.on_the_wall_s(length_s))


WALL: Final = Clock()
