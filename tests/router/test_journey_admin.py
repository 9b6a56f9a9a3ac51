"""The admin API: closed without its token, and what an operator does with it while requests go on."""

import asyncio
import json

import pytest

from ccr.policies import POLICIES
from tests.router.fake_node import STREAM, FakeNode, Reply
from tests.router.harness import running_router, until

HELD = Reply(chunks=(b"{}",), paced=True)
SCRIPT = "def score(node, req):\n    return 1.0 if node.id == '{}' else 0.0\n"


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o600)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "policy.py"
    write_script(path, SCRIPT.format("a"))
    return path


# -- who may ---------------------------------------------------------------------------------------------------------


def operations(app):
    """(method, path, operation) of everything in the application's OpenAPI page."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_every_admin_route_but_metrics_wants_the_token():
    """By its own page, and by asking: a route somebody adds without the token fails here."""
    async with running_router({}, FakeNode()) as router:
        for method, path, operation in operations(router.router.admin):
            if operation.get("tags") == ["health"]:
                continue
            assert operation["security"], path
            for token in (None, "", "wrong", router.token + "x", router.token[:-1]):
                answer = await router.admin(method, path.replace("{", "").replace("}", ""), {}, token)
                assert (answer.status, answer.code) == (401, "unauthorised"), (path, token)


async def test_the_data_listener_has_nothing_an_operator_would_want():
    async with running_router({}, FakeNode()) as router:
        paths = {path for _, path, _ in operations(router.router.data._rest)}
        answers = [
            await router.get("/admin" + path) for path in ("", "/status", "/config", "/ledger", "/decisions")
        ]

    assert not [path for path in paths if "admin" in path]
    assert {answer.status for answer in answers} == {404}


async def test_status_tells_the_router_and_its_nodes():
    async with running_router({}, FakeNode("a", HELD, tags=["t"]), FakeNode("b", HELD)) as router:
        asking = asyncio.create_task(router.post())
        await until(lambda: any(node.concurrent for node in router.nodes))
        status = (await router.admin("GET", "/admin/status")).json
        ledger = (await router.admin("GET", "/admin/ledger")).json
        for node in router.nodes:
            node.release()
        request_id = (await asking).headers["x-request-id"]
        after = (await router.admin("GET", "/admin/status")).json

    assert (status["ready"], status["in_flight"], status["policy"]["name"]) == (True, 1, "learned")
    assert {node["id"]: node["tags"] for node in status["nodes"]} == {"a": ["t"], "b": []}
    assert sum(node["inflight"] for node in status["nodes"]) == 1
    assert [(lease["request_id"], lease["model"]) for lease in ledger["leases"]] == [(request_id, "m")]
    assert (after["in_flight"], after["outcomes"]) == (0, {"ok": 1})


async def test_the_config_is_shown_without_its_secrets():
    secrets = {"admin": {"token": "s3cret-admin"}, "sidecar": {"secret": "s3cret-sidecar"}}
    async with running_router(secrets, FakeNode(api_key="s3cret-node")) as router:
        answer = await router.admin("GET", "/admin/config", token="s3cret-admin")

    assert answer.status == 200
    assert b"s3cret" not in answer.body


async def test_decisions_are_listed_newest_first():
    async with running_router({"trace": {"keep": 3}}, FakeNode()) as router:
        for i in range(5):
            await router.post(headers={"x-request-id": f"r{i}"})
        listed = (await router.admin("GET", "/admin/decisions?limit=2")).json
        all_kept = (await router.admin("GET", "/admin/decisions")).json
        forgotten = await router.admin("GET", "/admin/decisions/r0")

    assert [record["request_id"] for record in listed] == ["r4", "r3"]
    assert len(all_kept) == 3
    assert forgotten.status == 404


# -- a node out of rotation ------------------------------------------------------------------------------------------


async def test_a_drained_node_finishes_what_it_has_and_gets_nothing_new():
    draining, other = FakeNode("draining", HELD), FakeNode("other")
    async with running_router({"policy": {"name": "round_robin"}}, draining, other) as router:
        asking = asyncio.create_task(router.post())
        await until(lambda: draining.concurrent == 1)

        await router.admin("POST", "/admin/nodes/draining/drain", {"draining": True})
        meanwhile = {(await router.post()).node for _ in range(6)}
        draining.release()
        finished = await asking
        await router.admin("POST", "/admin/nodes/draining/drain", {"draining": False})
        draining.release(10)
        afterwards = {(await router.post()).node for _ in range(4)}

        assert meanwhile == {"other"}
        assert (finished.status, finished.node) == (200, "draining")
        assert afterwards == {"draining", "other"}
        assert (await router.admin("POST", "/admin/nodes/nonesuch/drain", {})).status == 404


# -- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
async def test_the_policy_is_switched_while_requests_run(name):
    async with running_router(
        {"policy": {"name": "random"}}, FakeNode("a", HELD), FakeNode("b", HELD)
    ) as router:
        before = asyncio.create_task(router.post())
        await until(lambda: any(node.concurrent for node in router.nodes))

        swap = await router.admin("POST", "/admin/policy", {"name": name})
        after = asyncio.create_task(router.post())
        await until(lambda: sum(node.concurrent for node in router.nodes) == 2)
        for node in router.nodes:
            node.release(2)

        assert (swap.status, swap.json["policy"], swap.json["previous"]) == (200, name, "random")
        assert (await before).headers["x-ccr-policy"] == "random"
        assert (await after).headers["x-ccr-policy"] == name


async def test_a_reload_under_load_takes_effect_when_it_says_so_and_no_request_fails(script):
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        statuses, nodes, _ = await reload_under_load(router, script, times=4)

        assert set(statuses) == {200}
        assert nodes == {"a", "b"}
        assert router.router.stats.policy_reloads == {"ok": 4}


@pytest.mark.prove
async def test_a_hundred_reloads_under_load_drop_nothing_and_take_a_third_of_a_second(script):
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        statuses, _, took_s = await reload_under_load(router, script, times=100)

        assert set(statuses) == {200}
        assert sorted(took_s)[50] < 0.3


async def reload_under_load(router, script, times):
    """Statuses and nodes of the requests meanwhile, and the seconds each reload took."""
    statuses, nodes, took_s = [], set(), []
    done = asyncio.Event()

    async def load():
        while not done.is_set():
            answer = await router.post()
            statuses.append(answer.status)
            nodes.add(answer.node)

    loading = [asyncio.create_task(load()) for _ in range(4)]
    for i in range(times):
        write_script(script, SCRIPT.format("ab"[(i + 1) % 2]))
        swap = await router.admin("POST", "/admin/policy/reload")
        assert swap.status == 200, swap.body
        took_s.append(swap.json["took_s"])
        answer = await router.post()
        assert answer.node == "ab"[(i + 1) % 2]
    done.set()
    await asyncio.gather(*loading)
    return statuses, nodes, took_s


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("def score(node, req:\n", id="syntax error"),
        pytest.param("def rank(node, req):\n    return 1\n", id="no score"),
        pytest.param("import os\ndef score(node, req):\n    return 1\n", id="forbidden import"),
        pytest.param("def score(node, req):\n    while True:\n        pass\n", id="never ends"),
        pytest.param("def score(node, req):\n    return None\n", id="gives no number"),
        pytest.param("def score(node, req):\n    return 1 / 0\n", id="raises"),
    ],
)
async def test_a_bad_script_is_refused_and_the_old_one_serves(script, text):
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        write_script(script, text)
        answer = await router.admin("POST", "/admin/policy/reload")

        assert (answer.status, answer.code) == (422, "refused")
        assert str(script) in answer.json["error"]["message"]
        assert {(await router.post()).node for _ in range(4)} == {"a"}
        assert router.router.stats.policy_reloads == {"refused": 1}


LOOPS = (
    "def score(node, req):\n"
    "    if req.header.get('x-loop'):\n"
    "        total = 0\n"
    "        for i in range(10**9):\n"
    "            total += i\n"
    "    return 1.0 if node.id == 'b' else 0.0\n"
)


async def test_a_script_that_runs_out_of_time_three_times_gives_way_to_the_one_before(script):
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        write_script(script, LOOPS)
        assert (await router.admin("POST", "/admin/policy/reload")).status == 200
        assert (await router.post()).node == "b"

        looped = [(await router.post(headers={"x-loop": "1"})) for _ in range(3)]

        assert {answer.status for answer in looped} == {200}  # the fallback decided
        assert {answer.headers["x-ccr-policy"] for answer in looped} == {"hot_cold"}
        assert {(await router.post()).node for _ in range(3)} == {"a"}
        assert router.router.stats.fallbacks == {"script": 3}


async def test_a_first_script_that_runs_out_of_time_gives_way_to_the_fallback(script):
    write_script(script, LOOPS)
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        for _ in range(3):
            await router.post(headers={"x-loop": "1"})

        assert (await router.admin("GET", "/admin/policy")).json["name"] == "hot_cold"
        assert (await router.post()).headers["x-ccr-policy"] == "hot_cold"


async def test_a_refused_reload_does_not_make_a_script_its_own_predecessor(script):
    """Struck out, the script must not come back because a reload failed in between."""
    write_script(script, LOOPS)
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        write_script(script, "def score(node):\n    return 1\n")
        assert (await router.admin("POST", "/admin/policy/reload")).status == 422
        for _ in range(3):
            await router.post(headers={"x-loop": "1"})

        assert (await router.admin("GET", "/admin/policy")).json["name"] == "hot_cold"


async def test_a_script_failing_for_one_request_fails_for_that_one_only(script):
    write_script(script, "def score(node, req):\n    return 1 / (len(req.session) - 3)\n")
    async with running_router({"policy": {"script": str(script)}}, FakeNode("a"), FakeNode("b")) as router:
        failing = await router.post(headers={"x-session-id": "abc"})
        fine = await router.post(headers={"x-session-id": "abcd"})
        record = (await router.admin("GET", f"/admin/decisions/{failing.headers['x-request-id']}")).json

    assert (failing.status, failing.headers["x-ccr-policy"]) == (200, "hot_cold")
    assert "score for node 'a' raised ZeroDivisionError" in record["fallback"]
    assert fine.headers["x-ccr-policy"] == "script"


# -- readiness -------------------------------------------------------------------------------------------------------


async def test_health_and_readiness():
    async with running_router({"server": {"drain_grace": "10s"}}, FakeNode(reply=STREAM)) as router:
        ready = await router.get("/readyz")
        router.serving.stop()
        draining = await router.get("/readyz")
        alive = await router.get("/healthz")
        served = await router.post()

    assert (ready.status, json.loads(ready.body)) == (200, {"ready": True, "why": ""})
    assert (draining.status, json.loads(draining.body)) == (503, {"ready": False, "why": "draining"})
    assert (alive.status, served.status) == (200, 200)  # in its grace time it still serves
