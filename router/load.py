"""The load client: OpenAI chat requests in a closed or an open loop, with nothing that fails left out.

A closed loop is a number of clients that each wait for their answer and think before they ask again: load follows
latency. An open loop sends at given times whatever the server does; its latency counts from the time a request was
due, so a stalled server cannot hide the requests that had to wait ("coordinated omission").
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from random import Random

import aiohttp
import msgspec

from router.load_mix import Shot, prompt_of
from router.load_tally import Answer, Sample, Tally

Send = Callable[[Shot], Awaitable[Answer]]
Clock = Callable[[], float]

# A client without think time would spin on a server that fails at once.
_PAUSE_AFTER_ERROR_S = 0.01
_LONGEST_SLEEP_S = 3600.0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Whole(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: _Usage | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_WHOLE = msgspec.json.Decoder(_Whole)
_CHUNK = msgspec.json.Decoder(_Chunk)
_ENCODER = msgspec.json.Encoder()


class ChatClient:
    """Sends shots to ``POST {url}/v1/chat/completions`` and tells how each ended; it never raises for one.

    Args:
        session: as :func:`open_session` makes it.
        url: base URL of a router or a node.
        timeout_s: longest wait for a complete answer.
        api_key: sent as a bearer token; empty: none.
        ignore_eos: ask the engine for exactly the output length of the shot (vLLM and SGLang know the field).
        clock: seconds.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, timeout_s: float = 60.0, api_key: str = "",
        ignore_eos: bool = False, clock: Clock = time.perf_counter,
    ) -> None:  # fmt: skip
        self._session = session
        self._url = url.rstrip("/") + "/v1/chat/completions"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._ignore_eos = ignore_eos
        self._clock = clock

    async def __call__(self, shot: Shot) -> Answer:
        """Send one request and wait for the end of its answer."""
        sent_s = self._clock()
        try:
            async with self._session.post(
                self._url,
                data=self._body(shot),
                headers=self._headers | _headers(shot),
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                node = response.headers.get("x-ccr-node", "")
                if response.status != 200:
                    await response.read()
                    return Answer(f"http_{response.status}", response.status, node=node)
                if shot.stream:
                    return await self._streamed(response, node, sent_s)
                return _whole(await response.read(), node)
        except TimeoutError:
            return Answer("timeout")
        except aiohttp.ClientConnectorError:
            return Answer("no_connection")
        except (aiohttp.ClientError, ConnectionError):
            return Answer("reset")

    async def _streamed(self, response: aiohttp.ClientResponse, node: str, sent_s: float) -> Answer:
        ttft_s: float | None = None
        usage = _Usage()
        try:
            async for line in response.content:
                data = line.removeprefix(b"data:").strip()
                if len(data) == len(line.strip()):  # no data line
                    continue
                if data == b"[DONE]":
                    return Answer("", 200, ttft_s, node, usage.prompt_tokens, usage.completion_tokens)
                if ttft_s is not None and b'"usage"' not in data and b'"error"' not in data:
                    continue
                chunk = _CHUNK.decode(data)
                if bytes(chunk.error) not in {b"", b"null"}:
                    return Answer("stream_error", 200, ttft_s, node)
                usage = chunk.usage or usage
                if ttft_s is None and any(choice.delta.content for choice in chunk.choices):
                    ttft_s = self._clock() - sent_s
        except (msgspec.DecodeError, ValueError):  # ValueError: a line longer than aiohttp's buffer
            return Answer("bad_answer", 200, ttft_s, node)
        return Answer("truncated", 200, ttft_s, node)

    def _body(self, shot: Shot) -> bytes:
        body = {
            "model": shot.model,
            "messages": [{"role": "user", "content": prompt_of(shot)}],
            "max_tokens": shot.output_tokens,
        }
        if shot.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self._ignore_eos:
            body["ignore_eos"] = True
        return _ENCODER.encode(body)


def open_session() -> aiohttp.ClientSession:
    """A session with as many connections as there are requests under way; close it after use."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300), cookie_jar=aiohttp.DummyCookieJar()
    )


async def closed_loop(
    send: Send, clients: Sequence[Iterator[Shot]], tally: Tally, *, think_s: float = 0.0, seed: int = 0,
    clock: Clock = time.perf_counter,
) -> float:  # fmt: skip
    """Clients that think, ask, and wait for their answer, until the end of the tally's window.

    Each client thinks before its first request too, so that they do not all begin at once.

    Args:
        send: sends one request.
        clients: what each of them asks for; one that runs out stops. They may share an iterator.
        tally: counts the samples.
        think_s: mean of the exponentially distributed time a client thinks.
        seed: of the think times.
        clock: seconds.

    Returns:
        Seconds from the start to the end of the last request.
    """
    origin_s = clock()
    end_s = tally.window.end_s

    async def one_client(number: int, shots: Iterator[Shot]) -> None:
        rng = Random(f"{seed}/{number}/think")
        pause_s = _think(rng, think_s)
        while True:
            await _sleep(min(pause_s, end_s - (clock() - origin_s)))
            now_s = clock() - origin_s
            shot = next(shots, None) if now_s < end_s else None
            if shot is None:
                return
            answer = await _take(send, shot, now_s, origin_s, tally, clock)
            pause_s = max(_think(rng, think_s), _PAUSE_AFTER_ERROR_S if answer.error else 0.0)

    tasks = {asyncio.create_task(one_client(number, shots)) for number, shots in enumerate(clients)}
    await _finish(tasks, end_s + tally.window.drain_s)
    return clock() - origin_s


async def open_loop(
    send: Send, schedule: Iterable[tuple[float, Shot]], tally: Tally, *, max_in_flight: int = 4096,
    clock: Clock = time.perf_counter,
) -> float:  # fmt: skip
    """Requests at their times, until they run out or the tally's window ends.

    At ``max_in_flight`` sending waits for an answer; the requests that are then sent late keep the time at which
    they were due, so the wait is in their latency.

    Args:
        send: sends one request.
        schedule: seconds from the start, non-decreasing, and what to send then; read as it is needed.
        tally: counts the samples.
        max_in_flight: bound on requests under way, and so on memory.
        clock: seconds.

    Returns:
        Seconds from the start to the end of the last request.
    """
    origin_s = clock()
    end_s = tally.window.end_s
    slots = asyncio.Semaphore(max_in_flight)
    tasks: set[asyncio.Task[Answer]] = set()

    async def take(shot: Shot, due_s: float) -> Answer:
        try:
            return await _take(send, shot, due_s, origin_s, tally, clock)
        finally:
            slots.release()

    try:
        for due_s, shot in schedule:
            if due_s >= end_s:
                await _sleep(end_s - (clock() - origin_s))
                break
            await _sleep(due_s - (clock() - origin_s))
            await slots.acquire()
            task = asyncio.create_task(take(shot, due_s))
            tasks.add(task)
            task.add_done_callback(_discard(tasks))
        await _finish(tasks, tally.window.drain_s)
    finally:
        await _cancel(tasks)
    return clock() - origin_s


async def _take(send: Send, shot: Shot, due_s: float, origin_s: float, tally: Tally, clock: Clock) -> Answer:
    """Send and count one request; cancelled, it counts as unfinished."""
    sent_s = clock() - origin_s
    tally.began()
    answer = Answer("unfinished")
    try:
        answer = await send(shot)
    finally:
        tally.add(Sample(due_s, sent_s, clock() - origin_s, shot.model, answer, shot.number))
    return answer


async def _finish(tasks: Iterable["asyncio.Task[Answer] | asyncio.Task[None]"], timeout_s: float) -> None:
    """Wait for all; cancel what takes longer. A bug in one is raised at once."""
    tasks = list(tasks)
    if not tasks:
        return
    try:
        limit_s = None if math.isinf(timeout_s) else timeout_s
        done, _ = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await _cancel(tasks)
    for task in done:
        task.result()


async def _cancel(tasks: Iterable["asyncio.Task[Answer] | asyncio.Task[None]"]) -> None:
    for task in (tasks := list(tasks)):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _discard(tasks: "set[asyncio.Task[Answer]]") -> "Callable[[asyncio.Task[Answer]], None]":
    def forget(task: "asyncio.Task[Answer]") -> None:
        if task.cancelled() or task.exception() is None:  # a bug stays, for `_finish` to raise
            tasks.discard(task)

    return forget


async def _sleep(seconds: float) -> None:
    """Wait; at once when the time has passed. In slices: event loops refuse timers that never end."""
    while seconds > 0.0:
        await asyncio.sleep(min(seconds, _LONGEST_SLEEP_S))
        seconds -= _LONGEST_SLEEP_S


def _think(rng: Random, mean_s: float) -> float:
    return rng.expovariate(1.0 / mean_s) if mean_s > 0.0 else 0.0


def _headers(shot: Shot) -> dict[str, str]:
    headers: dict[str, str] = {}
    if shot.version:
        headers["x-model-version"] = shot.version
    if shot.session:
        headers["x-session-id"] = shot.session
    if shot.priority:
        headers["x-ccr-priority"] = str(shot.priority)
    return headers


def _whole(body: bytes, node: str) -> Answer:
    try:
        answer = _WHOLE.decode(body)
    except msgspec.DecodeError:
        return Answer("bad_answer", 200, node=node)
    usage = answer.usage or _Usage()
    if not answer.choices:
        return Answer("bad_answer", 200, node=node)
    return Answer("", 200, None, node, usage.prompt_tokens, usage.completion_tokens)
