"""The place in the queue of a node's engine that the policy asks for, as it reaches the node."""

import json
import time

import numpy as np
import pytest

from ccr.policies.least_cost import LeastCost
from ccr.policies.network import PRIORITY, blank
from ccr.weights import save
from envs.emulator import EmulatedFleet
from envs.node import EmulatedNode
from tests.router.fake_node import DEAD, FakeNode
from tests.router.harness import running_router
from tests.weights import some_weights

CHAT_MODEL = "chat-7b@1"
WEIGHT = 1.0
WAYS = [
    pytest.param({}, id="without a task"),
    pytest.param({"connection": "close"}, id="in a task"),
]


@pytest.fixture
def learned(tmp_path):
    """Settings of a policy that lets short requests overtake."""
    net = blank(np.array(LeastCost().theta))
    net.scalars[PRIORITY] = WEIGHT
    save(some_weights(net), tmp_path / "weights.npz")
    return {"policy": {"name": "learned", "options": {"weights": str(tmp_path / "weights.npz")}}}


def a_prioritising_node(node_id="a", **settings):
    return FakeNode(node_id, schedules_by_priority=True, **settings)


def sent(node, number=-1):
    """The body as the node got it."""
    return json.loads(node.seen[number].body)


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_arrival_on_the_wall_clock_and_the_time_at_the_node_in_tenths_of_a_second(way, learned):
    node = a_prioritising_node()
    async with running_router(learned, node) as router:
        router.clock.skip(1000.0)  # the router's own clock has no meaning to its fellows
        before_s = time.time()
        await router.post(body={"model": "m", "max_tokens": 5}, headers=way)
        after_s = time.time()

    # A few tokens on an A10 take less than a minute, however the model is guessed.
    assert 10.0 * before_s - 1.0 <= sent(node)["priority"] <= 10.0 * (after_s + 60.0 * WEIGHT)
    assert sent(node) == {"priority": sent(node)["priority"], "model": "m", "max_tokens": 5}


async def test_before_a_fleet_that_runs_faster_arrival_counts_its_seconds(learned):
    node = a_prioritising_node()
    async with running_router({"server": {"clock_speed": 10.0}, **learned}, node) as router:
        before_s = time.time()
        await router.post(body={"model": "m", "max_tokens": 5})
        after_s = time.time()

    assert 100.0 * before_s - 1.0 <= sent(node)["priority"] <= 100.0 * after_s + 10.0 * 60.0 * WEIGHT


async def test_a_long_request_gives_way_to_a_short_one_that_comes_a_little_later(learned):
    node = a_prioritising_node()
    async with running_router(learned, node) as router:
        await router.post(body={"model": "m", "max_tokens": 100, "prompt": "x" * 40_000})
        await router.post(body={"model": "m", "max_tokens": 1, "prompt": "x"})

    assert sent(node, 0)["priority"] > sent(node, 1)["priority"]


async def test_a_client_s_own_priority_wins_however_it_spells_it(learned):
    node = a_prioritising_node()
    bodies = [
        b'{"model":"m","priority":7}',
        b'{"model":"m","pr\\u0069ority":7}',
        b'{"priority":null,"model":"m"}',
    ]
    async with running_router(learned, node) as router:
        for body in bodies:
            await router.post(body=body)

    assert [seen.body for seen in node.seen] == bodies


async def test_a_node_that_does_not_schedule_by_it_gets_the_body_as_it_came(learned):
    node = FakeNode()
    async with running_router(learned, node) as router:
        await router.post(body=b'{ "model": "m" }')

    assert node.seen[0].body == b'{ "model": "m" }'


async def test_a_policy_that_says_none_sends_none():
    node = a_prioritising_node()
    async with running_router({"policy": {"name": "least_cost"}}, node) as router:
        await router.post(body=b'{ "model": "m" }')

    assert node.seen[0].body == b'{ "model": "m" }'


async def test_an_api_without_the_field_gets_none(learned):
    node = a_prioritising_node()
    async with running_router(learned, node) as router:
        await router.post("/v1/messages", {"model": "m"})

    assert sent(node) == {"model": "m"}


async def test_a_second_node_gets_one_too(learned):
    nodes = [a_prioritising_node(name, reply=DEAD) for name in "ab"]
    async with running_router(learned, *nodes) as router:
        await router.post()

    assert all("priority" in sent(node) for node in nodes)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 4, "stream": True}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 4}),
    ],
)
async def test_an_emulated_node_takes_it_for_the_place_in_its_queue(path, asked, learned, monkeypatch):
    seen = []
    submit = EmulatedNode.submit
    monkeypatch.setattr(
        EmulatedNode, "submit", lambda node, job, now_s: (seen.append(job.priority), submit(node, job, now_s))
    )
    async with EmulatedFleet(count=1, speed=200.0, warm=(CHAT_MODEL,)) as fleet:
        node = {
            "url": fleet.urls[0],
            "engine": "emulator",
            "models": [CHAT_MODEL],
            "schedules_by_priority": True,
        }
        async with running_router(learned, node | {"loads_on_demand": True}) as router:
            answer = await router.post(path, {"model": CHAT_MODEL, **asked})

    assert answer.status == 200
    assert seen == [pytest.approx(10.0 * time.time(), abs=10.0 * 60.0)]
