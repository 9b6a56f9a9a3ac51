"""Stop a call that runs too long: the one place where the core reads a clock.

Everything else in ``ccr/`` is handed its time. Here that is impossible: to interrupt code that does not
return, somebody outside it must look at a clock. The kernel does (``ITIMER_REAL``, ``SIGALRM``); nothing
of it reaches a score, so a decision still replays from its log.
"""

import signal
from collections.abc import Callable
from importlib import import_module
from threading import get_ident, main_thread
from time import perf_counter
from types import FrameType
from typing import Final, TypeVar, TypeVarTuple

from ccr.errors import ScriptError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How every message of a :class:`ScriptTimeoutError` begins; a decision's ``fallback`` shows it.
TIMED_OUT: Final = "script timed out"

# Pause between interruptions of a call that swallows them; not the limit itself, which may be so short that
# the process does nothing any more but take alarms.
AGAIN_S: Final = 0.005
#: In limits: a call that could not be interrupted is late when it took longer. 10 are 50 ms for a decision,
#: more than a full garbage collection of a router takes.
STALL: Final = 10.0

# The timer is off; may interrupt; is being switched off, and an alarm still on its way means nothing.
_IDLE, _RUNNING, _ENDING = range(3)

_MAIN_THREAD = main_thread().ident
# signal.getsignal turns the answer into an enum: 2.1 us against 0.05 us (CPython 3.11, timeit).
_handler_of: Callable[[int], object] = import_module("_signal").getsignal


class ScriptTimeoutError(ScriptError):
    """A call into an operator script ran longer than it may.

    Args:
        limit_s: how long it may.
        where: in the script, where known.
    """

    def __init__(self, limit_s: float, where: str = "") -> None:
        self.limit_s = limit_s
        super().__init__(f"{TIMED_OUT} after {limit_s * 1e3:g} ms" + (f" at {where}" if where else ""))


class TimeUp(BaseException):
    """Raised by the timer inside the guarded call; never leaves :class:`TimeGuard`.

    Not an ``Exception``: a script's ``except Exception`` must not see it.
    """


class TimeGuard:
    """Calls functions under a wall-clock limit.

    In the main thread a timer interrupts the call. It takes two alarms, half the limit apart: a call that
    merely happened to run while the process was paused (a garbage collection, a busy machine) is done
    long before the second. Code that swallows the interruption soon gets another one, and is reported
    however it returned. In any other thread Python cannot interrupt, so the time is measured and reported
    after the call. Neither reaches into a single C call that checks no signals, such as
    ``sum(range(10**12))``: one that ends is reported afterwards if it took ``STALL`` limits, and against
    one that does not, scripts are tried in a subprocess before they serve.

    The timer only ever raises in frames below :meth:`call`, so it cannot fire late, in its caller.
    An alarm that somebody else set keeps its handler and its remaining time.
    """

    __slots__ = ("_alarms", "_half_s", "_handler", "_phase", "_previous")

    def __init__(self) -> None:
        self._alarms = 0
        self._phase = _IDLE
        self._half_s = 0.0
        self._handler = self._on_alarm  # one bound method: its identity tells whether it is installed
        self._previous: object = signal.SIG_DFL

    def call(self, limit_s: float, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """What ``function(*args)`` returns, if it does so within ``limit_s``.

        Args:
            limit_s: above zero.
            function: written in Python; only there can it be interrupted.
            args: of the function.

        Raises:
            ScriptTimeoutError: if it does not; whatever it returned or raised late is dropped.
        """
        if get_ident() != _MAIN_THREAD:
            return _measured(limit_s, function, *args)
        if self._phase != _IDLE:  # a guarded call within a guarded call: the outer limit holds
            return function(*args)
        if _handler_of(signal.SIGALRM) is not self._handler:
            self._install()
        cut: TimeUp | None = None
        theirs = (0.0, 0.0)
        started = perf_counter()
        try:
            self._alarms, self._half_s, self._phase = 0, limit_s / 2, _RUNNING
            theirs = signal.setitimer(signal.ITIMER_REAL, self._half_s)
            result = function(*args)
        except TimeUp as timer:
            cut = timer
        except Exception:
            if self._alarms < 2:  # no call here: an alarm in a frame below this one would raise
                raise
        finally:
            self._phase = _ENDING
            signal.setitimer(signal.ITIMER_REAL, *theirs)
            self._phase = _IDLE
        if self._overran(limit_s, started):
            raise ScriptTimeoutError(limit_s) from cut
        return result

    def uninstall(self) -> None:
        """Give ``SIGALRM`` back to whoever had it before the first guarded call."""
        if _handler_of(signal.SIGALRM) is self._handler:
            signal.signal(signal.SIGALRM, self._previous)  # type: ignore[arg-type]  # signal.signal gave it to us

    def _install(self) -> None:
        """Take ``SIGALRM``; again, where somebody else has taken it since."""
        self._previous = signal.signal(signal.SIGALRM, self._handler) or signal.SIG_DFL

    def _overran(self, limit_s: float, started: float) -> bool:
        return self._alarms > 1 or (self._alarms == 1 and perf_counter() - started > STALL * limit_s)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._phase == _IDLE:
            if callable(self._previous):
                self._previous(signum, frame)
        elif self._phase == _RUNNING:
            # In the frame of `call` itself the function has not begun, or is done: nothing to hold against it.
            inside = frame is not None and frame.f_code is not TimeGuard.call.__code__
            self._alarms += inside
            if self._alarms > 1 and inside:
                raise TimeUp
            signal.setitimer(signal.ITIMER_REAL, self._half_s, AGAIN_S)


def _measured(limit_s: float, function: Callable[[*Ts], T], *args: *Ts) -> T:
    started = perf_counter()
    try:
        return function(*args)
    finally:
        if perf_counter() - started > limit_s:
            raise ScriptTimeoutError(limit_s)


#: The only one: a process has one ``SIGALRM`` and one ``ITIMER_REAL``.
GUARD: Final = TimeGuard()
