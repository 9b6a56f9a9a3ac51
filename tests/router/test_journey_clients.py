"""What the official clients get through the router, from emulated nodes on loopback."""

from contextlib import asynccontextmanager

import anthropic
import openai
import pytest

from envs.emulator import EmulatedFleet
from router.auth import new_key
from tests.router.fake_node import DEAD, FakeNode, Reply
from tests.router.harness import running_router

CHAT = "chat-7b@1"
HELLO = [{"role": "user", "content": "x" * 40}]  # 40 bytes: 10 tokens.
KEY, HASH = new_key()
KEYED = {"keys": [{"name": "acme", "hash": HASH, "models": ["chat-7b", "m"]}]}
MODELS = {"chat-7b": {"versions": {"1": {}, "2": {"weight": 0.0}}, "aliases": {"champion": "1"}}}


@asynccontextmanager
async def a_routed_fleet(**settings):
    """A router before two fast emulated nodes, both with one model warm."""
    async with EmulatedFleet(count=2, speed=200.0, warm=(CHAT,)) as fleet:
        nodes = [
            {"url": url, "engine": "emulator", "models": [CHAT, "chat-7b@2"], "loads_on_demand": True}
            for url in fleet.urls
        ]
        async with running_router({"models": MODELS, **settings}, *nodes) as router:
            yield router


def an_openai(router, key=KEY):
    return openai.AsyncOpenAI(base_url=router.url + "/v1", api_key=key, max_retries=0, timeout=20)


def an_anthropic(router, key=KEY):
    return anthropic.AsyncAnthropic(base_url=router.url, api_key=key, max_retries=0, timeout=20)


@pytest.fixture
async def openai_client():
    async with a_routed_fleet() as router, an_openai(router) as client:
        yield client


@pytest.fixture
async def anthropic_client():
    async with a_routed_fleet() as router, an_anthropic(router) as client:
        yield client


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_openai_chat(openai_client):
    answer = await openai_client.chat.completions.create(model="chat-7b", messages=HELLO, max_tokens=7)

    assert len(answer.choices[0].message.content.split()) == 7
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 7)


async def test_openai_chat_stream_is_the_whole_answer_piece_by_piece(openai_client):
    whole = await openai_client.chat.completions.create(model="chat-7b", messages=HELLO, max_tokens=30)
    stream = await openai_client.chat.completions.create(
        model="chat-7b", messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 30


@pytest.mark.parametrize("header", ["x-session-id", "x-session-token", "x-conversation-id"])
async def test_a_conversation_finds_its_context_in_the_prefix_cache_of_its_node(header):
    """The router passes the session on, and sends the next turn where the last one was."""
    said = [{"role": "user", "content": "x" * 4000}]
    policy = {"name": "session_affinity"}
    async with EmulatedFleet(count=2, speed=200.0, warm=(CHAT,)) as fleet:
        nodes = [{"url": url, "engine": "emulator", "models": [CHAT]} for url in fleet.urls]
        async with (
            running_router({"models": MODELS, "policy": policy}, *nodes) as router,
            an_openai(router) as client,
        ):
            for question in ("Why?", "Really?"):
                answer = await client.chat.completions.create(
                    model="chat-7b", messages=said, max_tokens=20, extra_headers={header: "s"}
                )
                said.append({"role": "assistant", "content": answer.choices[0].message.content})
                said.append({"role": "user", "content": question})
            pages = [node.app.life.metrics().decode() for node in fleet.nodes]

    hits = [line for page in pages for line in page.splitlines() if line.startswith("vllm:prefix_cache_hits")]
    assert [float(line.split()[-1]) for line in hits] == [1000 + 20]


async def test_openai_completions(openai_client):
    answer = await openai_client.completions.create(model="chat-7b", prompt="x" * 40, max_tokens=5)
    stream = await openai_client.completions.create(
        model="chat-7b", prompt="x" * 40, max_tokens=5, stream=True
    )

    assert len(answer.choices[0].text.split()) == 5
    assert "".join([chunk.choices[0].text async for chunk in stream]) == answer.choices[0].text


async def test_openai_embeddings(openai_client):
    answer = await openai_client.embeddings.create(model="chat-7b", input=["one", "two"], dimensions=8)

    assert [len(one.embedding) for one in answer.data] == [8, 8]


async def test_openai_responses(openai_client):
    answer = await openai_client.responses.create(model="chat-7b", input="x" * 40, max_output_tokens=6)
    stream = await openai_client.responses.create(
        model="chat-7b", input="x" * 40, max_output_tokens=6, stream=True
    )
    events = [event async for event in stream]

    assert len(answer.output_text.split()) == 6
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text


async def test_openai_models_are_the_catalogue_s_names_versions_and_aliases(openai_client):
    models = [model.id async for model in openai_client.models.list()]

    assert models == ["chat-7b", "chat-7b@1", "chat-7b@2", "chat-7b@champion"]


async def test_anthropic_messages(anthropic_client):
    ask = {"model": "chat-7b", "messages": HELLO, "max_tokens": 7}

    answer = await anthropic_client.messages.create(**ask)
    async with anthropic_client.messages.stream(**ask) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()

    assert len(answer.content[0].text.split()) == 7
    assert text == answer.content[0].text
    assert final.usage.output_tokens == 7


# -- errors become the clients' own exceptions -----------------------------------------------------------------------

ERRORS = [
    pytest.param({}, {"model": "nobody"}, "NotFoundError", "model_not_found", id="unknown model: 404"),
    pytest.param({}, {"model": ""}, "BadRequestError", "model_missing", id="no model: 400"),
    pytest.param({"keys": KEYED["keys"]}, {}, "AuthenticationError", "invalid_api_key", id="wrong key: 401"),
    pytest.param({"admission": {"max_qps": 1e-9}}, {}, "RateLimitError", "rate_limited", id="too many: 429"),
]


@pytest.mark.parametrize(("settings", "ask", "expected", "code"), ERRORS)
async def test_openai_exceptions(settings, ask, expected, code):
    async with running_router(settings, FakeNode()) as router, an_openai(router, "wrong") as client:
        await router.post()  # takes the one token there is of `max_qps`

        with pytest.raises(getattr(openai, expected)) as raised:
            await client.chat.completions.create(**{"model": "m", "messages": HELLO, **ask})

    assert raised.value.code == code
    assert raised.value.request_id


@pytest.mark.parametrize(("settings", "ask", "expected", "code"), ERRORS)
async def test_anthropic_exceptions(settings, ask, expected, code):
    async with running_router(settings, FakeNode()) as router, an_anthropic(router, "wrong") as client:
        await router.post()

        with pytest.raises(getattr(anthropic, expected)) as raised:
            await client.messages.create(**{"model": "m", "messages": HELLO, "max_tokens": 4, **ask})

    assert raised.value.body["type"] == "error"
    assert raised.value.response.headers["x-ccr-reason"] == code
    assert raised.value.body["request_id"] == raised.value.response.headers["x-request-id"]


async def test_a_dead_node_is_a_server_error_to_both_clients():
    node = FakeNode(reply=DEAD)
    async with running_router({}, node) as router, an_openai(router) as one, an_anthropic(router) as two:
        with pytest.raises(openai.InternalServerError):
            await one.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(anthropic.InternalServerError):
            await two.messages.create(model="m", messages=HELLO, max_tokens=4)


@pytest.mark.parametrize("client", ["openai", "anthropic"])
async def test_a_stream_that_breaks_raises_in_the_client(client):
    """The error event, not silence and not a clean end: half an answer must not pass for a whole one."""
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    started = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message","role":"assistant",'
        b'"model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
    )
    node = FakeNode(
        reply=Reply(
            headers=((b"content-type", b"text/event-stream"),),
            chunks=(chunk, chunk) if client == "openai" else (started, b": ping\n\n"),
            kill_after=2,
        )
    )
    async with running_router({}, node) as router:
        if client == "openai":
            async with an_openai(router) as one:
                stream = await one.chat.completions.create(model="m", messages=HELLO, stream=True)
                with pytest.raises(openai.APIError, match="broke off"):
                    [piece async for piece in stream]
        else:
            async with an_anthropic(router) as two:
                stream = await two.messages.create(model="m", messages=HELLO, max_tokens=4, stream=True)
                with pytest.raises(anthropic.APIError, match="broke off"):
                    [event async for event in stream]

        assert router.outcomes() == {"upstream_reset": 1}


async def test_a_key_works_in_the_header_each_client_uses():
    async with a_routed_fleet(**KEYED) as router, an_openai(router) as one, an_anthropic(router) as two:
        await one.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=1)
        await two.messages.create(model=CHAT, messages=HELLO, max_tokens=1)

        assert router.router.stats.by_tenant == {"acme": 2}
