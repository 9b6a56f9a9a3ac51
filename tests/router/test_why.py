"""``GET /admin/why/ID`` and ``ccr why ID``: a decision of a running router, taken apart."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from router.why import told, why
from tests.router.fake_node import DEAD, FakeNode
from tests.router.harness import TOKEN, running_router

LEARNED = {"policy": {"name": "learned"}}


async def explained(router, request_id="r-1"):
    return (await router.admin("GET", f"/admin/why/{request_id}")).json


async def asked(router, request_id="r-1", **headers):
    return await router.post(headers={"x-request-id": request_id, **headers})


async def ccr_why(router, *arguments):
    """Exit code and output of ``ccr why``."""
    options = {
        "env": {"CCR_ADMIN__TOKEN": TOKEN, "CCR_ADMIN_URL": router.admin_url},
        "catch_exceptions": True,
    }
    result = await asyncio.to_thread(CliRunner().invoke, why, arguments, **options)
    return result.exit_code, result.output, result.exception


async def test_a_decision_is_taken_apart_node_by_node():
    async with running_router(LEARNED, FakeNode("a"), FakeNode("b")) as router:
        answer = await asked(router)
        found = await explained(router)
        policy = (await router.admin("GET", "/admin/policy")).json

    assert (found["node"], found["policy"], found["version"]) == (answer.node, "learned", policy["version"])
    assert [node["node"] for node in found["nodes"]] == ["a", "b"]
    assert [node["is_chosen"] for node in found["nodes"]] == [answer.node == "a", answer.node == "b"]
    assert found["nodes"][0].keys() == {
        "node", "is_chosen", "why_not", "terms", "weighted", "cost_s", "residual", "score", "probability", "heuristic_s",
    }  # fmt: skip
    assert found["heuristic"] in {"a", "b"}


@pytest.mark.parametrize(
    ("settings", "why_not"),
    [
        pytest.param({"tags": ["other"]}, "lacks tag big", id="a tag that it lacks"),
        pytest.param({"tags": ["big"], "models": ("x",)}, "does not serve it", id="another model"),
    ],
)
async def test_a_node_that_was_not_eligible_says_why(settings, why_not):
    nodes = [FakeNode("a", tags=["big"]), FakeNode("b", **settings)]
    async with running_router(LEARNED, *nodes) as router:
        await asked(router, **{"x-ccr-node-tags": "big"})
        found = await explained(router)

    assert [node["why_not"] for node in found["nodes"]] == ["", why_not]


async def test_why_a_node_was_out_is_what_was_so_then():
    async with running_router(LEARNED, FakeNode("a"), FakeNode("b")) as router:
        await router.admin("POST", "/admin/nodes/b/drain", {"draining": True})
        await asked(router)
        await router.admin("POST", "/admin/nodes/b/drain", {"draining": False})
        found = await explained(router)

    assert [node["why_not"] for node in found["nodes"]] == ["", "draining"]


async def test_of_a_retry_the_last_decision_is_told():
    settings = {"policy": {"name": "round_robin"}}
    async with running_router(settings, FakeNode("a", reply=DEAD), FakeNode("b")) as router:
        for number in range(2):  # one of them is a's turn
            await asked(router, f"r-{number}")
        found = [await explained(router, f"r-{number}") for number in range(2)]

    assert [one["node"] for one in found] == ["b", "b"]
    assert {one["nodes"][0]["why_not"] for one in found} == {"", "already failed this request"}


async def test_a_decision_is_explained_with_the_policy_that_made_it():
    async with running_router(LEARNED, FakeNode("a"), FakeNode("b")) as router:
        await asked(router)
        before = await explained(router)
        await router.admin("POST", "/admin/policy", {"name": "round_robin"})
        await asked(router, "r-2")

        assert await explained(router) == before
        assert "does not look" in (await explained(router, "r-2"))["note"]


async def test_a_fallback_is_explained_as_what_it_is(tmp_path):
    script = tmp_path / "policy.py"
    script.write_text("def score(node, req):\n    return 1.0 / (node.id != 'a')\n")
    script.chmod(0o600)
    settings = {"policy": {"script": str(script), "fallback": "least_cost"}}
    async with running_router(settings, FakeNode("a")) as router:
        await asked(router)
        found = await explained(router)

    assert found["policy"] == "least_cost"
    assert found["fallback"]
    assert found["nodes"][0]["weighted"]


async def test_what_is_not_remembered_is_404_and_the_token_is_wanted():
    async with running_router(LEARNED, FakeNode()) as router:
        unknown = await router.admin("GET", "/admin/why/nope")
        secret = await router.admin("GET", "/admin/why/nope", token=None)

    assert (unknown.status, unknown.code) == (404, "not_found")
    assert "trace.keep" in unknown.json["error"]["message"]
    assert secret.status == 401


# -- the command


async def test_the_command_shows_terms_weights_and_what_the_heuristic_would_do():
    async with running_router(LEARNED, FakeNode("a"), FakeNode("b")) as router:
        answer = await asked(router)
        code, out, _ = await ccr_why(router, "r-1")

    assert code == 0
    assert f"r-1 for m went to {answer.node} by learned" in out
    assert "least_cost would have chosen" in out
    for word in ("residual", "probability", "seconds under the policy's weights", "inflicted", "evicted"):
        assert word in out


async def test_the_command_prints_json():
    async with running_router(LEARNED, FakeNode("a")) as router:
        await asked(router)
        code, out, _ = await ccr_why(router, "r-1", "--json")
        found = await explained(router)

    assert (code, json.loads(out)) == (0, found)


async def test_of_a_policy_that_does_not_look_the_command_shows_scores_and_says_so():
    async with running_router({"policy": {"name": "least_request"}}, FakeNode("a")) as router:
        await asked(router)
        code, out, _ = await ccr_why(router, "r-1")

    assert code == 0
    assert "does not look" in out
    assert "score" in out
    assert "residual" not in out


async def test_the_command_says_what_is_not_remembered():
    async with running_router(LEARNED, FakeNode("a")) as router:
        code, _, error = await ccr_why(router, "a/b")

    assert code == 1
    assert "'a/b'" in str(error) or "not_found" in str(error) or "Not Found" in str(error)


def test_a_move_of_the_guard_and_what_was_allowed_are_told():
    lines = told(
        {
            "request_id": "r", "model": "m", "node": "b", "policy": "learned", "version": "3", "fallback": "",
            "guard_reason": "bounded_load", "drawn": "a", "heuristic": "a", "note": "",
            "actions": [{"action": "refuse", "logit": 1.5, "residual": 0.0, "is_allowed": False}],
        }
    )  # fmt: skip

    assert lines == [
        "r for m went to b by learned (weights 3)",
        "the guard (bounded_load) moved it there; drawn was a",
        "least_cost would have chosen the same",
        "to refuse had the logit 1.5, not allowed in the fleet's state",
    ]
