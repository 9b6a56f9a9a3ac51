"""Faults of learning, one by one: poisoned weights, a learner that dies, two of them, bad policies, feedback that lies."""

import asyncio
import random
import signal
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from ccr.control import Veto, refusing
from ccr.lesson import encode
from router.feedback.inbox import Inbox
from router.publishing.board import Board
from router.publishing.publisher import NAME, PausedError, Publisher
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from router.store.store import Delivered, Entry, FencedError
from tests.lessons import a_lesson
from tests.redis import REDIS
from tests.router.fake_node import FakeNode
from tests.router.harness import running_router, until
from tests.router.publishing.publications import KEY, file_of, the_worst, weights_file
from tests.router.publishing.test_follower import Bench, tampered


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    bench.publish("good")
    return bench


# -- 24: poisoned weights


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: tampered(path, number=np.nan), "unusable", id="NaN"),
        pytest.param(lambda path: tampered(path, number=1e30), "unusable", id="1e30"),
        pytest.param(lambda path: tampered(path, schema="another"), "unusable", id="other features"),
        pytest.param(lambda _: weights_file("good")[:-100], "unusable", id="cut off"),
        pytest.param(lambda path: file_of(path, the_worst()), "odd", id="the costliest node first"),
    ],
)
def test_24_poisoned_weights_are_refused_and_the_good_ones_serve(bench, make, reason):
    bench.publish_unchecked(make(bench.tmp_path))

    assert bench.told.names == ["good"]
    assert bench.refused == {reason: 1}


# -- 25: the learner is killed while it publishes


@pytest.mark.parametrize("step", ["put_blob", "point", "hint"])
def test_25_a_learner_killed_at_a_step_leaves_old_or_new(bench, tmp_path, step):
    """A real SIGKILL, before the step; every line is tried by `test_a_publisher_killed_at_every_line_leaves_old_or_new`."""
    program = f"""
import os, signal
from pathlib import Path
from router.publishing.publisher import Publisher
from router.store.embedded import EmbeddedStore
from tests.router.publishing.publications import KEY, weights_file
store = EmbeddedStore(Path({str(tmp_path / "store")!r}))
store.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Publisher(store, KEY).publish(weights_file("new"))
"""
    bench.store.release(bench.publisher.hold())
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=50)
    bench.follower.look()

    assert done.returncode == -signal.SIGKILL
    assert bench.told.names == (["good", "new"] if step == "hint" else ["good"])
    assert not bench.refused


# -- 26: two learners


@REDIS
def test_26_of_two_learners_one_publishes_and_the_stale_one_is_refused(redis_server):
    store = RedisStore(redis_server.url, timeout_s=5.0)
    one, other = Publisher(store, KEY, lease_s=0.2), Publisher(store, KEY)
    lease = one.hold()
    before = store.pointer(NAME)
    with pytest.raises(FencedError, match="stop one of the two"):
        other.publish(weights_file("other"))

    while store.lease(NAME, other.owner, 30.0) is None:  # the first one stalls until its lease is over
        pass
    other.publish(weights_file("other"))
    with pytest.raises(FencedError):
        store.point(NAME, before, b"too late", lease)

    assert other.current().name == "other"
    store.close()


# -- 27: a bad policy is promoted anyway: test_journey_guardrails.py drives it with traffic


def test_27_what_was_rolled_back_is_blocked_for_learner_and_replicas_until_cleared(bench):
    bad = bench.publisher.publish(weights_file("bad"))
    board = Board(bench.store, KEY, "r")
    board.change(refusing(Veto(sha256=bad.sha256, name="bad", why="late 60%", by="r", at_s=1e9)))
    board.turn()

    with pytest.raises(PausedError, match="late 60%"):
        bench.publisher.publish(weights_file("bad"))


# -- 28: an operator rolls back


async def test_28_a_rollback_by_hand_is_a_new_version_that_every_replica_has_within_five_seconds(tmp_path):
    settings = {"store": {"directory": str(tmp_path / "store")}, "publication": {"key": KEY.decode()}}
    publisher = Publisher(EmbeddedStore(tmp_path / "store"), KEY)
    async with running_router(settings | {"feedback": {"enabled": False}}, FakeNode("a")) as router:
        first = await asyncio.to_thread(publisher.publish, weights_file("one"))
        second = await asyncio.to_thread(publisher.publish, weights_file("two"))
        await until(lambda: router.router.policies.describe()["version"] == "two", 10.0)

        back = await asyncio.to_thread(publisher.roll_back, second.kept[0])
        await until(lambda: router.router.policies.describe()["published"] == list(back.fence), 5.0)

        assert router.router.policies.describe()["version"] == "one"
    assert (back.version, back.sha256) == (3, first.sha256)


# -- 39: feedback that comes twice, late, out of order, or from nobody


def test_39_records_in_any_order_any_number_of_times_are_learned_from_once():
    records = [Delivered("", "router", k, encode(a_lesson(at_s=1000.0 + k))) for k in range(3)]
    late = Delivered("", "router", 7, encode(a_lesson(at_s=10.0)))
    junk = Delivered("", "router", 8, b"junk")

    for order in permutations([*records, records[1], late, junk], 6):
        inbox = Inbox(None, "c", wall=lambda: 1010.0)
        found = inbox.accept(list(order))

        assert sorted(lesson.at_s for lesson in found) == [1000.0, 1001.0, 1002.0]
        assert inbox.left_out == {"duplicate": 1, "late": 1, "unreadable": 1}


@REDIS
def test_39_a_record_that_is_delivered_again_is_learned_from_once(redis_server):
    store = RedisStore(redis_server.url, timeout_s=5.0)
    rng = random.Random(1)
    numbers = list(range(1, 30))
    for _ in range(3):
        store.append("feedback", "router", [Entry(k, encode(a_lesson(at_s=1000.0 + k))) for k in numbers])
    inbox = Inbox(store, "c", wall=lambda: 1050.0)
    found = []
    for _ in range(10):
        found += inbox.take(rng.randint(1, 9))

    assert [lesson.at_s for lesson in found] == [1000.0 + k for k in numbers]
    store.close()
