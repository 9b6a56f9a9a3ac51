"""Child processes of the learner: at low priority, in a group of their own, gone when it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from router.demo.children import die_with_parent

_THREADS: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Process:
    """A module of ours that runs beside us.

    Args:
        module: as of ``python -m``.
        arguments: of it.
        log: where what it says goes.
        env: on top of our own.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(os.environ) | _THREADS | dict(env or {}),
                start_new_session=True, preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """The last line it wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def end(self) -> None:
        """End it and all that it started, now."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
