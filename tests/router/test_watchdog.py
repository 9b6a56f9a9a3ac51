import asyncio

import pytest

from router.watchdog import SWEEP_S, Interrupt, Watchdog


class Client:
    """What an ASGI server hands over as ``receive``: silent until the client leaves."""

    def __init__(self):
        self.left = asyncio.Event()
        self.asked = 0

    async def __call__(self):
        self.asked += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


class Exchange:
    """A task under watch that lasts until it is told to finish; ``ended`` says how it came out."""

    def __init__(self, watchdog, timeout_s=10.0, client=None):
        self.client = client
        self.finish = asyncio.Event()
        self.farewell = asyncio.Event()
        self.farewell.set()
        self.task = asyncio.create_task(self._run(watchdog, timeout_s))

    async def _run(self, watchdog, timeout_s):
        self.watch = watchdog.begin(0.0, timeout_s)
        self.watch.receive = self.client
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            await self.farewell.wait()
            return self.watch.interrupt
        else:
            return "finished"
        finally:
            watchdog.end(self.watch)

    @classmethod
    async def start(cls, watchdog, **options):
        exchange = cls(watchdog, **options)
        await turn()
        return exchange


async def turn():
    """Lets everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def watchdog():
    return Watchdog(lambda: 0.0)


async def test_what_is_overdue_is_interrupted_and_says_why(watchdog):
    exchange = await Exchange.start(watchdog, timeout_s=5.0)

    watchdog.sweep(5.0)
    await turn()
    assert not exchange.task.done()

    watchdog.sweep(5.001)
    assert await exchange.task is Interrupt.TIMEOUT
    assert len(watchdog) == 0


async def test_a_sign_of_life_moves_the_deadline(watchdog):
    exchange = await Exchange.start(watchdog, timeout_s=5.0)

    exchange.watch.deadline_s = 20.0
    watchdog.sweep(19.0)
    exchange.finish.set()

    assert await exchange.task == "finished"


async def test_a_client_that_leaves_ends_its_exchange(watchdog):
    client = Client()
    exchange = await Exchange.start(watchdog, client=client)
    watchdog.sweep(1.0)
    await turn()

    client.left.set()

    assert await exchange.task is Interrupt.CLIENT_GONE


async def test_nobody_listens_for_the_client_of_a_short_exchange(watchdog):
    client = Client()
    exchange = await Exchange.start(watchdog, client=client)

    watchdog.sweep(SWEEP_S / 2)
    await turn()
    assert client.asked == 0
    assert exchange.watch.listener is None

    watchdog.sweep(2 * SWEEP_S)
    watchdog.sweep(3 * SWEEP_S)
    await turn()
    assert client.asked == 1
    exchange.finish.set()
    await exchange.task


async def test_nobody_listens_while_the_body_is_being_read(watchdog):
    """Two readers of one connection would take the body from each other."""
    exchange = await Exchange.start(watchdog)

    watchdog.sweep(1.0)

    assert exchange.watch.listener is None
    exchange.finish.set()
    await exchange.task


async def test_the_listener_ends_with_the_exchange(watchdog):
    exchange = await Exchange.start(watchdog, client=Client())
    watchdog.sweep(1.0)
    await turn()

    exchange.finish.set()
    await exchange.task
    await turn()

    assert exchange.watch.listener.cancelled()


async def test_a_client_that_leaves_after_the_end_interrupts_nothing(watchdog):
    client = Client()
    exchange = await Exchange.start(watchdog, client=client)
    watchdog.sweep(1.0)
    await turn()

    exchange.finish.set()
    client.left.set()

    assert await exchange.task == "finished"
    await turn()
    assert exchange.watch.interrupt is Interrupt.NONE


async def test_a_deadline_that_passes_after_the_end_interrupts_nothing(watchdog):
    """One task serves several requests of a connection: a late cancellation would hit the next one."""
    served = asyncio.Event()

    async def connection():
        watch = watchdog.begin(0.0, 5.0)
        watchdog.end(watch)
        await served.wait()
        return watch.interrupt

    task = asyncio.create_task(connection())
    await turn()

    watchdog.sweep(100.0)
    served.set()

    assert await task is Interrupt.NONE


async def test_an_interrupted_exchange_can_tell_its_client_undisturbed(watchdog):
    exchange = await Exchange.start(watchdog, timeout_s=5.0, client=Client())
    exchange.farewell.clear()
    watchdog.sweep(6.0)
    await turn()

    watchdog.sweep(7.0)
    exchange.client.left.set()
    exchange.watch.cancel(Interrupt.DRAIN)
    await turn()
    exchange.farewell.set()

    assert await exchange.task is Interrupt.TIMEOUT


async def test_abort_all_waits_until_every_exchange_has_ended(watchdog):
    exchanges = [await Exchange.start(watchdog) for _ in range(3)]

    assert await watchdog.abort_all() == 3

    assert [exchange.task.result() for exchange in exchanges] == [Interrupt.DRAIN] * 3
    assert len(watchdog) == 0
    assert await watchdog.abort_all() == 0


async def test_each_sweep_lets_others_do_their_regular_work():
    swept, moments_s = asyncio.Event(), []

    def on_sweep(now_s):
        moments_s.append(now_s)
        swept.set()

    watchdog = Watchdog(lambda: 42.0, on_sweep)
    running = asyncio.create_task(watchdog.run())
    await swept.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert moments_s == [42.0]
