"""Publishing: one at a time, whole or not at all, in an order that nothing turns back."""

import json
import subprocess
import sys
import time

import pytest

from ccr.control import Veto, paused, refusing
from ccr.errors import WeightsError
from ccr.policies.learned import SHIPPED
from ccr.publication import KEPT, Fence, opened
from router.demo.redis_server import RedisServer
from router.publishing.board import Board
from router.publishing.publisher import NAME, PausedError, Publisher
from router.store.embedded import EmbeddedStore
from router.store.store import FencedError
from tests.redis import REDIS
from tests.router.publishing.publications import KEY, file_of, the_worst, weights_file


class Wall:
    """Time that the test moves."""

    def __init__(self):
        self.now_s = 1_700_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def store(tmp_path, wall):
    return EmbeddedStore(tmp_path, wall=wall)


def a_publisher(store, wall=time.time, **fields):
    return Publisher(store, KEY, wall=wall, **fields)


def pointed(store):
    return opened(store.pointer(NAME), KEY)


def test_what_is_published_can_be_found(store):
    publication = a_publisher(store).publish(weights_file("one"))

    assert pointed(store) == publication
    assert store.blob(publication.sha256) == weights_file("one")
    assert (publication.name, publication.version, publication.reason) == ("one", 1, "trained")


def test_versions_count_and_the_epoch_stays_with_the_publisher(store):
    publisher = a_publisher(store)

    fences = [publisher.publish(weights_file(name)).fence for name in ("one", "two", "one")]

    assert [fence.version for fence in fences] == [1, 2, 3]
    assert len({fence.epoch for fence in fences}) == 1


def test_weights_that_no_replica_would_take_are_not_published(store):
    with pytest.raises(WeightsError, match="not a whole"):
        a_publisher(store).publish(b"junk")

    assert store.pointer(NAME) is None


def test_weights_that_do_what_nobody_would_are_not_published(store, tmp_path):
    with pytest.raises(WeightsError, match="agree with the heuristic"):
        a_publisher(store).publish(file_of(tmp_path, the_worst()))

    assert store.pointer(NAME) is None


def test_the_shipped_weights_can_be_published(store):
    """With them a learner begins: training must not bring any that replicas would refuse."""
    assert a_publisher(store).publish(SHIPPED.read_bytes()).version == 1


def test_while_one_publishes_another_may_not(store):
    one, other = a_publisher(store), a_publisher(store)
    one.publish(weights_file("one"))

    with pytest.raises(FencedError, match="stop one of the two"):
        other.publish(weights_file("two"))

    assert pointed(store).name == "one"


def test_who_takes_over_begins_a_new_epoch_and_goes_on_counting(store, wall):
    before = a_publisher(store).publish(weights_file("one"))
    wall.now_s += 31.0

    after = a_publisher(store).publish(weights_file("two"))

    assert after.version == before.version + 1
    assert after.epoch > before.epoch


def test_who_was_taken_over_while_it_was_publishing_is_refused(store, wall):
    """It holds the lease, stalls before the last step, and comes back when another has published."""

    class Stalls:
        def __getattr__(self, name):
            return getattr(store, name)

        def put_blob(self, data):
            wall.now_s += 31.0
            a_publisher(store).publish(weights_file("the other's"))
            return store.put_blob(data)

    with pytest.raises(FencedError):
        a_publisher(Stalls()).publish(weights_file("too late"))

    assert pointed(store).name == "the other's"


def test_a_rollback_is_a_new_version_with_old_weights(store):
    publisher = a_publisher(store)
    first = publisher.publish(weights_file("one"))
    second = publisher.publish(weights_file("two"))

    back = publisher.roll_back(second.kept[0])

    assert (back.sha256, back.name, back.version, back.reason) == (first.sha256, "one", 3, "rollback")


def test_weights_that_are_gone_cannot_be_rolled_back_to(store):
    with pytest.raises(WeightsError, match="not in the store any more"):
        a_publisher(store).roll_back("0" * 64)


def test_the_latest_files_are_kept_and_older_ones_are_not(store):
    publisher, names = a_publisher(store), [str(number) for number in range(KEPT + 3)]
    published = [publisher.publish(weights_file(name)) for name in names]

    there = [one.name for one in published if store.blob(one.sha256) is not None]

    assert there == names[-KEPT:]


def test_a_store_that_was_flushed_does_not_count_from_the_beginning(tmp_path, wall):
    publisher = a_publisher(EmbeddedStore(tmp_path / "one", wall=wall))
    last = [publisher.publish(weights_file(name)) for name in ("one", "two")][-1]

    fresh = EmbeddedStore(tmp_path / "flushed", wall=wall)
    publisher._store = fresh
    again = publisher.publish(weights_file("two"))

    assert again.fence > last.fence
    assert again.version == 3


def test_a_learner_that_lost_everything_with_the_store_still_comes_after(tmp_path, wall):
    last = a_publisher(EmbeddedStore(tmp_path / "one", wall=wall)).publish(weights_file("one"))
    wall.now_s += 1.0

    first = a_publisher(EmbeddedStore(tmp_path / "flushed", wall=wall)).publish(weights_file("two"))

    assert first.fence > last.fence


def test_an_older_store_does_not_turn_the_count_back(store, wall):
    publisher = a_publisher(store, last=Fence(1_800_000_000, 40))

    assert publisher.publish(weights_file("one")).fence == Fence(1_800_000_000, 41)


def test_a_pointer_that_somebody_overwrote_is_set_again(store):
    publisher = a_publisher(store)
    publisher.publish(weights_file("one"))
    store.point(NAME, store.pointer(NAME), b"nonsense", publisher.hold())

    publisher.publish(weights_file("two"))

    assert (pointed(store).name, pointed(store).version) == ("two", 2)


# -- killed at every step


def killed_everywhere(kind, place):
    """What a replica sees after a publisher was killed at each of its lines, one after the other."""
    command = [sys.executable, "-m", "tests.router.publishing.killed", kind, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sees_old_or_new_and_never_a_mix(found):
    assert len(found) > 10
    for step in found:
        assert step["name"] in {step["old"], step["new"]}, step
        assert step["refused"] == {}, step
        assert step["is_whole"], step
    assert {step["name"] == step["new"] for step in found} == {True, False}


def test_a_publisher_killed_at_every_line_leaves_old_or_new(tmp_path):
    sees_old_or_new_and_never_a_mix(killed_everywhere("embedded", tmp_path))


@REDIS
def test_a_publisher_killed_at_every_line_leaves_old_or_new_in_redis():
    with RedisServer() as server:
        sees_old_or_new_and_never_a_mix(killed_everywhere("redis", server.url))


# -- what persons and replicas decided


def decided(store, *changes):
    board = Board(store, KEY, "r")
    for change in changes:
        board.change(change)
    board.turn()


def test_while_it_is_paused_nothing_is_published(store):
    publisher = a_publisher(store)
    first = publisher.publish(weights_file("one"))
    decided(store, paused("a release"))

    with pytest.raises(PausedError, match="a release"):
        publisher.publish(weights_file("two"))

    assert pointed(store).sha256 == first.sha256


def test_a_person_may_roll_back_while_it_is_paused(store):
    publisher = a_publisher(store)
    publisher.publish(weights_file("one"))
    kept = publisher.publish(weights_file("two")).kept
    decided(store, paused(""))

    assert publisher.roll_back(kept[0]).name == "one"


def test_weights_that_were_rolled_back_are_not_published_again(store):
    publisher = a_publisher(store)
    bad = publisher.publish(weights_file("one"))
    decided(store, refusing(Veto(sha256=bad.sha256, name="one", why="late 60%", by="r1", at_s=1e9)))

    with pytest.raises(PausedError, match="rolled back by r1: late 60%"):
        publisher.publish(weights_file("one"))

    assert publisher.publish(weights_file("two")).version == 2
