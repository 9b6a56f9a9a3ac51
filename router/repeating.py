"""Work beside the serving thread: the same steps again and again in a thread of their own, until the router ends."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

Step = Callable[[], None]


class Log(Protocol):
    """Where faults are told."""

    def error(self, event: str, **fields: object) -> object:
        """Tell one."""


class Repeating:
    """Steps in a thread; a fault of ours in one of them is told, and must not end the others for good.

    Args:
        name: of the thread.
        steps: one after the other, every so often.
        every_s: pause between two rounds.
        log: is told of faults.
        event: what they are called.
        first: done once before all rounds.
        last: done once after them; a fault there ends the thread.
        patience_s: how long :meth:`stop` waits for the end.
    """

    def __init__(
        self, name: str, steps: Sequence[Step], every_s: float, log: Log, event: str, first: Step | None = None,
        last: Step | None = None, patience_s: float = 1.0,
    ) -> None:  # fmt: skip
        self._steps = steps
        self._every_s = every_s
        self._log = log
        self._event = event
        self._first = first
        self._last = last
        self._patience_s = patience_s
        self._finish = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No more rounds; wait for the end of the one under way."""
        self._finish.set()
        if self._thread.is_alive():
            self._thread.join(self._patience_s)

    def guarded(self, step: Step) -> None:
        """Do a step; a fault is told and no more."""
        try:
            step()
        except Exception as error:
            self._log.error(self._event, error=repr(error))

    def _run(self) -> None:
        if self._first is not None:
            self.guarded(self._first)
        while not self._finish.wait(self._every_s):
            for step in self._steps:
                self.guarded(step)
        if self._last is not None:
            self._last()
