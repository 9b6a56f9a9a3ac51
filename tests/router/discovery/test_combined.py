"""Several sources as one."""

import asyncio

import pytest

from ccr.types import NodeSpec
from router.discovery.combined import CombinedDiscovery
from tests.router.discovery.hearing import watched

A, B, C = (NodeSpec(name, f"http://{name}:1") for name in "abc")


class Told:
    """A source that tells what the test has it tell."""

    def __init__(self, place):
        self.place = place
        self.lists = asyncio.Queue()

    async def watch(self, on_nodes):
        while True:
            on_nodes(await self.lists.get())
            self.lists.task_done()

    async def tell(self, *specs):
        self.lists.put_nowait(specs)
        await self.lists.join()


async def test_the_union_is_told_whenever_a_source_tells():
    first, second = Told("the config"), Told("nodes.yaml")

    async with watched(CombinedDiscovery([first, second], pytest.fail)) as told:
        await second.tell(B)
        await first.tell(A)
        await second.tell(B, C)
        await first.tell()

    assert told == [(B,), (A, B), (A, B, C), (B, C)]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        pytest.param(NodeSpec("a", "http://other:1"), "id a", id="same id"),
        pytest.param(NodeSpec("other", "http://a:1"), "url http://a:1", id="same url"),
    ],
)
async def test_the_later_of_two_that_clash_is_left_out_and_both_places_are_named_once(other, what):
    first, second, errors = Told("the config"), Told("nodes.yaml"), []

    async with watched(CombinedDiscovery([first, second], errors.append)) as told:
        await first.tell(A)
        await second.tell(other, B)
        await second.tell(other, B, C)

    assert told[1:] == [(A, B), (A, B, C)]
    assert len(errors) == 1
    assert f"node {other.id} of nodes.yaml is left out: the config already has {what}" in str(errors[0])


async def test_precedence_is_the_order_of_the_sources_not_of_their_speaking():
    first, second, errors = Told("the config"), Told("nodes.yaml"), []
    other = NodeSpec("a", "http://other:1")

    async with watched(CombinedDiscovery([first, second], errors.append)) as told:
        await second.tell(other)
        await first.tell(A)

    assert told == [(other,), (A,)]
    assert len(errors) == 1


async def test_a_node_left_out_comes_in_when_the_clash_is_over_and_is_reported_again_when_it_returns():
    first, second, errors = Told("the config"), Told("nodes.yaml"), []
    other = NodeSpec("a", "http://other:1")

    async with watched(CombinedDiscovery([first, second], errors.append)) as told:
        await second.tell(other)
        await first.tell(A)
        await first.tell()
        await first.tell(A)

    assert told == [(other,), (A,), (other,), (A,)]
    assert len(errors) == 2


async def test_cancelling_ends_every_source():
    first, second = Told("the config"), Told("nodes.yaml")
    before = asyncio.all_tasks()

    async with watched(CombinedDiscovery([first, second])):
        await first.tell(A)

    assert asyncio.all_tasks() == before
