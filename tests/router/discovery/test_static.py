"""A fixed list."""

import asyncio

import pytest

from ccr.errors import ConfigError
from ccr.types import NodeSpec
from router.discovery.static import StaticDiscovery
from tests.router.discovery.hearing import watched

A, B = NodeSpec("a", "http://h:1"), NodeSpec("b", "http://h:2")


async def test_the_list_is_told_once_at_once():
    async with watched(StaticDiscovery((A, B))) as told:
        for _ in range(3):
            await asyncio.sleep(0)

        assert told == [(A, B)]


def test_a_repeated_node_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="same id a"):
        StaticDiscovery((A, A))
