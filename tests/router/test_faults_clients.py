"""Clients that leave, stop reading, or are cancelled anywhere: one outcome each, and nothing stays behind."""

import asyncio
import json
import random
import socket
import time
from dataclasses import replace
from itertools import count

import pytest

from router.upstream import UpstreamError
from router.watchdog import Interrupt
from tests.router.fake_node import SILENT, STREAM, FakeNode, Reply
from tests.router.harness import CHAT, running_router, until
from tests.router.wire import post

IN_TURN = {"policy": {"name": "round_robin"}}
STREAMED = json.dumps({"model": "m", "stream": True}).encode()
ENDLESS = Reply(headers=STREAM.headers, chunks=(b"data: " + b"x" * 16_000 + b"\n\n",) * 2000)


async def a_client(router, body=STREAMED):
    """A raw client that sent its request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=2**12)
    writer.write(post(body=body))
    return reader, writer


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reads"),
    [
        pytest.param(SILENT, 0, id="before the headers"),
        pytest.param(
            Reply(headers=STREAM.headers, chunks=STREAM.chunks, stall_after=1), 1, id="in a silent stream"
        ),
        pytest.param(replace(ENDLESS, every_s=0.002), 1, id="in a stream that flows"),
    ],
)
async def test_the_node_learns_within_a_second_that_the_client_left(reply, reads):
    node = FakeNode(reply=reply)
    async with running_router({}, node) as router:
        reader, writer = await a_client(router)
        await until(lambda: node.concurrent == 1)
        for _ in range(reads):
            await reader.readuntil(b"data: ")

        writer.transport.abort()
        left_s = time.perf_counter()
        await until(lambda: node.closes_seen == 1)
        took_s = time.perf_counter() - left_s
        await router.quiet()

        assert took_s < 1.0
        assert router.outcomes() == {"client_closed": 1}
        (state,) = router.router.fleet.states
        assert (state.health.failures, state.latency_s) == (0, 0.0)  # neither a failure nor a fast answer


async def test_clients_that_leave_never_eject_a_node():
    node, other = FakeNode("node", SILENT), FakeNode("other", SILENT)
    async with running_router({}, node, other) as router:
        writers = [(await a_client(router))[1] for _ in range(20)]
        await until(lambda: node.concurrent + other.concurrent == 20)
        for writer in writers:
            writer.transport.abort()
        await router.quiet()

        assert router.outcomes() == {"client_closed": 20}
        assert router.router.fleet.ejections_total == 0


async def test_a_client_that_says_goodbye_politely_has_left_too():
    """A half-closed connection: nobody can wait for an answer behind it."""
    node = FakeNode(reply=SILENT)
    async with running_router({}, node) as router:
        _, writer = await a_client(router)
        await until(lambda: node.concurrent == 1)

        writer.write_eof()
        await router.quiet()
        writer.close()

        assert router.outcomes() == {"client_closed": 1}


# -- not reading -----------------------------------------------------------------------------------------------------


async def a_client_that_does_not_read(router, node):
    """It took a small window and leaves it full."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", router.port))
    await loop.sock_sendall(raw, post(body=STREAMED))
    await until(lambda: node.concurrent == 1)
    proxied = next(iter(router.router.watchdog._watches))
    await until(lambda: _is_blocked(proxied.task))
    return raw


def _is_blocked(task):
    """Whether the task waits for its client to take something in."""
    names = [frame.f_code.co_name for frame in task.get_stack()]
    return bool(names) and task._fut_waiter is not None and _waits_in_send(task.get_coro())


def _waits_in_send(coroutine):
    while coroutine is not None:
        if getattr(coroutine, "__name__", "") == "drain":
            return True
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return False


async def test_a_client_that_stops_reading_is_let_go_and_the_node_not_blamed():
    node = FakeNode(reply=ENDLESS)
    async with running_router({}, node) as router:
        stuck = await a_client_that_does_not_read(router, node)

        router.clock.skip(15.1)
        await router.quiet()
        stuck.close()

        assert router.outcomes() == {"client_closed": 1}
        assert node.closes_seen == 1
        assert router.router.fleet.states[0].health.failures == 0


async def test_a_client_that_stops_reading_does_not_hold_up_the_end():
    node = FakeNode(reply=ENDLESS)
    async with running_router({}, node) as router:
        stuck = await a_client_that_does_not_read(router, node)

        router.serving.stop()
        router.serving.stop()
        async with asyncio.timeout(5):
            await router.task
        stuck.close()

        assert router.outcomes() == {"aborted_drain": 1}


# -- cancelled at every step -----------------------------------------------------------------------------------------


class Steps:
    """An upstream in memory whose every call takes a few turns of the loop; says what to do by the attempt's number.

    Args:
        plan: for each attempt: ``ok``, ``stream``, ``500``, ``reset`` (before the headers) or ``broken`` (in the stream).
    """

    def __init__(self, *plan):
        self.plan = list(plan)
        self.opened = 0
        self.closed = 0

    async def send(self, node, method, target, headers, body):
        await turns(2)
        what = self.plan.pop(0)
        if what == "reset":
            raise UpstreamError("reset")
        self.opened += 1
        return StepAnswer(self, what)

    async def close(self):
        pass


class StepAnswer:
    def __init__(self, upstream, what):
        self._upstream = upstream
        self._what = what
        self.status = 500 if what == "500" else 200
        self.headers = [(b"content-type", b"application/json")]
        self.content_length = None if what in {"stream", "broken"} else 2

    async def chunks(self):
        for _ in range(3):
            await turns(1)
            yield b"data: x\n\n"
        if self._what == "broken":
            raise UpstreamError("broken")

    async def read(self):
        await turns(2)
        return b"{}"

    def close(self):
        self._upstream.closed += 1


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": CHAT,
    "raw_path": CHAT.encode(),
    "query_string": b"",
    "headers": [(b"host", b"h"), (b"content-length", str(len(STREAMED)).encode())],
}


async def one_request(router, upstream, steps, again, interrupt):
    """A request through the ASGI application, cancelled after so many turns of the loop; whether it was in time."""
    sent = []

    async def receive():
        await turns(1)
        return {"type": "http.request", "body": STREAMED, "more_body": False}

    async def send(message):
        await turns(1)
        sent.append(message)

    app = router.router.data
    app._hot["POST", CHAT]._upstream = upstream
    task = asyncio.create_task(app(SCOPE, receive, send))
    await turns(steps)
    in_time = not task.done()
    for _ in range(again):
        if interrupt is None:
            task.cancel()
        else:
            for watch in list(router.router.watchdog._watches):
                watch.cancel(interrupt)
        await turns(1)
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert not task.cancelled()
    return in_time


@pytest.mark.parametrize("interrupt", [None, *list(Interrupt)[1:]], ids=lambda why: str(why or "cancelled"))
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(("ok",), id="whole answer"),
        pytest.param(("stream",), id="stream"),
        pytest.param(("broken",), id="stream that breaks"),
        pytest.param(("reset", "ok"), id="retry after a reset"),
        pytest.param(("500", "stream"), id="retry after a 500"),
        pytest.param(("reset", "reset"), id="two resets"),
    ],
)
@pytest.mark.parametrize("again", [1, 3], ids=["once", "three times"])
async def test_cancelled_at_any_step_a_request_has_one_outcome_and_leaves_nothing(plan, interrupt, again):
    settings = {
        **IN_TURN,
        "upstream": {"retry_per_s": 1000.0},
        "outlier": {"failures": 10**6, "timeouts": 10**6},
    }
    async with running_router(settings, FakeNode("a"), FakeNode("b")) as router:
        for steps in count(1):  # cancelled any earlier it never began
            upstream = Steps(*plan)

            in_time = await one_request(router, upstream, steps, again, interrupt)

            where = f"cancelled after {steps} turns"
            assert sum(router.outcomes().values()) == steps, where
            assert router.router.dispatch.ledger.in_flight == 0, where
            assert [state.inflight for state in router.router.fleet.states] == [0, 0], where
            assert router.router.dispatch.keys.anyone.inflight == 0, where
            assert upstream.opened == upstream.closed, where
            assert len(router.router.watchdog) == 0, where
            if not in_time:
                break

        assert steps > 6
        assert len(router.outcomes()) > 1


# -- many at once ----------------------------------------------------------------------------------------------------


async def hang_up_at(router, dice, on):
    """A client that leaves at a moment the dice choose, or never; whether it sent its whole request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    request = post(body=STREAMED if on else b'{"model":"m"}')
    try:
        whole = dice.random() < 0.9
        writer.write(request if whole else request[: dice.randrange(len(request))])
        if dice.random() < 0.7:
            async with asyncio.timeout(dice.uniform(0.0, 0.25)):
                await reader.read()
        else:
            async with asyncio.timeout(2.0):
                await reader.readuntil(b"data: [DONE]" if on else b"}")
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort() if dice.random() < 0.5 else writer.close()


async def chaos(seed, clients):
    """Clients that come and go while one node is killed and another stalls; then everything must be accounted for."""
    dice = random.Random(seed)
    slow = replace(STREAM, every_s=0.03)
    nodes = [FakeNode("steady", STREAM), FakeNode("slow", slow), FakeNode("killed", slow), FakeNode("quick")]
    settings = {"admission": {"max_inflight": clients}, "policy": {"name": "random"}}
    async with running_router(settings, *nodes) as router:

        async def kill():
            await until(lambda: nodes[2].concurrent >= 3)
            await nodes[2].kill()

        killing = asyncio.create_task(kill())
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(hang_up_at(router, random.Random(dice.random()), on=dice.random() < 0.7))
                await asyncio.sleep(dice.expovariate(clients / 1.0))
        await killing
        await router.quiet(within_s=1.0)
        await until(lambda: len(router.router.watchdog) == 0, 1.0)

        outcomes = router.outcomes()
        stats, dispatch = router.router.stats, router.router.dispatch
        assert (
            dispatch.ledger.granted_total
            == stats.attempts
            == sum(s.requests for s in router.router.fleet.states)
        )
        refused = sum(stats.refusals.values())
        assert sum(outcomes.values()) == stats.attempts - stats.retries + refused
        assert {"ok", "client_closed"} <= set(outcomes)
        assert router.router.dispatch.keys.anyone.inflight == 0
        return outcomes


async def test_clients_hanging_up_at_random_and_a_node_killed_leave_nothing_behind():
    await chaos(seed=1, clients=200)


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(10))
async def test_chaos_of_a_thousand_clients_leaves_nothing_behind(seed):
    await chaos(seed, clients=1000)
