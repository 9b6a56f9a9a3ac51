"""Points in time as trace files write them, exact to the nanosecond."""

import re
from datetime import date
from functools import lru_cache

from envs.traces.rows import BadRow, short

_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_SECOND = 10**9


def nanoseconds(text: str, column: str) -> tuple[int, bool]:
    """A point in time, and whether it names its zone; without one it is taken as UTC.

    ``datetime.fromisoformat`` would drop the seventh digit that some tables have.

    Raises:
        BadRow: if it is none.
    """
    match = _STAMP.fullmatch(text)
    day = _day(match[1]) if match else None
    if match is None or day is None:
        expected = "a time such as 2024-05-10 00:00:00.009930+00:00"
        raise BadRow(f"{column} is no time", f"{column} is {short(text)}; expected {expected}")
    _, hours, minutes, seconds, fraction, zone = match.groups()
    at_s = day * 86_400 + int(hours) * 3600 + int(minutes) * 60 + int(seconds) - _offset_s(zone)
    return at_s * _SECOND + int((fraction or "0").ljust(9, "0")), zone is not None


class Since:
    """Seconds since the first point in time that it was asked about."""

    def __init__(self) -> None:
        self._origin: int | None = None

    def seconds(self, at: int) -> float:
        """From the first ``at``, in nanoseconds, to this one; negative if it was earlier."""
        if self._origin is None:
            self._origin = at
        return (at - self._origin) / _SECOND


@lru_cache(maxsize=1024)
def _day(text: str) -> int | None:
    try:
        return date.fromisoformat(text).toordinal()
    except ValueError:
        return None


def _offset_s(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    seconds = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    return seconds if zone[0] == "+" else -seconds
