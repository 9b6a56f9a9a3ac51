"""Child processes that never outlive their parent: started, watched until they answer, and always ended."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ccr.errors import CCRError

T = TypeVar("T")

_POLL_S = 0.05
_TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1


class ChildError(CCRError):
    """A child did not start, or died; the message ends with the last lines of its log and where the rest is."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running command of ours."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    out: Path


class Children:
    """Runs ``ccr`` commands, each in a process group of its own, and ends them all on the way out.

    Their logs are in a temporary directory: removed when all went well, kept and named when something failed.

    Args:
        grace_s: time between SIGTERM and SIGKILL.
    """

    def __init__(self, grace_s: float = 5.0) -> None:
        self._grace_s = grace_s
        self._children: list[Child] = []
        self.directory = Path(tempfile.mkdtemp(prefix="ccr-demo-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if not isinstance(error, Exception):  # nothing wrong, or Ctrl-C
            shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name: str, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Run ``ccr ARGUMENTS`` beside us.

        Args:
            name: of its log, and in errors.
            arguments: the command and its options.
            env: on top of our own environment without its ``CCR_*`` variables: a child is configured by us alone.
        """
        log, out = self.directory / f"{name}.log", self.directory / f"{name}.out"
        ours = {key: value for key, value in os.environ.items() if not key.upper().startswith("CCR_")}
        with log.open("wb") as stderr, out.open("wb") as stdout:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own commands
                [sys.executable, "-m", "ccr", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=ours | dict(env or {}),
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone, and we end them in order
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call; no other thread runs yet
            )
        child = Child(name, process, log, out)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raise if a child has died.

        Raises:
            ChildError: naming it, with the end of its log.
        """
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                raise self._error(child, f"ended with status {status}")

    async def until(
        self, child: Child, what: str, answer: Callable[[], Awaitable[T | None]], timeout_s: float = 30.0
    ) -> T:
        """The first answer that is not ``None``, asked for again and again while the child lives.

        Args:
            child: who should come up.
            what: what we wait for, in words.
            answer: asks once.
            timeout_s: longest wait.

        Raises:
            ChildError: if the child dies or the time is up.
        """
        give_up_s = time.monotonic() + timeout_s
        while True:
            self.check()
            found = await answer()
            if found is not None:
                return found
            if time.monotonic() > give_up_s:
                raise self._error(child, f"did not {what} within {timeout_s:.0f} s")
            await asyncio.sleep(_POLL_S)

    def stop(self) -> None:
        """End all children: asked politely, then not; none is left behind, not even as a zombie."""
        for child in reversed(self._children):
            _signal_group(child, signal.SIGTERM)
        give_up_s = time.monotonic() + self._grace_s
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, give_up_s - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
        self._children.clear()

    def _error(self, child: Child, what: str) -> ChildError:
        tail = "\n".join(
            f"  {line}" for line in child.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        )
        return ChildError(
            f"the {child.name} {what}. The end of its log:\n{tail or '  (empty)'}\nAll logs: {self.directory}"
        )


def _signal_group(child: Child, number: signal.Signals) -> None:
    """Signal the child's whole group: it leads one, so the group's id is its own, until it is reaped."""
    if child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, number)


def die_with_parent() -> None:
    """Linux: end the child when we are killed in a way that leaves us no time to end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
