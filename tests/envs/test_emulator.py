"""A fleet of emulated nodes on loopback: what real clients get, what telemetry shows, what faults do."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from io import BytesIO

import aiohttp
import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ccr.errors import ConfigError, UnknownModelError
from ccr.timing import GIB
from envs.emulator import EmulatedFleet, EmulatorSettings

CHAT, CODE, SUPPORT = "chat-7b@1", "code-7b@1", "support-8b@1"
HELLO = [{"role": "user", "content": "x" * 40}]  # 40 bytes: 10 tokens.
CHAT_PATH = "/v1/chat/completions"


@asynccontextmanager
async def a_fleet(**settings):
    """Fast nodes with one warm model, and a client session."""
    fleet = EmulatedFleet(**{"count": 1, "speed": 200.0, "warm": (CHAT,), **settings})
    async with fleet, aiohttp.ClientSession() as http:
        yield fleet, http


@asynccontextmanager
async def an_openai(fleet):
    async with openai.AsyncOpenAI(
        base_url=fleet.urls[0] + "/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


@asynccontextmanager
async def an_anthropic(fleet):
    async with anthropic.AsyncAnthropic(
        base_url=fleet.urls[0], api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


def ask(model=CHAT, **fields):
    return {"json": {"model": model, "messages": HELLO, "max_tokens": 4, **fields}}


async def post(http, url, path, **kwargs):
    async with http.post(url + path, **kwargs) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


async def state_of(http, url):
    async with http.get(url + "/debug/state") as answer:
        return await answer.json()


async def until(http, url, condition):
    """The node's state once ``condition`` holds."""
    async with asyncio.timeout(10):
        while not condition(state := await state_of(http, url)):
            pass
    return state


async def metrics_of(http, url):
    async with http.get(url + "/metrics") as answer:
        page = await answer.text()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def engine(name, model=CHAT):
    return (name, ("engine", "0"), ("model_name", model))


async def first_piece(answer):
    """Wait until a stream has begun."""
    return await anext(answer.content.iter_any())


# -- official clients ------------------------------------------------------------------------------------------------


async def test_openai_chat():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        answer = await client.chat.completions.create(model=CHAT, messages=HELLO, max_completion_tokens=7)

    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert len(choice.message.content.split()) == 7
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "total_tokens": 17,
    }


async def test_openai_chat_generates_64_tokens_by_default():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        answer = await client.chat.completions.create(model=CHAT, messages=HELLO)

    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (64, "stop")


async def test_openai_chat_stream_is_the_whole_answer_in_as_many_pieces_as_tokens():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        whole = await client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=40)
        stream = await client.chat.completions.create(
            model=CHAT,
            messages=HELLO,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    *pieces, finish, usage = chunks
    assert [piece.choices[0].delta.role for piece in pieces] == ["assistant", *[None] * 40]
    assert "".join(piece.choices[0].delta.content for piece in pieces) == whole.choices[0].message.content
    assert finish.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.total_tokens) == ([], 50)


async def test_a_stream_without_include_usage_has_none():
    async with a_fleet() as (fleet, http), http.post(fleet.urls[0] + CHAT_PATH, **ask(stream=True)) as answer:
        text = await answer.text()

    assert answer.content_type == "text/event-stream"
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


async def test_openai_completions():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        whole = await client.completions.create(model=CHAT, prompt="x" * 40, max_tokens=5)
        stream = await client.completions.create(model=CHAT, prompt="x" * 40, max_tokens=5, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])

    assert whole.choices[0].text == text
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (10, 5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_openai_embeddings(encoding):
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        answer = await client.embeddings.create(
            model=CHAT, input=["x" * 40, "y" * 80], dimensions=16, encoding_format=encoding
        )

    assert [item.index for item in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == 30
    if encoding == "float":
        assert [len(item.embedding) for item in answer.data] == [16, 16]


async def test_openai_embeddings_as_the_client_asks_for_them_by_default():
    """It asks for base64 behind the caller's back, and unpacks it."""
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        packed = await client.embeddings.create(model=CHAT, input="x" * 40)
        plain = await client.embeddings.create(model=CHAT, input="x" * 40, encoding_format="float")

    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)


async def test_openai_responses():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        free = await client.responses.create(model=CHAT, input="x" * 40)
        cut = await client.responses.create(model=CHAT, input="x" * 40, max_output_tokens=5)

    assert (free.status, free.usage.output_tokens) == ("completed", 64)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert len(cut.output_text.split()) == 5


async def test_openai_responses_stream():
    async with a_fleet() as (fleet, _), an_openai(fleet) as client:
        stream = await client.responses.create(model=CHAT, input="x" * 40, stream=True)
        events = [event async for event in stream]

    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == deltas


async def test_openai_lists_the_models_of_the_node():
    async with a_fleet(models=(CHAT, CODE)) as (fleet, _), an_openai(fleet) as client:
        models = [model.id async for model in client.models.list()]

    assert models == [CHAT, CODE]


async def test_anthropic_messages():
    async with a_fleet() as (fleet, _), an_anthropic(fleet) as client:
        answer = await client.messages.create(model=CHAT, messages=HELLO, max_tokens=6)

    assert len(answer.content[0].text.split()) == 6
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == (
        "max_tokens",
        10,
        6,
    )


async def test_anthropic_messages_stream():
    async with a_fleet() as (fleet, _), an_anthropic(fleet) as client:
        whole = await client.messages.create(model=CHAT, messages=HELLO, max_tokens=6)
        async with client.messages.stream(model=CHAT, messages=HELLO, max_tokens=6) as stream:
            pieces = [piece async for piece in stream.text_stream]
            final = await stream.get_final_message()

    assert len(pieces) == 6
    assert final.content[0].text == "".join(pieces) == whole.content[0].text
    assert final.usage.output_tokens == 6


async def test_clients_recognise_a_model_that_does_not_exist():
    async with a_fleet() as (fleet, _), an_openai(fleet) as gpt, an_anthropic(fleet) as claude:
        with pytest.raises(openai.NotFoundError) as by_openai:
            await gpt.chat.completions.create(model="gpt-9", messages=HELLO)
        with pytest.raises(anthropic.NotFoundError) as by_anthropic:
            await claude.messages.create(model="claude-9", messages=HELLO, max_tokens=1)

    assert by_openai.value.code == "model_not_found"
    assert by_anthropic.value.body["error"]["type"] == "not_found_error"


# -- conversations ---------------------------------------------------------------------------------------------------

LONG = "x" * 4000  # 1000 tokens.


async def reused(http, url):
    """Prompt tokens that the node found in its prefix cache so far."""
    return (await metrics_of(http, url)).get(engine("vllm:prefix_cache_hits_total"), 0)


async def say(http, url, *texts, session="s", name="x-session-id"):
    """One turn of a conversation, everything that was said before included; the answer's text."""
    messages = [{"role": "user", "content": text} for text in texts]
    headers = {name: session} if session else {}
    status, answer, _ = await post(
        http, url, CHAT_PATH, **ask(messages=messages, max_tokens=40), headers=headers
    )
    assert status == 200
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", ["x-session-id", "X-Session-Token", "x-conversation-id"])
async def test_the_next_turn_of_a_conversation_finds_its_context_in_the_prefix_cache(name):
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        answer = await say(http, url, LONG, name=name)
        before = await reused(http, url)
        await say(http, url, LONG, answer, "And why?", name=name)

        assert before == 0
        assert await reused(http, url) == 1000 + 40


@pytest.mark.parametrize(
    ("first", "second", "session"),
    [
        pytest.param(LONG, LONG, "", id="no session"),
        pytest.param(LONG, "y" + LONG, "s", id="another beginning"),
    ],
)
async def test_what_is_not_said_again_in_its_session_is_read_again(first, second, session):
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        await say(http, url, first, session=session)
        await say(http, url, second, session=session)

        assert await reused(http, url) == 0


@pytest.mark.parametrize(
    ("path", "field", "more"),
    [
        pytest.param("/v1/completions", "prompt", {"max_tokens": 4}, id="completions"),
        pytest.param(
            "/v1/responses", "input", {"max_output_tokens": 4, "instructions": "Be brief."}, id="responses"
        ),
    ],
)
async def test_every_api_that_generates_has_conversations(path, field, more):
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        for prompt in (LONG, LONG + " And why?"):
            body = {"model": CHAT, field: prompt, **more}
            await post(http, url, path, json=body, headers={"x-session-id": "s"})

        assert await reused(http, url) >= 1000


async def test_anthropic_messages_have_conversations():
    async with a_fleet() as (fleet, http), an_anthropic(fleet) as client:
        for text in (LONG, LONG + " And why?"):
            await client.messages.create(
                model=CHAT, messages=[{"role": "user", "content": text}], system="Be brief.", max_tokens=4,
                extra_headers={"x-session-id": "s"},
            )  # fmt: skip

        assert await reused(http, fleet.urls[0]) >= 1000


async def test_a_prompt_of_token_numbers_is_a_conversation_too():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        for tokens in (list(range(500)), list(range(600))):
            body = {"model": CHAT, "prompt": tokens, "max_tokens": 4}
            await post(http, url, "/v1/completions", json=body, headers={"x-session-id": "s"})

        assert await reused(http, url) == 504


async def test_embeddings_leave_no_context():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        body = {"model": CHAT, "input": LONG}
        await post(http, url, "/v1/embeddings", json=body, headers={"x-session-id": "s"})
        await say(http, url, LONG)

        assert await reused(http, url) == 0


async def test_a_node_that_was_reset_has_forgotten_its_conversations():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        await say(http, url, LONG)
        await post(http, url, "/debug/reset")
        await say(http, url, LONG)

        assert await reused(http, url) == 0


# -- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        pytest.param(CHAT_PATH, b"{", "not JSON", id="no JSON"),
        pytest.param(CHAT_PATH, b"\xff", "not JSON", id="no UTF-8"),
        pytest.param(CHAT_PATH, b"[]", "JSON object", id="no object"),
        pytest.param(CHAT_PATH, b"[" * 200_000, "not JSON", id="deep"),
        pytest.param(CHAT_PATH, b'{"messages": [{}]}', "'model'", id="no model"),
        pytest.param(CHAT_PATH, b'{"model": "chat-7b@1"}', "'messages'", id="no messages"),
        pytest.param(CHAT_PATH, b'{"model": "m", "messages": [{}], "max_tokens": 0}', "at least 1", id="0 tokens"),
        pytest.param(CHAT_PATH, b'{"model": "m", "messages": [{}], "n": 2}', "one answer", id="two answers"),
        pytest.param("/v1/completions", b'{"model": "m", "prompt": ["a", "b"]}', "at most 1", id="two prompts"),
        pytest.param("/v1/messages", b'{"model": "m", "messages": [{}]}', "max_tokens", id="no max_tokens"),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_understood_is_a_400(path, body, says):
    async with a_fleet() as (fleet, http):
        status, answer, _ = await post(http, fleet.urls[0], path, data=body)

    assert status == 400
    assert says in answer["error"]["message"]


async def test_more_tokens_than_the_card_holds_is_a_400():
    async with a_fleet() as (fleet, http):
        status, answer, _ = await post(http, fleet.urls[0], CHAT_PATH, **ask(max_tokens=10**6))

    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_body_above_8_mib_is_a_413():
    async with a_fleet() as (fleet, http):
        status, _, _ = await post(http, fleet.urls[0], CHAT_PATH, data=BytesIO(b" " * (8 * 2**20 + 1)))

    assert status == 413


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_id_is_echoed(stream):
    async with (
        a_fleet() as (fleet, http),
        http.post(
            fleet.urls[0] + CHAT_PATH, **ask(stream=stream), headers={"x-request-id": "my-id"}
        ) as answer,
    ):
        assert answer.headers["x-request-id"] == "my-id"


async def test_an_unknown_path_is_a_404():
    async with a_fleet() as (fleet, http):
        assert (await post(http, fleet.urls[0], "/v1/images"))[0] == 404


# -- ledger ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_place_at_once(stream):
    async with a_fleet(speed=1.0) as (fleet, http):
        url = fleet.urls[0]
        request = asyncio.ensure_future(post(http, url, CHAT_PATH, **ask(stream=stream, max_tokens=5000)))
        busy = await until(http, url, lambda state: state["running"] == 1)

        request.cancel()
        idle = await until(http, url, lambda state: state["running"] == 0)
        seen = await metrics_of(http, url)

    assert busy["kv_used"] > 0 == idle["kv_used"]
    assert idle["jobs"] == {"submitted": 1, "finished": 0, "cancelled": 1}
    assert seen[("ccr_node_requests_cancelled_total",)] == 1


async def test_a_client_that_gives_up_during_a_load_is_booked_as_cancelled():
    async with a_fleet(speed=1.0) as (fleet, http):
        url = fleet.urls[0]
        request = asyncio.ensure_future(post(http, url, CHAT_PATH, **ask(CODE)))
        await until(http, url, lambda state: state["waiting"] == 1)

        request.cancel()
        idle = await until(http, url, lambda state: state["requests"]["open"] == 0)

    assert (idle["waiting"], idle["requests"]["cancelled"]) == (0, 1)


async def test_the_ledger_balances_after_a_mixed_crowd():
    async with a_fleet(count=2) as (fleet, http):

        async def client(number):
            url, kind = fleet.urls[number % 2], number % 5
            endless = kind == 2
            body = ask(
                "gpt-9" if kind == 0 else CHAT, stream=kind in (1, 2), max_tokens=90_000 if endless else 8
            )
            async with http.post(url + CHAT_PATH, **body) as answer:
                await (first_piece(answer) if endless else answer.read())

        await asyncio.gather(*(client(number) for number in range(40)))
        ends = [await until(http, url, lambda s: s["requests"]["open"] == 0) for url in fleet.urls]

    for end in ends:
        books = end["requests"]
        assert books["accepted"] == 20 == books["answered"] + books["failed"] + books["cancelled"]
        assert (books["failed"], books["answered"]) == (4, 12)
        assert end["jobs"]["submitted"] == end["jobs"]["finished"] + end["jobs"]["cancelled"] == 16
        assert (end["running"], end["waiting"], end["kv_used"]) == (0, 0, 0)


async def post_raw(http, url, body):
    async with http.post(url + CHAT_PATH, **body) as answer:
        await answer.read()


# -- time and memory -------------------------------------------------------------------------------------------------


async def test_a_cold_start_takes_seconds_of_node_time_and_happens_once():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        cold = (await post(http, url, CHAT_PATH, **ask(CODE)))[0]
        after_cold = await state_of(http, url)
        warm = (await post(http, url, CHAT_PATH, **ask(CODE)))[0]
        after_warm = await state_of(http, url)

    assert (cold, warm) == (200, 200)
    assert after_cold["cold_starts"] == after_warm["cold_starts"] == 1
    assert 2.5 < after_cold["load_s"][CODE] < 10
    assert after_cold["now_s"] > after_cold["load_s"][CODE]
    assert after_cold["loaded"] == [CHAT, CODE]


async def test_a_third_model_evicts_the_one_used_longest_ago():
    async with a_fleet(warm=(CHAT, CODE)) as (fleet, http):
        await post(http, fleet.urls[0], CHAT_PATH, **ask(CHAT))

        await post(http, fleet.urls[0], CHAT_PATH, **ask(SUPPORT))
        end = await state_of(http, fleet.urls[0])

    assert (end["loaded"], end["evicted"]) == ([CHAT, SUPPORT], 1)


async def test_noise_in_load_times_comes_from_the_seed():
    async def load_s(seed):
        async with a_fleet(seed=seed, speed=1000.0) as (fleet, http):
            await post(http, fleet.urls[0], f"/v2/repository/models/{CODE}/load")
            return (await state_of(http, fleet.urls[0]))["load_s"][CODE]

    assert await load_s(1) == await load_s(1) != await load_s(2)


# -- telemetry -------------------------------------------------------------------------------------------------------


async def test_metrics_of_a_busy_node_carry_vllms_names():
    async with a_fleet(speed=1.0) as (fleet, http):
        url = fleet.urls[0]
        async with http.post(url + CHAT_PATH, **ask(stream=True, max_tokens=5000)) as answer:
            await first_piece(answer)
            await until(http, url, lambda state: state["generation_tokens"] > 0)
            seen = await metrics_of(http, url)

    assert seen[engine("vllm:num_requests_running")] == 1
    assert seen[engine("vllm:num_requests_waiting")] == 0
    assert 0 < seen[engine("vllm:kv_cache_usage_perc")] < 0.01
    assert seen[engine("vllm:prompt_tokens_total")] == 10
    assert seen[engine("vllm:generation_tokens_total")] >= 1
    assert seen[("ccr_node_model_loaded", ("model", CHAT))] == 1
    assert 7 * GIB < seen[("ccr_node_gpu_memory_used_bytes",)] <= seen[("ccr_node_gpu_memory_peak_bytes",)]
    assert seen[("ccr_node_gpu_memory_total_bytes",)] == pytest.approx(22.05 * GIB)
    assert any(key[0] == "vllm:cache_config_info" for key in seen)


async def test_seconds_in_metrics_are_those_a_client_measures():
    async with a_fleet() as (fleet, http):
        await post(http, fleet.urls[0], CHAT_PATH, **ask(CODE))
        seen = await metrics_of(http, fleet.urls[0])
        load_s = (await state_of(http, fleet.urls[0]))["load_s"][CODE]

    assert seen[("ccr_node_model_load_seconds", ("model", CODE))] == pytest.approx(load_s / 200)
    assert seen[engine("vllm:time_to_first_token_seconds_count", CODE)] == 1
    assert load_s / 200 < seen[engine("vllm:time_to_first_token_seconds_sum", CODE)] < 1.1 * load_s / 200
    assert (
        seen[engine("vllm:e2e_request_latency_seconds_sum", CODE)]
        > seen[engine("vllm:time_to_first_token_seconds_sum", CODE)]
    )


# -- model control ---------------------------------------------------------------------------------------------------


async def test_sleep_and_wake():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        slept = (await post(http, url, "/sleep?level=1"))[0]
        async with http.get(url + "/is_sleeping") as answer:
            sleeping = await answer.json()
        asleep = await state_of(http, url)
        woke = (await post(http, url, "/wake_up"))[0]
        awake = await state_of(http, url)

    assert (slept, woke, sleeping) == (200, 200, {"is_sleeping": True})
    assert (asleep["asleep"], asleep["gpu_used_gib"]) == ([CHAT], 0)
    assert (awake["loaded"], awake["cold_starts"]) == ([CHAT], 0)


async def test_the_model_repository_loads_unloads_and_lists():
    async with a_fleet(models=(CHAT, CODE)) as (fleet, http):
        url = fleet.urls[0]
        loaded = (await post(http, url, f"/v2/repository/models/{CODE}/load"))[0]
        unloaded = (await post(http, url, f"/v2/repository/models/{CHAT}/unload"))[0]
        _, index, _ = await post(http, url, "/v2/repository/index")

    assert (loaded, unloaded) == (200, 200)
    assert {model["name"]: model["state"] for model in index} == {CHAT: "UNAVAILABLE", CODE: "READY"}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("/v2/repository/models/gpt-9/load", "unknown model", id="unknown"),
        pytest.param(f"/v2/repository/models/{CHAT}/unload", "cannot leave", id="busy"),
        pytest.param("/sleep?level=3", "sleep level '3'", id="level"),
    ],
)
async def test_model_control_says_why_it_refuses(path, says):
    async with (
        a_fleet(speed=1.0) as (fleet, http),
        http.post(fleet.urls[0] + CHAT_PATH, **ask(stream=True, max_tokens=5000)) as answer,
    ):
        await first_piece(answer)
        status, body, _ = await post(http, fleet.urls[0], path)

    assert status == 400
    assert says in body["error"]


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_a_slow_node_runs_at_a_fraction_of_its_speed_until_the_fault_is_cleared():
    async with a_fleet(speed=1000.0) as (fleet, http):
        url = fleet.urls[0]
        await post(http, url, "/debug/fault", json={"kind": "slow", "factor": 1e9})
        frozen = [(await state_of(http, url))["now_s"] for _ in range(20)]
        await post(http, url, "/debug/fault", json={"kind": "none"})
        later = await until(http, url, lambda state: state["now_s"] > frozen[-1] + 1)

    assert frozen[-1] - frozen[0] < 1e-3
    assert later["fault"] == "none"


async def test_a_hung_node_accepts_and_answers_nothing_until_it_recovers():
    async with a_fleet() as (fleet, http):
        url = fleet.urls[0]
        fleet.nodes[0].fault("hang")
        asked = [
            asyncio.ensure_future(post_raw(http, url, ask())),
            asyncio.ensure_future(metrics_of(http, url)),
        ]
        await until(http, url, lambda state: state["requests"]["open"] == 1)
        before = [request.done() for request in asked]
        fleet.nodes[0].fault("none")
        await asyncio.gather(*asked)

    assert before == [False, False]


async def test_a_client_may_leave_a_hung_node():
    async with a_fleet() as (fleet, http):
        fleet.nodes[0].fault("hang")
        asked = asyncio.ensure_future(post_raw(http, fleet.urls[0], ask()))
        await until(http, fleet.urls[0], lambda state: state["requests"]["open"] == 1)

        asked.cancel()
        end = await until(http, fleet.urls[0], lambda state: state["requests"]["open"] == 0)

    assert end["requests"]["cancelled"] == 1


async def test_a_hang_stalls_a_running_stream():
    async with a_fleet(speed=20.0) as (fleet, http):
        url = fleet.urls[0]
        async with http.post(url + CHAT_PATH, **ask(stream=True, max_tokens=5000)) as answer:
            await first_piece(answer)
            fleet.nodes[0].fault("hang")
            stalled = [(await state_of(http, url))["generation_tokens"] for _ in range(20)]

    assert len(set(stalled)) == 1


@pytest.mark.parametrize(("status", "retry_after"), [(500, None), (429, "7"), (503, "7")])
async def test_a_failing_node_answers_at_once_with_the_status_it_was_told(status, retry_after):
    async with a_fleet() as (fleet, http):
        await post(
            http,
            fleet.urls[0],
            "/debug/fault",
            json={"kind": "http", "status": status, "retry_after_s": 7},
        )
        seen, _, headers = await post(http, fleet.urls[0], CHAT_PATH, **ask())
        health = await http.get(fleet.urls[0] + "/health")

    assert (seen, headers.get("retry-after"), health.status) == (status, retry_after, 200)


async def everything_until_the_reset(url, body):
    """All bytes of an answer that ends in a reset; streams of asyncio forget what they had not handed over."""
    loop, data = asyncio.get_running_loop(), json.dumps(body["json"]).encode()
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(data)}\r\n\r\n"
    received = []
    with socket.socket() as plain:
        plain.setblocking(False)
        await loop.sock_connect(plain, (host, int(port)))
        await loop.sock_sendall(plain, head.encode() + data)
        with pytest.raises(ConnectionResetError):
            await drain(plain, received)
    return b"".join(received)


async def drain(plain, received):
    while piece := await asyncio.get_running_loop().sock_recv(plain, 65536):
        received.append(piece)


async def test_a_stream_is_reset_after_so_many_tokens():
    async with a_fleet() as (fleet, http):
        await post(http, fleet.urls[0], "/debug/fault", json={"kind": "die_after_chunks", "chunks": 3})
        received = await everything_until_the_reset(fleet.urls[0], ask(stream=True, max_tokens=50))
        end = await until(http, fleet.urls[0], lambda state: state["requests"]["open"] == 0)

    assert received.count(b"data: ") == 1 + 3
    assert (end["requests"]["failed"], end["running"]) == (1, 0)


async def test_a_whole_answer_is_reset_when_no_chunk_is_allowed():
    async with a_fleet() as (fleet, http):
        fleet.nodes[0].fault("die_after_chunks", chunks=0)

        with pytest.raises(aiohttp.ClientError):
            await post(http, fleet.urls[0], CHAT_PATH, **ask())


async def test_frozen_telemetry_shows_what_was():
    async with a_fleet() as (fleet, http):
        fleet.nodes[0].fault("freeze_telemetry")
        await post(http, fleet.urls[0], CHAT_PATH, **ask())
        frozen = await metrics_of(http, fleet.urls[0])
        fleet.nodes[0].fault("none")
        thawed = await metrics_of(http, fleet.urls[0])

    counter = engine("vllm:generation_tokens_total")
    assert (frozen[counter], thawed[counter]) == (0, 4)


async def test_garbage_telemetry_is_no_exposition_format():
    async with a_fleet() as (fleet, http):
        fleet.nodes[0].fault("garbage_telemetry")
        async with http.get(fleet.urls[0] + "/metrics") as answer:
            page = await answer.read()

    assert answer.status == 200
    with pytest.raises(ValueError):
        list(text_string_to_metric_families(page.decode("latin-1")))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param({"kind": "sulk"}, "unknown fault 'sulk'", id="unknown kind"),
        pytest.param({}, "unknown fault", id="no kind"),
        pytest.param({"kind": "slow", "factor": 0}, "'factor'", id="factor 0"),
        pytest.param({"kind": "http", "status": 200}, "'status'", id="no error"),
        pytest.param({"kind": "http", "status": "500"}, "whole number", id="a string"),
        pytest.param({"kind": "die_after_chunks", "chunks": -1}, "negative", id="negative"),
        pytest.param({"kind": "slow", "facter": 3}, "no 'facter'", id="misspelt"),
    ],
)
async def test_a_fault_that_makes_no_sense_is_refused(body, says):
    async with a_fleet() as (fleet, http):
        status, answer, _ = await post(http, fleet.urls[0], "/debug/fault", json=body)

    assert status == 400
    assert says in answer["error"]["message"]


async def test_a_killed_node_resets_its_connections_and_comes_back_empty_on_the_same_port():
    async with a_fleet(speed=1.0, warm=()) as (fleet, http):
        node, url = fleet.nodes[0], fleet.urls[0]
        before = node.snapshot()["boot_id"]
        stream = asyncio.ensure_future(post_raw(http, url, ask(stream=True, max_tokens=5000)))
        await until(http, url, lambda state: state["requests"]["open"] == 1)

        await node.kill()

        with pytest.raises(aiohttp.ClientError):
            await stream
        with pytest.raises(aiohttp.ClientConnectorError):
            await state_of(http, url)
        await node.revive()
        after = await state_of(http, url)

    assert after["boot_id"] != before
    assert (after["loaded"], after["loading"], after["requests"]["accepted"]) == ([], [], 0)


async def test_a_node_told_to_die_does():
    async with a_fleet(count=2) as (fleet, http):
        status, _, _ = await post(http, fleet.urls[0], "/debug/fault", json={"kind": "die"})
        with pytest.raises(aiohttp.ClientError):
            await until(http, fleet.urls[0], lambda _: False)
        neighbour = (await post(http, fleet.urls[1], CHAT_PATH, **ask()))[0]

    assert (status, neighbour) == (200, 200)


async def test_a_reset_unloads_everything_and_zeroes_what_was_counted():
    async with a_fleet(speed=1.0) as (fleet, http):
        url = fleet.urls[0]
        stream = asyncio.ensure_future(post_raw(http, url, ask(stream=True, max_tokens=5000)))
        await until(http, url, lambda state: state["running"] == 1)

        await post(http, url, "/debug/reset")
        end = await state_of(http, url)

        with pytest.raises(aiohttp.ClientError):
            await stream
    assert (end["loaded"], end["gpu_peak_gib"], end["prompt_tokens"]) == ([], 0, 0)
    assert end["requests"] == dict.fromkeys(end["requests"], 0)


async def test_the_supervisor_kills_and_revives():
    async with a_fleet(count=2, supervisor_port=0) as (fleet, http):
        boss = fleet.supervisor.url
        _, killed, _ = await post(http, boss, "/nodes/1/kill")
        alive = [node["alive"] for node in await (await http.get(boss + "/nodes")).json()]
        _, revived, _ = await post(http, boss, "/nodes/1/revive")
        _, faulty, _ = await post(http, boss, "/nodes/1/fault", json={"kind": "slow", "factor": 2})
        refused = [(await post(http, boss, path))[0] for path in ("/nodes/1/dance", "/nodes/2/kill")]
        fault = (await state_of(http, fleet.urls[1]))["fault"]

    assert (killed["alive"], revived["alive"], faulty["alive"], alive) == (False, True, True, [True, False])
    assert (fault, refused) == ("slow", [400, 404])


# -- settings and process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"gpus": ("H200",)}, "A100-80G", id="card"),
        pytest.param({"preset": "lazy"}, "eager", id="engine"),
        pytest.param({"load": "tape"}, "disk_fast", id="source"),
        pytest.param({"count": 0}, "needs a node", id="no node"),
        pytest.param({"speed": 0.0}, "speed", id="stands still"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_those_that_can(changes, says):
    with pytest.raises(ConfigError, match=says):
        EmulatorSettings(**changes)


def test_a_model_that_is_not_in_the_catalogue_is_refused():
    with pytest.raises(UnknownModelError, match="chat-70b"):
        EmulatorSettings(warm=("chat-70b",))


async def test_a_port_in_use_is_refused_with_its_number():
    async with a_fleet() as (fleet, _):
        port = int(fleet.urls[0].rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with EmulatedFleet(count=1, port=port):
                pass


async def test_cards_are_dealt_in_turn():
    async with a_fleet(count=3, gpus=("A10", "A100-80G")) as (fleet, _):
        totals = [node.snapshot()["gpu_total_gib"] for node in fleet.nodes]

    assert totals == [22.05, 79.1, 22.05]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_announces_its_nodes_and_ends_cleanly_on_a_signal(number):
    command = [sys.executable, "-W", "error", "-c", "from envs.cli import node; node()"]
    options = ["--port", "0", "--count", "2", "--warm", CHAT, "--speed", "10", "--json"]
    with subprocess.Popen(
        command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    ) as process:
        announced = json.loads(process.stdout.readline())
        with asyncio.Runner() as runner:
            streamed = runner.run(one_token_of_a_long_stream(announced["nodes"][1]["url"]))
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)

    assert [node["name"] for node in announced["nodes"]] == ["node-0", "node-1"]
    assert b"chatcmpl" in streamed
    assert (process.returncode, errors) == (0, b"")


async def one_token_of_a_long_stream(url):
    async with (
        aiohttp.ClientSession() as http,
        http.post(url + CHAT_PATH, **ask(stream=True, max_tokens=50_000)) as answer,
    ):
        return await first_piece(answer)
