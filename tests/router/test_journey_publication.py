"""Weights on their way into running routers: all take them, no request notices, and without them a heuristic serves."""

import asyncio
from collections import Counter

import pytest

from ccr.lesson import decode
from router.feedback.feeder import STREAM
from router.publishing.publisher import Publisher
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from tests.redis import REDIS
from tests.router.fake_node import FakeNode
from tests.router.harness import running_router, until
from tests.router.publishing.publications import KEY, weights_file

PUBLICATION = {"key": KEY.decode(), "interval": 0.05}


@pytest.fixture
def settings(tmp_path):
    return {"store": {"directory": str(tmp_path / "store")}, "publication": PUBLICATION}


@pytest.fixture
def publisher(tmp_path):
    return Publisher(EmbeddedStore(tmp_path / "store"), KEY)


def version(router):
    return router.router.policies.describe()["version"]


async def test_published_weights_are_put_in_force(settings, publisher):
    async with running_router(settings, FakeNode("a")) as router:
        before = version(router)
        publication = publisher.publish(weights_file("one"))
        await until(lambda: version(router) == "one")
        described = router.router.policies.describe()
        page = (await router.get("/metrics")).body

    assert before != "one"
    assert described["published"] == list(publication.fence)
    assert b"ccr_weights_version 1.0" in page


async def test_no_request_fails_while_weights_are_swapped(settings, publisher):
    async with running_router(settings, FakeNode("a"), FakeNode("b")) as router:
        statuses, swaps = Counter(), 5

        async def ask():
            while version(router) != str(swaps):
                statuses[(await router.post()).status] += 1

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for number in range(1, swaps + 1):
            await asyncio.to_thread(publisher.publish, weights_file(str(number)))
            await until(lambda number=number: version(router) == str(number))
        await asyncio.gather(*asking)

    assert set(statuses) == {200}
    assert statuses[200] > swaps


async def test_records_name_the_weights_that_decided(settings, publisher, tmp_path):
    async with running_router(settings, FakeNode("a")) as router:
        await router.post()
        publication = publisher.publish(weights_file("one"))
        await until(lambda: version(router) == "one")
        await router.post()
        await until(lambda: router.router.feeder.counts().stored == 2)

    found = [decode(one.data) for one in EmbeddedStore(tmp_path / "store").read(STREAM, "g", "c", 10, 1e6)]
    assert [(one.weights_epoch, one.weights_version) for one in found] == [(0, 0), tuple(publication.fence)]


async def test_another_policy_that_was_chosen_stays(settings, publisher):
    async with running_router(settings | {"policy": {"name": "random"}}, FakeNode("a")) as router:
        publisher.publish(weights_file("one"))
        await until(lambda: router.router.follower.state.name == "one")
        await router.post()

        assert router.router.policies.engine.policy.name == "random"


async def test_without_a_key_nothing_is_followed(settings, publisher):
    async with running_router(settings | {"publication": {}}, FakeNode("a")) as router:
        publisher.publish(weights_file("one"))
        await router.post()

        assert router.router.follower is None


async def test_without_word_of_a_publisher_the_fallback_serves_until_it_is_back(settings, publisher):
    stale = settings | {"publication": PUBLICATION | {"stale_after": 0.5}}
    async with running_router(stale, FakeNode("a")) as router:
        publisher.publish(weights_file("one"))
        await until(lambda: version(router) == "one")
        pointer = router.router.store.pointer
        router.router.store.pointer = lambda _: None

        await until(lambda: router.router.policies.engine.policy.name == "hot_cold")
        served = await router.post()
        router.router.store.pointer = pointer
        await until(lambda: version(router) == "one")

    assert served.status == 200
    assert served.headers["x-ccr-policy"] == "hot_cold"


@REDIS
async def test_all_replicas_follow_one_redis_and_outlive_it(redis_server):
    settings = {"store": {"redis_url": redis_server.url}, "publication": PUBLICATION}
    store = RedisStore(redis_server.url, timeout_s=5.0)
    async with (
        running_router(settings, FakeNode("a")) as one,
        running_router(settings, FakeNode("b")) as other,
    ):
        await asyncio.to_thread(Publisher(store, KEY).publish, weights_file("one"))
        await until(lambda: version(one) == version(other) == "one")

        redis_server.kill()
        await until(lambda: not one.router.store.is_up and not other.router.store.is_up)
        statuses = {(await router.post()).status for router in (one, other)}
        assert version(one) == version(other) == "one"

        redis_server.start()
        await until(lambda: one.router.store.is_up and other.router.store.is_up, 10.0)

    assert statuses == {200}
    store.close()


@REDIS
async def test_a_flushed_redis_is_filled_again_by_the_learner(redis_server):
    settings = {"store": {"redis_url": redis_server.url}, "publication": PUBLICATION}
    store = RedisStore(redis_server.url, timeout_s=5.0)
    publisher = Publisher(store, KEY)
    async with running_router(settings, FakeNode("a")) as router:
        await asyncio.to_thread(publisher.publish, weights_file("one"))
        await until(lambda: version(router) == "one")
        with redis_server.client() as client:
            client.flushall()
        assert publisher.current() is None

        await asyncio.to_thread(publisher.publish, weights_file("two"))
        await until(lambda: version(router) == "two")

        assert router.router.follower.state.fence.version == 2
        assert not router.router.follower.state.refused
    store.close()
