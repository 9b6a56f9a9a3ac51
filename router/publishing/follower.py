"""Follows what is published: asks for the version every second, takes what is newer, signed and sane, keeps the rest out."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ccr import log
from ccr.errors import WeightsError
from ccr.policies.learned import Learned
from ccr.publication import NOTHING, Fence, Publication, PublicationError, check_blob, opened
from router.publishing.guardian import Desk
from router.publishing.memory import Memory
from router.publishing.presence import LEARNER
from router.publishing.publisher import NAME
from router.publishing.trial import tried
from router.repeating import Repeating
from router.store.backoff import Backoff
from router.store.store import Store, StoreError

INTERVAL_S: Final = 1.0
STALE_AFTER_S: Final = 900.0
#: How often a hint is looked for.
_POLL_S: Final = 0.1
_REST_S: Final = 0.001
_MAY_HEAL: Final = frozenset({"missing", "corrupt", "vetoed"})
_log = log.get("publication")


class Policies(Protocol):
    """Who is told; called in the follower's thread."""

    def take(self, policy: Learned, fence: Fence) -> None:
        """These weights are published."""

    def let_go(self) -> None:
        """Nothing is known any more of what is published: not too old weights, a heuristic shall serve."""


@dataclass(slots=True)
class Followed:
    """What came of it so far.

    Args:
        fence: of the weights that were taken last.
        name: their own version.
        heard_s: when there was last word of a publisher; ``None`` before there were weights.
        published: what the store last held that we can trust.
        has_learner: whether a learner was ever heard of: then a manifest that lies in the store is no word of one.
        refused: by reason.
        is_stale: whether that is too long ago.
    """

    fence: Fence = NOTHING
    name: str = ""
    heard_s: float | None = None
    published: Publication | None = None
    has_learner: bool = False
    refused: "Counter[str]" = field(default_factory=Counter)
    is_stale: bool = False


class Follower:
    """Takes published weights.

    Args:
        store: they are in.
        key: they are signed with.
        policies: who is told.
        interval_s: between two looks.
        stale_after_s: without word of a publisher, after which the weights are let go; 0 for never.
        memory: of what was taken last, over restarts.
        clock: monotonic seconds of the wall.
        backoff: from the store.
        desk: of the guardian that stands between this and what serves, if there is one.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        policies: Policies,
        interval_s: float = INTERVAL_S,
        stale_after_s: float = STALE_AFTER_S,
        memory: Memory | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        desk: Desk | None = None,
    ) -> None:
        self.state = Followed()
        self._desk = desk
        self._store = store
        self._key = key
        self._policies = policies
        self._interval_s = interval_s
        self._stale_after_s = stale_after_s
        self._memory = memory
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._taken: Learned | None = None
        self._told = self._refused = b""
        self._due_s = 0.0
        steps = (self.turn,) if desk is None else (self.turn, desk.turn)
        self._repeating = Repeating(
            "follower", steps, _POLL_S, _log, "publication.turn_failed", first=self.recall
        )

    def start(self) -> None:
        """Begin to look."""
        self._repeating.start()

    def stop(self) -> None:
        """Look no more."""
        self._repeating.stop()

    def age_s(self) -> float:
        """Since there was last word of a publisher; 0 before there were weights."""
        heard_s = self.state.heard_s
        return 0.0 if heard_s is None else self._clock() - heard_s

    def turn(self) -> None:
        """Look if it is time, or if there was a hint; let go of weights that are too old."""
        now_s = self._clock()
        is_hinted = self._store.is_up and self._store.hinted(NAME)
        if (is_hinted or now_s >= self._due_s) and self._backoff.is_due(now_s):
            self._due_s = now_s + self._interval_s
            self.look()
        if self._stale_after_s and not self.state.is_stale and self.age_s() > self._stale_after_s:
            self.state.is_stale = True
            _log.error("weights.stale", age_s=round(self.age_s()), version=self.state.fence.version)
            self._policies.let_go()

    def look(self) -> None:
        """Ask what is published, and take it if it is new and good."""
        try:
            data = self._store.pointer(NAME)
            is_learning = bool(self._store.values(LEARNER))
            self.state.has_learner |= is_learning
            if data is not None:
                self._consider(data, is_word=is_learning or not self.state.has_learner or self._is_paused())
        except StoreError as error:
            self._backoff.failed(self._clock())
            _log.debug("publication.store_down", error=str(error))
            return
        self._backoff.succeeded()

    def recall(self) -> None:
        """Take what was taken last, as this replica's own disk tells: with it a router starts without a store."""
        if self._desk is not None:
            self._desk.guardian.board.recall()
        found = None if self._memory is None else self._memory.recalled()
        if found is None:
            return
        try:
            publication = opened(found[0], self._key)
            check_blob(publication, found[1])
            self._check_veto(publication)
            self._take(publication, _tried(publication, found[1]))
        except WeightsError as error:
            self._refuse(found[0], error)

    def _is_paused(self) -> bool:
        return self._desk is not None and self._desk.guardian.board.control.is_paused

    def _consider(self, data: bytes, *, is_word: bool) -> None:
        """Take it if it is new and good.

        Args:
            data: the manifest.
            is_word: whether it tells of a publisher at work: not if the learner that once was there is not any more.
        """
        try:
            publication = self.state.published = opened(data, self._key)
            if is_word:
                self._heard()
            if publication.fence != self.state.fence and data != self._refused:
                self._check_order(publication)
                self._check_veto(publication)
                blob = self._blob(publication)
                self._take(publication, _tried(publication, blob))
                self._remember(data, blob)
        except WeightsError as error:
            self._refuse(data, error)

    def _refuse(self, data: bytes, error: WeightsError) -> None:
        """Told once; bytes that are missing or damaged are looked for again, everything else is refused for good."""
        reason = error.reason if isinstance(error, PublicationError) else "unusable"
        self.state.refused[reason] += 1
        if data != self._told:
            _log.error("weights.refused", reason=reason, error=str(error))
        self._told = data
        if reason not in _MAY_HEAL:
            self._refused = data

    def _remember(self, data: bytes, blob: bytes) -> None:
        if self._memory is not None:
            self._memory.remember(data, blob)

    def _check_order(self, publication: Publication) -> None:
        if publication.fence < self.state.fence:
            raise PublicationError(
                "old", f"{tuple(publication.fence)} is published, and {tuple(self.state.fence)} was before"
            )

    def _check_veto(self, publication: Publication) -> None:
        veto = None if self._desk is None else self._desk.guardian.board.control.veto_of(publication.sha256)
        if veto is not None:
            raise PublicationError(
                "vetoed",
                f"version {publication.version} was rolled back by {veto.by}: {veto.why}; `ccr learner resume` clears it",
            )

    def _blob(self, publication: Publication) -> bytes:
        data = self._store.blob(publication.sha256)
        if data is None:
            raise PublicationError(
                "missing", f"the bytes of version {publication.version} are not in the store"
            )
        check_blob(publication, data)
        return data

    def _take(self, publication: Publication, policy: Learned) -> None:
        self._taken = policy
        if self._desk is not None:
            self._desk.guardian.announce(publication)
        self.state.fence, self.state.name = publication.fence, publication.name
        self.state.heard_s = self._clock()
        self.state.is_stale = False
        self._policies.take(policy, publication.fence)
        _log.info(
            "weights.taken", version=publication.version, epoch=publication.epoch, weights=publication.name,
            reason=publication.reason,
        )  # fmt: skip

    def _heard(self) -> None:
        """There is a publisher: what was let go of because there was none is good again."""
        if self._taken is None:
            return
        self.state.heard_s = self._clock()
        if self.state.is_stale:
            self.state.is_stale = False
            self._policies.take(self._taken, self.state.fence)


def _tried(publication: Publication, data: bytes) -> Learned:
    return tried(data, f"published weights {publication.version}", _rest)


def _rest() -> None:
    """Let the thread that serves requests go on: it would wait up to 5 ms for the interpreter each time it needs it."""
    time.sleep(_REST_S)
