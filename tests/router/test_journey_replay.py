"""A logged decision replays exactly: same node, same probability, from the log alone."""

import asyncio
import json

import pytest

from ccr.guard import BoundedLoad
from ccr.policies import POLICIES
from ccr.trace import decode, encode, replay
from tests.router.fake_node import DEAD, FakeNode, Reply
from tests.router.harness import running_router, until

MODELS = {"models": {"chat": {"versions": {"1": {"weight": 2}, "2": {"weight": 1}}, "gib": 7.0}, "m": {}}}
SERVED = ("chat@1", "chat@2", "m")


async def mixed_traffic(router, count=24):
    """Requests of all kinds, some at the same time, to nodes that answer after a while."""
    asking = []
    for i in range(count):
        headers = {"x-session-id": f"s{i % 5}"} if i % 3 else {}
        body = {"model": "chat" if i % 2 else "m", "messages": ["x" * 10 * i]}
        asking.append(asyncio.create_task(router.post(body=body, headers=headers)))
        if i % 4 == 3:
            router.clock.skip(0.5)
            await asyncio.gather(*asking)
    return await asyncio.gather(*asking)


async def records_of(router, answers):
    """As the admin API tells them, through the trace format."""
    records = []
    for answer in answers:
        told = await router.admin("GET", f"/admin/decisions/{answer.headers['x-request-id']}")
        assert told.status == 200
        record = decode(told.body)
        assert json.loads(encode(record)) == told.json
        records.append(record)
    return records


@pytest.mark.parametrize("exploration", [0.0, 0.3])
@pytest.mark.parametrize("name", POLICIES)
async def test_every_decision_of_every_policy_replays_exactly(name, exploration):
    settings = {**MODELS, "policy": {"name": name, "exploration": exploration}}
    nodes = [FakeNode(node_id, Reply(chunks=(b"{}",), every_s=0.005), models=SERVED) for node_id in "abc"]
    async with running_router(settings, *nodes) as router:
        answers = await mixed_traffic(router)
        records = await records_of(router, answers)
        policy = router.router.policies.engine.policy

    assert [record.node for record in records] == [answer.node for answer in answers]
    for record in records:
        again = replay(record, policy, BoundedLoad())
        assert (again.node_id, again.propensity) == (record.node, record.propensity)
        assert again.probabilities.tolist() == list(record.probabilities)


async def test_decisions_the_guard_moved_replay_too():
    settings = {"policy": {"name": "session_affinity", "options": {"factor": 1000.0}}}
    nodes = [FakeNode(node_id, Reply(chunks=(b"{}",), paced=True)) for node_id in "abc"]
    async with running_router(settings, *nodes) as router:
        asking = [asyncio.create_task(router.post(headers={"x-session-id": "s"})) for _ in range(15)]
        await until(lambda: sum(node.concurrent for node in nodes) == 15)
        for node in nodes:
            node.release(15)
        records = await records_of(router, await asyncio.gather(*asking))
        policy = router.router.policies.engine.policy

    moved = [record for record in records if record.guard_reason == "bounded_load"]
    assert moved
    assert all(record.drawn != record.node for record in moved)
    for record in records:
        again = replay(record, policy)
        assert (again.node_id, again.drawn_id, again.propensity) == (
            record.node,
            record.drawn,
            record.propensity,
        )


async def test_a_retry_is_a_decision_of_its_own_that_replays():
    nodes = [FakeNode("bad", DEAD), FakeNode("good"), FakeNode("fine")]
    async with running_router({"policy": {"name": "round_robin"}}, *nodes) as router:
        answer = await router.post(headers={"x-request-id": "r"})
        first, second = reversed(
            [decode(json.dumps(one).encode()) for one in (await router.admin("GET", "/admin/decisions")).json]
        )
        policy = router.router.policies.engine.policy

    assert (first.node, first.status, first.parent_id) == ("bad", "upstream_reset", "")
    assert (second.node, second.status, second.parent_id) == (answer.node, "ok", "r")
    assert second.mask == (False, True, True)
    for record in (first, second):
        assert replay(record, policy).node_id == record.node


async def test_a_record_says_how_it_ended_and_holds_no_text():
    async with running_router({}, FakeNode()) as router:
        body = {"model": "m", "messages": [{"content": "the-canary-in-the-prompt"}], "max_tokens": 9}
        (record,) = await records_of(router, [await router.post(body=body)])
        told = (await router.admin("GET", "/admin/decisions")).body

    assert (record.status, record.output_tokens, record.prompt_tokens) == ("ok", 5, 3)
    assert 0.0 <= record.queue_ms <= record.ttft_ms <= record.total_ms
    assert b"canary" not in told


async def test_a_decision_that_waits_for_its_end_is_told_as_open_not_as_unknown():
    """An operator asks about a request that hangs, not about one that went well."""
    node = FakeNode(reply=Reply(chunks=(b"{}",), paced=True))
    async with running_router({}, node) as router:
        asking = asyncio.create_task(router.post(headers={"x-request-id": "hangs"}))
        await until(lambda: node.concurrent == 1)
        leases = (await router.admin("GET", "/admin/ledger")).json["leases"]
        node.release()
        await asking

    assert [lease["request_id"] for lease in leases] == ["hangs"]
