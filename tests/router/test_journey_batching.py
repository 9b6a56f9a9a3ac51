"""The batching window: off unless asked for; then same-model requests start together."""

import asyncio

import pytest

from tests.router.fake_node import FakeNode, Reply
from tests.router.harness import running_router, until

HELD = Reply(chunks=(b"{}",), paced=True)
ON = {"batching": {"enabled": True, "max_wait": "100ms", "size": 4}}


async def ask(router, number, model="m"):
    return [asyncio.create_task(router.post(body={"model": model})) for _ in range(number)]


async def warmed_up(router, node, model="m"):
    """So many arrivals that waiting for company can pay; they are all answered."""
    node.release(1000)
    for answer in await asyncio.gather(*await ask(router, 40, model)):
        assert answer.status == 200


async def test_off_by_default_nothing_is_held():
    node = FakeNode()
    async with running_router({}, node) as router:
        await warmed_up(router, node)

        assert router.router.stats.requests_held == 0


async def test_rare_requests_are_not_held_even_where_it_is_on():
    async with running_router(ON, FakeNode()) as router:
        for _ in range(5):
            await router.post()
            router.clock.skip(10.0)

        assert router.router.stats.requests_held == 0


async def test_a_full_batch_starts_together_and_no_later():
    node = FakeNode()
    async with running_router(ON, node) as router:
        await warmed_up(router, node)
        held, seen = router.router.stats.requests_held, len(node.seen)

        three = await ask(router, 3)
        await until(lambda: router.router.stats.requests_held == held + 3)
        assert len(node.seen) == seen  # they wait for a fourth
        answers = await asyncio.gather(*three, *await ask(router, 1))

        assert [answer.status for answer in answers] == [200] * 4
        assert len(node.seen) == seen + 4
        waited_ms = [record.queue_ms for record in router.router.dispatch.decisions(4)]
        assert max(waited_ms) < 100.0


async def test_a_batch_that_does_not_fill_starts_when_it_is_due():
    node = FakeNode()
    async with running_router(ON, node) as router:
        await warmed_up(router, node)

        answers = await asyncio.gather(*await ask(router, 2))

        assert [answer.status for answer in answers] == [200, 200]
        waited_ms = [record.queue_ms for record in router.router.dispatch.decisions(2)]
        assert max(waited_ms) >= 90.0


async def test_a_client_that_leaves_a_batch_does_not_start_it():
    node = FakeNode()
    async with running_router(
        {"batching": {"enabled": True, "max_wait": "100ms", "size": 200}}, node
    ) as router:
        await warmed_up(router, node)
        held, seen = router.router.stats.requests_held, len(node.seen)

        leaving, *staying = await ask(router, 3)
        await until(lambda: router.router.stats.requests_held == held + 3)
        leaving.cancel()
        await asyncio.sleep(0)
        assert len(node.seen) == seen

        assert [answer.status for answer in await asyncio.gather(*staying)] == [200, 200]
        await router.quiet()


@pytest.mark.parametrize(("hint", "is_held"), [("50.0 if len(req_list) < 3 else 0.0", True), ("0.0", False)])
async def test_a_script_s_batch_hint_opens_the_window(tmp_path, hint, is_held):
    path = tmp_path / "policy.py"
    path.write_text(
        f"def score(node, req):\n    return 0.0\n\n\ndef batch_hint(req_list):\n    return {hint}\n"
    )
    path.chmod(0o600)
    node = FakeNode()
    async with running_router({"policy": {"script": str(path)}}, node) as router:
        await warmed_up(router, node)

        answers = await asyncio.gather(*await ask(router, 3))

        assert [answer.status for answer in answers] == [200] * 3
        assert (router.router.stats.requests_held > 0) is is_held
