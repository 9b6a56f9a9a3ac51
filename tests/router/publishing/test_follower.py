"""Following: what is newer, signed and sane is taken; whatever else the store holds, the last good weights keep serving."""

import json
import random

import numpy as np
import pytest
import structlog.testing

from ccr import weights
from ccr.control import Veto, paused, refusing, resumed
from ccr.policies.network import Network
from ccr.publication import Publication, signed
from router.publishing import presence
from router.publishing.board import Board
from router.publishing.follower import Follower
from router.publishing.guardian import Desk, Guardian
from router.publishing.memory import Memory
from router.publishing.publisher import NAME, Publisher
from router.publishing.watch import Watch
from router.store.backoff import Backoff
from router.store.embedded import EmbeddedStore
from router.store.store import StoreDownError
from tests.router.publishing.publications import KEY, Told, file_of, the_worst, weights_file


class Bench:
    """A publisher, a store and a replica that looks when the test says so."""

    def __init__(self, tmp_path, **fields):
        self.now_s = 100.0
        self.tmp_path = tmp_path
        self.store = EmbeddedStore(tmp_path / "store", wall=lambda: 1_700_000_000.0)
        self.publisher = Publisher(self.store, KEY)
        self.told = Told()
        self.follower = self.replica(**fields)

    def replica(self, told=None, key=KEY, **fields):
        return Follower(
            self.store,
            key,
            told or self.told,
            clock=lambda: self.now_s,
            backoff=Backoff(draw=lambda: 0.0),
            **fields,
        )

    def publish(self, name="one", **fields):
        publication = self.publisher.publish(weights_file(name, **fields))
        self.follower.look()
        return publication

    def point_to(self, value):
        self.store.point(NAME, self.store.pointer(NAME), value, self.publisher.hold())
        self.follower.look()

    def publish_unchecked(self, data, key=KEY, version=2, **fields):
        """What a broken or evil publisher could do that has the lease."""
        publication = Publication(
            epoch=1_700_000_000, version=version, sha256=self.store.put_blob(data), size=len(data), name="bad",
            created_at_s=1.0, **fields,
        )  # fmt: skip
        self.point_to(signed(publication, key))

    @property
    def refused(self):
        return dict(self.follower.state.refused)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_nothing_published_is_nothing_taken(bench):
    bench.follower.look()

    assert bench.told.said == []


def test_what_is_published_is_taken_once(bench):
    bench.publish("one")
    bench.follower.look()

    assert bench.told.said == [("one", 1)]


def test_what_is_newer_is_taken_instead(bench):
    bench.publish("one")
    bench.publish("two")

    assert bench.told.names == ["one", "two"]
    assert bench.follower.state.fence.version == 2


def test_a_rollback_is_taken_like_anything_new(bench):
    bench.publish("one")
    kept = bench.publish("two").kept

    bench.publisher.roll_back(kept[0])
    bench.follower.look()

    assert bench.told.said == [("one", 1), ("two", 2), ("one", 3)]


def test_every_replica_takes_the_same(bench):
    others = [Told() for _ in range(3)]
    replicas = [bench.replica(told) for told in others]

    for name in ("one", "two"):
        bench.publish(name)
        for replica in replicas:
            replica.look()

    assert all(told.said == bench.told.said for told in others)


# -- what is refused


def test_an_older_version_is_refused(bench):
    bench.publish("one")
    old = bench.store.pointer(NAME)
    bench.publish("two")

    bench.point_to(old)

    assert bench.told.names == ["one", "two"]
    assert bench.refused == {"old": 1}


def test_what_another_key_signed_is_refused(bench):
    bench.publish("one")

    bench.publish_unchecked(weights_file("two"), key=b"the key of somebody else")

    assert bench.told.names == ["one"]
    assert bench.refused == {"unsigned": 1}


def test_a_signature_does_not_make_bad_weights_good(bench):
    bench.publish("one")
    rng = random.Random(1)

    for version in range(2, 42):
        bench.publish_unchecked(mutated(weights_file("two"), rng), version=version)

    assert bench.told.names == ["one"]
    assert sum(bench.refused.values()) == 40


def test_weights_of_another_schema_are_refused(bench):
    bench.publish("one")

    bench.publish_unchecked(tampered(bench.tmp_path, schema="another"))

    assert bench.told.names == ["one"]
    assert bench.refused == {"unusable": 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_weights_that_are_not_finite_or_far_too_large_are_refused(bench, bad):
    bench.publish("one")

    bench.publish_unchecked(tampered(bench.tmp_path, number=bad))

    assert bench.told.names == ["one"]
    assert bench.refused == {"unusable": 1}


def test_weights_that_do_what_nobody_would_are_refused(bench):
    """Finite, of the right shape, saved in all honesty: and they prefer the costliest node."""
    bench.publish("one")

    bench.publish_unchecked(file_of(bench.tmp_path, the_worst()))

    assert bench.told.names == ["one"]
    assert bench.refused == {"odd": 1}


def mutated(data, rng):
    """The bytes with a bit flipped, a piece missing, or something put in."""
    place = rng.randrange(len(data))
    match rng.randrange(3):
        case 0:
            return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        case 1:
            return data[:place] + data[place + 1 + rng.randrange(100) :]
        case _:
            return data[:place] + rng.randbytes(1 + rng.randrange(20)) + data[place:]


def test_3000_mutations_of_the_bytes_are_refused(bench):
    bench.publish("one")
    whole, rng = weights_file("two"), random.Random(2)
    bench.publisher.publish(whole)
    bench.store.blob = lambda _: mutated(whole, rng)

    with structlog.testing.capture_logs():
        for _ in range(3000):
            bench.follower.look()

    assert bench.told.names == ["one"]
    assert bench.refused == {"corrupt": 3000}


def test_3000_mutations_of_the_manifest_are_refused(bench):
    bench.publish("one")
    bench.publisher.publish(weights_file("two"))
    whole, rng = bench.store.pointer(NAME), random.Random(3)
    bench.store.pointer = lambda _: mutated(whole, rng)

    with structlog.testing.capture_logs():
        for _ in range(3000):
            bench.follower.look()

    assert bench.told.names == ["one"]
    assert bench.refused == {"unsigned": 3000}


def test_bytes_that_heal_are_taken(bench):
    publication = bench.publisher.publish(weights_file("one"))
    path = bench.tmp_path / "store" / "blobs" / publication.sha256
    path.unlink()
    bench.follower.look()
    assert bench.refused == {"missing": 1}

    path.write_bytes(weights_file("one"))
    bench.follower.look()

    assert bench.told.names == ["one"]


def test_what_is_refused_for_good_is_told_and_counted_once(bench):
    bench.publish("one")
    with structlog.testing.capture_logs() as logged:
        bench.publish_unchecked(b"junk")
        for _ in range(5):
            bench.follower.look()

    assert [event["event"] for event in logged].count("weights.refused") == 1
    assert bench.refused == {"unusable": 1}


def test_after_something_refused_what_is_good_is_taken(bench):
    bench.publish("one")
    bench.publish_unchecked(b"junk")

    bench.publish("two")

    assert bench.told.names == ["one", "two"]


# -- time


def test_it_looks_every_second(bench):
    looks, pointer = [], bench.store.pointer
    bench.store.pointer = lambda name: looks.append(bench.now_s) or pointer(name)

    for _ in range(40):
        bench.follower.turn()
        bench.now_s += 0.1

    assert len(looks) == 4


def test_a_hint_makes_it_look_at_once(tmp_path):
    bench = Bench(tmp_path, interval_s=3600.0)
    bench.follower.turn()
    bench.publisher.publish(weights_file("one"))

    bench.follower.turn()

    assert bench.told.names == ["one"]


def test_without_word_of_a_publisher_the_weights_are_let_go(bench):
    bench.publish("one")
    bench.store.pointer = down

    for _ in range(2000):
        bench.now_s += 1.0
        bench.follower.turn()

    assert bench.told.names == ["one", None]
    assert bench.follower.state.is_stale


def test_with_word_of_a_publisher_old_weights_stay(bench):
    bench.publish("one")

    for _ in range(2000):
        bench.now_s += 1.0
        bench.follower.turn()

    assert bench.told.names == ["one"]


def test_when_the_publisher_is_back_the_weights_are_too(bench):
    bench.publish("one")
    bench.now_s += 901.0
    here, bench.store.pointer = bench.store.pointer, down
    bench.follower.turn()
    assert bench.told.names == ["one", None]

    bench.store.pointer = here
    bench.now_s += 10.0
    bench.follower.turn()

    assert bench.told.said == [("one", 1), None, ("one", 1)]
    assert not bench.follower.state.is_stale


def test_bad_weights_are_word_of_a_publisher(bench):
    """What was good before them keeps serving."""
    bench.publish("one")
    bench.publish_unchecked(b"junk")

    for _ in range(2000):
        bench.now_s += 1.0
        bench.follower.turn()

    assert bench.told.names == ["one"]


def test_no_limit_is_no_limit(tmp_path):
    bench = Bench(tmp_path, stale_after_s=0.0)
    bench.publish("one")
    bench.store.pointer = down
    bench.now_s += 1e6

    bench.follower.turn()

    assert bench.told.names == ["one"]


def down(_):
    raise StoreDownError("away")


# -- over a restart


def test_a_replica_that_restarts_without_a_store_serves_what_it_took_last(tmp_path):
    bench = Bench(tmp_path, memory=Memory(tmp_path / "memory"))
    bench.publish("one")
    bench.store.pointer = down
    told = Told()
    again = bench.replica(told, memory=Memory(tmp_path / "memory"))

    again.recall()

    assert told.said == [("one", 1)]


def test_a_replica_that_restarts_refuses_what_is_older(tmp_path):
    """A server that came back from an old file, with a replica that was restarted as well."""
    bench = Bench(tmp_path, memory=Memory(tmp_path / "memory"))
    bench.publish("one")
    old = bench.store.pointer(NAME)
    bench.publish("two")
    bench.point_to(old)
    told = Told()
    again = bench.replica(told, memory=Memory(tmp_path / "memory"))

    again.recall()
    again.look()

    assert told.names == ["two"]
    assert again.state.refused == {"old": 1}


@pytest.mark.parametrize("damage", [b"", b"junk", b"9999999\nabc", b"-3\nabc"])
def test_a_memory_that_is_damaged_is_no_memory(tmp_path, damage):
    bench = Bench(tmp_path, memory=Memory(tmp_path / "memory"))
    bench.publish("one")
    (tmp_path / "memory" / "published").write_bytes(damage)
    told = Told()
    again = bench.replica(told, memory=Memory(tmp_path / "memory"))

    again.recall()
    again.look()

    assert told.names == ["one"]


def test_a_memory_of_another_key_is_no_memory(tmp_path):
    bench = Bench(tmp_path, memory=Memory(tmp_path / "memory"))
    bench.publish("one")
    told = Told()

    bench.replica(told, key=b"another key of the tests", memory=Memory(tmp_path / "memory")).recall()

    assert told.said == []


def test_a_disk_that_remembers_nothing_is_told_about(tmp_path):
    (tmp_path / "file").write_text("")
    bench = Bench(tmp_path, memory=Memory(tmp_path / "file"))

    with structlog.testing.capture_logs() as logged:
        bench.publish("one")

    assert bench.told.names == ["one"]
    assert "publication.not_remembered" in [event["event"] for event in logged]


# -- bad weights


def tampered(tmp_path, number=None, **manifest):
    """A file that its author changed with care: the checksum is right."""
    path = tmp_path / "good.npz"
    path.write_bytes(weights_file("two"))
    arrays, told = weights.read(path)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    if number is not None:
        arrays["out"].flat[0] = number
    network = Network(**{name: arrays[name] for name in Network._fields})
    told |= {"sha256": weights.checksum(network)} | manifest
    weights._write(
        path, arrays | {weights.MANIFEST: np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)}
    )
    return path.read_bytes()


# -- a learner that is heard of


def heartbeat(bench):
    presence.tell(bench.store, presence.LEARNER, "l", {"state": "reading"})


def test_once_a_learner_was_heard_of_a_manifest_that_lies_there_is_no_word_of_one(tmp_path):
    """Redis lives, the learner is dead: nobody corrects the weights any more."""
    bench = Bench(tmp_path)
    wall = [1_700_000_000.0]
    bench.store._wall = lambda: wall[0]
    bench.publish("one")
    heartbeat(bench)
    bench.follower.look()
    wall[0] += 60.0

    for _ in range(1000):
        bench.now_s += 1.0
        bench.follower.turn()

    assert bench.told.names == ["one", None]


def test_the_weights_come_back_with_the_learner(tmp_path):
    bench = Bench(tmp_path)
    wall = [1_700_000_000.0]
    bench.store._wall = lambda: wall[0]
    bench.publish("one")
    heartbeat(bench)
    bench.follower.look()
    wall[0] += 60.0
    bench.now_s += 901.0
    bench.follower.turn()

    heartbeat(bench)
    bench.now_s += 1.0
    bench.follower.turn()

    assert bench.told.names == ["one", None, "one"]


def test_a_learner_at_work_keeps_its_weights_from_growing_old(tmp_path):
    bench = Bench(tmp_path)
    bench.publish("one")

    for _ in range(100):
        bench.now_s += 100.0
        heartbeat(bench)
        bench.follower.turn()

    assert bench.told.names == ["one"]


# -- what was rolled back


def guarded(bench):
    """A replica with a guardian, and what it says."""
    board = Board(bench.store, KEY, "r", clock=lambda: bench.now_s)
    guardian = Guardian(bench.told, Watch(), board, None, "r", clock=lambda: bench.now_s)
    bench.follower = Follower(
        bench.store, KEY, guardian, clock=lambda: bench.now_s, backoff=Backoff(draw=lambda: 0.0),
        desk=Desk(guardian, bench.store, clock=lambda: bench.now_s),
    )  # fmt: skip
    return board


def refuse(board, publication):
    board.change(
        refusing(Veto(sha256=publication.sha256, name="one", why="late 60%", by="another", at_s=1e9))
    )


def test_weights_that_another_replica_rolled_back_are_not_taken_until_that_is_cleared(bench):
    board = guarded(bench)
    publication = bench.publisher.publish(weights_file("one"))
    refuse(board, publication)

    bench.follower.look()
    before = list(bench.told.names)
    board.change(resumed(2e9))
    bench.follower.look()

    assert (before, bench.told.names) == ([], ["one"])
    assert bench.refused == {"vetoed": 1}


def test_weights_that_were_rolled_back_are_not_recalled(bench, tmp_path):
    memory = Memory(tmp_path / "kept")
    publication = bench.publisher.publish(weights_file("one"))
    memory.remember(bench.store.pointer(NAME), weights_file("one"))
    board = guarded(bench)
    bench.follower._memory = memory
    refuse(board, publication)

    bench.follower.recall()

    assert bench.told.names == []


def test_a_pause_is_no_reason_to_let_weights_go(tmp_path):
    bench = Bench(tmp_path)
    wall = [1_700_000_000.0]
    bench.store._wall = lambda: wall[0]
    board = guarded(bench)
    bench.publish("one")
    heartbeat(bench)
    bench.follower.look()
    wall[0] += 60.0
    board.change(paused("a release"))

    for _ in range(1000):
        bench.now_s += 1.0
        bench.follower.turn()

    assert bench.told.names == ["one"]
