"""Nodes that die, hang, fail, refuse, lie and come back: the client gets a clear answer, and nothing is lost."""

import asyncio
import time
from dataclasses import replace

import pytest

from ccr.outlier import Phase
from envs.emulator import EmulatedFleet
from tests.router.fake_node import DEAD, SILENT, STREAM, FakeNode, Reply, sse
from tests.router.harness import CHAT, rest_of, running_router, until

#: The first request goes to the first node, the next to the second, ...
IN_TURN = {"policy": {"name": "round_robin"}}
ONE_EACH = {**IN_TURN, "upstream": {"retries": 0}}
BROKEN = Reply(status=500, body=b'{"error":"broken"}')
STREAMED = {"model": "m", "stream": True}


async def ask_in_the_background(router, node, body=None):
    """A request that has reached the node."""
    seen = len(node.seen)
    asking = asyncio.create_task(router.post(body=body))
    await until(lambda: len(node.seen) > seen)
    return asking


def state(router, node):
    return router.router.fleet.state(node.id)


# -- before the first byte: one more try elsewhere -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(DEAD, id="dies before its headers"),
        pytest.param(Reply(kill_after=0), id="dies half-way through a whole answer"),
        pytest.param(Reply(chunks=STREAM.chunks, kill_after=0), id="dies before the first event"),
        pytest.param(BROKEN, id="answers 500"),
        pytest.param(Reply(status=503), id="answers 503"),
        pytest.param(Reply(status=429), id="answers 429"),
    ],
)
@pytest.mark.parametrize("body", [None, STREAMED], ids=["whole", "stream"])
async def test_a_failure_the_client_has_seen_nothing_of_is_tried_once_elsewhere(fault, body):
    bad, good = FakeNode("bad", fault), FakeNode("good")
    async with running_router(IN_TURN, bad, good) as router:
        answer = await router.post(body=body)
        await router.quiet()

        assert (answer.status, answer.node, answer.body) == (200, "good", good.reply.body)
        assert (len(bad.seen), len(good.seen)) == (1, 1)
        assert router.outcomes() == {"ok": 1}
        assert router.router.stats.retries == 1


async def test_a_node_that_refuses_connections_is_out_before_the_next_decision():
    bad, good = FakeNode("bad"), FakeNode("good")
    async with running_router(IN_TURN, bad, good) as router:
        await bad.kill()

        answers = [await router.post() for _ in range(6)]

        assert {(answer.status, answer.node) for answer in answers} == {(200, "good")}
        assert router.router.stats.retries == 1
        assert state(router, bad).health.phase is Phase.EJECTED


async def test_a_request_is_not_tried_a_third_time():
    nodes = [FakeNode(name, DEAD) for name in "abc"]
    async with running_router(IN_TURN, *nodes) as router:
        answer = await router.post()

        assert (answer.status, answer.code) == (502, "upstream_reset")
        assert answer.json["error"]["retryable"]
        assert sum(len(node.seen) for node in nodes) == 2
        assert router.outcomes() == {"upstream_reset": 1}


async def test_a_single_node_that_dies_is_a_502_at_once():
    node = FakeNode(reply=DEAD)
    async with running_router({}, node) as router:
        answer = await router.post()

        assert (answer.status, len(node.seen)) == (502, 1)


async def test_a_last_resort_s_own_error_is_passed_on():
    nodes = [FakeNode(name, BROKEN) for name in "ab"]
    async with running_router(IN_TURN, *nodes) as router:
        answer = await router.post()

        assert (answer.status, answer.body) == (500, BROKEN.body)
        assert router.outcomes() == {"upstream_5xx": 1}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_refusal_by_the_node_is_the_answer_not_a_failure(status):
    nodes = [FakeNode(name, Reply(status=status)) for name in "ab"]
    async with running_router(IN_TURN, *nodes) as router:
        answers = [await router.post() for _ in range(12)]

        assert {answer.status for answer in answers} == {status}
        assert router.outcomes() == {"upstream_4xx": 12}
        assert all(node.health.failures == 0 for node in router.router.fleet.states)


# -- after the first byte: never again -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3, 6])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_clean_end(chunks):
    bad, good = (
        FakeNode("bad", Reply(headers=STREAM.headers, chunks=STREAM.chunks, kill_after=chunks)),
        FakeNode("good"),
    )
    async with running_router(IN_TURN, bad, good) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        body = b'{"model":"m","stream":true}'
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        received = await reader.read()
        writer.close()
        await router.quiet()

        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert all(chunk in rest for chunk in STREAM.chunks[:chunks])
        assert b'data: {"error":{"message":"node \'bad\' broke off' in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert good.seen == []
        assert router.outcomes() == {"upstream_reset": 1}
        assert state(router, bad).health.failures == 1
        assert state(router, bad).latency_s >= 30.0  # the penalty: failing fast never looks fast


async def test_a_broken_anthropic_stream_has_a_named_error_event():
    node = FakeNode(reply=Reply(headers=STREAM.headers, chunks=sse("a"), kill_after=1))
    async with (
        running_router({}, node) as router,
        router.http.post(router.url + "/v1/messages", json=STREAMED) as reply,
    ):
        received, is_whole = await rest_of(reply)

    assert not is_whole
    assert b'event: error\ndata: {"type":"error","error":{"type":"api_error"' in received


# -- hanging ---------------------------------------------------------------------------------------------------------


async def test_a_node_that_hangs_before_its_headers_is_a_504_and_out_after_two():
    bad, good = FakeNode("bad", SILENT), FakeNode("good")
    async with running_router(IN_TURN, bad, good) as router:
        for _ in range(2):
            router.router.dispatch._seq = iter(range(0, 100, 2))  # the turn of the bad one
            asking = await ask_in_the_background(router, bad)
            router.clock.skip(30.1)
            answer = await asking

            assert (answer.status, answer.code) == (504, "upstream_timeout")
        await router.quiet()

        assert bad.closes_seen == 2
        assert router.outcomes() == {"timeout": 2}
        assert state(router, bad).health.why == "2 timeouts in a row"
        assert {(await router.post()).node for _ in range(6)} == {"good"}


async def test_a_node_that_goes_silent_in_a_stream_is_cut_off_and_said_so():
    node = FakeNode(reply=Reply(headers=STREAM.headers, chunks=STREAM.chunks, stall_after=2))
    async with running_router({}, node) as router:
        async with router.http.post(router.url + CHAT, json=STREAMED) as reply:
            received = await reply.content.readany()
            while received.count(b"data:") < 2:
                received += await reply.content.readany()
            router.clock.skip(15.1)
            end, is_whole = await rest_of(reply)
        await router.quiet()

        assert (is_whole, b"went silent in the middle of its answer" in end) == (False, True)
        assert node.closes_seen == 1
        assert router.outcomes() == {"timeout": 1}


async def test_a_stream_that_goes_on_is_not_cut_off_however_long_it_takes():
    node = FakeNode(reply=Reply(headers=STREAM.headers, chunks=STREAM.chunks, paced=True))
    async with running_router({}, node) as router:
        received = b""
        node.release()
        async with router.http.post(router.url + CHAT, json=STREAMED) as reply:
            received += await reply.content.readany()
            for _ in STREAM.chunks[1:]:
                router.clock.skip(14.0)
                node.release()
                received += await reply.content.readany()

    assert received == b"".join(STREAM.chunks)


# -- out of rotation and back ----------------------------------------------------------------------------------------


async def test_five_errors_in_a_row_eject_a_node_that_returns_through_one_probe():
    bad, good = FakeNode("bad", BROKEN), FakeNode("good")
    async with running_router(ONE_EACH, bad, good) as router:
        statuses = [(await router.post()).status for _ in range(20)]
        assert (statuses.count(500), len(bad.seen)) == (5, 5)

        bad.reply = Reply(chunks=(b"{}",), paced=True)
        router.clock.skip(5.0)
        probe = await ask_in_the_background(router, bad)
        meanwhile = {(await router.post()).node for _ in range(6)}
        assert meanwhile == {"good"}  # one probe at a time

        bad.release(100)
        assert (await probe).status == 200
        assert state(router, bad).health.phase is Phase.HEALTHY
        assert "bad" in {(await router.post()).node for _ in range(6)}


async def test_a_probe_that_fails_ejects_again_for_longer():
    bad, good = FakeNode("bad", BROKEN), FakeNode("good")
    async with running_router(ONE_EACH, bad, good) as router:
        for _ in range(10):
            await router.post()
        first_s = state(router, bad).health.until_s - router.clock()

        router.clock.skip(5.0)
        await router.post()
        await router.post()
        second_s = state(router, bad).health.until_s - router.clock()

        assert len(bad.seen) == 6
        assert first_s <= 5.0 <= second_s <= 10.0  # twice the time, jittered over its upper half


async def test_half_of_the_fleet_stays_when_all_of_it_fails():
    nodes = [FakeNode(f"n{i}", BROKEN) for i in range(8)]
    async with running_router(ONE_EACH, *nodes) as router:
        for _ in range(80):
            await router.post()

        phases = [node.health.phase for node in router.router.fleet.states]
        assert phases.count(Phase.EJECTED) == 4
        page = (await router.get("/metrics")).body
        assert b"\nccr_panic 1.0\n" in page


async def test_a_node_that_answers_429_is_left_alone_as_long_as_it_asks_for():
    busy, other = FakeNode("busy", Reply(status=429, headers=((b"retry-after", b"7"),))), FakeNode("other")
    async with running_router(IN_TURN, busy, other) as router:
        nodes = [(await router.post()).node for _ in range(8)]
        assert (set(nodes), len(busy.seen)) == ({"other"}, 1)

        busy.reply = Reply()
        router.clock.skip(6.5)
        assert {(await router.post()).node for _ in range(4)} == {"other"}
        router.clock.skip(1.0)
        assert "busy" in {(await router.post()).node for _ in range(4)}
        assert state(router, busy).latency_s < 1.0  # measured on answers, not on the refusal


@pytest.mark.parametrize(("asked", "left_alone_s"), [("100000", 30.0), ("soon", 1.0), ("-5", 0.0)])
async def test_a_retry_after_beyond_reason_is_bounded(asked, left_alone_s):
    busy, other = (
        FakeNode("busy", Reply(status=429, headers=((b"retry-after", asked.encode()),))),
        FakeNode("other"),
    )
    async with running_router(IN_TURN, busy, other) as router:
        before_s = router.clock()
        await router.post()

        until_s = state(router, busy).backoff_until_s
        assert before_s + left_alone_s <= until_s <= router.clock() + left_alone_s


async def test_a_fleet_that_is_down_is_a_503_at_once_and_costs_no_tries():
    nodes = [FakeNode(name) for name in "abc"]
    async with running_router({}, *nodes) as router:
        for node in nodes:
            await node.kill()
        while (answer := await router.post()).status != 503:
            pass  # each of these finds a node gone
        tries = router.router.stats.attempts

        started_s = time.perf_counter()
        answers = [await router.post() for _ in range(20)]
        each_s = (time.perf_counter() - started_s) / 20

        assert {(answer.status, answer.code) for answer in answers} == {(503, "no_capacity")}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}
        assert "connection refused" in answer.json["error"]["message"]
        assert router.router.stats.attempts == tries <= 6
        assert each_s < 0.05

        for node in nodes:
            await node.start()
        router.clock.skip(10.0)
        assert (await router.post()).status == 200


async def test_retries_do_not_amplify_an_outage():
    """At most a tenth more tries than requests, three at once and three a second."""
    nodes = [FakeNode(name, Reply(status=503)) for name in "abcd"]
    requests = 300
    async with running_router(IN_TURN, *nodes) as router:
        started_s = router.clock()
        answers = [await router.post() for _ in range(requests)]
        took_s = router.clock() - started_s

        assert {answer.status for answer in answers} == {503}
        tries = sum(len(node.seen) for node in nodes)
        assert requests < tries <= 1.11 * requests + 3 + 3 * took_s
        assert router.router.stats.attempts == tries
        assert router.router.dispatch.retries.exhausted_total > 0


async def test_a_node_that_flaps_leaves_nothing_in_the_ledger():
    flapping, steady = FakeNode("flapping"), FakeNode("steady")
    async with running_router({"outlier": {"base": "10ms"}}, flapping, steady) as router:
        for _ in range(8):
            asking = [asyncio.create_task(router.post()) for _ in range(10)]
            await flapping.kill()
            answers = await asyncio.gather(*asking)
            await flapping.start()
            router.clock.skip(1.0)
            assert {answer.status for answer in answers} <= {200, 502}
            assert all(node.inflight >= 0 for node in router.router.fleet.states)
        await router.quiet()

        assert sum(router.outcomes().values()) == 80


# -- telemetry -------------------------------------------------------------------------------------------------------

QUICK = {"telemetry": {"interval": "10ms", "stale_after": "100ms"}}


def waiting(router):
    return router.router.fleet.at(router.clock()).waiting.tolist()


async def test_telemetry_that_stands_still_at_work_is_masked():
    node = FakeNode(reply=SILENT)
    node.metrics = node.metrics.replace(b'"m"} 0\nvllm:kv', b'"m"} 7\nvllm:kv')
    async with running_router(QUICK, node) as router:
        await until(lambda: waiting(router) == [7.0])  # idle: a page that repeats itself proves nothing

        asking = await ask_in_the_background(router, node)
        await until(lambda: router.router.stats.telemetry_errors["a", "frozen"])
        await until(lambda: waiting(router) == [0.0])
        asking.cancel()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b'vllm:num_requests_running{model_name="m"} NaN\n', id="NaN"),
        pytest.param(b'vllm:num_requests_running{model_name="m"} -3\n', id="negative"),
        pytest.param(b'vllm:num_requests_running{model_name="m"} 1e308\n', id="1e308"),
        pytest.param(b'vllm:num_requests_running{model_name="\xff\xfe} x\n\x00<html>', id="garbage"),
        pytest.param(b"x 1\n" * 2_600_000, id="10 MB"),
    ],
)
async def test_garbage_telemetry_is_counted_and_harmless(page):
    node = FakeNode()
    node.metrics = page
    async with running_router(QUICK, node) as router:
        await until(lambda: router.router.stats.telemetry_errors)
        answers = [await router.post() for _ in range(3)]

        assert {answer.status for answer in answers} == {200}
        assert all(abs(value) < 1e7 for value in router.router.fleet.at(router.clock()).columns.ravel())


# -- emulated nodes: their own books must agree ----------------------------------------------------------------------

CHAT_MODEL = "chat-7b@1"


def entries(fleet):
    return [
        {"id": f"n{i}", "url": url, "engine": "emulator", "models": [CHAT_MODEL], "loads_on_demand": True}
        for i, url in enumerate(fleet.urls)
    ]


async def test_a_node_that_restarts_is_a_new_one_with_nothing_loaded():
    async with (
        EmulatedFleet(count=1, speed=100.0, warm=(CHAT_MODEL,)) as fleet,
        running_router({"telemetry": {"interval": "20ms"}}, *entries(fleet)) as router,
    ):
        live = router.router.fleet
        await until(lambda: live.states[0].loaded == {CHAT_MODEL})
        before = live.states[0]

        await fleet.nodes[0].kill()
        await until(lambda: router.router.stats.telemetry_errors["n0", "unreachable"])
        fleet.nodes[0].app.life.build = replace(fleet.nodes[0].app.life.build, warm=())
        await fleet.nodes[0].revive()
        await until(lambda: live.states[0] is not before)

        assert live.states[0].loaded == frozenset()
        assert live.states[0].boot_id != before.boot_id
        assert (before.index, before.inflight) == (-1, 0)


async def test_nodes_that_die_under_load_agree_with_the_router_that_nothing_is_left():
    """The nodes count requests for themselves; one of them loses power in the middle, then some clients lose patience.

    All of it only once every answer has begun: what a client takes back before that, the router may never have seen.
    """
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with (
        EmulatedFleet(count=3, speed=20.0, warm=(CHAT_MODEL,)) as fleet,
        running_router(IN_TURN, *entries(fleet)) as router,
    ):
        begun = []

        async def ask(max_tokens):
            async with router.http.post(router.url + CHAT, json=body | {"max_tokens": max_tokens}) as reply:
                begun.append(reply)
                await rest_of(reply)

        patient = [asyncio.create_task(ask(200)) for _ in range(30)]
        impatient = [asyncio.create_task(ask(2000)) for _ in range(10)]
        await until(lambda: len(begun) == 40)
        await fleet.nodes[1].kill()
        for asking in impatient:
            asking.cancel()
        await asyncio.gather(*patient)
        await asyncio.wait(impatient)
        await router.quiet(within_s=5.0)

        await until(lambda: all(node.snapshot()["requests"]["open"] == 0 for node in fleet.nodes))
        assert sum(router.outcomes().values()) == 40
        assert {"ok", "client_closed", "upstream_reset"} <= set(router.outcomes())
