"""Publishes weights: the bytes under their hash, then a signed manifest in one step, by one publisher at a time."""

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Final

from ccr import log
from ccr.control import Control, ControlError
from ccr.control import opened as control_opened
from ccr.errors import WeightsError
from ccr.publication import KEPT, NOTHING, Fence, Publication, PublicationError, opened, signed
from router.publishing.board import NAME as CONTROL
from router.publishing.trial import tried
from router.store.store import FencedError, Lease, Store

#: The pointer, its lease and its hints.
NAME: Final = "weights"
#: A publisher that has not been heard of for so long may be replaced.
LEASE_S: Final = 30.0
ROLLBACK: Final = "rollback"
_log = log.get("publication")


class PausedError(PublicationError):
    """A person paused publishing, or weights were rolled back and nobody cleared that."""


class Publisher:
    """One of possibly several; who has the lease publishes.

    Args:
        store: where to.
        key: signs; the replicas know it.
        last: what this learner published last, as its own disk tells: a store that lost its memory is not believed.
        lease_s: after which another may take over; :meth:`hold` makes it longer.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        last: Fence = NOTHING,
        lease_s: float = LEASE_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.owner = secrets.token_hex(8)
        self.last = last
        self._store = store
        self._key = key
        self._lease_s = lease_s
        self._wall = wall

    def hold(self) -> Lease:
        """Take the lease, or keep it; call it well within its length as long as nobody else should publish.

        Raises:
            FencedError: if another publisher has it.
            StoreDownError: if the store cannot be reached.
        """
        lease = self._store.lease(NAME, self.owner, self._lease_s)
        if lease is None:
            raise FencedError("another learner publishes; stop one of the two")
        return lease

    def publish(self, data: bytes, reason: str = "trained") -> Publication:
        """Publish the bytes of a weights file as a new version.

        Whenever this ends, replicas see what was published before or all of this: nothing points to bytes that are
        not there, and the pointer moves in one step.

        Args:
            data: what :func:`ccr.weights.save` wrote.
            reason: in a word.

        Raises:
            WeightsError: if no replica would take them.
            PausedError: if publishing is paused, or these weights were rolled back; nothing is wrong with the publisher.
            FencedError: if another publisher is at work.
            StoreError: if the store cannot be reached, or takes nothing.
        """
        name = tried(data, "weights to publish").version
        lease = self.hold()
        self._check_allowed(hashlib.sha256(data).hexdigest(), reason)
        before = self._store.pointer(NAME)
        current = self._known(before)
        fence = self._next(lease, current)
        publication = Publication(
            epoch=fence.epoch, version=fence.version, sha256=self._store.put_blob(data), size=len(data),
            name=name, created_at_s=self._wall(), reason=reason, kept=_kept(current),
        )  # fmt: skip
        self._store.point(NAME, before, signed(publication, self._key), lease)
        self.last = fence
        self._store.hint(NAME)
        self._clear(publication, current)
        _log.info("weights.published", version=fence.version, epoch=fence.epoch, weights=name, reason=reason)
        return publication

    def roll_back(self, sha256: str) -> Publication:
        """Publish weights of before again: a new version with old weights.

        Args:
            sha256: of a file that the current manifest keeps.

        Raises:
            WeightsError: if it is not there any more.
            FencedError: as :meth:`publish`.
        """
        data = self._store.blob(sha256)
        if data is None:
            raise WeightsError(
                f"weights {sha256[:12]} are not in the store any more; publish them from their file"
            )
        return self.publish(data, ROLLBACK)

    def current(self) -> Publication | None:
        """What is published; ``None`` if nothing is, or nothing that we signed."""
        return self._known(self._store.pointer(NAME))

    def control(self) -> Control:
        """What persons and replicas have decided, as the store tells.

        Raises:
            StoreDownError: if the store cannot be reached.
        """
        data = self._store.pointer(CONTROL)
        try:
            return Control() if data is None else control_opened(data, self._key)
        except ControlError as error:
            _log.warning("control.refused", error=str(error))
            return Control()

    def _check_allowed(self, sha256: str, reason: str) -> None:
        control = self.control()
        if control.is_paused and reason != ROLLBACK:
            raise PausedError("paused", f"{control.why or 'by a person'}; `ccr learner resume` goes on")
        veto = control.veto_of(sha256)
        if veto is not None:
            raise PausedError(
                "vetoed", f"rolled back by {veto.by}: {veto.why}; `ccr learner resume` clears it"
            )

    def _known(self, data: bytes | None) -> Publication | None:
        try:
            return None if data is None else opened(data, self._key)
        except PublicationError as error:
            _log.warning("publication.overwritten", error=str(error))
            return None

    def _next(self, lease: Lease, current: Publication | None) -> Fence:
        """Above what is published and what we published, whichever of the two was forgotten."""
        before = max(self.last, current.fence if current else NOTHING)
        return Fence(max(lease.token, before.epoch), before.version + 1)

    def _clear(self, publication: Publication, before: Publication | None) -> None:
        """Drop the oldest file, unless it is among those that are kept."""
        keep = {publication.sha256, *publication.kept}
        for sha256 in _kept_by(before):
            if sha256 not in keep:
                self._store.drop_blob(sha256)


def _kept(before: Publication | None) -> tuple[str, ...]:
    return _kept_by(before)[: KEPT - 1]


def _kept_by(publication: Publication | None) -> tuple[str, ...]:
    """All files that a manifest names, newest first, each once."""
    return () if publication is None else tuple(dict.fromkeys((publication.sha256, *publication.kept)))
