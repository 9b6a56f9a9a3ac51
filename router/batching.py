"""Holds requests in the batching window of the core, and lets them go."""

import asyncio
from collections.abc import Sequence

from ccr import log
from ccr.batching import Batch, BatchingWindow, FixedHint
from ccr.errors import ScriptError
from ccr.policies.script import batch_hint_s
from ccr.settings import BatchingSettings
from ccr.types import Request
from router.clock import Clock
from router.policies import PolicySwitch
from router.stats import Stats

_log = log.get("batching")


class BatchGate:
    """Lets most requests straight through.

    Args:
        settings: whether the config asks for a window.
        policies: the script in force may ask for one.
        stats: counts what was held.
        clock: measures the window.
    """

    def __init__(
        self, settings: BatchingSettings, policies: PolicySwitch, stats: Stats, clock: Clock
    ) -> None:
        self._fixed = FixedHint(settings.max_wait_s, settings.size) if settings.enabled else None
        self._policies = policies
        self._stats = stats
        self._clock = clock
        self._window = BatchingWindow(self._hint)
        self._gates: dict[int, asyncio.Event] = {}

    @property
    def is_open(self) -> bool:
        """Whether nobody asks for requests to be held."""
        script = self._policies.script
        return self._fixed is None and (script is None or script.batch_hint is None)

    async def wait(self, request: Request) -> None:
        """Return when the request should be dispatched; usually at once."""
        if self.is_open:
            return
        batch = self._window.arrive(request, self._clock.now_s())
        if batch is None:
            return
        gate = self._gates.setdefault(id(batch), asyncio.Event())
        if len(batch.requests) == 1:
            self._stats.batches_held += 1
        self._stats.requests_held += 1
        try:
            if not batch.is_closed:
                await self._until_due(batch, gate)
        finally:
            self._window.leave(batch, request)
            if batch.is_closed:  # else only this one gave up, and the others wait on
                gate.set()
                self._gates.pop(id(batch), None)

    async def _until_due(self, batch: Batch, gate: asyncio.Event) -> None:
        """Wait for the batch to fill or to fall due; whoever is first closes it for all."""
        try:
            wait_s = max(batch.due_s - self._clock.now_s(), 0.0)
            async with asyncio.timeout(self._clock.on_the_wall_s(wait_s)):
                await gate.wait()
        except TimeoutError:
            self._window.close(batch)

    def _hint(self, requests: Sequence[Request]) -> float:
        script = self._policies.script
        if script is not None and script.batch_hint is not None:
            return batch_hint_s(script, requests, _report)
        return self._fixed(requests) if self._fixed else 0.0


def _report(error: ScriptError) -> None:
    _log.warning("batching.hint_failed", error=str(error))
