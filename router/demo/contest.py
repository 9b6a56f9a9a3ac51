"""Policies one after the other, each from empty nodes, on the same requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from router.demo.stage import Stage
from router.demo.workload import PATIENCE_S, ServedModel, mix
from router.load import ChatClient, closed_loop
from router.load_progress import shown
from router.load_tally import Summary, Tally, Window, percentile

_TICK_S = 0.02
# Wall-clock delay of our own timers above which the machine, not the fleet, is being measured.
_TOO_BUSY_S = 0.010


@dataclass(frozen=True, slots=True)
class Rules:
    """How policies are compared; times are on the wall clock unless they say otherwise.

    Args:
        seconds: how long each policy is measured.
        warmup_s: before that, not measured: the nodes start empty, and their first loads are nobody's merit.
        clients: in a closed loop.
        think_s: mean think time of a client, in emulated time.
        seed: of the requests and think times.
    """

    seconds: float
    warmup_s: float
    clients: int
    think_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy did.

    Args:
        policy: its name.
        summary: of the load, on the wall clock.
        cold_starts: inside the window.
        warmup_cold_starts: before it.
        peak_gib: GPU memory of the fullest node at its fullest, warm-up included.
        lag_p99_s: how late timers of this process fired: what the machine itself added.
    """

    policy: str
    summary: Summary
    cold_starts: int
    warmup_cold_starts: int
    peak_gib: float
    lag_p99_s: float

    def row(self, speed: float) -> dict[str, Any]:
        """For the table and for JSON; times and rates are emulated."""
        return {
            "policy": self.policy,
            **self.summary.in_ms(speed),
            "cold_starts": self.cold_starts,
            "cold_starts_in_warm_up": self.warmup_cold_starts,
            "peak_gpu_gib": round(self.peak_gib, 2),
            "timer_lag_p99_wall_ms": round(self.lag_p99_s * 1000.0, 2),
        }

    @property
    def machine_too_busy(self) -> bool:
        """Whether the machine was too slow for the speed that was asked for."""
        return self.lag_p99_s > _TOO_BUSY_S


def went_wrong(results: Sequence[Result], in_flight: int) -> bool:
    """Whether a request failed, or is still in the router's ledger though nobody waits for it."""
    return in_flight > 0 or any(result.summary.errors for result in results)


async def measure(stage: Stage, policy: str, rules: Rules, console: Console) -> Result:
    """Measure one policy on empty nodes.

    Raises:
        ChildError: if a child dies meanwhile.
    """
    await stage.reset_nodes()
    await stage.use_policy(policy)
    tally = Tally(Window(rules.warmup_s, rules.seconds, _patience_s(stage) + 1.0))
    async with shown(f"{policy:<14}", tally, console, scale=stage.speed), _lags() as lags:
        elapsed_s, warm, end = await _measured(stage, rules, tally)
    peak_gib = (await stage.figures()).peak_gib
    summary = tally.summary(elapsed_s)
    lag_s = percentile(sorted(lags), 99)
    return Result(policy, summary, end - warm, warm, peak_gib, lag_s)


async def _measured(stage: Stage, rules: Rules, tally: Tally) -> tuple[float, int, int]:
    """Run the load; its length, and the cold starts at both ends of the window."""
    try:
        async with asyncio.TaskGroup() as group:
            sent = group.create_task(load(stage, rules, tally))
            warm = group.create_task(_cold_starts_at(stage, rules.warmup_s))
            end = group.create_task(_cold_starts_at(stage, rules.warmup_s + rules.seconds))
            watch = group.create_task(_watch(stage))
            sent.add_done_callback(lambda _: watch.cancel())
    except ExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
    return sent.result(), warm.result(), end.result()


async def background(stage: Stage, rules: Rules) -> None:
    """A light load without end: a tenth of the clients, over and over."""
    await load(stage, replace(rules, clients=max(1, rules.clients // 10)), Tally(Window(), keep=1000))


async def load(stage: Stage, rules: Rules, tally: Tally, models: Sequence[ServedModel] = ()) -> float:
    """Send the load of the demo, of all models or of these; seconds it took."""
    send = ChatClient(stage.session, stage.url, timeout_s=_patience_s(stage))
    shots = [mix(models or stage.models).shots(rules.seed, number) for number in range(rules.clients)]
    return await closed_loop(send, shots, tally, think_s=rules.think_s / stage.speed, seed=rules.seed)


def _patience_s(stage: Stage) -> float:
    """A client waits longer than the router, to hear from it what went wrong."""
    return PATIENCE_S / stage.speed + 5.0


async def _cold_starts_at(stage: Stage, moment_s: float) -> int:
    await asyncio.sleep(moment_s)
    return (await stage.figures()).cold_starts


async def _watch(stage: Stage) -> None:
    """End the comparison when a child dies, rather than measure its absence."""
    while True:
        stage.children.check()
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _lags() -> AsyncIterator[list[float]]:
    """How much too late timers fire inside."""
    lags: list[float] = []

    async def probe() -> None:
        while True:
            start_s = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            lags.append(time.perf_counter() - start_s - _TICK_S)

    task = asyncio.create_task(probe())
    try:
        yield lags
    finally:
        task.cancel()
