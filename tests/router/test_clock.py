import time

import pytest

from ccr.settings import Settings
from ccr.types import Reading
from router.app import Router
from router.clock import Clock
from tests.factories import a_spec


class Wall:
    """A wall clock that moves when somebody sleeps."""

    def __init__(self):
        self.now_s = 100.0

    async def rest(self, length_s):
        self.now_s += length_s

    def clock(self, speed):
        return Clock(lambda: self.now_s * speed, speed, self.rest)


@pytest.mark.parametrize("speed", [0.1, 1.0, 10.0])
async def test_whoever_sleeps_by_it_wakes_when_it_says_so(speed):
    clock = Wall().clock(speed)
    before_s = clock.now_s()

    await clock.sleep(30.0)

    assert clock.now_s() - before_s == pytest.approx(30.0)


async def test_a_fast_clock_sleeps_a_part_of_the_time():
    wall = Wall()

    await wall.clock(10.0).sleep(30.0)

    assert wall.now_s == pytest.approx(103.0)


def test_there_and_back_changes_nothing():
    clock = Clock(speed=8.0)

    assert clock.from_the_wall_s(clock.on_the_wall_s(3.0)) == 3.0
    assert clock.on_the_wall_s(8.0) == 1.0


def test_without_a_speed_it_is_the_wall_itself():
    assert Clock.at(1.0).now_s is time.monotonic


def test_it_runs_as_fast_as_it_says():
    before_s, clock_s, after_s = time.monotonic(), Clock.at(10.0).now_s(), time.monotonic()

    assert 10.0 * before_s <= clock_s <= 10.0 * after_s


def test_the_seconds_of_a_node_s_telemetry_become_the_router_s():
    router = Router(Settings(server={"clock_speed": 10.0}), "token", clock=lambda: 0.0, seed=1)
    router.fleet.replace([a_spec("a")], 0.0)

    router._by_our_clock(Reading())
    reading = router._by_our_clock(Reading(running=3.0, load_s={"chat": 0.6}))

    assert reading == Reading(running=3.0, load_s={"chat": pytest.approx(6.0)})


def test_moments_become_seconds_since_1970_at_the_clocks_speed():
    clock = Clock(lambda: 100.0, speed=10.0)

    since_1970 = clock.since_1970(5000.0)

    assert since_1970(100.0) == 5000.0
    assert since_1970(120.0) == 5002.0
