"""Records of a running router: one for each request, in order, and no request ever waits for the store."""

import asyncio
import signal
import time
from collections import Counter

import pytest
import structlog.testing

from ccr.lesson import OUTCOMES, Flag, decode
from router.feedback.feeder import STREAM
from router.feedback.inbox import Inbox
from router.store.embedded import EmbeddedStore
from router.store.frames import frames
from router.store.redis_store import RedisStore
from tests.redis import REDIS
from tests.router.fake_node import DEAD, MODEL, FakeNode
from tests.router.harness import CHAT, running_router, until
from tests.router.test_journey_process import a_process
from tests.router.test_journey_recording import a_full_disk
from tests.router.test_journey_recording import logs as logs  # noqa: PLC0414 - a fixture
from tests.router.test_journey_sidecar import ROUTE, feedback, routed

CANARY = "xyzzy-canary-of-the-tests"
NEVER_S = 1e6


def counts(router):
    return router.router.feeder.counts()


async def brought_away(router, within_s=10.0):
    """Everything that happened is in the store."""
    await until(lambda: counts(router).stored == counts(router).taken + counts(router).recovered, within_s)


async def lessons(router, store):
    await brought_away(router)
    return [decode(one.data) for one in entries(store)]


def entries(store):
    return store.read(STREAM, "test", "c", 100_000, NEVER_S)


def adds_up(found):
    return found.taken + found.recovered == (
        found.waiting + found.stored + found.spooled + found.dropped.total()
    )


def outcomes(found):
    return Counter(str(OUTCOMES[one.outcome]) for one in found)


@pytest.fixture
def store(tmp_path):
    store = EmbeddedStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def embedded(tmp_path):
    return {"store": {"directory": str(tmp_path / "store")}}


# -- what is told


async def test_each_request_has_one_record(embedded, store):
    async with running_router(embedded, FakeNode("a"), FakeNode("b")) as router:
        for _ in range(5):
            await router.post()
        await router.post(body=b"no JSON")

        found = await lessons(router, store)

    assert outcomes(found) == {"ok": 5, "rejected": 1}
    assert all(one.is_end for one in found)
    good = found[0]
    assert good.flags & Flag.LOOKED
    assert (len(good.mask), good.weights_version) == (2, 0)
    assert abs(good.at_s - time.time()) < 60.0
    assert 0.0 < good.total_s < 5.0


async def test_a_try_that_failed_has_a_record_of_its_own(embedded, store):
    settings = embedded | {"policy": {"name": "random"}}
    async with running_router(settings, FakeNode("a", DEAD), FakeNode("b")) as router:
        while not router.router.stats.retries:
            await router.post()

        found = await lessons(router, store)

    (went_on,) = [one for one in found if not one.is_end]
    assert str(OUTCOMES[went_on.outcome]) == "upstream_reset"
    assert went_on.charged_s == 30.0
    again = next(one for one in found if one.flags & Flag.RETRY)
    assert again.is_measured


async def test_a_caller_of_route_is_told_apart(embedded, store):
    async with running_router(embedded, FakeNode("a")) as router:
        decision = await routed(router)
        await feedback(router, decision["decision_token"], status="ok", latency_ms=1)
        await feedback(router, decision["decision_token"], status="ok", latency_ms=1)

        found = await lessons(router, store)

    assert [bool(one.flags & Flag.REPORTED) for one in found] == [True]


async def test_no_word_of_a_client_is_in_the_store(embedded, store, tmp_path):
    async with running_router(embedded, FakeNode("a")) as router:
        body = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "user": CANARY}
        headers = {"x-session-id": CANARY, "x-request-id": CANARY, "x-anything": CANARY}
        await router.post(body=body, headers=headers)
        await router.post(CHAT + "?" + CANARY, body={"model": CANARY}, headers=headers)
        await routed(router, {**ROUTE, "headers": headers})
        await brought_away(router)

    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 500
    assert all(CANARY.encode() not in path.read_bytes() for path in files)


async def test_the_learner_takes_them(embedded, store):
    async with running_router(embedded, FakeNode("a")) as router:
        await router.post()
        await brought_away(router)
    inbox = Inbox(store, "c")

    assert outcomes(inbox.take()) == {"ok": 1}
    assert not inbox.left_out


async def test_without_a_store_nothing_is_kept():
    async with running_router({}, FakeNode("a")) as router:
        await router.post()

        assert router.router.feeder is None
        page = (await router.get("/metrics")).body

    assert b"ccr_feedback_taken_total 0.0" in page


async def test_it_can_be_switched_off(embedded):
    async with running_router(embedded | {"feedback": {"enabled": False}}, FakeNode("a")) as router:
        assert router.router.feeder is None


# -- what a disk does


async def test_when_the_disk_is_full_serving_goes_on_and_losses_are_counted(embedded, tmp_path):
    settings = embedded | {"feedback": {"directory": str(tmp_path / "spool")}}
    async with running_router(settings, FakeNode("a")) as router:
        await router.post()
        await brought_away(router)
        with a_full_disk(free=10):
            statuses = [(await router.post()).status for _ in range(20)]
            await until(lambda: counts(router).dropped.total() == 20)
        await router.post()
        await until(lambda: counts(router).stored == 2)
        found = counts(router)

    assert set(statuses) == {200}
    assert {reason for reason, number in found.dropped.items() if number} == {"spool_failed"}
    assert adds_up(found)


async def test_a_spool_that_cannot_be_is_told_and_serving_goes_on(embedded, tmp_path):
    (tmp_path / "file").write_text("")
    with structlog.testing.capture_logs() as logged:
        settings = embedded | {"feedback": {"directory": str(tmp_path / "file")}}
        async with running_router(settings, FakeNode("a")) as router:
            assert (await router.post()).status == 200
            await brought_away(router)

    assert "feedback.no_spool" in [event["event"] for event in logged]


# -- what a Redis does


@pytest.fixture
def in_redis(redis_server, tmp_path):
    return {"store": {"redis_url": redis_server.url}, "feedback": {"directory": str(tmp_path / "spool")}}


@pytest.fixture
def redis_store(redis_server):
    store = RedisStore(redis_server.url, timeout_s=5.0)
    yield store
    store.close()


class Load:
    """Requests one after the other, until told to stop; remembers what became of each."""

    def __init__(self, router, width=4):
        self.statuses = Counter()
        self.slowest_s = 0.0
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(router)) for _ in range(width)]

    async def _run(self, router):
        while not self._stop:
            started_s = time.monotonic()
            self.statuses[(await router.post()).status] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)

    @property
    def number(self):
        return self.statuses.total()

    async def more(self, number):
        goal = self.number + number
        await until(lambda: self.number >= goal, 20.0)

    async def end(self):
        self._stop = True
        await asyncio.gather(*self._tasks)


@REDIS
async def test_a_redis_that_is_killed_under_load_loses_nothing_and_has_nothing_twice(
    in_redis, redis_server, redis_store
):
    async with running_router(in_redis, FakeNode("a"), FakeNode("b")) as router:
        load = Load(router)
        await load.more(50)
        for _ in range(2):
            redis_server.kill()
            await until(lambda: counts(router).spooled > 20)
            assert not router.router.store.is_up
            redis_server.start()
            await until(lambda: not counts(router).spooled, 20.0)
            await load.more(20)
        await load.end()
        await brought_away(router)
        found = counts(router)

    stored = entries(redis_store)
    assert set(load.statuses) == {200}
    assert found.taken == load.number == len(stored)
    assert found.dropped.total() == 0
    assert [one.number for one in stored] == list(range(1, load.number + 1))


@REDIS
async def test_a_redis_that_hangs_holds_up_no_request(in_redis, redis_server, redis_store):
    async with running_router(in_redis, FakeNode("a")) as router:
        load = Load(router, width=2)
        await load.more(20)
        redis_server.signal(signal.SIGSTOP)
        await until(lambda: counts(router).spooled > 50, 20.0)
        await load.end()
        redis_server.signal(signal.SIGCONT)
        await brought_away(router, 20.0)

    assert set(load.statuses) == {200}
    assert (
        load.slowest_s < 0.5
    )  # a request that waited for the store once would pass; one that retries would not
    assert [one.number for one in entries(redis_store)] == list(range(1, load.number + 1))


@REDIS
async def test_a_redis_that_is_flushed_gets_what_comes_after(in_redis, redis_server, redis_store):
    async with running_router(in_redis, FakeNode("a")) as router:
        await router.post()
        await brought_away(router)
        with redis_server.client() as client:
            client.flushall()
        await router.post()
        await brought_away(router)

    assert [one.number for one in entries(redis_store)] == [2]


@REDIS
async def test_a_redis_that_is_full_leaves_them_on_the_disk(in_redis, redis_server, redis_store):
    async with running_router(in_redis, FakeNode("a")) as router:
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
        statuses = {(await router.post()).status for _ in range(10)}
        await until(lambda: counts(router).spooled == 10)
        assert not router.router.store.is_up
        with redis_server.client() as client:
            client.config_set("maxmemory", "0")
        await brought_away(router)
        found = counts(router)

    assert statuses == {200}
    assert adds_up(found)
    assert len(entries(redis_store)) == 10


@REDIS
async def test_a_router_that_is_killed_loses_a_tenth_of_a_second_at_most(
    in_redis, redis_server, redis_store, tmp_path
):
    """With Redis away: what the killed one had put on its disk, the next one brings, whole and once."""
    redis_server.kill()
    node, answered = FakeNode("a"), []
    async with a_process(tmp_path, in_redis, node) as (process, http):
        started_s = time.monotonic()
        while len(answered) < 50 or time.monotonic() < started_s + 1.0:
            async with http.post(process.url + CHAT, json={"model": MODEL}) as answer:
                assert answer.status == 200
            answered.append(time.monotonic())
        killed_s = time.monotonic()
        process.child.send_signal(signal.SIGKILL)
        await process.exit_code()
    await node.kill()
    left = on_disk(tmp_path)
    redis_server.start()

    async with running_router(in_redis, FakeNode("b")) as router:
        await brought_away(router)
        assert counts(router).recovered == left

    assert [one.number for one in entries(redis_store)] == list(range(1, left + 1))
    # A turn of the feeder every 0.1 s; the rest is what a busy machine may add to one.
    assert left >= sum(moment_s < killed_s - 0.5 for moment_s in answered) > 0


def on_disk(tmp_path):
    return len(list(frames(tmp_path / "spool")))


@REDIS
async def test_a_router_without_its_redis_starts_and_is_ready(in_redis, redis_server):
    redis_server.kill()

    async with running_router(in_redis, FakeNode("a")) as router:
        await router.post()
        await until(lambda: counts(router).spooled == 1)
        ready = await router.get("/readyz")
        page = (await router.get("/metrics")).body

    assert ready.status == 200
    assert b"ccr_store_up 0.0" in page
    assert b"ccr_feedback_spooled 1.0" in page
