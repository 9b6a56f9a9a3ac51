"""What decides where a request goes, and how the answer tells where it went."""

import asyncio
from collections import Counter

import pytest

from ccr.hashing import unit_hash
from ccr.policies import POLICIES
from tests.router.fake_node import FakeNode, Reply
from tests.router.harness import running_router, until

VERSIONS = ("chat@1", "chat@2", "chat@3")
MODELS = {
    "models": {
        "chat": {
            "versions": {"1": {"weight": 3}, "2": {"weight": 1}, "3": {"weight": 0}},
            "aliases": {"champion": "1", "challenger": "3"},
        }
    }
}


@pytest.mark.parametrize(
    ("ask", "headers", "version"),
    [
        pytest.param("chat@2", {}, "2", id="version in the model"),
        pytest.param("chat@champion", {}, "1", id="alias in the model"),
        pytest.param("chat", {"X-Model-Version": "3"}, "3", id="version in the header"),
        pytest.param("chat", {"x-model-version": "challenger"}, "3", id="alias in the header"),
        pytest.param("chat@2", {"X-Model-Version": "3"}, "3", id="the header wins over the model"),
        pytest.param("other", {"X-Model-Name": "chat@2"}, "2", id="the name header wins over the body"),
        pytest.param(None, {"X-Model-Name": "chat@2"}, "2", id="the name header stands in for the body"),
    ],
)
async def test_a_version_that_is_asked_for_is_served(ask, headers, version):
    node = FakeNode(models=VERSIONS)
    async with running_router(MODELS, node) as router:
        answer = await router.post(body={} if ask is None else {"model": ask}, headers=headers)

    assert (answer.status, answer.headers["x-ccr-version"]) == (200, version)
    assert node.seen[0].model == answer.headers["x-ccr-model"] == f"chat@{version}"


async def test_answers_tell_node_policy_model_and_version():
    async with running_router(MODELS, FakeNode("gpu-7", models=VERSIONS)) as router:
        answer = await router.post(body={"model": "chat@1"}, headers={"x-request-id": "r-1"})

    told = {
        name: answer.headers[name] for name in ("x-ccr-node", "x-ccr-policy", "x-ccr-model", "x-request-id")
    }
    assert told == {
        "x-ccr-node": "gpu-7",
        "x-ccr-policy": "learned",
        "x-ccr-model": "chat@1",
        "x-request-id": "r-1",
    }


async def test_a_model_without_versions_has_no_version_header():
    async with running_router({}, FakeNode()) as router:
        answer = await router.post()

    assert (answer.headers["x-ccr-model"], answer.headers.get("x-ccr-version")) == ("m", None)


async def served_versions(seed, count=120):
    async with running_router(MODELS, FakeNode(models=VERSIONS), seed=seed) as router:
        return [(await router.post(body={"model": "chat"})).headers["x-ccr-version"] for _ in range(count)]


async def test_canary_weights_split_by_the_seeded_draws():
    versions = await served_versions(seed=7)
    again = await served_versions(seed=7)

    assert versions == again
    # Binomial(120, 1/4): 30 +- 4.7; weight 0 is never drawn.
    assert Counter(versions)["3"] == 0
    assert 16 <= Counter(versions)["2"] <= 44


@pytest.mark.parametrize("header", ["x-session-id", "x-session-token", "x-conversation-id"])
async def test_a_session_gets_the_version_its_hash_falls_on_and_keeps_it(header):
    sessions = [f"session-{i}" for i in range(40)]
    async with running_router(MODELS, FakeNode(models=VERSIONS)) as router:
        served = {
            session: {
                (await router.post(body={"model": "chat"}, headers={header: session})).headers[
                    "x-ccr-version"
                ]
                for _ in range(2)
            }
            for session in sessions
        }

    assert served == {session: {"1" if unit_hash(session) < 0.75 else "2"} for session in sessions}


async def test_a_session_keeps_its_node_under_session_affinity():
    nodes = [FakeNode(name) for name in "abcd"]
    async with running_router({"policy": {"name": "session_affinity"}}, *nodes) as router:
        served = [
            {(await router.post(headers={"x-session-id": f"s{i}"})).node for _ in range(3)} for i in range(12)
        ]

    assert all(len(nodes) == 1 for nodes in served)
    assert len(set().union(*served)) > 1


async def test_node_tags_are_insisted_on():
    nodes = [FakeNode("eu", tags=["eu"]), FakeNode("eu-big", tags=["eu", "big"]), FakeNode("us", tags=["us"])]
    async with running_router({}, *nodes) as router:
        chosen = {(await router.post(headers={"x-ccr-node-tags": " eu , big "})).node for _ in range(8)}
        nowhere = await router.post(headers={"x-ccr-node-tags": "eu,us"})

    assert chosen == {"eu-big"}
    assert (nowhere.status, nowhere.code) == (503, "no_capacity")
    assert "lacks tag us" in nowhere.json["error"]["message"]


async def test_a_version_s_own_tags_are_insisted_on_too():
    models = {"chat": {"versions": {"1": {"tags": ["big"]}}}}
    nodes = [FakeNode("a", models=("chat@1",)), FakeNode("b", models=("chat@1",), tags=["big"])]
    async with running_router({"models": models, "policy": {"name": "random"}}, *nodes) as router:
        chosen = {(await router.post(body={"model": "chat"})).node for _ in range(8)}

    assert chosen == {"b"}


def a_script(tmp_path, text):
    path = tmp_path / "policy.py"
    path.write_text(text)
    path.chmod(0o600)
    return {"policy": {"script": str(path)}}


async def test_a_policy_sees_slo_and_priority_and_no_credentials(tmp_path):
    """An operator's script prefers node b exactly when it sees what the client sent, and no key."""
    script = a_script(
        tmp_path,
        "def score(node, req):\n"
        "    asked = req.header.get('X-LLM-D-SLO-TTFT-MS') == '250' and req.priority == 1 and req.session == 's'\n"
        "    clean = 'authorization' not in req.header and 'x-api-key' not in list(req.header)\n"
        "    return 1.0 if (node.id == 'b') == (asked and clean) else 0.0\n",
    )
    sent = {
        "x-llm-d-slo-ttft-ms": "250",
        "x-ccr-priority": "high",
        "x-session-id": "s",
        "authorization": "Bearer k",
        "x-api-key": "k",
    }
    async with running_router(script, FakeNode("a"), FakeNode("b")) as router:
        assert (await router.post(headers=sent)).node == "b"
        assert (await router.post()).node == "a"


@pytest.mark.parametrize(
    "name", ["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"]
)
async def test_slo_headers_are_known_by_their_old_and_new_names(name):
    async with running_router({}, FakeNode()) as router:
        good = await router.post(headers={name: "12.5"})
        bad = [await router.post(headers={name: value}) for value in ("0", "-1", "soon", "nan", "inf")]

    assert good.status == 200
    assert [(answer.status, answer.code) for answer in bad] == [(400, "bad_header")] * 5


@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_serves_and_signs_its_decisions(policy):
    async with running_router({"policy": {"name": policy}}, FakeNode("a"), FakeNode("b")) as router:
        answers = [await router.post() for _ in range(4)]

    assert {answer.headers["x-ccr-policy"] for answer in answers} == {policy}


async def test_requests_at_the_same_time_are_spread():
    nodes = [FakeNode(name, Reply(chunks=(b"x",), paced=True)) for name in "abcd"]
    async with running_router({"policy": {"name": "least_request"}}, *nodes) as router:
        asking = [asyncio.create_task(router.post()) for _ in range(8)]
        await until(lambda: sum(node.concurrent for node in nodes) == 8)
        spread = [node.concurrent for node in nodes]
        for node in nodes:
            node.release(8)
        await asyncio.gather(*asking)

    assert spread == [2, 2, 2, 2]
