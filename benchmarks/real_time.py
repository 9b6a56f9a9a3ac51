"""A scenario in real time: emulated nodes on ports, the router before them, and clients that stream.

All of it runs in one event loop against one clock, which may be faster than the wall's: node seconds, the router's
windows and ages, and the latencies of the clients are then the same seconds. What the loop itself takes is not: it
counts ``speed`` times, and :attr:`Run.late_p99_s` and a run at another speed show how much that is.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple

import aiohttp
import numpy as np
from numpy.typing import NDArray

from ccr.fleet import LiveFleet
from ccr.policies import POLICIES
from ccr.settings import Settings
from envs.emulator import NodeServer
from envs.episode import FAILED, OK, REJECTED, Episode
from envs.life import Build
from envs.node import EmulatedNode
from envs.scenario import Arrivals, Floats, Scenario
from router.app import Router
from router.deciding import settled_memory
from router.dispatch import Attempt
from router.load import ChatClient
from router.load_mix import Shot
from router.load_tally import Answer
from router.server import Serving

_HOST: Final = "127.0.0.1"
# No timeout may end a request here: what takes long is to be measured.
_NEVER_S: Final = 3600.0
_POLL_S: Final = 0.002
_REFUSED: Final = "http_429"
_END: Final = b"data: [DONE]\n\n"
_ERROR: Final = b'"error"'


class Happening(NamedTuple):
    """Something that is done to nodes or router in the middle of a run.

    Args:
        at_s: node seconds from the start.
        act: does it.
    """

    at_s: float
    act: Callable[[Sequence[NodeServer], Router], None]


def _nothing() -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a scenario in real time.

    Args:
        episode: as the clients saw it, in node seconds; comparable with a simulated one, metric by metric.
        asked: what the router remembers of each request that it did not refuse, in the order of the arrivals.
        started_s: of the run on the router's clock.
        late_p99_s: how much later than due requests were sent, in node seconds.
        stall_s: longest the event loop did not turn, in node seconds: what happened within it may have changed order.
    """

    episode: Episode
    asked: tuple[Attempt, ...]
    started_s: float
    late_p99_s: float
    stall_s: float

    @property
    def reached_s(self) -> Floats:
        """When each request that was not refused reached the router, in node seconds from the start, shape ``(r,)``."""
        return np.array([attempt.arrived_s for attempt in self.asked]) - self.started_s


async def in_real_time(
    scenario: Scenario, policy: str, seed: int, speed: float = 1.0, *, happenings: Sequence[Happening] = (),
    stream_interval: int = 1, answered: Callable[[], None] = _nothing,
) -> Run:  # fmt: skip
    """One episode, open loop: every request at its time, whatever became of the others.

    Args:
        scenario: one router, no troubles; each request at its time. Conversations send their session, and find what a
            node kept of them; see :func:`without_sessions`.
        policy: in :data:`ccr.policies.POLICIES`.
        seed: of arrivals, load noise and the router's draws.
        speed: node seconds for each second of the wall clock.
        happenings: what is done to nodes and router, and when.
        stream_interval: tokens of a stream that nodes send together, but for the first.
        answered: called for every request that is over.
    """
    arrivals = scenario.arrivals(seed)
    async with AsyncExitStack() as stack:
        stack.enter_context(settled_memory())
        nodes = await stack.enter_async_context(_nodes(scenario, seed, speed, stream_interval))
        serving = await stack.enter_async_context(_router(scenario, policy, seed, speed, nodes))
        clock = serving.router.dispatch.clock
        started_s = clock()
        async with _pulse(clock, speed) as pulse, _happening(happenings, nodes, serving.router, speed):
            rows = await _sent(scenario, arrivals, serving, clock, speed, answered)
        remembered = {attempt.request.id: attempt for attempt in serving.router.dispatch.recent}
        asked = tuple(remembered[str(j)] for j, row in enumerate(rows) if row.answer.error != _REFUSED)
        cold = np.array([str(j) in remembered and remembered[str(j)].is_cold for j in range(len(rows))])
        due_s = started_s + arrivals.t
        episode = _episode(scenario, arrivals, policy, seed, rows, cold, nodes, due_s)
    late_s = [row.sent_s for row in rows] - due_s
    return Run(episode, asked, started_s, float(np.quantile(late_s, 0.99)), pulse.stall_s)


def without_sessions(scenario_arrivals: Callable[[int], Arrivals]) -> Callable[[int], Arrivals]:
    """The same traffic without conversations, where what nodes keep of them is not the subject."""

    def arrivals(seed: int) -> Arrivals:
        drawn = scenario_arrivals(seed)
        return drawn._replace(
            session=np.full_like(drawn.session, -1), prefix_tokens=np.zeros_like(drawn.prefix_tokens)
        )

    return arrivals


@dataclass(slots=True)
class _Pulse:
    """The longest time the loop did not turn, in node seconds."""

    stall_s: float = 0.0


@asynccontextmanager
async def _pulse(clock: Callable[[], float], speed: float) -> AsyncIterator[_Pulse]:
    pulse = _Pulse()

    async def beat() -> None:
        while True:
            before_s = clock()
            await asyncio.sleep(_POLL_S)
            pulse.stall_s = max(pulse.stall_s, clock() - before_s - _POLL_S * speed)

    task = asyncio.create_task(beat())
    try:
        yield pulse
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _happening(
    happenings: Sequence[Happening], nodes: Sequence[NodeServer], router: Router, speed: float
) -> AsyncIterator[None]:
    """Each at its time; what one of them raises ends the run."""
    clock = router.dispatch.clock
    started_s = clock()

    async def wait(happening: Happening) -> None:
        await asyncio.sleep(max(started_s + happening.at_s - clock(), 0.0) / speed)
        happening.act(nodes, router)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait(happening)) for happening in happenings]
        yield
        for task in tasks:
            task.cancel()


# -- nodes -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _nodes(
    scenario: Scenario, seed: int, speed: float, stream_interval: int
) -> AsyncIterator[list[NodeServer]]:
    noise = scenario.noise(seed)
    builds = [_build(scenario, n, noise[n], speed, stream_interval) for n in range(len(scenario.nodes))]
    nodes = [NodeServer(build, _HOST, 0) for build in builds]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await node.start()
            stack.push_async_callback(node.kill)
        yield nodes


def _build(scenario: Scenario, n: int, noise: Floats, speed: float, stream_interval: int) -> Build:
    plan = scenario.nodes[n]
    settings = plan.settings(keep_evicted=scenario.keep_evicted)
    loads = count()
    return Build(
        name=plan.id,
        models=scenario.models,
        warm=plan.warm,
        speed=speed,
        make=lambda: EmulatedNode(scenario.models, settings, lambda: float(noise[next(loads) % len(noise)])),
        stream_interval=stream_interval,
    )


# -- router ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _router(
    scenario: Scenario, policy: str, seed: int, speed: float, nodes: Sequence[NodeServer]
) -> AsyncIterator[Serving]:
    """The router, once every node was read; it takes models and nodes for what the scenario's routers take them for."""
    serving = Serving(Settings(**_config(scenario, policy, speed, [node.url for node in nodes])))
    router = serving.router = Router(serving.settings, serving.token, seed=seed)
    router.fleet.prices = scenario.prices()
    task = asyncio.create_task(serving.run())
    try:
        while not task.done() and not _is_known(router.fleet, len(nodes)):  # noqa: ASYNC110 - a reading has no event
            await asyncio.sleep(_POLL_S)
        observed = bool(getattr(POLICIES[policy](), "observes", False))
        router.fleet.expect(router.dispatch.clock(), observed=observed, facts=scenario.facts())
        yield serving
    finally:
        serving.stop()
        serving.stop()
        await task


def _is_known(fleet: LiveFleet, count: int) -> bool:
    return len(fleet) == count and all(state.reading_s > -math.inf for state in fleet.states)


def _config(scenario: Scenario, policy: str, speed: float, urls: Sequence[str]) -> dict[str, Any]:
    """The router's config; its clock is that of the nodes."""
    nodes = [
        {
            "id": spec.id, "url": url, "engine": "emulator", "labels": dict(spec.labels),
            "gpu_gib": spec.gpu_total_gib, "models": sorted(spec.models), "loads_on_demand": True,
        }
        for spec, url in zip(scenario.specs(), urls, strict=True)
    ]  # fmt: skip
    models: dict[str, Any] = {}
    for model, gib, load_s in scenario.facts():
        name, _, version = model.partition("@")
        models.setdefault(name, {"versions": {}})["versions"][version] = {"gib": gib, "load": load_s}
    return {
        "server": {"host": _HOST, "port": 0, "clock_speed": speed},
        "admin": {"host": _HOST, "port": 0, "token": "unused"},
        "log": {"requests": False},
        "policy": {"name": policy},
        "telemetry": {"interval": scenario.telemetry_period_s},
        "upstream": {
            "ttft_timeout": _NEVER_S, "answer_timeout": _NEVER_S, "stream_idle_timeout": _NEVER_S,
        },
        "trace": {"keep": 1_000_000},
        "models": models,
        "nodes": nodes,
    }  # fmt: skip


# -- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One request at its client; times by the clock of the run."""

    sent_s: float
    ended_s: float
    answer: Answer


class _Stopwatch(ChatClient):
    """Times an answer without reading it chunk by chunk: that took half of the loop's time.

    A node sends its opening with the first token and not before, so the first bytes are the first token.
    """

    async def _streamed(self, response: aiohttp.ClientResponse, node: str, sent_s: float) -> Answer:
        ttft_s: float | None = None
        tail = b""
        async for data in response.content.iter_any():
            if ttft_s is None:
                ttft_s = self._clock() - sent_s
            if _ERROR in data:
                return Answer("stream_error", 200, ttft_s, node)
            tail = (tail + data)[-len(_END) :]
        return Answer("" if tail == _END else "truncated", 200, ttft_s, node)


async def _sent(
    scenario: Scenario, arrivals: Arrivals, serving: Serving, clock: Callable[[], float], speed: float,
    answered: Callable[[], None],
) -> list[_Row]:  # fmt: skip
    started_s, models = clock(), list(scenario.models)
    url = f"http://{_HOST}:{serving.port}"
    connector = aiohttp.TCPConnector(limit=0)
    tasks = []
    try:
        for j, due_s in enumerate(arrivals.t):
            await asyncio.sleep(max(started_s + float(due_s) - clock(), 0.0) / speed)
            shot = Shot(
                model=models[arrivals.model[j]],
                prompt_tokens=int(arrivals.prompt_tokens[j]),
                output_tokens=int(arrivals.output_tokens[j]),
                session=f"s{arrivals.session[j]}" if arrivals.session[j] >= 0 else "",
                priority=int(arrivals.priority[j]),
                stream=True,
                number=j,
            )
            tasks.append(task := asyncio.create_task(_ask(connector, url, shot, clock)))
            task.add_done_callback(lambda _: answered())
        return await asyncio.gather(*tasks)
    finally:
        await connector.close()


async def _ask(connector: aiohttp.TCPConnector, url: str, shot: Shot, clock: Callable[[], float]) -> _Row:
    # A session of its own gives the request an id, by which it is found in the router again.
    async with aiohttp.ClientSession(
        connector=connector,
        connector_owner=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"x-request-id": str(shot.number)},
    ) as session:
        sent_s = clock()
        answer = await _Stopwatch(session, url, timeout_s=_NEVER_S, clock=clock)(shot)
        return _Row(sent_s, clock(), answer)


# -- what came of it -------------------------------------------------------------------------------------------------


def _episode(
    scenario: Scenario, arrivals: Arrivals, policy: str, seed: int, rows: Sequence[_Row], cold: NDArray[np.bool_],
    nodes: Sequence[NodeServer], due_s: Floats,
) -> Episode:  # fmt: skip
    index = {plan.id: n for n, plan in enumerate(scenario.nodes)}
    states = [node.app.life.driver.state() for node in nodes]
    is_refused = np.array([row.answer.error == _REFUSED for row in rows])
    is_ok = np.array([not row.answer.error for row in rows])
    ended_s = np.array([row.ended_s for row in rows])
    first_s = np.array(
        [math.nan if row.answer.ttft_s is None else row.sent_s + row.answer.ttft_s for row in rows]
    )
    counted = arrivals.t >= scenario.warmup_s
    return Episode(
        scenario=scenario.name, policy=policy, seed=seed,
        arrived_s=arrivals.t,
        total_s=np.where(is_ok, ended_s - due_s, math.nan),
        ttft_s=np.where(is_ok, first_s - due_s, math.nan),
        ideal_s=scenario.ideal_s(arrivals),
        node=np.array([index.get(row.answer.node, -1) for row in rows]),
        status=np.where(is_ok, OK, np.where(is_refused, REJECTED, FAILED)),
        cold=cold,
        counted=counted,
        evictions=sum(state.evicted for state in states),
        loads=sum(state.loads for state in states),
        peak_gib=max(state.gpu_peak_gib for state in states),
        span_s=float(ended_s.max() - due_s[counted].min()),
    )  # fmt: skip
