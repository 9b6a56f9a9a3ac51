"""What a replica took last and what it must not take, on its own disk: so that a restart without a store goes on as before."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from ccr import log

_FILE: Final = "published"
_CONTROL: Final = "control"
_log = log.get("publication")


class Memory:
    """Two files: the manifest with the bytes it speaks of, and the state of things (:mod:`ccr.control`).

    Args:
        directory: made if need be; one for each router.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def remember(self, manifest: bytes, blob: bytes) -> None:
        """Keep them instead of what was kept; a disk that does not take them is told about, and no more."""
        self._put(_FILE, b"%d\n%b%b" % (len(manifest), manifest, blob))

    def remember_control(self, data: bytes) -> None:
        """Keep this state of things instead of the one before."""
        self._put(_CONTROL, data)

    def recalled(self) -> tuple[bytes, bytes] | None:
        """The manifest and the bytes as they are on the disk, unchecked; ``None`` if there are none."""
        try:
            length, _, rest = (self._directory / _FILE).read_bytes().partition(b"\n")
            return rest[: int(length)], rest[int(length) :]
        except (OSError, ValueError):
            return None

    def control(self) -> bytes | None:
        """The state of things as it is on the disk, unchecked; ``None`` if there is none."""
        try:
            return (self._directory / _CONTROL).read_bytes()
        except OSError:
            return None

    def _put(self, name: str, data: bytes) -> None:
        path = self._directory / name
        beside = path.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            _log.error("publication.not_remembered", error=error.strerror or str(error))
