"""What every store promises, whatever it is made of."""

import hashlib
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.demo.redis_server import RedisServer
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from router.store.store import Entry, FencedError, StoreDownError, checked
from tests.redis import REDIS

NEVER_S = 1e6


@pytest.fixture(scope="module")
def redis_url():
    with RedisServer() as server:
        yield server.url


@pytest.fixture(params=["embedded", pytest.param("redis", marks=REDIS)])
def reopen(request, tmp_path):
    """Opens the same store again, as another process would."""
    opened = []

    def embedded():
        return EmbeddedStore(tmp_path / "store")

    def in_redis():
        prefix = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
        return RedisStore(request.getfixturevalue("redis_url"), prefix, timeout_s=5.0)

    def open_one():
        opened.append(embedded() if request.param == "embedded" else in_redis())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen):
    return reopen()


def entries(*numbers):
    return [Entry(number, b"%d" % number) for number in numbers]


def read(store, consumer="c", most=100, idle_s=NEVER_S, group="g"):
    return store.read("s", group, consumer, most, idle_s)


def numbers(found):
    return [one.number for one in found]


# -- the stream


def test_entries_come_in_order_with_their_ids(store):
    store.append("s", "p", entries(1, 2, 5))

    assert [(one.producer, one.number, one.data) for one in read(store)] == [
        ("p", 1, b"1"),
        ("p", 2, b"2"),
        ("p", 5, b"5"),
    ]


def test_an_unknown_stream_is_empty(store):
    assert read(store) == []


def test_a_group_goes_on_where_it_was(store):
    store.append("s", "p", entries(1, 2, 3))

    first, second = read(store, most=2), read(store, most=2)

    assert (numbers(first), numbers(second), read(store)) == ([1, 2], [3], [])


def test_what_comes_later_is_delivered_later(store):
    store.append("s", "p", entries(1))
    read(store)

    store.append("s", "p", entries(2))

    assert numbers(read(store)) == [2]


def test_each_entry_goes_to_one_consumer_of_a_group_and_to_every_group(store):
    store.append("s", "p", entries(1, 2))

    one, other = read(store, "one", most=1), read(store, "other")

    assert (numbers(one), numbers(other)) == ([1], [2])
    assert numbers(read(store, group="another")) == [1, 2]


def test_what_is_not_acknowledged_is_delivered_again(store):
    store.append("s", "p", entries(1, 2))
    first = read(store, "dies")
    store.acknowledge("s", "g", [first[0].position])

    assert numbers(read(store, "lives", idle_s=0.0)) == [2]


def test_what_is_acknowledged_is_not_delivered_again(store):
    store.append("s", "p", entries(1, 2))
    store.acknowledge("s", "g", [one.position for one in read(store)])

    assert read(store, idle_s=0.0) == []


def test_an_entry_appended_again_is_left_out(store):
    store.append("s", "p", entries(1, 2))

    added = store.append("s", "p", entries(1, 2, 3))

    assert (added, numbers(read(store))) == (1, [1, 2, 3])


def test_an_entry_appended_again_after_a_restart_is_left_out(store, reopen):
    store.append("s", "p", entries(1, 2))
    store.close()

    again = reopen()

    assert again.append("s", "p", entries(2, 3)) == 1
    assert numbers(read(again)) == [1, 2, 3]


def test_producers_do_not_share_their_numbers(store):
    store.append("s", "p", entries(1))

    assert store.append("s", "q", entries(1)) == 1


def test_a_group_goes_on_after_a_restart(store, reopen):
    store.append("s", "p", entries(1, 2))
    store.acknowledge("s", "g", [one.position for one in read(store, most=1)])
    store.close()

    assert numbers(read(reopen())) == [2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=5).map(sorted), max_size=8), name=st.uuids())
def test_whatever_is_repeated_no_id_is_there_twice_and_the_order_holds(store, batches, name):
    for batch in batches:
        store.append(name.hex, "p", entries(*sorted(set(batch))))

    found = numbers(store.read(name.hex, "g", "c", 1000, NEVER_S))

    assert found == sorted(set(found))
    assert set(found) <= {number for batch in batches for number in batch}


# -- blobs


def test_a_blob_is_kept_under_its_hash(store):
    name = store.put_blob(b"weights")

    assert name == hashlib.sha256(b"weights").hexdigest()
    assert store.blob(name) == b"weights"


def test_a_blob_that_is_dropped_is_gone(store):
    name = store.put_blob(b"weights")

    store.drop_blob(name)

    assert store.blob(name) is None


# -- pointer and lease


def test_a_pointer_moves_under_the_lease(store):
    lease = store.lease("l", "a", 60.0)

    store.point("p", None, b"one", lease)
    store.point("p", b"one", b"two", lease)

    assert store.pointer("p") == b"two"


def test_a_pointer_never_set_points_nowhere(store):
    assert store.pointer("p") is None


def test_a_pointer_that_moved_is_not_overwritten(store):
    lease = store.lease("l", "a", 60.0)
    store.point("p", None, b"one", lease)

    with pytest.raises(FencedError, match="moved"):
        store.point("p", None, b"two", lease)

    assert store.pointer("p") == b"one"


def test_one_has_the_lease_until_it_is_given_back(store, reopen):
    lease = store.lease("l", "a", 60.0)

    assert reopen().lease("l", "b", 60.0) is None
    store.release(lease)
    assert reopen().lease("l", "b", 60.0).token > lease.token


def test_the_holder_keeps_its_token(store):
    assert store.lease("l", "a", 60.0) == store.lease("l", "a", 60.0)


def test_a_lease_runs_out_and_its_holder_is_fenced_off(store):
    stale = store.lease("l", "a", 0.02)

    lease = taken_by(store, "b")

    with pytest.raises(FencedError, match="over"):
        store.point("p", None, b"late", stale)
    assert lease.token > stale.token


def test_a_lease_that_ran_out_moves_nothing_even_if_nobody_took_it(store):
    stale = store.lease("l", "a", 0.001)
    time.sleep(0.01)  # by the server's clock, which no test can move

    with pytest.raises(FencedError):
        store.point("p", None, b"late", stale)


def test_giving_back_a_lease_that_is_over_changes_nothing(store):
    stale = store.lease("l", "a", 0.02)
    taken_by(store, "b")

    store.release(stale)

    assert store.lease("l", "a", 60.0) is None


def test_tokens_grow_even_where_the_store_forgot(store):
    """They count from 1970: a server that was flushed gives no old ones."""
    assert store.lease("l", "a", 60.0).token >= int(time.time()) - 1


def taken_by(store, owner):
    give_up_s = time.monotonic() + 5.0
    while (lease := store.lease("l", owner, 60.0)) is None:
        assert time.monotonic() < give_up_s
    return lease


# -- hints


def test_a_hint_is_heard_once(store, reopen):
    other = reopen()
    store.hinted("p")

    other.point("p", None, b"one", other.lease("l", "a", 60.0))
    other.hint("p")

    give_up_s = time.monotonic() + 5.0
    while not store.hinted("p"):
        assert time.monotonic() < give_up_s
    assert not store.hinted("p")


# -- small keys


def test_small_values_are_found_by_family(store):
    store.put("f", "a", b"1", 60.0)
    store.put("f", "b", b"2", 60.0)
    store.put("other", "c", b"3", 60.0)

    assert store.values("f") == {"a": b"1", "b": b"2"}


def test_a_small_value_is_replaced(store):
    store.put("f", "a", b"1", 60.0)
    store.put("f", "a", b"2", 60.0)

    assert store.values("f") == {"a": b"2"}


def test_a_small_value_expires(store):
    store.put("f", "a", b"1", 0.02)
    store.put("f", "b", b"2", 60.0)

    give_up_s = time.monotonic() + 5.0
    while store.values("f") != {"b": b"2"}:
        assert time.monotonic() < give_up_s


def test_a_small_value_that_is_dropped_is_gone_and_the_others_are_not(store):
    store.put("f", "a", b"1", 60.0)
    store.put("f", "b", b"2", 60.0)

    store.drop("f", "a")
    store.drop("f", "a")

    assert store.values("f") == {"b": b"2"}


# -- names


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a:b", "-a", "x" * 200])
def test_what_could_leave_its_place_is_no_name(name):
    with pytest.raises(ValueError, match="no name"):
        checked(name)


def test_a_store_that_answers_is_up(store):
    store.values("f")

    assert store.is_up


@REDIS
def test_a_store_that_does_not_is_down_and_says_so():
    store = RedisStore("unix:///nowhere.sock")

    with pytest.raises(StoreDownError):
        store.values("f")

    assert not store.is_up
