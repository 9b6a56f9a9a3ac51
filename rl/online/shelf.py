"""The learner's own disk: what it published last, what it knew of the fleet, and versions that the registry does not have yet.

Everything is written whole or not at all, and nothing here is believed without its signature or checksum.
"""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ccr.calibration import NOTHING, Calibration, CalibrationError
from ccr.calibration import opened as calibration_of
from ccr.calibration import signed as signed_calibration
from ccr.errors import WeightsError
from ccr.publication import Fence, Publication, check_blob, opened, signed
from router.publishing.memory import Memory

_REGISTERED: Final = "registered"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A published version that the registry does not have yet.

    Args:
        name: of its files, from its place in the order.
        weights: the file.
        facts: what is kept with it.
    """

    name: str
    weights: Path
    facts: Mapping[str, Any]


class Shelf:
    """A directory of one learner.

    Args:
        directory: made if need be, mode 0700.
        key: what is published is signed with.
    """

    def __init__(self, directory: Path, key: bytes) -> None:
        self.directory = directory
        self._key = key
        self.memory = Memory(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.work = directory / "retraining"
        self.waiting_at = directory / "waiting"
        self.waiting_at.mkdir(mode=0o700, exist_ok=True)
        (directory / _REGISTERED).mkdir(mode=0o700, exist_ok=True)

    # -- what was published last

    def published(self) -> tuple[Publication, bytes] | None:
        """The manifest and the file; ``None`` if there is none that we signed."""
        found = self.memory.recalled()
        if found is None:
            return None
        try:
            publication = opened(found[0], self._key)
            check_blob(publication, found[1])
        except WeightsError:
            return None
        return publication, found[1]

    def remember(self, publication: Publication, data: bytes) -> None:
        """Keep it instead of what was kept."""
        self.memory.remember(signed(publication, self._key), data)

    # -- what was known of the fleet

    def calibration(self) -> Calibration:
        """As it was kept; nothing if it was not."""
        try:
            return calibration_of((self.directory / "calibration").read_bytes(), self._key)
        except (OSError, CalibrationError):
            return NOTHING

    def keep_calibration(self, calibration: Calibration) -> None:
        """Keep it."""
        put(self.directory / "calibration", signed_calibration(calibration, self._key))

    # -- the registry

    def enqueue(self, publication: Publication, data: bytes, facts: Mapping[str, Any]) -> None:
        """Let a published version wait for the registry, unless it is there, or waits, already."""
        name = name_of(publication.fence)
        if self.has(publication.fence):
            return
        put(self.waiting_at / f"{name}.npz", data)
        known = {**asdict(publication), **facts}
        put(self.waiting_at / f"{name}.json", json.dumps(known).encode())

    def has(self, fence: Fence) -> bool:
        """Whether the registry has it, or it waits."""
        name = name_of(fence)
        return (self.directory / _REGISTERED / name).exists() or (self.waiting_at / f"{name}.json").exists()

    def waiting(self) -> list[Waiting]:
        """Versions that the registry does not have yet, in the order they were published."""
        found = []
        for path in sorted(self.waiting_at.glob("*.json")):
            weights = path.with_suffix(".npz")
            if weights.exists():
                found.append(Waiting(path.stem, weights, json.loads(path.read_text())))
        return found

    def registered(self, waiting: Waiting, number: int) -> None:
        """The registry has it."""
        put(self.directory / _REGISTERED / waiting.name, str(number).encode())
        for path in (waiting.weights, waiting.weights.with_suffix(".json")):
            path.unlink(missing_ok=True)

    def number_of(self, fence: Fence) -> int | None:
        """Of a version in the registry; ``None`` if it is not there yet."""
        try:
            return int((self.directory / _REGISTERED / name_of(fence)).read_text())
        except (OSError, ValueError):
            return None


def name_of(fence: Fence) -> str:
    """Of a publication's files; in the order of publication."""
    return f"{fence.epoch:012d}-{fence.version:08d}"


def put(path: Path, data: bytes) -> None:
    """Write all of it, or leave what was there."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
