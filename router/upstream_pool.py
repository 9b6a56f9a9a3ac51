"""The connections to one node: the one used last goes out first, at most so many are open, who waits is served in turn."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from router.upstream import UpstreamError
from router.upstream_connection import Connection


class Pool:
    """Connections to one node.

    A connection takes a place from before it is dialled until the loop says it is lost. A place that
    becomes free goes to whoever waits longest, as a connection does that is given back.

    Args:
        dial: opens a connection.
        size: most connections open at a time.
        idle_timeout_s: an idle connection is closed after this.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        dial: Callable[[Connection], Awaitable[None]],
        size: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._dial = dial
        self._size = size
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._places_taken = 0
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._none_left = asyncio.Event()

    @property
    def is_unused(self) -> bool:
        """Whether it could be forgotten."""
        return not self._places_taken

    def take(self) -> Connection | None:
        """An idle connection, the one used last; ``None`` if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_fit(self._clock()):
                return connection
        return None

    async def acquire(self) -> Connection:
        """An idle connection, or a new one, or the next to be given back.

        Raises:
            UpstreamError: refused, if a new one cannot be made.
        """
        while True:
            connection = self.take()
            if connection is not None:
                return connection
            if self._places_taken < self._size:
                self._places_taken += 1
                return await self._open()
            handed = await self._turn()
            if handed is None:
                return await self._open()
            if handed.is_open:
                return handed

    async def close(self) -> None:
        """Close every connection; who waits for one is refused as they go."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        while self._connections:
            self._none_left.clear()
            await self._none_left.wait()

    async def _open(self) -> Connection:
        """A new connection, in a place that was taken for it."""
        connection = Connection(self._give_back, self._lost)
        self._connections.add(connection)
        try:
            self._refuse_if_closed()
            await self._dial(connection)
            self._refuse_if_closed()
        except BaseException:
            connection.abort()
            self._lost(connection)
            raise
        return connection

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise UpstreamError("the client of the nodes is closed", refused=True)

    async def _turn(self) -> Connection | None:
        """Wait in line for a connection, or for a place, which is ``None``."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._return(waiter.result())
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiters.remove(waiter)
            raise

    def _return(self, handed: Connection | None) -> None:
        """Who was handed this does not want it any more."""
        if handed is None:
            self._free_place()
        elif handed.is_open:
            self._give_back(handed)

    def _give_back(self, connection: Connection) -> None:
        if self._pass_on(connection):
            return
        connection.idle_since_s = self._clock()
        self._idle.append(connection)
        if self._timer is None:
            self._wake_in(self._idle_timeout_s)

    def _lost(self, connection: Connection) -> None:
        """It is closed, or was never open; said twice, it counts once."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if not self._connections:
            self._none_left.set()
        self._free_place()

    def _free_place(self) -> None:
        if not self._pass_on(None):
            self._places_taken -= 1

    def _pass_on(self, handed: Connection | None) -> bool:
        """Give it to whoever waits longest, if anybody does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(handed)
                return True
        return False

    def _wake_in(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long; the oldest stand first."""
        self._timer = None
        oldest_s = self._clock() - self._idle_timeout_s
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.popleft().abort()
        if self._idle:
            self._wake_in(self._idle[0].idle_since_s - oldest_s)
