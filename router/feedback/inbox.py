"""The learner's end of the stream: each record once, checked, not too late; whatever is left out is counted."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from ccr.lesson import Lesson, LessonError, decode
from router.feedback.feeder import STREAM
from router.store.store import Delivered, Store

GROUP: Final = "learner"
#: Records read at once.
MOST: Final = 512
#: A consumer that has not acknowledged for so long is taken for dead.
IDLE_S: Final = 30.0
#: Older records say nothing of the fleet as it is.
LATEST_S: Final = 600.0
#: By so much the clock of a router may be ahead of ours.
AHEAD_S: Final = 60.0
#: Ids remembered, so that a record that is delivered again is recognised: some 20 MB.
REMEMBERED: Final = 200_000

LATE: Final = "late"
FUTURE: Final = "future"
DUPLICATE: Final = "duplicate"


class Inbox:
    """Records as they come.

    Args:
        store: they come from.
        consumer: a name of the process's own.
        wall: seconds since 1970.
        remembered: ids.
        clock_speed: of the routers; times between two moments are measured by their clock, moments by the wall.
    """

    def __init__(
        self,
        store: Store,
        consumer: str,
        wall: Callable[[], float] = time.time,
        remembered: int = REMEMBERED,
        clock_speed: float = 1.0,
    ) -> None:
        self.left_out: Counter[str] = Counter()
        self._store = store
        self._consumer = consumer
        self._wall = wall
        self._remembered = remembered
        self._clock_speed = clock_speed
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._unacknowledged: list[str] = []

    def take(self, most: int = MOST) -> list[Lesson]:
        """The next records; those of the call before are acknowledged by it.

        Raises:
            StoreDownError: if the store cannot be reached; nothing is lost by it.
        """
        self.acknowledge()
        delivered = self._store.read(STREAM, GROUP, self._consumer, most, IDLE_S)
        self._unacknowledged = [one.position for one in delivered]
        return self.accept(delivered)

    def acknowledge(self) -> None:
        """What was taken is learned from and need not come again.

        Raises:
            StoreDownError: if the store cannot be reached.
        """
        if self._unacknowledged:
            self._store.acknowledge(STREAM, GROUP, self._unacknowledged)
            self._unacknowledged = []

    def accept(self, delivered: Iterable[Delivered]) -> list[Lesson]:
        """The records among these that are new, whole and not too late; the others are counted in ``left_out``."""
        accepted = []
        for one in delivered:
            try:
                lesson = self._checked(one)
            except LessonError as refusal:
                self.left_out[refusal.reason] += 1
            else:
                accepted.append(lesson)
        return accepted

    def _checked(self, one: Delivered) -> Lesson:
        known = one.producer, one.number
        if known in self._known:
            raise LessonError(DUPLICATE)
        self._known[known] = None
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
        lesson = decode(one.data)
        age_s = self._wall() - lesson.at_s - lesson.total_s / self._clock_speed
        if age_s > LATEST_S:
            raise LessonError(LATE)
        if age_s < -AHEAD_S:
            raise LessonError(FUTURE)
        return lesson
