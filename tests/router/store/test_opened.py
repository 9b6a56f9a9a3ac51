"""Which store the settings mean."""

import subprocess
import sys

import pytest

from ccr.errors import ConfigError
from ccr.settings import Settings, parse
from router.app import Router
from router.store.embedded import EmbeddedStore
from router.store.opened import opened
from router.store.redis_store import RedisStore


def settings(**store):
    return Settings(store=store).store


def test_there_is_none_unless_somebody_wants_one():
    assert opened(settings()) is None


def test_a_directory_is_a_store(tmp_path):
    assert isinstance(opened(settings(directory=tmp_path)), EmbeddedStore)


def test_a_redis_that_is_down_is_a_store_too():
    assert isinstance(opened(settings(redis_url="redis://127.0.0.1:1/0")), RedisStore)


def test_two_places_are_refused():
    with pytest.raises(ConfigError, match="remove the other"):
        parse(b"store: {redis_url: 'redis://a', directory: /tmp/b}", "here")


def test_a_password_in_the_url_is_in_no_message():
    with pytest.raises(ConfigError) as refused:
        parse(b"store: {redis_url: ['redis://:hunter2@a']}", "here")

    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(Settings(store={"redis_url": "redis://:hunter2@a"}))


def test_a_router_whose_redis_is_down_says_so_and_starts():
    router = Router(Settings(store={"redis_url": "redis://127.0.0.1:1/0"}), "token")
    with pytest.raises(Exception, match="Redis"):
        router.store.values("f")

    assert b"ccr_store_up 0.0" in router.control.exposition.page()


def test_a_router_without_redis_does_not_import_its_client():
    """A quarter of a second and 8 MB."""
    code = "import sys, router.app; sys.exit('redis' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
