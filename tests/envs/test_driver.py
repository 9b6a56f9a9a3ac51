"""Node time runs at its rate, and a driver tells each ticket what is its own."""

import asyncio
from math import inf

import pytest

from envs.catalogue import catalogue
from envs.driver import NodeClock, NodeDriver
from envs.node import EmulatedNode
from envs.words import Job, NodeResetError

CHAT, CODE = "chat-7b@1", "code-7b@1"


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def a_driver(speed=1000.0, finished=None):
    def make():
        node = EmulatedNode(catalogue([CHAT, CODE]))
        node.place(CHAT)
        return node

    return NodeDriver(make, speed, (finished if finished is not None else []).append)


def test_node_time_starts_at_zero_and_runs_at_its_rate():
    wall = Wall()
    clock = NodeClock(10.0, wall)

    wall.now_s += 2.0

    assert clock.now_s() == 20.0
    assert clock.until_s(50.0) == 3.0
    assert clock.until_s(5.0) == 0.0


def test_a_change_of_rate_does_not_make_time_jump():
    wall = Wall()
    clock = NodeClock(10.0, wall)
    wall.now_s += 2.0

    clock.set_rate(1.0)
    wall.now_s += 3.0

    assert clock.now_s() == 23.0


def test_a_clock_that_stands_still_never_gets_there():
    clock = NodeClock(0.0, Wall())

    assert clock.until_s(1.0) == inf
    assert clock.now_s() == 0.0


async def test_a_streaming_ticket_gets_every_token_and_a_quiet_one_its_end():
    done = []
    driver = a_driver(finished=done)
    streaming = driver.submit(Job("a", CHAT, 10, 30, stream=True))
    quiet = driver.submit(Job("b", CHAT, 10, 30))

    tokens = 0
    while not streaming.done or streaming.fresh:
        await streaming.news()
        tokens += streaming.take()
    await quiet.end()

    assert (tokens, quiet.fresh) == (30, 0)
    assert {event.job.id for event in done} == {"a", "b"}
    driver.stop()


async def test_a_dropped_ticket_leaves_the_node():
    driver = a_driver(speed=1.0)
    ticket = driver.submit(Job("a", CHAT, 10, 1000))

    driver.drop(ticket)
    driver.drop(ticket)

    assert (driver.state().running, driver.state().cancelled) == (0, 1)


async def test_a_reset_fails_what_is_in_flight_and_what_waits_for_a_load():
    driver = a_driver(speed=1.0)
    ticket = driver.submit(Job("a", CHAT, 10, 1000))
    loading = asyncio.ensure_future(driver.load(CODE))
    await asyncio.sleep(0)

    driver.reset("the node was reset")
    await ticket.end()

    assert ticket.failed == "the node was reset"
    with pytest.raises(NodeResetError, match="was reset"):
        await loading
    driver.stop()


@pytest.mark.parametrize(("interval", "takes"), [(1, [1] * 21), (8, [1, 8, 8, 4])])
async def test_tokens_of_a_stream_come_together_but_for_the_first(interval, takes):
    """None is lost, and the last ones do not wait for more."""
    wall = Wall()
    driver = NodeDriver(lambda: placed(CHAT), 1.0, [].append, stream_interval=interval)
    driver._clock = NodeClock(1.0, wall)
    ticket = driver.submit(Job("a", CHAT, 100, 21, stream=True))
    taken = []

    async def read():
        while not (ticket.done and not ticket.fresh):
            await ticket.news()
            taken.append(ticket.take())

    reading = asyncio.create_task(read())
    while not reading.done():
        await asyncio.sleep(0)
        wall.now_s += 0.005
        driver.state()
    driver.stop()

    assert taken == takes


def placed(*models):
    node = EmulatedNode(catalogue([CHAT, CODE]))
    for model in models:
        node.place(model)
    return node


def test_a_load_cannot_take_no_time():
    with pytest.raises(ValueError, match="above 0"):
        placed().slow_loads(CODE, 0.0)
