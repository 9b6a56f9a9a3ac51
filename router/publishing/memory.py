"""What a replica took last, on its own disk: so that a restart without a store serves the weights of before."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from ccr import log

_FILE: Final = "published"
_log = log.get("publication")


class Memory:
    """One file: the manifest, and the bytes it speaks of.

    Args:
        directory: made if need be; one for each router.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def remember(self, manifest: bytes, blob: bytes) -> None:
        """Keep them instead of what was kept; a disk that does not take them is told about, and no more."""
        beside = self._path.with_name(f".{_FILE}.{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("xb") as file:
                file.write(b"%d\n%b%b" % (len(manifest), manifest, blob))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            _log.error("publication.not_remembered", error=error.strerror or str(error))

    def recalled(self) -> tuple[bytes, bytes] | None:
        """The manifest and the bytes as they are on the disk, unchecked; ``None`` if there are none."""
        try:
            length, _, rest = self._path.read_bytes().partition(b"\n")
            return rest[: int(length)], rest[int(length) :]
        except (OSError, ValueError):
            return None
