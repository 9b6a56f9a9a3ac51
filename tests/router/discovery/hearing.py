"""Hears what a discovery tells, one list at a time."""

import asyncio
from contextlib import asynccontextmanager


class Turns:
    """A sleep that lasts until the test gives the next turn."""

    def __init__(self):
        self._asleep = asyncio.Queue()
        self.slept = []

    async def sleep(self, delay_s):
        self.slept.append(delay_s)
        turn = asyncio.get_running_loop().create_future()
        self._asleep.put_nowait(turn)
        await turn

    async def until_asleep(self):
        """Wait until the discovery has done everything it had to do; its sleep goes on."""
        self._asleep.put_nowait(await self._asleep.get())

    async def next(self):
        """End this sleep, and wait for the next."""
        (await self._asleep.get()).set_result(None)
        await self.until_asleep()


@asynccontextmanager
async def watched(discovery):
    """The lists it told so far, growing; it is cancelled at the end."""
    told = []
    task = asyncio.create_task(discovery.watch(told.append))
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
