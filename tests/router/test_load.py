import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice, repeat

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict

from router.load import ChatClient, closed_loop, open_loop, open_session
from router.load_mix import Mix, Shot
from router.load_tally import Answer, Tally, Window

SHOT = Shot("m", prompt_tokens=8, output_tokens=2)
STREAM = Shot("m", prompt_tokens=8, output_tokens=2, stream=True)


@asynccontextmanager
async def a_client(handler, **options) -> AsyncIterator[ChatClient]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    try:
        async with open_session() as session:
            yield ChatClient(session, str(server.make_url("/")), **options)
    finally:
        await server.close()


async def whole(request):
    body = await request.json()
    usage = {
        "prompt_tokens": len(body["messages"][0]["content"]) // 4,
        "completion_tokens": body["max_tokens"],
    }
    return web.json_response({"choices": [{}], "usage": usage}, headers={"x-ccr-node": "node-1"})


def streaming(*events, then_reset=False):
    async def handler(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-ccr-node": "node-1"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        if then_reset:
            request.transport.abort()
        return response

    return handler


def data(text):
    return f"data: {text}\n\n".encode()


ROLE = data('{"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": null}')
TOKEN = data('{"choices": [{"delta": {"content": "hi"}}], "usage": null}')
USAGE = data('{"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 2}}')
DONE = data("[DONE]")


async def test_a_whole_answer_brings_its_node_and_its_tokens():
    async with a_client(whole) as client:
        assert await client(SHOT) == Answer("", 200, None, "node-1", 8, 2)


async def test_a_request_carries_what_the_shot_says():
    seen, body = CIMultiDict(), {}

    async def handler(request):
        seen.update(request.headers)
        body.update(await request.json())
        return await whole(request)

    async with a_client(handler, api_key="k", ignore_eos=True) as client:
        await client(Shot("m@1", 8, 3, version="2", session="s", priority=-1))

    assert seen["x-model-version"] == "2"
    assert seen["x-session-id"] == "s"
    assert seen["x-ccr-priority"] == "-1"
    assert seen["authorization"] == "Bearer k"
    assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("m@1", 3, True)
    assert len(body["messages"][0]["content"]) == 32


async def test_the_first_token_is_the_first_text_not_the_first_event():
    gate = asyncio.Event()

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(ROLE)
        await gate.wait()
        for event in (TOKEN, USAGE, DONE):
            await response.write(event)
        return response

    async with a_client(handler) as client:
        asking = asyncio.create_task(client(STREAM))
        asyncio.get_running_loop().call_later(0.05, gate.set)
        answer = await asking

    assert answer.error == ""
    assert answer.ttft_s >= 0.05
    assert (answer.prompt_tokens, answer.output_tokens) == (8, 2)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        pytest.param(streaming(ROLE, TOKEN), "truncated", id="no [DONE]"),
        pytest.param(streaming(TOKEN, data('{"error": {"message": "gone"}}'), DONE), "stream_error", id="error event"),
        pytest.param(streaming(data("not json"), DONE), "bad_answer", id="not JSON"),
        pytest.param(streaming(b"data: " + b"x" * 300_000), "bad_answer", id="endless line"),
        pytest.param(streaming(TOKEN, then_reset=True), "reset", id="connection lost"),
    ],
)  # fmt: skip
async def test_a_stream_that_does_not_end_well_is_an_error(handler, error):
    async with a_client(handler) as client:
        answer = await client(STREAM)

    assert (answer.error, answer.node) == (error, "node-1" if error != "reset" else "")


async def test_statuses_and_nonsense_are_errors():
    async def refusing(request):
        return web.Response(status=503)

    async def moved(request):
        return web.Response(status=307, headers={"location": "/elsewhere"})

    async def nonsense(request):
        return web.Response(text="<html>")

    async def empty(request):
        return web.json_response({"choices": []})

    found = []
    for handler in (refusing, moved, nonsense, empty):
        async with a_client(handler) as client:
            found.append((await client(SHOT)).error)

    assert found == ["http_503", "http_307", "bad_answer", "bad_answer"]


async def test_silence_is_a_timeout():
    async def silent(request):
        await asyncio.Event().wait()

    async with a_client(silent, timeout_s=0.05) as client:
        assert (await client(SHOT)).error == "timeout"


async def test_nobody_there_is_no_connection(unused_tcp_port):
    async with open_session() as session:
        answer = await ChatClient(session, f"http://127.0.0.1:{unused_tcp_port}")(SHOT)

    assert answer == Answer("no_connection")


async def test_a_closed_loop_counts_every_request_once():
    served = 0

    async def counting(request):
        nonlocal served
        served += 1
        if served % 3 == 0:
            return web.Response(status=500)
        return await whole(request)

    tally = Tally(Window())
    async with a_client(counting) as client:
        elapsed_s = await closed_loop(client, [islice(repeat(SHOT), 20) for _ in range(3)], tally)

    summary = tally.summary(elapsed_s)
    assert (summary.requests, summary.errors, served) == (60, 20, 60)
    assert summary.by_node == {"node-1": 40}
    assert summary.prompt_tokens == 40 * 8


async def test_a_closed_loop_never_has_more_requests_than_clients():
    tally = Tally(Window(measure_s=0.2))
    most = 0

    async def send(shot):
        nonlocal most
        most = max(most, tally.in_flight)
        await asyncio.sleep(0.002)
        return Answer()

    await closed_loop(send, [repeat(SHOT)] * 5, tally, think_s=0.001, seed=3)

    assert most == 5
    assert tally.in_flight == 0


async def test_clients_ask_the_same_whatever_the_server_does():
    """Two policies are compared on the same requests, though the slower one gets through fewer of them."""
    mix = Mix([("a", 1.0), ("b", 1.0)])

    async def asked(delay_s):
        seen = {}

        async def send(shot):
            seen.setdefault(shot.number, shot)
            await asyncio.sleep(delay_s)
            return Answer()

        await closed_loop(send, [mix.shots(5, client) for client in range(2)], Tally(Window(measure_s=0.2)))
        return set(seen.values())

    slow, fast = await asked(0.05), await asked(0.005)

    assert slow < fast


async def test_requests_under_way_at_the_end_are_awaited():
    tally = Tally(Window(measure_s=0.05))

    async def send(shot):
        await asyncio.sleep(0.15)
        return Answer()

    elapsed_s = await closed_loop(send, [repeat(SHOT)] * 2, tally)

    summary = tally.summary(elapsed_s)
    assert (summary.requests, summary.errors, summary.finished_late) == (2, 0, 2)
    assert summary.qps == 0.0


@pytest.mark.parametrize("is_open", [True, False])
async def test_what_never_ends_is_an_error_not_a_hole(is_open):
    tally = Tally(Window(measure_s=0.05, drain_s=0.05))

    async def send(shot):
        await asyncio.Event().wait()

    if is_open:
        elapsed_s = await open_loop(send, [(0.0, SHOT), (0.01, SHOT)], tally)
    else:
        elapsed_s = await closed_loop(send, [repeat(SHOT)] * 2, tally)

    assert tally.summary(elapsed_s).errors_by_kind == {"unfinished": 2}


async def test_a_client_that_is_refused_at_once_does_not_spin():
    tally = Tally(Window(measure_s=0.2))

    async def send(shot):
        return Answer("no_connection")

    await closed_loop(send, [repeat(SHOT)], tally)

    assert tally.finished <= 21


def stalling(after, stall_s):
    """One server, one request at a time; the request number ``after`` takes long, and all behind it wait."""
    turn = asyncio.Lock()
    count = 0

    async def handler(request):
        nonlocal count
        count += 1
        slow = count == after
        async with turn:
            if slow:
                await asyncio.sleep(stall_s)
            return await whole(request)

    return handler


async def test_an_open_loop_sees_the_stall_that_a_closed_loop_omits():
    """The same stall, the same rate: one client in a closed loop meets it once, the schedule all along."""
    latencies = {"open": [], "closed": []}

    def tally_for(name):
        return Tally(Window(measure_s=0.6), on_sample=lambda sample: latencies[name].append(sample.total_s))

    async with a_client(stalling(after=10, stall_s=0.3)) as client:
        await open_loop(client, ((i / 100, SHOT) for i in range(60)), tally_for("open"))
    async with a_client(stalling(after=10, stall_s=0.3)) as client:
        await closed_loop(client, [repeat(SHOT)], tally_for("closed"), think_s=0.01)

    late = {name: sum(latency > 0.1 for latency in seen) for name, seen in latencies.items()}
    assert late["open"] >= 15
    assert 1 <= late["closed"] <= late["open"] / 5  # a machine that stalls by itself may add to both


async def test_waiting_for_a_slot_is_latency():
    """Memory is bounded by holding requests back, and what was held back shows."""
    tally = Tally(Window())

    async def send(shot):
        await asyncio.sleep(0.05)
        return Answer()

    elapsed_s = await open_loop(send, ((0.0, SHOT) for _ in range(4)), tally, max_in_flight=1)

    summary = tally.summary(elapsed_s)
    assert summary.p99_s >= 0.2
    assert summary.late_p99_s >= 0.15


async def test_an_open_loop_sends_no_more_than_its_window():
    tally = Tally(Window(measure_s=0.1))
    start_s = time.perf_counter()

    async def send(shot):
        return Answer()

    elapsed_s = await open_loop(send, ((i / 50, SHOT) for i in range(10_000)), tally)

    assert tally.summary(elapsed_s).requests == 5
    assert time.perf_counter() - start_s < 1.0


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_bug_in_the_sender_is_raised_not_counted(is_open):
    async def send(shot):
        raise ZeroDivisionError

    load = (
        open_loop(send, [(0.0, SHOT)], Tally(Window()))
        if is_open
        else closed_loop(send, [repeat(SHOT)], Tally(Window()))
    )
    with pytest.raises(ZeroDivisionError):
        await load
