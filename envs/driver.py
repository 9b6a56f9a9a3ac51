"""A node in real time: one clock, one timer, and a ticket for each request in flight."""

import asyncio
import time
from collections.abc import Callable, Iterable
from math import inf

from envs.node import EmulatedNode
from envs.words import Event, Finished, FirstToken, Job, Loaded, NodeResetError, NodeState, Place, Tokens

# Timers of an event loop are good to a millisecond; asking for less makes it spin.
_TICK_S = 0.001


class NodeClock:
    """Node time: the wall clock's, from 0, at a rate that may change.

    Args:
        rate: node seconds for each second of the wall clock; 0 stands still.
        wall_s: the wall clock.
    """

    def __init__(self, rate: float, wall_s: Callable[[], float] = time.monotonic) -> None:
        self._wall_s = wall_s
        self._rate = rate
        self._anchor_wall_s = wall_s()
        self._anchor_s = 0.0

    def now_s(self) -> float:
        """Node time."""
        return self._anchor_s + (self._wall_s() - self._anchor_wall_s) * self._rate

    def set_rate(self, rate: float) -> None:
        """From now on."""
        self._anchor_s, self._anchor_wall_s, self._rate = self.now_s(), self._wall_s(), rate

    def until_s(self, at_s: float) -> float:
        """Seconds of the wall clock until node time ``at_s``; ``inf`` when it never comes."""
        missing = at_s - self.now_s()
        if missing <= 0:
            return 0.0
        return missing / self._rate if self._rate > 0 else inf


class Ticket:
    """One request in flight: what the node has made for it since the last look.

    Attributes:
        job: what was asked for.
        fresh: tokens made and not yet taken.
        done: whether all are made.
        gone: whether the client left.
        failed: why there will be no more tokens; empty normally.
    """

    __slots__ = ("_waiter", "done", "failed", "fresh", "gone", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.fresh = 0
        self.done = False
        self.gone = False
        self.failed = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.done or self.gone or bool(self.failed)

    async def news(self) -> None:
        """Return when there are fresh tokens, or nothing more will come."""
        while not self.fresh and not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def end(self) -> None:
        """Return when nothing more will come."""
        while not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def take(self) -> int:
        """The fresh tokens, and none are fresh any more."""
        fresh, self.fresh = self.fresh, 0
        return fresh

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """The client hung up."""
        self.gone = True
        self.wake()

    async def left(self) -> None:
        """Return when the client has hung up."""
        while not self.gone:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class NodeDriver:
    """Runs a node against the wall clock.

    Args:
        make_node: a fresh node, nothing resident unless it is made so.
        speed: node seconds for each second of the wall clock.
        on_finished: told of every job that got all its tokens.
        stream_interval: tokens of a stream that are sent together, but for the first; as of vLLM's option of that name.
    """

    def __init__(
        self,
        make_node: Callable[[], EmulatedNode],
        speed: float,
        on_finished: Callable[[Finished], None],
        stream_interval: int = 1,
    ) -> None:
        self._stream_interval = stream_interval
        self._make_node = make_node
        self._speed = speed
        self._on_finished = on_finished
        self._clock = NodeClock(speed)
        self._node = make_node()
        self._tickets: dict[str, Ticket] = {}
        self._loads: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for_s = inf
        self._slowdown = 1.0

    # -- work ----------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> Ticket:
        """Hand a job to the node; raises what the node raises."""
        self._node.submit(job, self._clock.now_s())
        ticket = self._tickets[job.id] = Ticket(job)
        self._pump()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget a ticket; a job that is not finished leaves the node."""
        if self._tickets.pop(ticket.job.id, None) is not None:
            self._node.cancel(ticket.job.id, self._clock.now_s())
            self._pump()

    async def load(self, model: str) -> None:
        """Load or wake a model, and return when it is resident; raises what the node raises."""
        self._node.load(model, self._clock.now_s())
        self._pump()
        if self._node.where(model) is not Place.RESIDENT:
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._loads.setdefault(model, []).append(arrived)
            await arrived

    def unload(self, model: str) -> None:
        """Drop a model's weights; raises what the node raises."""
        self._node.unload(model, self._clock.now_s())
        self._pump()

    def sleep(self, models: Iterable[str], level: int) -> None:
        """Take models off the GPU; raises what the node raises."""
        for model in models:
            self._node.sleep(model, self._clock.now_s(), level)
        self._pump()

    def slow_loads(self, model: str, factor: float) -> None:
        """Let loads of a model take ``factor`` times as long from now on; raises what the node raises."""
        self._pump()
        self._node.slow_loads(model, factor)

    # -- state ---------------------------------------------------------------------------------------------------

    def state(self) -> NodeState:
        """Gauges and counters, now."""
        self._pump()
        return self._node.state()

    def set_slowdown(self, factor: float) -> None:
        """Run ``factor`` times slower than normal; ``inf`` stands still."""
        self._pump()
        self._slowdown = factor
        self._clock.set_rate(self._speed / factor)
        self._arm(again=True)

    def reset(self, why: str) -> None:
        """A fresh node; every request in flight fails with ``why``."""
        for ticket in self._tickets.values():
            ticket.failed = why
            ticket.wake()
        self._tickets.clear()
        for waiting in self._loads.values():
            for arrived in waiting:
                if not arrived.done():
                    arrived.set_exception(NodeResetError(why))
        self._loads.clear()
        self._clock = NodeClock(self._speed / self._slowdown)
        self._node = self._make_node()
        self._arm(again=True)

    def stop(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- time ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Bring the node up to now and tell the tickets."""
        for event in self._node.advance(self._clock.now_s()):
            self._tell(event)
        self._arm()

    def _tell(self, event: Event) -> None:
        match event:
            case Tokens() | FirstToken():
                for job_id in event.job_ids:
                    if (ticket := self._tickets.get(job_id)) is not None and ticket.job.stream:
                        ticket.fresh += 1
                        if ticket.fresh >= self._stream_interval or isinstance(event, FirstToken):
                            ticket.wake()
            case Finished():
                self._on_finished(event)
                if (ticket := self._tickets.pop(event.job.id, None)) is not None:
                    ticket.done = True
                    ticket.wake()
            case Loaded():
                for arrived in self._loads.pop(event.model, ()):
                    if not arrived.done():
                        arrived.set_result(None)

    def _arm(self, *, again: bool = False) -> None:
        """One timer, for the node's next event."""
        at_s = self._node.next_event_s()
        if at_s == self._timer_for_s and self._timer is not None and not again:
            return
        self.stop()
        self._timer_for_s = at_s
        wait_s = self._clock.until_s(at_s)
        if wait_s < inf:
            ticks = -(-wait_s // _TICK_S)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ticks * _TICK_S, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._pump()
