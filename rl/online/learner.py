"""The learner: reads records, corrects constants, sees drift, retrains and publishes; one turn after the other.

What a person has paused, and what a router has rolled back, is not published (:mod:`ccr.control`). Only who has the lease of publishing reads and publishes; another one waits for it. What takes long runs in processes of
its own. A store that is away is waited for; records that were read and not acknowledged come again.
"""

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np

from ccr import log
from ccr.calibration import signed as signed_calibration
from ccr.canary import State
from ccr.errors import ConfigError, WeightsError
from ccr.lesson import Flag, Lesson
from ccr.policies.learned import SHIPPED
from ccr.publication import NOTHING, Publication
from ccr.settings import Settings
from rl.online import live, retrain
from rl.online.batch import Batch, batch_of
from rl.online.calibration import Calibrator
from rl.online.drift import LENGTH, LOAD, PREFILL, RATE, SHARE, SPEED, Detector, Drift
from rl.online.limits import state_of
from rl.online.processes import Process
from rl.online.registering import KEY as KEY_VARIABLE
from rl.online.retrain import Job, Verdict
from rl.online.shelf import Shelf
from rl.online.traffic import WINDOW_S, Traffic
from router.feedback.inbox import Inbox
from router.publishing import calibrated, presence
from router.publishing.board import Board
from router.publishing.publisher import LEASE_S, ROLLBACK, PausedError, Publisher
from router.store.backoff import Backoff
from router.store.store import FencedError, Lease, Store, StoreError

#: Family of the value that says how the learner is; it expires when nobody says so.
FAMILY: Final = presence.LEARNER
EXPIRES_S: Final = presence.EXPIRES_S
HEARTBEAT_S: Final = 1.0
#: Calibrations are put so often, and forgotten by the store if nobody puts them.
CALIBRATED_S: Final = 5.0
_CALIBRATION_EXPIRES_S: Final = 120.0
_LEASE_EVERY_S: Final = LEASE_S / 6.0
_LOOK_EVERY_S: Final = 2.0
_REST_S: Final = 0.05
#: After a drift, so long of what is new is waited for before it is trained on.
_AFTER_DRIFT_S: Final = 45.0
#: The first retraining does not wait for a whole period.
_FIRST_AFTER_S: Final = 60.0
_LONGEST_WORK_S: Final = 1800.0
_LONGEST_REGISTRATION_S: Final = 180.0
_REGISTRY_BACKOFF_S: Final = (5.0, 300.0)
#: States that the limit of a publication is worked out on, and the time between two: the last minutes.
_STATES: Final = 2000
_STATES_APART_S: Final = 0.1
_SHOWN: Final = 64  # nodes and models in the heartbeat
_RATE_MEMORY_S: Final = 5.0
_log = log.get("learner")


class Doing(StrEnum):
    """What it is at."""

    STANDBY = "standby"
    READING = "reading"
    RETRAINING = "retraining"
    GATING = "gating"
    PUBLISHING = "publishing"
    PAUSED = "paused"


@dataclass(slots=True)
class Gate:
    """The last verdict, and when it was given."""

    verdict: Verdict
    at_s: float
    why: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        found = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self.verdict).items()
        }
        return found | {"at_s": round(self.at_s, 1), "why": self.why, "words": str(self.verdict)}


@dataclass(slots=True)
class Registration:
    """How far the registry is behind."""

    process: Process | None = None
    begun_s: float = 0.0
    due_s: float = 0.0
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class Counts:
    """What was read."""

    records: int = 0
    per_s: float = 0.0
    _since_s: float = field(default_factory=time.monotonic)
    _then: int = 0

    def turn(self, now_s: float) -> None:
        """Work out the rate, decayed."""
        passed_s = now_s - self._since_s
        if passed_s < 0.2:
            return
        weight = min(passed_s / _RATE_MEMORY_S, 1.0)
        self.per_s += weight * ((self.records - self._then) / passed_s - self.per_s)
        self._since_s, self._then = now_s, self.records


class Learner:
    """One of possibly several.

    Args:
        settings: of the routers it learns for.
        store: theirs.
        shelf: its own disk.
        clock: monotonic seconds.
        wall: seconds since 1970.

    Raises:
        ConfigError: if there is no key to sign with.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        shelf: Shelf,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.calibrator = Calibrator(clock_speed=settings.server.clock_speed)
        self.detector = Detector()
        self.traffic = Traffic()
        self.counts = Counts()
        self.gate: Gate | None = None
        self.current: Publication | None = None
        self.doing, self.since_s = Doing.STANDBY, wall()
        self.names = live.names_of(settings)
        self._settings, self._store, self._shelf = settings, store, shelf
        self._key = key_of(settings)
        self._clock, self._wall = clock, wall
        self.owner = secrets.token_hex(6)
        self.board = Board(store, self._key, f"learner-{self.owner}", shelf.memory, clock)
        self.board.recall()
        kept = shelf.published()
        self._publisher = Publisher(store, self._key, kept[0].fence if kept else NOTHING, wall=wall)
        self._inbox = Inbox(store, f"learner-{self.owner}", wall, clock_speed=settings.server.clock_speed)
        self._lease: Lease | None = None
        self._backoff = Backoff(longest_s=2.0)
        self._is_store_up = True
        self._lease_due_s = self._heart_due_s = self._calibrated_due_s = self._look_due_s = 0.0
        self._retrain_due_s = clock() + _FIRST_AFTER_S
        self._work: Process | None = None
        self._work_begun_s = 0.0
        self._job: Job | None = None
        self._wanted = ""
        self._ready: tuple[Verdict, Path] | None = None
        self.told: dict[str, Any] = {}
        self._registration = Registration()
        self._seen: deque[Lesson] = deque(maxlen=_STATES)
        self._seen_s = 0.0
        self._not_now = ""
        self._nodes: list[int] = []
        self._coverage = 1.0
        self.calibrator.begin_with(shelf.calibration())

    # -- its life

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop, then end what is under way and give the lease back."""
        try:
            while not stop.is_set():
                if not self.turn():
                    stop.wait(_REST_S)
        finally:
            self.close()

    def turn(self) -> bool:
        """Do what is due; whether there may be more to read at once."""
        now_s = self._clock()
        if not self._backoff.is_due(now_s):
            return False
        try:
            has_more = self._lead(now_s) and self._read()
            self._think(now_s)
            self._succeeded()
        except StoreError as error:
            self._failed(error)
            return False
        return has_more

    def catch_up(self, stop: threading.Event) -> None:
        """Read all that is there.

        Raises:
            StoreError: if the store cannot be reached.
            FencedError: if another learner is at work.
        """
        if not self._lead(self._clock()):
            raise FencedError("another learner is at work; it reads and publishes")
        while self._read() and not stop.is_set():
            pass
        self._look()
        self.calibrator.turn(self._wall())

    def finish(self, stop: threading.Event, longest_s: float) -> None:
        """Turn until what is under way is over, and what is published is registered, if that can be."""
        give_up_s = self._clock() + longest_s
        while not stop.is_set() and self._clock() < give_up_s:
            self.turn()
            is_registered = not self._shelf.waiting() or self._registration.failures > 0
            if self._work is None and self._registration.process is None and is_registered:
                return
            stop.wait(_REST_S)

    def close(self) -> None:
        """End what is under way; what was read is acknowledged, and another learner may begin at once."""
        for process in (self._work, self._registration.process):
            if process is not None:
                process.end()
        self._work = self._registration.process = None
        try:
            if self._lease is not None:
                self._inbox.acknowledge()
                self._store.release(self._lease)
        except StoreError as error:
            _log.warning("learner.store_down", error=str(error))
        self._keep_calibration()

    # -- the lease

    def _lead(self, now_s: float) -> bool:
        """Whether it is ours to read and to publish."""
        if now_s >= self._lease_due_s:
            self._lease_due_s = now_s + _LEASE_EVERY_S
            try:
                lease = self._publisher.hold()
            except FencedError:
                self._stand_by()
            else:
                if self._lease is None:
                    _log.info("learner.leads", owner=self.owner, token=lease.token)
                self._lease = lease
                if self.doing is Doing.STANDBY:
                    self._is(Doing.READING)
        return self._lease is not None

    def _stand_by(self) -> None:
        """Somebody else has the lease: what is under way here is theirs to do."""
        if self._lease is not None:
            _log.warning("learner.lease_lost", owner=self.owner)
        if self._work is not None:
            self._work.end()
            self._work = None
        self._lease = self._ready = None
        self._is(Doing.STANDBY)

    # -- the fast loop

    def _read(self) -> bool:
        lessons = self._inbox.take()
        if lessons:
            self.learn(lessons)
        return len(lessons) > 0

    def learn(self, lessons: list[Lesson]) -> None:
        """Take in records."""
        self.counts.records += len(lessons)
        batch = batch_of(lessons)
        self.calibrator.add(batch)
        self.traffic.add(batch)
        self._note(lessons, batch)
        for drift in self.detector.add(batch):
            self._drifted(drift)

    def _note(self, lessons: list[Lesson], batch: Batch) -> None:
        looked = [one for one in lessons if one.flags & Flag.LOOKED and one.mask]
        for one in looked:
            if abs(one.at_s - self._seen_s) >= _STATES_APART_S:
                self._seen.append(one)
                self._seen_s = one.at_s
        if looked:
            self._nodes = looked[-1].node_ids().tolist()
            told = batch.coverage[np.isfinite(batch.coverage)]
            self._coverage = float(np.median(told)) if len(told) else self._coverage

    def _drifted(self, drift: Drift) -> None:
        if drift.quantity in (SPEED, PREFILL, LOAD, LENGTH):
            self.calibrator.begin_anew(drift.whose, drift.since_s)
        soon_s = self._clock() + _AFTER_DRIFT_S
        self._retrain_due_s = min(self._retrain_due_s, soon_s)
        _log.warning("learner.drift", **drift.as_json(self.names))

    # -- what is due

    def _think(self, now_s: float) -> None:
        self.counts.turn(now_s)
        if now_s >= self._heart_due_s:
            self._heart_due_s = now_s + HEARTBEAT_S
            self.calibrator.turn(self._wall())
            self._watch_work(now_s)
            self.board.turn()
            self._beat()
        if self._lease is None:
            return
        if now_s >= self._calibrated_due_s:
            self._calibrated_due_s = now_s + CALIBRATED_S
            self._tell_calibration()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + _LOOK_EVERY_S
            self._look()
            self._register(now_s)
        if self.is_paused and self._work is None:  # what is under way goes on; its result waits
            self._is(Doing.PAUSED)
        elif self.doing is Doing.PAUSED:
            self._is(Doing.READING)
        self._publish_ready()
        self._retrain_if_due(now_s)

    def _tell_calibration(self) -> None:
        found = self.calibrator.calibration()
        if found.nodes or found.models:
            data = signed_calibration(found, self._key)
            self._store.put(calibrated.FAMILY, calibrated.KEY, data, _CALIBRATION_EXPIRES_S)
            self._keep_calibration()

    def _keep_calibration(self) -> None:
        found = self.calibrator.calibration()
        if not found.nodes and not found.models:
            return
        try:
            self._shelf.keep_calibration(found)
        except OSError as error:
            _log.error("learner.disk", error=error.strerror or str(error))

    # -- publishing

    @property
    def is_paused(self) -> bool:
        """Whether a person has paused it, or has to find out first why weights were rolled back twice."""
        return self.board.control.is_paused or self.board.control.is_stopped

    def _look(self) -> None:
        """What is published; where the store has lost it, or turned back, it is published again from our own disk."""
        current, kept = self._publisher.current(), self._shelf.published()
        if current is not None and (kept is None or current.fence >= kept[0].fence):
            self.current = current
            if kept is None or current.fence > kept[0].fence or not self._shelf.has(current.fence):
                self._adopt(current)
            if self._is_refused(current.sha256):
                self._go_back(current)
        elif kept is not None and not self._is_refused(kept[0].sha256):
            self._put(kept[1], "restored")
        else:
            self._put(self._first_weights(), "initial" if kept is None else ROLLBACK)

    def _is_refused(self, sha256: str) -> bool:
        return self.board.control.veto_of(sha256) is not None

    def _go_back(self, current: Publication) -> None:
        """A router rolled back what is published: publish the latest before it that nobody refused.

        So that routers that start now serve what the others do, and that is what the next weights are compared with.
        """
        for data in self._before(current):
            if self._put(data, ROLLBACK):
                return

    def _before(self, current: Publication) -> Iterator[bytes]:
        for sha256 in current.kept:
            data = None if self._is_refused(sha256) else self._store.blob(sha256)
            if data is not None:
                yield data
        yield self._first_weights()

    def _put(self, data: bytes, reason: str) -> bool:
        """Publish, if that is not refused; whether it was."""
        try:
            return self.publish(data, reason) is not None
        except PausedError as error:
            if str(error) != self._not_now:
                _log.warning("learner.not_now", reason=reason, error=str(error))
            self._not_now = str(error)
            return False

    def _adopt(self, current: Publication) -> None:
        """Somebody else published, or we did and were killed before we noted it."""
        data = self._store.blob(current.sha256)
        if data is not None:
            self._shelf.remember(current, data)
            self._shelf.enqueue(current, data, {})

    def _first_weights(self) -> bytes:
        given = (
            self._settings.policy.options.get("weights") if self._settings.policy.name == "learned" else None
        )
        return (Path(str(given)) if given else SHIPPED).read_bytes()

    def publish(self, data: bytes, reason: str, facts: Mapping[str, Any] | None = None) -> Publication | None:
        """Publish a weights file; ``None`` if it may not be.

        Args:
            data: of the file.
            reason: in a word.
            facts: kept with the version in the registry.

        Raises:
            PausedError: if a person paused it, or a router rolled these weights back.
            StoreError: if the store does not take it.
        """
        before = self.doing
        self._is(Doing.PUBLISHING)
        try:
            publication = self._publisher.publish(data, reason)
        except PausedError:
            raise
        except (FencedError, WeightsError) as error:
            _log.error("learner.not_published", reason=reason, error=str(error))
            return None
        finally:
            self._is(before)
        self.current, self._not_now = publication, ""
        self._shelf.remember(publication, data)
        self._shelf.enqueue(publication, data, facts or {})
        self._registration.due_s = min(self._registration.due_s, self._clock())
        return publication

    # -- the registry

    def _register(self, now_s: float) -> None:
        """Let a process of its own register what waits; what fails is tried again, later and later."""
        state = self._registration
        if state.process is not None:
            code = state.process.poll()
            if code is None and now_s - state.begun_s < _LONGEST_REGISTRATION_S:
                return
            error = "" if code == 0 else state.process.last_words() or f"ended with status {code}"
            state.process.end()
            state.process = None
            self._registered(state, error, now_s)
        if now_s >= state.due_s and self._shelf.waiting():
            state.begun_s = now_s
            state.process = Process(
                "rl.online.registering", [str(self._shelf.directory), self._settings.learner.tracking_uri],
                self._shelf.directory / "registering.log", {KEY_VARIABLE: self._key.decode()},
            )  # fmt: skip

    def _registered(self, state: Registration, error: str, now_s: float) -> None:
        first_s, longest_s = _REGISTRY_BACKOFF_S
        if error and not state.error:
            _log.warning("learner.registry_down", error=error, waiting=len(self._shelf.waiting()))
        elif not error:
            _log.info("learner.registered", number=self._number())
        state.failures = state.failures + 1 if error else 0
        state.error = error
        state.due_s = now_s + (min(first_s * 2.0 ** min(state.failures, 20), longest_s) if error else 0.0)

    def _number(self) -> int | None:
        return None if self.current is None else self._shelf.number_of(self.current.fence)

    # -- the slow loop

    def _retrain_if_due(self, now_s: float) -> None:
        wanted = self._settings.learner
        is_due = wanted.retrain_every_s > 0.0 and now_s >= self._retrain_due_s
        if (
            self._work is None
            and self._ready is None
            and is_due
            and self.doing is Doing.READING
            and self.current is not None
        ):
            self.begin_retraining()

    def begin_retraining(self) -> bool:
        """Begin, if enough was recorded; whether it was."""
        wanted = self._settings.learner
        rows, why = self._recorded()
        self._retrain_due_s = self._clock() + 5.0  # there may be enough soon
        published = self._shelf.published()
        if len(rows) < wanted.least_requests or not self._nodes or published is None:
            return False
        if self._is_refused(published[0].sha256):
            return False  # nothing is to be like that
        self._retrain_due_s = self._clock() + wanted.retrain_every_s
        seed = secrets.randbelow(900)
        stamp = time.strftime("%Y-%m-%d.%H%M%S", time.gmtime(self._wall()))
        self._job = Job(seed, wanted.search_s, wanted.episodes, f"live.{stamp}", why)
        fleet = live.seen(self._settings, rows, self.calibrator, self._nodes, self._coverage)
        shutil.rmtree(self._shelf.work, ignore_errors=True)
        retrain.prepare(self._shelf.work, self._job, fleet, rows, published[1], self._states())
        self._wanted = published[0].sha256
        self._work_begun_s = self._clock()
        self._work = Process(
            "rl.online.retrain", [str(self._shelf.work)], self._shelf.directory / "retraining.log"
        )
        self._is(Doing.RETRAINING)
        _log.info(
            "learner.retraining",
            requests=len(rows),
            nodes=len(fleet.nodes),
            models=len(fleet.models),
            why=why,
        )
        return True

    def _recorded(self) -> tuple[Any, str]:
        """What is trained on, and why: after the traffic has drifted, what came since, if that is enough."""
        lately = self.detector.lately(self._wall())
        rows = self.traffic.latest(self._wall() - WINDOW_S)
        drifts = [one for one in lately if one.quantity in (LENGTH, RATE, SHARE)]
        if drifts:
            newer = self.traffic.latest(max(one.since_s for one in drifts))
            if 2 * len(newer) >= self._settings.learner.least_requests:
                rows = (
                    newer if len(newer) >= self._settings.learner.least_requests else rows[-2 * len(newer) :]
                )
        return rows, lately[-1].told(self.names) if lately else "it was time"

    def _states(self) -> list[State]:
        found = (state_of(lesson) for lesson in self._seen)
        return [state for state in found if state is not None]

    def _watch_work(self, now_s: float) -> None:
        """See how far the process is that retrains, and what it left."""
        if self._work is None:
            return
        code = self._work.poll()
        if code is None and now_s - self._work_begun_s < _LONGEST_WORK_S:
            words = retrain.far(self._shelf.work)["words"]
            self._is(Doing.GATING if words == "judging" else Doing.RETRAINING)
            return
        words = self._work.last_words()
        self._work.end()
        self._work = None
        self._is(Doing.READING)
        found = retrain.result(self._shelf.work) if code == 0 else None
        if found is None:
            _log.error("learner.retraining_failed", status=code, error=words)
            return
        self._judged(*found)

    def _judged(self, verdict: Verdict, path: Path) -> None:
        assert self._job is not None  # noqa: S101 - there is no work without one
        self.gate = Gate(verdict, self._wall(), self._job.why)
        _log.info("learner.judged", **self.gate.as_json())
        if verdict.has_passed:
            self._ready = verdict, path

    def _publish_ready(self) -> None:
        """Publish what has passed; while it is paused, or the store is away, it waits for a later turn."""
        if self._ready is None or self._job is None or self.is_paused:
            return
        (verdict, path), published = self._ready, self._shelf.published()
        if published is None or published[0].sha256 != self._wanted:
            _log.warning("learner.overtaken", why="it was judged against weights that serve no more")
        else:
            try:
                self.publish(path.read_bytes(), "retrained", {"gate": asdict(verdict), "why": self._job.why})
            except PausedError as error:
                if error.reason == "paused":  # a moment ago, and we have not heard of it yet
                    return
                _log.warning("learner.refused", error=str(error))
        self._ready = None

    # -- what it tells

    def _is(self, doing: Doing) -> None:
        if doing is not self.doing:
            self.doing, self.since_s = doing, self._wall()

    def status(self) -> dict[str, Any]:
        """Everything about it, for programs."""
        current = self.current
        calibration = self.calibrator.as_json(self.names)
        shown = {kind: dict(list(found.items())[:_SHOWN]) for kind, found in calibration.items()}
        state = self._registration
        return {
            "state": str(self.doing), "why": self.board.control.why, "since_s": round(self.since_s, 1), "at_s": round(self._wall(), 1), "owner": self.owner,
            "version": None if current is None else {
                "epoch": current.epoch, "version": current.version, "name": current.name, "reason": current.reason,
                "sha256": current.sha256[:12], "registered": self._number(),
            },
            "gate": None if self.gate is None else self.gate.as_json(),
            "drift": [one.as_json(self.names) for one in self.detector.lately(self._wall())],
            "calibration": shown,
            "doubted": [self.names.get(key, f"unknown-{key:016x}") for key in self.calibrator.doubted()],
            "records_per_s": round(self.counts.per_s, 1), "records": self.counts.records, "left_out": dict(self._inbox.left_out),
            "progress": None if self._work is None else retrain.far(self._shelf.work),
            "registry": {"waiting": len(self._shelf.waiting()), "error": state.error},
        }  # fmt: skip

    def _beat(self) -> None:
        self.told = self.status()
        presence.tell(self._store, presence.LEARNER, self.owner, self.told)

    # -- a store that is away

    def _failed(self, error: StoreError) -> None:
        self._backoff.failed(self._clock())
        if self._is_store_up:
            _log.error("learner.store_down", error=str(error))
        self._is_store_up = False

    def _succeeded(self) -> None:
        self._backoff.succeeded()
        if not self._is_store_up:
            _log.info("learner.store_back")
        self._is_store_up = True


def key_of(settings: Settings) -> bytes:
    """What is published is signed with.

    Raises:
        ConfigError: if there is none.
    """
    key = settings.publication.key
    if key is None:
        raise ConfigError(
            "the learner signs what it publishes: set `publication.key`, better as CCR_PUBLICATION__KEY, the same for the routers"
        )
    return key.get_secret_value().encode()
