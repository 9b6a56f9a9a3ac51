"""Polling: pace, failures, membership; time is the test's."""

import asyncio
from collections import Counter, defaultdict

import pytest
from aiohttp import web

from ccr.errors import TelemetryError
from ccr.types import NodeSpec
from router.clock import Clock
from router.collectors.collector import REASONS
from router.collectors.poller import Pace, Poller
from tests.router.collectors.pages import (
    EMULATOR_PAGE,
    SGLANG_PAGE,
    TRITON_INDEX,
    TRITON_PAGE,
    VLLM_PAGE,
    models,
)
from tests.router.collectors.test_fetch import served


class Time:
    """A clock that stands still except while someone sleeps, and then does not wait."""

    def __init__(self):
        self.now_s = 1000.0
        self.slept = []

    async def sleep(self, delay_s):
        self.slept.append(delay_s)
        self.now_s += delay_s
        await asyncio.sleep(0)

    @property
    def clock(self):
        return Clock(lambda: self.now_s, rest=self.sleep)


class Nodes:
    """What would come from the network: path -> body or error; remembers what was asked."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    async def __call__(self, url, method, timeout_s, max_bytes):
        host, _, path = url.removeprefix("http://").partition("/")
        self.asked.append(f"{method} {host}/{path}")
        answer = self.answers.get(path.replace("/", "_"), TelemetryError("status"))
        if callable(answer):
            answer = answer()
        if asyncio.isfuture(answer):
            await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class Listener:
    """Collects what the poller tells, and ends the waiting once it was enough."""

    def __init__(self, enough):
        self.readings = []
        self.errors = []
        self.enough = asyncio.Event()
        self.n = enough

    def on_reading(self, node_id, reading, now_s):
        self.readings.append((node_id, reading, now_s))
        self._count()

    def on_error(self, node_id, reason):
        self.errors.append((node_id, reason))
        self._count()

    def _count(self):
        if len(self.readings) + len(self.errors) >= self.n:
            self.enough.set()


def a_node(id_="a", url=None, engine="vllm", **more):
    return NodeSpec(id_, url or f"http://{id_}:8000", engine, **more)


async def polled(nodes, *specs, until, pace=Pace(), time=None):  # noqa: B008 - frozen
    """The listener after ``until`` readings and errors; the poller is closed."""
    listener, time = Listener(until), time or Time()
    poller = Poller(listener.on_reading, listener.on_error, nodes, pace, time.clock)
    poller.set_nodes(specs)
    await listener.enough.wait()
    listener.errors_by_reason = Counter(poller.errors)
    await poller.close()
    return listener


async def test_a_node_is_read_at_every_interval_and_stamped_with_the_clock():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama"))

    listener = await polled(nodes, a_node(), until=3)

    first, *later = [now_s for _, _, now_s in listener.readings[:3]]
    assert 1000.0 <= first <= 1000.5
    assert later == pytest.approx([first + 0.5, first + 1.0])
    assert {reading.running for _, reading, _ in listener.readings} == {7.0}


async def test_the_first_polls_of_a_fleet_are_spread_over_the_interval():
    nodes = Nodes(metrics=VLLM_PAGE)
    time = Time()

    await polled(nodes, *(a_node(f"n{i}") for i in range(16)), until=32, time=time)

    starts = time.slept[:16]
    assert all(0.0 <= start < 0.5 for start in starts)
    assert len({round(start, 2) for start in starts}) > 8


async def test_the_list_of_models_is_fetched_at_every_fifth_poll_and_remembered():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama", "lora"))

    listener = await polled(nodes, a_node(), until=10)

    assert Counter(nodes.asked)["GET a:8000/v1/models"] == 2
    assert all(reading.loaded == {"llama", "lora"} for _, reading, _ in listener.readings)


async def test_a_missing_list_of_models_is_counted_and_the_reading_is_given():
    nodes = Nodes(metrics=SGLANG_PAGE)

    listener = await polled(nodes, a_node(engine="sglang"), until=7)

    assert listener.errors[0] == ("a", "models")
    assert len(listener.readings) >= 5
    assert all(reading.loaded is None for _, reading, _ in listener.readings)


async def test_a_failing_node_is_asked_less_and_less_and_at_once_as_usual_when_it_answers():
    failures = [TelemetryError("unreachable")] * 6
    nodes = Nodes(metrics=lambda: failures.pop() if failures else VLLM_PAGE, v1_models=models("llama"))
    time = Time()

    listener = await polled(nodes, a_node(), until=9, time=time)

    assert listener.errors == [("a", "unreachable")] * 6
    assert time.slept[1:9] == pytest.approx([1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 0.5, 0.5])


async def test_after_a_failure_nothing_is_remembered():
    """Whoever answers next may be a new process with other models."""
    pages = iter([VLLM_PAGE, TelemetryError("timeout"), VLLM_PAGE, VLLM_PAGE, VLLM_PAGE])
    lists = iter([models("old"), models("new")])
    nodes = Nodes(metrics=pages.__next__, v1_models=lists.__next__)

    listener = await polled(nodes, a_node(), until=4)

    assert [sorted(reading.loaded) for _, reading, _ in listener.readings[:3]] == [["old"], ["new"], ["new"]]


async def test_a_node_that_hangs_does_not_slow_the_others():
    never = asyncio.get_running_loop().create_future()
    waiting = Nodes(metrics=lambda: never)
    answering = Nodes(metrics=VLLM_PAGE)

    async def fetch(url, method, timeout_s, max_bytes):
        return await (waiting if "//hangs" in url else answering)(url, method, timeout_s, max_bytes)

    listener = await polled(fetch, a_node("hangs"), a_node("b"), a_node("c"), until=40)

    assert Counter(node_id for node_id, _, _ in listener.readings).keys() == {"b", "c"}
    assert waiting.asked.count("GET hangs:8000/metrics") == 1


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"garbage", "no_metrics"),
        (VLLM_PAGE.replace(b" 7.0", b" NaN"), "not_finite"),
        (VLLM_PAGE.replace(b" 7.0", b" -7"), "negative"),
        (VLLM_PAGE.replace(b" 7.0", b" 1e308"), "out_of_range"),
        (VLLM_PAGE + b"#" * (10 << 20), "too_large"),
        (TelemetryError("timeout"), "timeout"),
    ],
)
async def test_a_bad_answer_is_an_error_by_reason_and_no_reading(page, reason):
    nodes = Nodes(metrics=page, v1_models=models("llama"))

    listener = await polled(nodes, a_node(), until=2)

    assert listener.readings == []
    assert listener.errors == [("a", reason)] * 2
    assert listener.errors_by_reason == {reason: 2}
    assert reason in REASONS


async def test_a_listener_that_fails_does_not_end_the_observation():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama"))
    told, enough = [], asyncio.Event()

    def on_reading(node_id, _reading, _now_s):
        told.append(node_id)
        if len(told) == 1:
            raise KeyError("a fault of ours")
        enough.set()

    poller = Poller(on_reading, lambda _node_id, reason: told.append(reason), nodes, clock=Time().clock)
    poller.set_nodes([a_node()])
    await enough.wait()
    await poller.close()

    assert told == ["a", "internal", "a"]


async def test_nodes_come_and_go_and_those_that_stay_are_not_disturbed():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama"))
    readings = defaultdict(list)
    changed = asyncio.Event()
    poller = Poller(
        lambda node_id, reading, now_s: (readings[node_id].append(now_s), changed.set()),
        lambda *_: None,
        nodes,
        clock=Time().clock,
    )

    async def until(condition):
        while not condition():
            changed.clear()
            await changed.wait()

    poller.set_nodes([a_node("stays"), a_node("goes"), a_node("moves")])
    await until(lambda: len(readings) == 3)
    before = {node_id: len(told) for node_id, told in readings.items()}
    poller.set_nodes([a_node("stays"), a_node("moves", url="http://elsewhere:8000"), a_node("comes")])
    nodes.asked.clear()
    await until(lambda: len(readings["stays"]) > before["stays"] + 20 and readings["comes"])
    asked = {line.split()[1].split("/")[0] for line in nodes.asked}
    await poller.close()

    assert asked == {"stays:8000", "elsewhere:8000", "comes:8000"}
    assert len(readings["goes"]) == before["goes"]


async def test_nothing_is_told_and_nothing_runs_after_close():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama"))
    listener = Listener(1)
    poller = Poller(listener.on_reading, listener.on_error, nodes, clock=Time().clock)
    others = asyncio.all_tasks()

    poller.set_nodes([a_node("a"), a_node("b")])
    await listener.enough.wait()
    await poller.close()

    told = len(listener.readings)
    for _ in range(20):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == others
    assert len(listener.readings) == told


async def test_auto_goes_on_as_the_engine_it_found_with_all_its_pages_in_the_first_reading():
    nodes = Nodes(metrics=VLLM_PAGE, v1_models=models("llama", "lora"))

    listener = await polled(nodes, a_node(engine="auto"), until=3)

    assert nodes.asked[:2] == ["GET a:8000/metrics", "GET a:8000/v1/models"]
    assert listener.readings[0][1].loaded == {"llama", "lora"}


async def test_auto_notices_that_another_engine_took_the_port():
    pages = [EMULATOR_PAGE, EMULATOR_PAGE, VLLM_PAGE]
    nodes = Nodes(metrics=lambda: pages.pop() if pages else EMULATOR_PAGE, v1_models=models("llama"))

    listener = await polled(nodes, a_node(engine="auto"), until=3)

    assert [reading.gpu_total_gib for _, reading, _ in listener.readings[:3]] == [None, 24.0, 24.0]


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        pytest.param({}, "GET a:8002/metrics", id="the port Triton takes by default"),
        pytest.param({"metrics_port": "9002"}, "GET a:9002/metrics", id="the port the label tells"),
    ],
)
async def test_triton_is_asked_on_two_ports(labels, metrics):
    nodes = Nodes(metrics=TRITON_PAGE, v2_repository_index=TRITON_INDEX)

    listener = await polled(nodes, a_node(engine="triton", labels=labels), until=1)

    assert sorted(nodes.asked[:2]) == [metrics, "POST a:8000/v2/repository/index"]
    assert listener.readings[0][1].loaded == {"resnet", "resnet@1"}


async def test_a_page_that_never_changes_is_noticed():
    counters = iter(range(10**6))
    frozen = Nodes(metrics=VLLM_PAGE)
    alive = Nodes(metrics=lambda: VLLM_PAGE + b"process_cpu_seconds_total %d\n" % next(counters))
    time = Time()

    async def fetch(url, method, timeout_s, max_bytes):
        return await (frozen if "//frozen" in url else alive)(url, method, timeout_s, max_bytes)

    listener = Listener(30)
    poller = Poller(listener.on_reading, listener.on_error, fetch, clock=time.clock)
    poller.set_nodes([a_node("frozen"), a_node("alive")])
    await listener.enough.wait()
    ages_s = poller.unchanged_s("frozen"), poller.unchanged_s("alive"), poller.unchanged_s("nobody")
    await poller.close()

    assert ages_s[0] > 3.0
    assert ages_s[1] <= 1.0
    assert ages_s[2] == 0.0


async def test_a_real_server_is_read_over_http():
    async def handler(request):
        pages = {"/metrics": VLLM_PAGE, "/v1/models": models("llama")}
        return web.Response(body=pages[request.path])

    listener = Listener(2)
    async with served(handler) as url:
        poller = Poller(listener.on_reading, listener.on_error, pace=Pace(interval_s=0.01))
        poller.set_nodes([a_node(url=url)])
        await listener.enough.wait()
        await poller.close()

    assert listener.errors == []
    assert listener.readings[0][1].loaded == {"llama"}


async def test_a_real_server_that_dies_is_unreachable_and_back_when_it_returns():
    async def handler(_request):
        return web.Response(body=EMULATOR_PAGE)

    told = asyncio.Queue()
    poller = Poller(
        lambda *_: told.put_nowait("reading"),
        lambda _node_id, reason: told.put_nowait(reason),
        pace=Pace(interval_s=0.01, backoff_cap_s=0.02),
    )

    async def next_is(what):
        while await told.get() != what:
            pass

    runner = web.AppRunner(web.Application(), shutdown_timeout=1.0)
    runner.app.router.add_get("/metrics", handler)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    poller.set_nodes([a_node(url=f"http://127.0.0.1:{port}", engine="emulator")])
    await next_is("reading")
    await runner.cleanup()
    await next_is("unreachable")
    again = web.AppRunner(web.Application(), shutdown_timeout=1.0)
    again.app.router.add_get("/metrics", handler)
    await again.setup()
    await web.TCPSite(again, "127.0.0.1", port).start()
    await next_is("reading")
    await poller.close()
    await again.cleanup()

    assert poller.errors["unreachable"] >= 1


@pytest.mark.parametrize(
    ("failures", "delay_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (10_000, 5.0)]
)
def test_the_interval_doubles_up_to_its_cap(failures, delay_s):
    assert Pace().delay_s(failures) == delay_s


def test_a_long_interval_is_not_shortened_by_the_cap():
    assert Pace(interval_s=30.0).delay_s(5) == 30.0
