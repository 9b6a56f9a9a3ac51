"""Builds whatever lives long, wires it, starts it and stops it: the one place where all parts meet."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from fastapi import FastAPI

from ccr import log
from ccr.calibration import Calibration
from ccr.policy import Policy
from ccr.prices import gpu_of
from ccr.publication import Fence
from ccr.settings import Settings, UpstreamSettings
from ccr.timing import GPUS
from ccr.types import NodeSpec, Reading
from router.asgi import FrontDoor
from router.auth import Keys
from router.batching import BatchGate
from router.clock import Clock
from router.collectors.poller import Pace, Poller
from router.control import PROXIED, Control, admin_app, data_app
from router.discovery.configured import discovery_of, spec_of
from router.dispatch import Dispatch
from router.exposition import Exposition, View
from router.feedback.feeder import Feeder
from router.feedback.make import Maker
from router.feedback.spool import Spool
from router.limits import Admission, RetryBudget
from router.policies import PolicySwitch
from router.publishing.board import Board
from router.publishing.calibrated import Calibrated
from router.publishing.follower import Follower
from router.publishing.guardian import Desk, Guardian
from router.publishing.memory import Memory
from router.publishing.watch import Watch
from router.recording.recorder import Recorder
from router.recording.recordings import Plan, Recordings
from router.recording.writer import RecordingError
from router.request_log import RequestLog
from router.routes.body import Limits
from router.routes.proxied import Proxied
from router.routes.sidecar import Sidecar, Signer
from router.sharing.fleet import Across, Shared, SharedFleet
from router.sharing.sharer import Sharer
from router.stats import Stats
from router.store.opened import opened
from router.upstream import AiohttpUpstream, Upstream
from router.upstream_http import HttpUpstream
from router.watchdog import Watchdog

_log = log.get("router")
_MOST_NAMED = 8  # nodes in one line of the log

UPSTREAMS: Mapping[str, Callable[[UpstreamSettings], Upstream]] = {
    "native": HttpUpstream,
    "aiohttp": AiohttpUpstream,
}


@dataclass(slots=True)
class Readiness:
    """What ``/readyz`` says."""

    draining: bool = False
    discovered: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    """Carries what the follower's thread says to the thread that decides: there a swap is one assignment between requests.

    Args:
        loop: of that thread.
        policies: told in it.
    """

    loop: asyncio.AbstractEventLoop
    policies: PolicySwitch

    def take(self, policy: Policy, fence: Fence) -> None:
        """These weights are published."""
        self.loop.call_soon_threadsafe(self.policies.take, policy, fence)

    def let_go(self) -> None:
        """Nothing is known any more of what is published."""
        self.loop.call_soon_threadsafe(self.policies.let_go)

    def fall_back(self) -> None:
        """Weights did harm."""
        self.loop.call_soon_threadsafe(self.policies.fall_back)


class Router:
    """One router: build it, enter it to start, leave it to stop.

    Args:
        settings: the whole config.
        admin_token: what the admin API asks for.
        clock: monotonic seconds at the `clock_speed` of the settings; those of the wall times that by default.
        seed: for the draws; a fresh one by default.

    Raises:
        ConfigError: if the settings do not fit together.
        ScriptError: if the operator script is refused.
        StoreDownError: if the directory of the store cannot be used.
        WeightsError: if the weights of a learned policy are.
    """

    def __init__(
        self,
        settings: Settings,
        admin_token: str,
        clock: Callable[[], float] | None = None,
        seed: int | None = None,
    ) -> None:
        self.settings = settings
        self.readiness = Readiness()
        speed = settings.server.clock_speed
        self._clock = Clock.at(speed) if clock is None else Clock(clock, speed)
        now_s = self._clock.now_s
        self._stack = AsyncExitStack()
        self.store = opened(settings.store)
        self.feeder: Feeder | None = None
        self.follower: Follower | None = None
        self.sharer: Sharer | None = None
        self.calibrated: Calibrated | None = None
        self.stats = Stats()
        self.policies = PolicySwitch(settings)
        self.fleet = SharedFleet(
            settings.fleet_rules(), settings.server.replicas, now_s(), settings.prices(),
            self._clock.from_the_wall_s(settings.ledger.expires_s),
        )  # fmt: skip
        self._unpriced: set[str] = set()
        self.request_log = RequestLog(enabled=settings.log.requests, form=settings.log.format)
        self.dispatch = Dispatch(
            fleet=self.fleet,
            policies=self.policies,
            catalogue=settings.catalogue(),
            keys=Keys(settings.keys),
            admission=Admission(settings.admission),
            retries=RetryBudget(settings.upstream.retry_ratio, settings.upstream.retry_per_s),
            stats=self.stats,
            request_log=self.request_log,
            keep=settings.trace.keep,
            clock=self._clock,
            seed=seed,
        )
        self.watchdog = Watchdog(now_s, self._sweep)
        limits = Limits.of(settings.server, settings.upstream)
        secret = settings.sidecar.secret
        signer = Signer(secret.get_secret_value().encode() if secret else None)
        self.sidecar = Sidecar(self.dispatch, self.watchdog, signer, limits, settings.sidecar.lease_s)
        self._limits = limits
        self.recordings = Recordings(now_s, self._record, lambda: self.dispatch.ledger.in_flight)
        self.control = Control(
            self.dispatch, Exposition(self._view), settings, self.is_ready, self.recordings, self.shared
        )
        self.admin: FastAPI = admin_app(self.control, admin_token)
        self.proxied: Proxied
        self.data: FrontDoor

    def is_ready(self) -> tuple[bool, str]:
        """Whether requests should be sent here, and why not."""
        if self.readiness.draining:
            return False, "draining"
        if not self.readiness.discovered:
            return False, "the nodes are not known yet"
        return True, ""

    def shared(self) -> Shared | None:
        """How it stands with the ledgers of other routers; ``None`` if this one does not share."""
        fleet, sharer = self.fleet, self.sharer
        if sharer is None:
            return None
        age_s = None if fleet.heard_s is None else self._clock.now_s() - fleet.heard_s
        elsewhere = {state.spec.id: state.elsewhere for state in fleet.states}
        return Shared(fleet.peers, age_s, fleet.coverage, elsewhere, dict(sharer.counts.refused))

    async def __aenter__(self) -> Self:
        settings = self.settings
        upstream = UPSTREAMS[settings.upstream.client](settings.upstream)
        self._stack.push_async_callback(upstream.close)
        self._poller = Poller(
            on_reading=self._on_reading,
            on_error=self._on_telemetry_error,
            pace=Pace(settings.telemetry.interval_s, settings.telemetry.timeout_s),
            clock=self._clock,
        )
        self._stack.push_async_callback(self._poller.close)
        self._feed()
        self._follow()
        self._share()
        gate = BatchGate(settings.batching, self.policies, self.stats, self._clock)
        self.proxied = Proxied(
            self.dispatch, upstream, self.watchdog, gate, self._limits, _node_keys(settings)
        )
        hot = {("POST", path): self.proxied for path in PROXIED}
        self.data = FrontDoor(
            {**hot, ("POST", "/route"): self.sidecar.route, ("POST", "/feedback"): self.sidecar.feedback},
            data_app(self.control),
            frozenset(host.lower().encode() for host in settings.server.allowed_hosts),
        )
        if settings.record.directory is not None:
            await self._record_from_the_start(settings.record.directory)
        await self._background(self.watchdog.run())
        await self._background(discovery_of(settings).watch(self.set_nodes))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self.follower, self.calibrated, self.sharer):
            if one is not None:
                await asyncio.to_thread(one.stop)
        await self._stack.aclose()
        await self.recordings.stop()
        if self.feeder is not None:
            await asyncio.to_thread(self.feeder.stop)
        if self.store is not None:
            self.store.close()
        self.request_log.flush()

    def set_nodes(self, specs: tuple[NodeSpec, ...]) -> None:
        """Make these nodes the fleet."""
        joined, left = self.fleet.replace(specs, self._clock.now_s())
        self._poller.set_nodes(specs)
        self._tell_of_cards(specs)
        self.readiness.discovered = True
        if joined or left:
            _log.info("fleet.changed", joined=joined, left=left, nodes=len(specs))

    async def abort(self) -> int:
        """End everything under way because the process goes away; returns how much there was."""
        return await self.watchdog.abort_all() + self.sidecar.abort_all()

    def _tell_of_cards(self, specs: Iterable[NodeSpec]) -> None:
        """Say, once for each label, whose times are predicted for a card that may be another."""
        cards: dict[str, list[str]] = {}
        for spec in specs:
            label = spec.labels.get("gpu", "")
            if label not in self._unpriced and gpu_of(label) is None:
                cards.setdefault(label, []).append(spec.id)
        self._unpriced.update(cards)
        for label, nodes in cards.items():
            say = _log.warning if label else _log.info
            say(
                "gpu.unknown",
                label=label,
                nodes=nodes[:_MOST_NAMED],
                count=len(nodes),
                taken_for="A10",
                remedy=f"set `labels: {{gpu: ...}}` of the node to the nearest of {', '.join(GPUS)}",
            )

    def _feed(self) -> None:
        """Begin to tell the learner, if there is a store."""
        settings = self.settings.feedback
        if self.store is None or not settings.enabled:
            return
        since_1970 = self._clock.since_1970(time.time())
        maker = Maker(since_1970, self.settings.outlier.penalty_s, self.policies.published)
        spool = None if settings.directory is None else _spool(settings.directory, settings.spool_bytes)
        self.dispatch.feedback = self.feeder = Feeder(self.store, maker, spool, settings.max_waiting)
        self.feeder.start()

    def _follow(self) -> None:
        """Begin to take published weights, if there is a store, and a key to trust them by."""
        settings = self.settings.publication
        if self.store is None or settings.key is None:
            return
        key, replica = settings.key.get_secret_value().encode(), secrets.token_hex(4)
        memory = None if settings.directory is None else Memory(settings.directory)
        between = Between(asyncio.get_running_loop(), self.policies)
        self.dispatch.watch = watch = Watch()
        board, base = Board(self.store, key, replica, memory), self.policies.engine.policy
        guardian = Guardian(between, watch, board, base, replica, settings.trial_s, self._clock.now_s)
        desk = Desk(guardian, self.store)
        self.follower = Follower(
            self.store, key, guardian, settings.interval_s, settings.stale_after_s, memory, desk=desk
        )
        self.control.follower, self.control.desk = self.follower, desk
        self.follower.start()
        loop = asyncio.get_running_loop()

        def take(calibration: Calibration) -> None:
            loop.call_soon_threadsafe(self.fleet.calibrate, calibration)

        self.calibrated = Calibrated(self.store, settings.key.get_secret_value().encode(), take)
        self.calibrated.start()

    def _share(self) -> None:
        """Begin to exchange what is in flight with other routers, if there is a server between them."""
        settings, key = self.settings.ledger, self.settings.publication.key
        if self.store is None or self.settings.store.redis_url is None or not settings.shared:
            return
        self.fleet.expect(self._clock.now_s())  # before the first request: what is told is read off the book
        self.sharer = Sharer(
            self.store,
            Across(asyncio.get_running_loop(), self.fleet, self._clock.now_s),
            b"" if key is None else key.get_secret_value().encode(),
            settings.interval_s,
            settings.expires_s,
        )
        self.sharer.start()

    def _record(self, recorder: Recorder | None) -> None:
        """Tell this recorder of requests, or none."""
        self.dispatch.recorder = recorder

    async def _record_from_the_start(self, directory: Path) -> None:
        try:
            await self.recordings.start(Plan.of(self.settings.record, directory))
        except RecordingError as error:
            # Serving matters more than its record: the operator is told, and a later try is one command.
            self.recordings.failed_to_start(str(error))

    def _on_reading(self, node_id: str, reading: Reading, now_s: float) -> None:
        reading = self._by_our_clock(reading)
        self.recordings.read(node_id, reading, now_s)
        state = self.fleet.state(node_id)
        unchanged_s = self._poller.unchanged_s(node_id)
        if state is not None and state.inflight and unchanged_s > self.settings.telemetry.stale_after_s:
            self.stats.telemetry_errors[node_id, "frozen"] += (
                1  # at work, yet its page stands still: let it age
            )
            return
        if self.fleet.observe(node_id, reading, now_s):
            _log.warning("node.restarted", node=node_id)

    def _by_our_clock(self, reading: Reading) -> Reading:
        """Its seconds in ours: nodes tell theirs by the wall."""
        if not reading.load_s or self._clock.speed == 1.0:
            return reading
        load_s = {model: self._clock.from_the_wall_s(took_s) for model, took_s in reading.load_s.items()}
        return replace(reading, load_s=load_s)

    def _on_telemetry_error(self, node_id: str, reason: str) -> None:
        self.stats.telemetry_errors[node_id, reason] += 1

    def _sweep(self, now_s: float) -> None:
        self.sidecar.expire(now_s)
        if self.fleet.expire(now_s):
            _log.warning("ledger.alone", coverage=self.fleet.coverage)
        self.recordings.tick(now_s)
        self.request_log.flush()

    def _view(self) -> View:
        now_s = self._clock.now_s()
        return View(
            self.dispatch,
            self.fleet.at(now_s),
            now_s,
            self.is_ready()[0],
            self.recordings.counts(),
            self.store is None or self.store.is_up,
            None if self.feeder is None else self.feeder.counts(),
            None if self.follower is None else self.follower.state,
            0.0 if self.follower is None else self.follower.age_s(),
            self.shared(),
            self.fleet.coverage,
            None if self.control.desk is None else self.control.desk.guardian,
        )

    async def _background(self, work: object) -> None:
        """Run a coroutine beside everything else; it is cancelled, and awaited, at the end."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        task.add_done_callback(_report_death)

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(stop)


def _node_keys(settings: Settings) -> dict[str, bytes]:
    return {
        spec_of(node).id: node.api_key.get_secret_value().encode() for node in settings.nodes if node.api_key
    }


def _spool(directory: Path, max_bytes: int) -> Spool | None:
    """Where records wait; serving matters more than they do, so a directory that cannot be used is told and no more."""
    try:
        return Spool(directory, max_bytes)
    except OSError as error:
        why = "another router uses it" if isinstance(error, BlockingIOError) else error.strerror
        _log.error(
            "feedback.no_spool",
            directory=str(directory),
            error=why,
            remedy="give `feedback.directory` a place of its own that the router may write to",
        )
        return None


def _report_death(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("router.background_died", error=repr(error))
