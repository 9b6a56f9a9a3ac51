"""Weights that do harm, in running routers with real requests: rolled back, refused, and the heuristic until a person acts."""

import asyncio
import json
import os
import sys
import threading
from contextlib import suppress

import aiohttp
import pytest

from ccr.policies.learned import Learned
from ccr.settings import parse
from ccr.weights import save
from rl.online.learner import Learner
from rl.online.shelf import Shelf
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
    """Closed loop; on the router's fast clock a short stall of the machine is a timeout: of a connection, of an answer, or within one."""

    async def client():
        while not stop.is_set():
            with suppress(aiohttp.ClientPayloadError):
                assert (await router.post()).status in {200, 429, 502, 503, 504}

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


async def test_a_router_and_a_learner_end_up_with_the_same_weights_after_a_rollback(bad_file, tmp_path):
    """What the router went back to is what is published then, and what the next weights are compared with."""
    config = SETTINGS | {
        "store": {"directory": str(tmp_path / "store")},
        "learner": {"directory": str(tmp_path / "learner"), "retrain_every": 0},
    }
    store = EmbeddedStore(tmp_path / "store")
    learner = Learner(parse(json.dumps(config).encode(), "the test"), store, Shelf(tmp_path / "learner", KEY))
    learner._register = lambda now_s: None  # MLflow is tried elsewhere
    stop = threading.Event()
    async with running_router(config, *nodes()) as router, Traffic(router):
        life = asyncio.create_task(asyncio.to_thread(learner.run, stop))
        try:
            await until(lambda: guardian(router).state.fence.version == 1, 10.0)
            base = serves(router)
            await asyncio.to_thread(learner.publish, bad_file("bad", 1), "retrained")
            await until(lambda: serves(router) == "bad", 10.0)
            await until(lambda: serves(router) == base, 30.0)
            await until(lambda: learner.current.reason == "rollback", 10.0)
            await until(lambda: guardian(router).state.fence.version == 3, 10.0)
            async with asyncio.timeout(10.0):  # the learner says how it is once in a second
                while True:
                    told = (await router.admin("GET", "/admin/learner")).json
                    if told["learner"]["version"]["reason"] == "rollback":
                        break
                    await asyncio.sleep(0.1)
        finally:
            stop.set()
            await life

    assert serves(router) == base
    assert told["published"]["name"] == base
    assert told["learner"]["version"]["reason"] == "rollback"
    assert [veto["name"] for veto in told["control"]["vetoes"]] == ["bad"]


async def test_a_pause_and_its_end_from_the_command_line(tmp_path):
    settings = SETTINGS | {"store": {"directory": str(tmp_path / "store")}}
    learner = Learner(
        parse(json.dumps(settings).encode(), "the test"),
        EmbeddedStore(tmp_path / "store"),
        Shelf(tmp_path / "l", KEY),
    )
    learner._register = lambda now_s: None
    learner.turn()
    async with running_router(settings, FakeNode("a")) as router:

        async def ccr(*words):
            environment = os.environ | {"CCR_ADMIN__TOKEN": TOKEN, "CCR_ADMIN_URL": router.admin_url}
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ccr", "learner", *words, stdout=-1, stderr=-1, env=environment
            )
            out, error = await process.communicate()
            assert process.returncode == 0, error
            return out.decode()

        paused = await ccr("pause", "--why", "a release")
        with pytest.raises(PausedError, match="a release"):
            learner.publish(weights_file_of(tmp_path), "retrained")
        shown = json.loads(await ccr("status", "--json"))
        resumed = await ccr("resume")
        learner.publish(weights_file_of(tmp_path), "retrained")
        await until(lambda: version(router) == "some", 10.0)
        learner._heart_due_s = 0.0
        learner.turn()
        after = await ccr("status")
        learner.close()

    assert "paused (a release)" in paused
    assert shown["learner"]["records_per_s"] == 0.0
    assert shown["control"]["paused"] is True
    assert "paused" not in resumed
    assert "published: some, version 2" in after
    assert "learner: reading for" in after
    assert "version 2, some (retrained), not in MLflow yet" in after


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
