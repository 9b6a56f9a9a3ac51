"""Takes the calibration that a learner put into the store: looked for now and then, signed and in range, or not at all."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from ccr import log
from ccr.calibration import Calibration, CalibrationError, opened
from router.repeating import Repeating
from router.store.backoff import Backoff
from router.store.store import Store, StoreError

FAMILY: Final = "calibration"
KEY: Final = "fleet"
INTERVAL_S: Final = 5.0
#: An older one says nothing of the fleet as it is; it may have been put back by somebody who cannot sign a new one.
LATEST_S: Final = 600.0
_log = log.get("calibration")


class Calibrated:
    """Looks for calibrations and hands on what is newer, signed and in range.

    Args:
        store: they are in.
        key: they are signed with.
        take: told of each, in the thread that looks.
        interval_s: between two looks.
        wall: seconds since 1970.
        backoff: from the store.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        take: Callable[[Calibration], object],
        interval_s: float = INTERVAL_S,
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self.at_s = 0.0
        self.refused: Counter[str] = Counter()
        self._store = store
        self._key = key
        self._take = take
        self._wall = wall
        self._backoff = backoff or Backoff()
        self._told = b""
        self._repeating = Repeating("calibrated", (self._turn,), interval_s, _log, "calibration.turn_failed")

    def start(self) -> None:
        """Begin to look."""
        self._repeating.start()

    def stop(self) -> None:
        """Look no more."""
        self._repeating.stop()

    def look(self) -> None:
        """Take what is there, if it is new and good."""
        try:
            data = self._store.values(FAMILY).get(KEY)
        except StoreError:
            self._backoff.failed(time.monotonic())
            return
        self._backoff.succeeded()
        if data is None or data == self._told:
            return
        self._told = data
        try:
            found = opened(data, self._key)
            self._check_moment(found.at_s)
        except CalibrationError as error:
            self.refused[error.reason] += 1
            _log.error("calibration.refused", reason=error.reason, error=str(error))
            return
        if not self.at_s:
            _log.info("calibration.taken", nodes=len(found.nodes), models=len(found.models))
        self.at_s = found.at_s
        self._take(found)

    def _check_moment(self, at_s: float) -> None:
        if at_s <= self.at_s or self._wall() - at_s > LATEST_S:
            raise CalibrationError("old", "there was a newer one, or its learner has been gone for long")

    def _turn(self) -> None:
        if self._backoff.is_due(time.monotonic()):
            self.look()
