"""Who may ask for what: keys, tenants, models, and where a key never shows up."""

import pytest

from router.auth import new_key
from tests.router.fake_node import FakeNode
from tests.router.harness import running_router

MODELS = ("chat@1", "code", "secret")
TENANTS = {"acme": ("chat", "code"), "lab": ("secret",), "root": ("*",), "nobody": ()}
KEYS = {name: new_key() for name in TENANTS}
SETTINGS = {
    "models": {"chat": {"versions": {"1": {}}}, "code": {}, "secret": {}},
    "keys": [
        {"name": name, "hash": KEYS[name][1], "models": list(models)} for name, models in TENANTS.items()
    ],
}
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")


def bearer(name):
    return {"authorization": f"Bearer {KEYS[name][0]}"}


async def test_the_matrix_of_tenants_and_models_deny_by_default():
    asked = {"chat": "chat", "chat@1": "chat", "code": "code", "secret": "secret"}
    async with running_router(SETTINGS, FakeNode(models=MODELS)) as router:
        got = {
            (tenant, model): (await router.post(body={"model": model}, headers=bearer(tenant))).status
            for tenant in TENANTS
            for model in asked
        }

    assert got == {
        (tenant, model): 200 if "*" in allowed or name in allowed else 404
        for tenant, allowed in TENANTS.items()
        for model, name in asked.items()
    }


async def test_a_forbidden_model_and_an_unknown_one_look_the_same():
    async with running_router(SETTINGS, FakeNode(models=MODELS)) as router:
        forbidden, unknown, version = [
            await router.post(body={"model": model}, headers={**bearer("acme"), "x-request-id": "r"})
            for model in ("secret", "absent", "chat@absent")
        ]

    def without_name(answer, name):
        return (
            answer.status,
            answer.body.replace(name, b"NAME"),
            sorted(item for item in answer.headers.items() if item[0].lower() != "content-length"),
        )

    assert without_name(forbidden, b"secret") == without_name(unknown, b"absent")
    assert without_name(version, b"chat@absent") == without_name(unknown, b"absent")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param({"model": "secret"}, {}, id="body"),
        pytest.param({"model": "chat"}, {"x-model-name": "secret"}, id="header over an allowed body"),
        pytest.param({"model": "secret@1"}, {}, id="with a version"),
        pytest.param(b'{"model":"chat","mod\\u0065l":"secret"}', {}, id="escaped twin of an allowed name"),
        pytest.param(b'{"model":"chat","model":"secret"}', {}, id="twin of an allowed name"),
        pytest.param(
            {"model": "chat", "api_base": "http://127.0.0.1:1", "base_url": "http://x"}, {}, id="own url"
        ),
    ],
)
async def test_no_trick_reaches_a_forbidden_model_or_node(body, headers):
    node = FakeNode(models=MODELS)
    async with running_router(SETTINGS, node) as router:
        await router.post(body=body, headers={**bearer("acme"), **headers})

    assert [seen.model for seen in node.seen] in ([], ["chat@1"])


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no key"),
        pytest.param({"authorization": "Bearer wrong"}, id="wrong key"),
        pytest.param({"authorization": "Bearer "}, id="empty key"),
        pytest.param({"authorization": KEYS["root"][0]}, id="no scheme"),
        pytest.param({"authorization": f"Basic {KEYS['root'][0]}"}, id="other scheme"),
        pytest.param({"x-api-key": KEYS["root"][1]}, id="the hash is not the key"),
    ],
)
async def test_401_in_the_shape_of_each_api_before_the_body_is_read(headers):
    async with running_router(SETTINGS, FakeNode(models=MODELS)) as router:
        answers = {path: await router.post(path, b"not even JSON", headers=headers) for path in PATHS}
        models = await router.get("/v1/models", headers=headers)

    assert {answer.status for answer in (*answers.values(), models)} == {401}
    assert {answer.headers["www-authenticate"] for answer in (*answers.values(), models)} == {"Bearer"}
    anthropic = answers.pop("/v1/messages")
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"]["type"] == "authentication_error"
    for answer in (*answers.values(), models):
        assert {"type": "authentication_error", "code": "invalid_api_key"}.items() <= answer.json[
            "error"
        ].items()


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_never_reaches_the_node(header):
    node = FakeNode(models=MODELS)
    secret = KEYS["root"][0]
    sent = {"authorization": f"bearer {secret}"} if header == "authorization" else {"x-api-key": secret}
    async with running_router(SETTINGS, node) as router:
        answer = await router.post(
            body={"model": "code"}, headers={**sent, "cookie": secret, "api-key": secret}
        )

    assert answer.status == 200
    assert secret.encode() not in b"".join(value for _, value in node.seen[0].headers)


@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["open router", "keyed router"])
async def test_a_node_s_own_key_replaces_the_client_s(settings):
    node = FakeNode(models=MODELS, api_key="key-of-the-node")
    async with running_router(settings, node) as router:
        await router.post(body={"model": "code"}, headers={**bearer("root"), "x-api-key": "client"})

    sent = {name: value for name, value in node.seen[0].headers if name in {b"authorization", b"x-api-key"}}
    assert sent == {b"authorization": b"Bearer key-of-the-node"}


async def test_a_tenant_sees_its_models_only():
    async with running_router(SETTINGS, FakeNode(models=MODELS)) as router:
        listed = {
            name: [
                model["id"] for model in (await router.get("/v1/models", headers=bearer(name))).json["data"]
            ]
            for name in TENANTS
        }

    assert listed == {
        "acme": ["chat", "chat@1", "code"],
        "lab": ["secret"],
        "root": ["chat", "chat@1", "code", "secret"],
        "nobody": [],
    }


async def test_the_sidecar_asks_for_the_same_keys():
    async with running_router(SETTINGS, FakeNode(models=MODELS)) as router:
        good = await router.post("/route", {"model": "chat"}, headers=bearer("acme"))
        bad = [
            await router.post("/route", {"model": "chat"}),
            await router.post("/route", {"model": "secret"}, headers=bearer("acme")),
            await router.post(
                "/route", {"model": "chat", "headers": {"x-model-name": "secret"}}, headers=bearer("acme")
            ),
            await router.post(
                "/route", {"model": "secret", "headers": bearer("root")}, headers=bearer("acme")
            ),
            await router.post("/feedback", {"decision_token": good.json["decision_token"]}),
        ]

    assert good.status == 200
    assert [answer.status for answer in bad] == [401, 404, 404, 404, 401]
