"""The store in a directory: shared by processes, bounded, and honest about the disk."""

import resource
import subprocess
import sys

import pytest

from router.store.embedded import EmbeddedStore
from router.store.store import Entry, StoreDownError, StoreError, StoreFullError

NEVER_S = 1e6


def test_another_process_reads_what_this_one_appends(tmp_path):
    EmbeddedStore(tmp_path).append("s", "p", [Entry(1, b"one")])
    code = (
        "import sys; from pathlib import Path; from router.store.embedded import EmbeddedStore; "
        "print(EmbeddedStore(Path(sys.argv[1])).read('s', 'g', 'c', 10, 1e6)[0].data)"
    )

    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True
    )

    assert found.stdout.strip() == "b'one'"


def test_two_routers_do_not_append_to_one_directory(tmp_path):
    one, other = EmbeddedStore(tmp_path), EmbeddedStore(tmp_path)
    one.append("s", "p", [Entry(1, b"one")])

    with pytest.raises(StoreError, match="give each its own"):
        other.append("s", "q", [Entry(1, b"one")])


def test_the_oldest_entries_give_way(tmp_path):
    store = EmbeddedStore(tmp_path, stream_bytes=4000)
    for number in range(200):
        store.append("s", "p", [Entry(number, b"x" * 50)])

    found = [one.number for one in store.read("s", "g", "c", 1000, NEVER_S)]

    assert 20 < len(found) < 100
    assert found == list(range(found[0], 200))


def test_what_gave_way_before_it_was_acknowledged_is_not_waited_for(tmp_path):
    store = EmbeddedStore(tmp_path, stream_bytes=4000)
    store.append("s", "p", [Entry(0, b"x" * 50)])
    store.read("s", "g", "dies", 1, NEVER_S)
    for number in range(1, 200):
        store.append("s", "p", [Entry(number, b"x" * 50)])

    assert store.read("s", "g", "lives", 1000, 0.0)[-1].number == 199


def test_a_full_disk_takes_nothing_and_says_so(tmp_path):
    store = EmbeddedStore(tmp_path)
    store.append("s", "p", [Entry(1, b"one")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StoreFullError, match="too large"):
            store.append("s", "p", [Entry(2, b"x" * 1000)])
        assert not store.is_up
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert store.append("s", "p", [Entry(2, b"two")]) == 1
    assert [one.number for one in store.read("s", "g", "c", 10, NEVER_S)] == [1, 2]


def test_a_directory_that_cannot_be_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreDownError, match="fails"):
        EmbeddedStore(tmp_path / "file")


def test_expiry_follows_the_wall(tmp_path):
    now_s = 1000.0
    store = EmbeddedStore(tmp_path, wall=lambda: now_s)
    store.put("f", "a", b"1", 5.0)
    lease = store.lease("l", "one", 5.0)

    now_s = 1005.0

    assert store.values("f") == {}
    assert store.lease("l", "other", 5.0).token == lease.token + 5
