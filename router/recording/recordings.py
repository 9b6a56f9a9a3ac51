"""Recordings of a router: begun by the config or an operator, one at a time, ended in time, told about."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ccr import log
from ccr.segments import KINDS
from ccr.settings import RecordSettings
from ccr.types import Reading
from router.recording.recorder import Counts, Recorder
from router.recording.writer import Limits, RecordingError, Writer

#: Time the end of a recording is waited for; a disk that hangs longer holds nothing up.
END_S: Final = 5.0
_log = log.get("record")


class BusyError(RecordingError):
    """There is a recording already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recording that is wanted.

    Args:
        directory: where.
        limits: of the disk.
        kinds: what.
        length_s: after which it ends by itself; ``None``: when told, or with the router.
    """

    directory: Path
    limits: Limits
    kinds: tuple[str, ...] = KINDS
    length_s: float | None = None

    @classmethod
    def of(cls, settings: RecordSettings, directory: Path, length_s: float | None = None) -> "Plan":
        """As configured, in a directory."""
        limits = Limits(settings.max_bytes, settings.segment_bytes)
        return cls(directory, limits, settings.kinds, length_s)


class Recordings:
    """Starts and ends recordings, and adds up what became of them.

    Args:
        clock: monotonic seconds, that of arrivals and readings.
        attach: called with the recorder that wants to be told of requests, and with ``None`` when none does.
        in_flight: how many requests are under way.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        attach: Callable[[Recorder | None], None],
        in_flight: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._attach = attach
        self._in_flight = in_flight
        self._starting = asyncio.Lock()
        self._before = Counts()
        self._recorder: Recorder | None = None
        self._plan: Plan | None = None
        self._ended_s: float | None = None
        self._unfinished = 0

    async def start(self, plan: Plan) -> None:
        """Begin.

        Raises:
            BusyError: if a recording is under way.
            RecordingError: if the directory cannot be used.
        """
        async with self._starting:
            if self.state in {"recording", "finishing"}:
                raise BusyError(
                    f"a recording is under way into {self._known().writer.directory}; stop it with `ccr traces record --stop`"
                )
            if self._ended_s is None and self._recorder is not None:
                self._end()
            writer = await asyncio.to_thread(Writer, plan.directory, plan.limits)
            if self._recorder is not None:
                self._before = self._before.plus(self._recorder.counts())
            self._plan, self._ended_s, self._unfinished = plan, None, 0
            self._recorder = recorder = Recorder(writer, self._clock(), frozenset(plan.kinds))
            recorder.start()
            self._attach(recorder)
            _log.info("record.started", directory=str(plan.directory), recording=writer.recording)

    def failed_to_start(self, why: str) -> None:
        """Count and tell that the recording the config asks for does not happen."""
        self._before = self._before.plus(Counts(failures=1))
        _log.error("record.failed", error=why)

    async def stop(self) -> None:
        """End the recording that is under way and wait for its files, as long as that is bearable."""
        if self.state == "recording":
            self._end()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.join, END_S)

    def tick(self, now_s: float) -> None:
        """End a recording whose time has come; call it regularly."""
        recorder, plan = self._recorder, self._plan
        if recorder is None or plan is None or plan.length_s is None or self._ended_s is not None:
            return
        if now_s - recorder.start_s >= plan.length_s:
            self._end()

    def read(self, node_id: str, reading: Reading, now_s: float) -> None:
        """A node was read."""
        if self._recorder is not None and self._ended_s is None:
            self._recorder.read(node_id, reading, now_s)

    @property
    def state(self) -> str:
        """``off``, ``recording``, ``finishing``, ``done`` or ``failed``."""
        recorder = self._recorder
        if recorder is None:
            return "off"
        if recorder.error:
            return "failed"
        if self._ended_s is None:
            return "recording"
        return "finishing" if recorder.is_alive else "done"

    def counts(self) -> Counts:
        """Of all recordings since the start of the router."""
        return self._before if self._recorder is None else self._before.plus(self._recorder.counts())

    def status(self) -> dict[str, Any]:
        """The recording under way, or the last one."""
        recorder, plan = self._recorder, self._plan
        if recorder is None or plan is None:
            return {"state": "off"}
        counts = recorder.counts()
        now_s = self._clock() if self._ended_s is None else self._ended_s
        return {
            "state": self.state,
            "error": recorder.error,
            "directory": str(plan.directory),
            "recording": recorder.writer.recording,
            "kinds": list(plan.kinds),
            "elapsed_s": round(now_s - recorder.start_s, 1),
            "length_s": plan.length_s,
            "rows": dict(counts.rows),
            "dropped": dict(counts.dropped),
            "bytes": counts.bytes,
            "segments_deleted": counts.deleted,
            "unfinished": self._unfinished,
        }

    def _end(self) -> None:
        recorder = self._known()
        self._attach(None)
        self._ended_s = self._clock()
        self._unfinished = self._in_flight()
        recorder.finish()
        counts = recorder.counts()
        _log.info(
            "record.stopped",
            directory=str(recorder.writer.directory),
            rows=dict(counts.rows),
            dropped=dict(counts.dropped),
            unfinished=self._unfinished,
        )

    def _known(self) -> Recorder:
        assert self._recorder is not None, "asked only of a recording"  # noqa: S101 - for the type checker
        return self._recorder
