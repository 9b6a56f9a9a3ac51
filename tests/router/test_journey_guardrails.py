"""Weights that do harm, in running routers with real requests: rolled back, refused, and the heuristic until a person acts."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from ccr.cli import cli
from ccr.policies.learned import Learned
from ccr.weights import save
from router.publishing import presence
from router.publishing.publisher import PausedError, Publisher
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from tests.redis import REDIS
from tests.router.fake_node import FakeNode, Reply
from tests.router.harness import TOKEN, running_router, until
from tests.router.publishing.publications import KEY
from tests.weights import a_network, some_weights

SPEED = 10.0
SETTINGS = {
    "server": {"clock_speed": SPEED},
    "publication": {"key": KEY.decode(), "interval": 0.05, "trial": 60},
    "models": {"m": {"gib": 7.0}},
}


@pytest.fixture
def bad_file(tmp_path, monkeypatch):
    """Bytes of weights whose scores are turned round where they serve: the file itself passes every check."""
    plain = Learned.logits

    def logits(self, look, mask):
        found = plain(self, look, mask)
        if self.version.startswith("bad"):
            found[:-2] = -found[:-2]
            found[-2:] = -1e9
        return found

    monkeypatch.setattr(Learned, "logits", logits)

    def made(name, seed):
        path = tmp_path / f"{name}.npz"
        save(some_weights(a_network(seed), version=name), path)
        return path.read_bytes()

    return made


def nodes():
    """Three that answer in a tenth of a second: two seconds of the router's clock."""
    return [FakeNode(name, Reply(chunks=(b"{}", b"{}"), every_s=0.05)) for name in "abc"]


def version(router):
    return router.router.policies.describe()["version"]


def serves(router):
    return guardian(router).state.serves


def guardian(router):
    return router.router.control.desk.guardian


async def traffic(router, stop, clients=24):
    """Closed loop."""

    async def client():
        while not stop.is_set():
            assert (await router.post()).status in {200, 429}

    await asyncio.gather(*[client() for _ in range(clients)])


class Traffic:
    """Runs while the block does."""

    def __init__(self, router):
        self._router, self._stop = router, asyncio.Event()

    async def __aenter__(self):
        self._task = asyncio.create_task(traffic(self._router, self._stop))

    async def __aexit__(self, *_):
        self._stop.set()
        await self._task


async def test_the_worst_node_is_rolled_back_and_refused_until_a_person_clears_it(bad_file, tmp_path):
    """FAULTS.md row 27, with the store in a directory."""
    settings = SETTINGS | {"store": {"directory": str(tmp_path / "store")}}
    publisher = Publisher(EmbeddedStore(tmp_path / "store"), KEY)
    async with running_router(settings, *nodes()) as router, Traffic(router):
        base = version(router)
        published = await asyncio.to_thread(publisher.publish, bad_file("bad", 1))
        await until(lambda: version(router) == "bad", 10.0)
        began_s = router.clock()
        await until(lambda: version(router) == base, 30.0)
        took_s = router.clock() - began_s
        await until(lambda: guardian(router).board.is_told)
        told = (await router.admin("GET", "/admin/learner")).json
        with pytest.raises(PausedError, match="rolled back"):
            await asyncio.to_thread(publisher.publish, bad_file("bad", 1))
        page = (await router.get("/metrics")).body.decode()
        resumed = await router.admin("POST", "/admin/learner/resume", {})
        await until(lambda: version(router) == "bad", 10.0)

    assert took_s <= 30.0
    assert [veto["sha256"] for veto in told["control"]["vetoes"]] == [published.sha256]
    assert "ccr_rollbacks_total" in page
    assert "ccr_weights_vetoed 1.0" in page
    assert resumed.json["control"]["vetoes"] == []


@REDIS
async def test_all_replicas_roll_back_and_the_second_time_stops_them_until_resume(bad_file, redis_server):
    """FAULTS.md row 27, with a real Redis: one router has the traffic, the other follows it."""
    settings = SETTINGS | {"store": {"redis_url": redis_server.url}}
    store = RedisStore(redis_server.url, timeout_s=5.0)
    publisher = Publisher(store, KEY)
    async with running_router(settings, *nodes()) as one, running_router(settings, FakeNode("z")) as other:
        base = version(one)
        async with Traffic(one):
            await asyncio.to_thread(publisher.publish, bad_file("bad", 1))
            await until(lambda: version(one) == version(other) == "bad", 10.0)
            await until(lambda: version(one) == version(other) == base, 30.0)
            await asyncio.to_thread(publisher.publish, bad_file("bad 2", 2))
            await until(lambda: serves(one) == "bad 2", 10.0)
            await until(lambda: serves(one) == serves(other) == "", 30.0)
            policy = (await one.post()).headers["x-ccr-policy"]
            await asyncio.to_thread(publisher.publish, bad_file("good", 3))
            await asyncio.sleep(0.5)
            still = serves(one), serves(other)
            await other.admin("POST", "/admin/learner/resume", {"keep_vetoes": True})
            await until(lambda: version(one) == version(other) == "good", 10.0)

    assert policy == "hot_cold"
    assert still == ("", "")
    store.close()


@REDIS
async def test_a_rollback_needs_no_store(bad_file, redis_server):
    settings = SETTINGS | {"store": {"redis_url": redis_server.url}}
    store = RedisStore(redis_server.url, timeout_s=5.0)
    async with running_router(settings, *nodes()) as router, Traffic(router):
        base = version(router)
        await asyncio.to_thread(Publisher(store, KEY).publish, bad_file("bad", 1))
        await until(lambda: version(router) == "bad", 10.0)
        redis_server.kill()
        await until(lambda: version(router) == base, 30.0)
        told = (await router.admin("GET", "/admin/learner")).json
        redis_server.start()
        await until(lambda: guardian(router).board.is_told, 15.0)

    assert told["control"]["in_store"] is False
    assert len(told["control"]["vetoes"]) == 1
    store.close()


async def test_a_pause_and_its_end_from_the_command_line(tmp_path):
    settings = SETTINGS | {"store": {"directory": str(tmp_path / "store")}}
    store = EmbeddedStore(tmp_path / "store")
    facts = {"state": "reading", "version": 4, "gate": {"words": "passed"}, "records_per_s": 31.5}
    store.put(presence.LEARNER, "l", json.dumps(facts).encode(), 600.0)
    publisher = Publisher(store, KEY)
    async with running_router(settings, FakeNode("a")) as router:

        def ccr(*words):
            environment = {"CCR_ADMIN__TOKEN": TOKEN, "CCR_ADMIN_URL": router.admin_url}
            return asyncio.to_thread(CliRunner().invoke, cli, ["learner", *words], env=environment)

        paused = await ccr("pause", "--why", "a release")
        with pytest.raises(PausedError, match="a release"):
            publisher.publish(weights_file_of(tmp_path))
        shown = await ccr("status", "--json")
        resumed = await ccr("resume")
        publisher.publish(weights_file_of(tmp_path))
        await until(lambda: version(router) == "some", 10.0)
        after = await ccr("status")

    assert "paused (a release)" in paused.output
    found = json.loads(shown.output)
    assert found["learner"]["records_per_s"] == 31.5
    assert found["control"]["paused"] is True
    assert "paused" not in resumed.output
    assert "published: some, version 1" in after.output
    assert "learner: reading, version 4" in after.output


def weights_file_of(tmp_path):
    save(some_weights(a_network(), version="some"), tmp_path / "some.npz")
    return (tmp_path / "some.npz").read_bytes()


async def test_a_router_that_follows_nothing_says_so():
    async with running_router({}, FakeNode("a")) as router:
        answer = await router.admin("POST", "/admin/learner/pause", {})

    assert answer.status == 409
    assert "publication.key" in answer.json["error"]["message"]


async def test_exploration_is_told_and_costs_what_it_says():
    settings = {
        "policy": {"name": "least_cost", "exploration": 0.5, "exploration_budget": 1.0},
        "models": {"m": {"gib": 7.0}},
    }
    async with running_router(settings, *nodes()) as router:
        await until(lambda: router.router.fleet.at(router.clock()).resident("m").all())
        for _ in range(10):
            await router.post()
        page = (await router.get("/metrics")).body.decode()
        decisions = (await router.admin("GET", "/admin/decisions")).json

    assert "ccr_exploration_cost_seconds_total" in page
    assert {decision["exploration"] for decision in decisions} == {0.5}
    assert all(min(decision["probabilities"]) >= 0.5 / 3 - 1e-9 for decision in decisions)
