"""Runs in parallel: a pool of processes that names the run it died of, ends at once, and outlives nobody."""

import os
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from operator import itemgetter
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Final, Self

from ccr.errors import CCRError
from envs.evaluation.plan import Run, Task
from envs.evaluation.result import Result, measure

_Numbered = tuple[int, Task]
_Done = list[tuple[int, Result]]

# Neighbours share scenario and seed, so a worker that gets a few of them makes the arrivals once.
_LARGEST_CHUNK: Final = 8
_CHUNKS_PER_WORKER: Final = 8
_LAST_LINES: Final = 6
# One thread each: the processes already fill the cores.
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class RunFailedError(CCRError):
    """A run raised, or its process died; the message names scenario, policy and seed."""


class Workers:
    """A pool of processes that run tasks; use it as a context, all processes are gone afterwards.

    Args:
        run: a top-level function.
        count: how many processes.
    """

    def __init__(self, run: Run, count: int) -> None:
        self._run = run
        self._count = count
        self._processes: dict[int, BaseProcess] = {}

    def __enter__(self) -> Self:
        self._not_mine = {process.pid for process in active_children()}
        # In it each process notes the run it is at: a dead one cannot be asked any more.
        self._notes = tempfile.TemporaryDirectory(prefix="ccr-evaluate-")
        self._pool = ProcessPoolExecutor(
            self._count, mp_context=get_context("spawn"), initializer=outlive_nobody
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._notes.cleanup()

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Results with the position of their task, as they are finished.

        Args:
            tasks: neighbours that share scenario and seed are quickest.

        Raises:
            RunFailedError: at the first run that fails.
        """
        size = max(1, min(_LARGEST_CHUNK, len(tasks) // (_CHUNKS_PER_WORKER * self._count)))
        try:
            for future in as_completed(self._submit(tasks, size)):
                yield from future.result()
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=True)
            raise RunFailedError(self._how_it_died(tasks)) from error

    def all(self, tasks: Sequence[Task]) -> list[Result]:
        """Results in the order of the tasks: the same for any number of processes."""
        return [result for _, result in sorted(self.results(tasks), key=itemgetter(0))]

    def _submit(self, tasks: Sequence[Task], size: int) -> "list[Future[_Done]]":
        numbered = iter(enumerate(tasks))
        chunks = iter(lambda: list(islice(numbered, size)), [])
        with _SingleThreaded():
            futures = [self._pool.submit(_work, self._run, chunk, self._notes.name) for chunk in chunks]
        # The pool starts its processes when it is given work.
        self._processes = started_since(self._not_mine)
        return futures

    def _kill(self) -> None:
        for process in self._processes.values():
            process.terminate()

    def _how_it_died(self, tasks: Sequence[Task]) -> str:
        for pid, process in self._processes.items():
            note = Path(self._notes.name) / str(pid)
            # The pool ends the others with SIGTERM.
            if process.exitcode not in {None, 0, -signal.SIGTERM} and note.exists():
                return f"{tasks[int(note.read_text())]}: the process {_end(process.exitcode)}"
        return (
            "a process died before its first run, or was ended from outside; its own words, if it had any, "
            "are above. Try again with --workers 1."
        )


class _SingleThreaded:
    """Processes started inside use one thread each for linear algebra, unless the user said otherwise."""

    def __enter__(self) -> None:
        self._set = [name for name in _THREADS if name not in os.environ]
        os.environ.update(dict.fromkeys(self._set, "1"))

    def __exit__(self, *_: object) -> None:
        for name in self._set:
            del os.environ[name]


def started_since(before: Collection[int | None]) -> dict[int, BaseProcess]:
    """Child processes, by id, that are not among those of before."""
    return {
        process.pid: process
        for process in active_children()
        if process.pid is not None and process.pid not in before
    }


def outlive_nobody() -> None:
    """In a new process: Ctrl-C is the parent's to handle, and nobody stays behind when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(run: Run, chunk: Sequence[_Numbered], notes: str) -> _Done:
    note = Path(notes) / str(os.getpid())
    done: _Done = []
    for position, task in chunk:
        note.write_text(str(position))
        try:
            done.append((position, measure(run, task)))
        except Exception as error:
            # As text: an exception with arguments of its own might not survive the way to the parent.
            raise RunFailedError(f"{task}: {_in_words(error)}") from None
    return done


def _in_words(error: Exception) -> str:
    if isinstance(error, CCRError):
        return str(error)
    lines = "".join(format_exception(error)).splitlines()[-_LAST_LINES:]
    return f"{type(error).__name__}: {error}\n" + "\n".join(f"  {line}" for line in lines)


def _end(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        hint = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-exitcode).name}{hint}"
    return f"ended with status {exitcode}"
