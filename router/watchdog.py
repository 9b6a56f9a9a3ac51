"""One clock for every timeout, and the eye on clients that hang up.

A sweep every tenth of a second looks at all exchanges, instead of timers per request: an exchange that
is over sooner costs a set insertion and nothing else. Only one that lives longer gets a task that waits
for its client to leave.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from ccr import log

_log = log.get("watchdog")

SWEEP_S = 0.1
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Interrupt(StrEnum):
    """Why the watchdog cancelled an exchange."""

    NONE = ""
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    DRAIN = "drain"


class Watch:
    """One exchange under watch.

    Args:
        task: runs it; cancelled when it must end. ``None`` while it needs none.
        get_task: gives it one, which looks at ``interrupt`` when it begins.
        receive: the ASGI callable that tells when the client leaves; ``None`` while the body is being read.
        since_s: the start.
        deadline_s: when to give up; move it on every sign of life.
    """

    __slots__ = (
        "_get_task",
        "deadline_s",
        "interrupt",
        "is_running",
        "listener",
        "receive",
        "since_s",
        "task",
    )

    def __init__(
        self,
        task: asyncio.Task[Any] | None,
        since_s: float,
        deadline_s: float,
        get_task: Callable[[], asyncio.Task[Any]] | None = None,
    ) -> None:
        self.task = task
        self.is_running = task is not None
        self._get_task = get_task
        self.receive: Receive | None = None
        self.since_s = since_s
        self.deadline_s = deadline_s
        self.interrupt = Interrupt.NONE
        self.listener: asyncio.Task[None] | None = None

    def let_go(self) -> None:
        """Forget what it watched: each holds the other, and the body would wait for the collector."""
        self.task = self._get_task = None

    def cancel(self, why: Interrupt) -> None:
        """End the exchange, saying why; only the first reason counts."""
        if self.interrupt is not Interrupt.NONE:
            return
        self.interrupt = why
        if self.task is None and self._get_task is not None:
            self.task = self._get_task()
        elif self.task is not None and self.is_running:
            self.task.cancel()  # before its first step that would end nothing; it looks at the reason then


class Watchdog:
    """Watches exchanges.

    Args:
        clock: monotonic seconds.
        on_sweep: called at each sweep with the moment; for whatever else must happen regularly.
    """

    def __init__(
        self, clock: Callable[[], float], on_sweep: Callable[[float], None] = lambda _: None
    ) -> None:
        self._clock = clock
        self._on_sweep = on_sweep
        self._watches: set[Watch] = set()

    def __len__(self) -> int:
        return len(self._watches)

    def begin(self, since_s: float, timeout_s: float) -> Watch:
        """Watch the current task; give it ``receive`` once the body has been read."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"  # noqa: S101 - for the type checker
        return self.watch(Watch(task, since_s, since_s + timeout_s))

    def watch(self, watch: Watch) -> Watch:
        """Watch this one too."""
        self._watches.add(watch)
        return watch

    def end(self, watch: Watch) -> None:
        """Stop watching; what comes after this cannot interrupt the exchange any more."""
        self._watches.discard(watch)
        watch.let_go()
        if watch.listener is not None:
            watch.listener.cancel()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.sweep(self._clock())
            except Exception as error:
                # Nobody else ends what lasts too long: not even a log that cannot be written may end the watch.
                with contextlib.suppress(Exception):
                    _log.error("watchdog.sweep_failed", error=repr(error))

    def sweep(self, now_s: float) -> None:
        """Interrupt what is overdue; listen for the clients of what lasts."""
        for watch in list(self._watches):
            if now_s > watch.deadline_s:
                watch.cancel(Interrupt.TIMEOUT)
            elif watch.listener is None and watch.receive is not None and now_s - watch.since_s > SWEEP_S:
                watch.listener = asyncio.create_task(_listen(watch, watch.receive))
        self._on_sweep(now_s)

    async def abort_all(self) -> int:
        """End every exchange because the process goes away; returns how many there were."""
        watches = list(self._watches)
        for watch in watches:
            watch.cancel(Interrupt.DRAIN)
        tasks = [watch.task for watch in watches if watch.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(watches)


def accept_cancellation() -> None:
    """A cancellation by the watchdog is an answer, not the end of the task: the client is told first."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _listen(watch: Watch, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    watch.cancel(Interrupt.CLIENT_GONE)
