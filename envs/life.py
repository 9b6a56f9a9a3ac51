"""One life of an emulated node, from boot to death: its driver, its ledger, its telemetry and its fault."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any
from uuid import uuid4

from ccr.timing import ModelSpec
from envs.conversations import Conversations
from envs.driver import NodeDriver
from envs.exposition import Finishes, Page, render
from envs.faults import Fault
from envs.node import EmulatedNode
from envs.words import Finished, NodeState, Place

# Utilisation is a rate over at least this long, so that two scrapers do not shorten each other's window.
_UTIL_WINDOW_S = 0.5
_GARBAGE = b'vllm:num_requests_running{model_name="\xff\xfe} NaN NaN\n<html>502 Bad Gateway</html>\n\x00'


@dataclass(slots=True)
class Ledger:
    """Inference requests by how they ended: ``accepted == answered + failed + cancelled + open``."""

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    open: int = 0
    open_peak: int = 0

    def begin(self) -> None:
        """A request arrived."""
        self.accepted += 1
        self.open += 1
        self.open_peak = max(self.open_peak, self.open)

    def end(self, how: str) -> None:
        """It ended as ``answered``, ``failed`` or ``cancelled``."""
        self.open -= 1
        setattr(self, how, getattr(self, how) + 1)


@dataclass(frozen=True, slots=True)
class Build:
    """What a node is built from, again at every boot.

    Args:
        name: for people.
        models: what it serves.
        warm: what is resident at boot.
        speed: node seconds for each second of the wall clock.
        make: a node with nothing resident.
        stream_interval: tokens of a stream that are sent together, but for the first.
    """

    name: str
    models: Mapping[str, ModelSpec]
    warm: tuple[str, ...]
    speed: float
    make: Callable[[], EmulatedNode]
    stream_interval: int = 1

    def booted(self) -> EmulatedNode:
        """A node as it is at boot."""
        node = self.make()
        for model in self.warm:
            node.place(model)
        return node


class NodeLife:
    """From boot to death.

    Args:
        build: what it is built from.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self.boot_id = uuid4().hex
        self.created = int(time.time())
        self.fault = Fault()
        self.answering = asyncio.Event()
        self.answering.set()
        self._frozen: bytes | None = None
        self._begin(NodeDriver(build.booted, build.speed, self._note, build.stream_interval))

    def _begin(self, driver: NodeDriver) -> None:
        self.driver = driver
        self.ledger = Ledger()
        self.conversations = Conversations()
        self._finishes: dict[str, Finishes] = {}
        self._util = self._util_busy_s = self._util_at_s = 0.0

    def reset(self) -> None:
        """Unload everything and zero counters and peaks; what is in flight fails, the fault stays."""
        self.end("the node was reset")
        build = self.build
        self._begin(NodeDriver(build.make, build.speed, self._note, build.stream_interval))
        self.driver.set_slowdown(_slowdown(self.fault))

    def end(self, why: str) -> None:
        """Fail what is in flight, and start no timer any more."""
        self.driver.reset(why)
        self.driver.stop()

    def set_fault(self, fault: Fault) -> None:
        """From now on; replaces the fault before."""
        self._frozen = self._page() if fault.kind == "freeze_telemetry" else None
        self.fault = fault
        self.driver.set_slowdown(_slowdown(fault))
        if fault.kind == "hang":
            self.answering.clear()
        else:
            self.answering.set()

    def metrics(self) -> bytes:
        """What a scrape shows."""
        if self.fault.kind == "garbage_telemetry":
            return _GARBAGE
        return self._page() if self._frozen is None else self._frozen

    def snapshot(self) -> dict[str, Any]:
        """What ``/debug/state`` shows; seconds in node time."""
        state = self.driver.state()
        return {
            "node": self.build.name,
            "boot_id": self.boot_id,
            "speed": self.build.speed,
            "fault": self.fault.kind,
            "requests": asdict(self.ledger),
            "jobs": {"submitted": state.submitted, "finished": state.finished, "cancelled": state.cancelled},
            "now_s": state.now_s,
            "busy_s": state.busy_s,
            "running": state.running,
            "waiting": state.waiting,
            "kv_used": state.kv_used,
            "gpu_used_gib": state.gpu_used_gib,
            "gpu_peak_gib": state.gpu_peak_gib,
            "gpu_total_gib": state.gpu_total_gib,
            "loaded": state.at(Place.RESIDENT),
            "loading": state.at(Place.LOADING),
            "asleep": state.at(Place.ASLEEP),
            "load_s": {m: one.load_s for m, one in state.models.items() if one.load_s is not None},
            "preempted": state.preempted,
            "evicted": state.evicted,
            "cold_starts": state.cold_starts,
            "prompt_tokens": state.prompt_tokens,
            "generation_tokens": state.generation_tokens,
        }

    def _note(self, done: Finished) -> None:
        finishes = self._finishes.setdefault(done.job.model, Finishes())
        finishes.ttft.observe((done.first_token_s - done.submitted_s) / self.build.speed)
        finishes.whole.observe((done.at_s - done.submitted_s) / self.build.speed)
        finishes.queried_tokens += done.job.prompt_tokens
        finishes.reused_tokens += done.reused_tokens

    def _page(self) -> bytes:
        state = self.driver.state()
        page = Page(
            state=state,
            kv_bytes_per_token={model: spec.kv_bytes_per_token for model, spec in self.build.models.items()},
            finishes=self._finishes,
            speed=self.build.speed,
            gpu_util=self._utilisation(state),
            boot_id=self.boot_id,
            cancelled=self.ledger.cancelled,
        )
        return render(page).encode()

    def _utilisation(self, state: NodeState) -> float:
        elapsed_s = state.now_s - self._util_at_s
        if elapsed_s >= _UTIL_WINDOW_S * self.build.speed:
            self._util = min(1.0, (state.busy_s - self._util_busy_s) / elapsed_s)
            self._util_busy_s, self._util_at_s = state.busy_s, state.now_s
        return self._util


def _slowdown(fault: Fault) -> float:
    if fault.kind == "hang":
        return inf
    return fault.factor if fault.kind == "slow" else 1.0
