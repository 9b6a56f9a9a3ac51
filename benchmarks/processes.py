"""Programs under measurement: start on a core, wait for the first answer, read their cost, end them all."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ccr.errors import CCRError

_MIB = 2**20
_POLL_S = 0.002
_START_S = 30.0
_STOP_S = 3.0
_QUIET_S = 0.1
#: A server may still be busy with what the last run left behind, such as decisions that expire.
_SETTLE_S = 5.0


class BenchmarkError(CCRError):
    """A measurement cannot be made; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the measured server on one core, everything else on another.

    Args:
        server: core of the server, ``None`` when there is only one core and nothing is pinned.
        load: core of mock nodes and load generator.
    """

    server: int | None
    load: int | None

    @classmethod
    def available(cls) -> "Cores":
        """The first two cores this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1]) if len(cores) > 1 else cls(None, None)


@dataclass(frozen=True, slots=True)
class Probe:
    """A request whose 2xx answer shows that a server works."""

    port: int
    path: str
    body: str = "{}"

    def answered(self) -> str:
        """Empty when it was answered well, else what came instead."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("POST", self.path, self.body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()
        return "" if 200 <= answer.status < 300 else f"{answer.status} {text[:500]!r}"


@dataclass(frozen=True, slots=True)
class Server:
    """A running program with everything it started.

    Args:
        name: for people.
        process: its first process.
        first_answer_s: from start to the first good answer.
    """

    name: str
    process: psutil.Process
    first_answer_s: float

    def cpu_s(self) -> float:
        """User and system time so far, all threads and children; the kernel counts in 10 ms."""
        times = [process.cpu_times() for process in self._family()]
        return sum(time.user + time.system for time in times)

    def memory_mb(self) -> tuple[float, float]:
        """Resident set and proportional set of all its processes, MiB."""
        whole = [process.memory_full_info() for process in self._family()]
        return sum(memory.rss for memory in whole) / _MIB, sum(memory.pss for memory in whole) / _MIB

    def settle(self) -> None:
        """Wait until it does nothing for a moment; a few seconds at most."""
        end_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < end_s:
            before_s = self.cpu_s()
            time.sleep(_QUIET_S)
            if self.cpu_s() - before_s <= 0.011:
                return

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    probe: Probe,
    *,
    core: int | None,
    folder: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start a program, hand it over once it answers, end it and its children in any case.

    Raises:
        BenchmarkError: with the end of its log, if it stops or does not answer.
    """
    log = folder / f"{name}.log"
    began_s = time.monotonic()
    with log.open("wb") as output, on_core(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**_clean_environment(), **(env or {})},
            start_new_session=True,  # so that one signal ends all of it
        )
    try:
        _await_answer(name, process, probe, log, began_s)
        yield Server(name, psutil.Process(process.pid), time.monotonic() - began_s)
    finally:
        _end(process)


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Children started inside run on this core only."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def idle_s(core: int | None) -> float:
    """Seconds this core has had nothing to do since the machine started; 0 when nothing is pinned."""
    if core is None:
        return 0.0
    times = psutil.cpu_times(percpu=True)[core]
    return times.idle + times.iowait


def free_ports(count: int) -> tuple[int, ...]:
    """Ports nobody listens on at the moment; all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return tuple(free.getsockname()[1] for free in sockets)


def _clean_environment() -> dict[str, str]:
    """Without the operator's own router settings; numpy on one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CCR_")}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _await_answer(
    name: str, process: subprocess.Popen[bytes], probe: Probe, log: Path, began_s: float
) -> None:
    problem = "nothing"
    while time.monotonic() < began_s + _START_S:
        problem = probe.answered()
        if not problem:
            return
        if process.poll() is not None:
            problem = f"exit code {process.returncode}"
            break
        time.sleep(_POLL_S)
    tail = log.read_text(errors="replace")[-2000:]
    raise BenchmarkError(f"{name} does not answer POST {probe.path} ({problem}). The end of its log:\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
