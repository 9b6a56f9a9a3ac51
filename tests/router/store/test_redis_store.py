"""What a real Redis does to us: hangs, dies, is full, is flushed; nothing waits longer than the timeout."""

import signal
import time

import pytest
import redis

from router.store.redis_store import RedisStore
from router.store.store import Entry, FencedError, StoreDownError, StoreFullError
from tests.redis import REDIS

pytestmark = REDIS
NEVER_S = 1e6


@pytest.fixture
def store(redis_server):
    store = RedisStore(redis_server.url)
    yield store
    store.close()


def numbers(store):
    return [one.number for one in store.read("s", "g", "c", 10_000, NEVER_S)]


def appended_for_ever(store, entries):
    for batch in range(100):
        store.append("s", f"p{batch}", entries)


def eventually(call):
    give_up_s = time.monotonic() + 10.0
    while True:
        try:
            return call()
        except StoreDownError:
            assert time.monotonic() < give_up_s


def test_a_server_that_hangs_is_waited_for_50_ms(store, redis_server):
    store.append("s", "p", [Entry(1, b"one")])
    redis_server.signal(signal.SIGSTOP)
    started_s = time.monotonic()

    with pytest.raises(StoreDownError):
        store.append("s", "p", [Entry(2, b"two")])

    took_s = time.monotonic() - started_s
    redis_server.signal(signal.SIGCONT)
    assert 0.04 < took_s < 0.25  # 55 ms on a quiet machine
    assert not store.is_up


def test_an_append_of_unknown_end_can_be_made_again(store, redis_server):
    """The server got the call, and answers when nobody listens any more."""
    store.append("s", "p", [Entry(1, b"one")])
    redis_server.signal(signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(StoreDownError):
            store.append("s", "p", [Entry(2, b"two"), Entry(3, b"three")])
    redis_server.signal(signal.SIGCONT)

    eventually(lambda: store.append("s", "p", [Entry(2, b"two"), Entry(3, b"three")]))

    assert numbers(store) == [1, 2, 3]


def test_it_is_found_again_after_a_kill_and_lost_nothing(store, redis_server):
    store.append("s", "p", [Entry(1, b"one")])
    redis_server.kill()
    with pytest.raises(StoreDownError):
        store.append("s", "p", [Entry(2, b"two")])

    redis_server.start()

    assert eventually(lambda: store.append("s", "p", [Entry(2, b"two")])) == 1
    assert store.is_up
    assert numbers(store) == [1, 2]


def test_a_flushed_server_is_filled_again(store, redis_server):
    store.append("s", "p", [Entry(1, b"one")])
    assert numbers(store) == [1]
    with redis_server.client() as client:
        client.flushall()

    store.append("s", "p", [Entry(2, b"two")])

    assert numbers(store) == [2]


def test_a_full_server_takes_all_or_nothing(store, redis_server):
    with redis_server.client() as client:
        client.config_set("maxmemory", "3mb")
    entries = [Entry(number, b"x" * 10_000) for number in range(50)]
    with pytest.raises(StoreFullError):
        appended_for_ever(store, entries)
    with redis_server.client() as client:
        assert client.xlen("ccr:stream:s") % 50 == 0
        client.config_set("maxmemory", "0")

    assert store.append("s", "q", entries) == 50


def test_a_stream_is_kept_short(redis_server):
    store = RedisStore(redis_server.url, stream_length=1000)

    for start in range(0, 5000, 500):
        store.append("s", "p", [Entry(number, b"") for number in range(start, start + 500)])

    with redis_server.client() as client:
        assert 1000 <= client.xlen("ccr:stream:s") < 1200
    store.close()


def test_two_that_move_a_pointer_at_once_do_not_both(store, redis_server, monkeypatch):
    lease = store.lease("l", "a", 60.0)
    execute = redis.client.Pipeline.execute

    def late(pipe, *args, **kwargs):
        with redis_server.client() as client:
            client.set("ccr:pointer:p", b"another")
        return execute(pipe, *args, **kwargs)

    monkeypatch.setattr(redis.client.Pipeline, "execute", late)

    with pytest.raises(FencedError, match="at the same moment"):
        store.point("p", None, b"mine", lease)
    assert store.pointer("p") == b"another"


def test_it_needs_no_scripts_and_no_dangerous_commands(redis_server):
    """The rules of docs/store.md for its user."""
    with redis_server.client() as client:
        rules = "on >pw resetchannels ~ccr:* &ccr:* +@all -@scripting -@admin -@dangerous"
        client.execute_command("ACL", "SETUSER", "ccr", *rules.split())
    store = RedisStore(redis_server.url.replace("unix://", "unix://ccr:pw@"))

    lease = store.lease("l", "a", 60.0)
    store.point("p", None, b"one", lease)
    store.hint("p")
    store.hinted("p")
    store.append("s", "p", [Entry(1, store.put_blob(b"x").encode())])
    store.put("f", "a", b"1", 60.0)

    assert numbers(store) == [1]
    assert store.values("f") == {"a": b"1"}
    store.close()


def test_a_hint_that_cannot_be_heard_is_none(store, redis_server):
    store.hinted("p")
    redis_server.kill()

    assert not store.hinted("p")

    redis_server.start()
    give_up_s = time.monotonic() + 10.0
    while not store.hinted("p"):
        eventually(lambda: store.hint("p"))
        assert time.monotonic() < give_up_s
