import asyncio
from types import SimpleNamespace

import pytest

from ccr.policies.script import compile_script
from ccr.settings import BatchingSettings
from ccr.types import Request
from router.batching import BatchGate
from router.clock import Clock
from router.stats import Stats

FOREVER_S = 0.1
"""Long beside the few microseconds that a full batch takes; the tests that wait it out are the ones about waiting."""


class Gate:
    """A gate for a model that arrives often, and what came through it."""

    def __init__(self, settings, script=None):
        self.stats = Stats()
        self.through = []
        self.tasks = []
        self.gate = BatchGate(settings, SimpleNamespace(script=script), self.stats, Clock(lambda: 0.0))

    async def arrive(self, *names, model="llama"):
        for name in names:
            self.tasks.append(asyncio.create_task(self._pass(name, model)))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.tasks[-len(names) :]

    async def make_busy(self, model="llama"):
        """Arrivals at 20 per second make company within a tenth of a second likely."""
        while not self.stats.requests_held:
            (task,) = await self.arrive("early", model=model)
        task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.stats.requests_held = self.stats.batches_held = 0
        self.through.clear()

    async def _pass(self, name, model):
        await self.gate.wait(Request(id=name, model=model))
        self.through.append(name)


@pytest.fixture
async def busy():
    gate = Gate(BatchingSettings(enabled=True, max_wait_s=FOREVER_S, size=3))
    await gate.make_busy()
    yield gate
    for task in gate.tasks:
        task.cancel()
    await asyncio.gather(*gate.tasks, return_exceptions=True)


async def test_nothing_is_held_while_the_window_is_off():
    gate = Gate(BatchingSettings(enabled=False))

    await gate.arrive(*map(str, range(100)))

    assert len(gate.through) == 100
    assert gate.stats.requests_held == 0


async def test_a_rare_model_is_not_held():
    gate = Gate(BatchingSettings(enabled=True, max_wait_s=FOREVER_S))

    await gate.arrive("a", "b")

    assert gate.through == ["a", "b"]


async def test_a_full_batch_starts_at_once_and_together(busy):
    await busy.arrive("a", "b")
    assert busy.through == []

    await busy.arrive("c")

    assert sorted(busy.through) == ["a", "b", "c"]
    assert (busy.stats.batches_held, busy.stats.requests_held) == (1, 3)


async def test_the_next_request_opens_a_new_batch(busy):
    await busy.arrive("a", "b", "c")

    await busy.arrive("d")

    assert "d" not in busy.through
    assert busy.stats.batches_held == 2


async def test_models_do_not_wait_for_each_other(busy):
    await busy.arrive("a", "b")

    await busy.arrive("other", model="qwen")

    assert busy.through == ["other"]


async def test_a_batch_that_stays_small_starts_when_it_is_due(busy):
    tasks = await busy.arrive("a", "b")

    await asyncio.gather(*tasks)

    assert sorted(busy.through) == ["a", "b"]


async def test_who_gives_up_does_not_start_the_others(busy):
    leaver, stayer = await busy.arrive("leaver", "stayer")

    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    await busy.arrive("c")
    assert busy.through == []

    await busy.arrive("d")
    assert sorted(busy.through) == ["c", "d", "stayer"]
    assert stayer.done()


async def test_when_all_give_up_the_next_batch_starts_afresh(busy):
    tasks = await busy.arrive("a", "b")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    await busy.arrive("c", "d")
    assert busy.through == []

    await busy.arrive("e")
    assert sorted(busy.through) == ["c", "d", "e"]


async def test_a_script_with_a_hint_opens_the_window():
    script = compile_script(
        "def score(node, req):\n    return 0\n\ndef batch_hint(reqs):\n    return 100 if len(reqs) < 2 else 0\n",
        "policy.py",
    )
    gate = Gate(BatchingSettings(enabled=False), script)
    await gate.make_busy()

    await gate.arrive("a")
    assert gate.through == []
    await gate.arrive("b")

    assert sorted(gate.through) == ["a", "b"]


async def test_a_hint_that_fails_holds_nothing(capsys):
    script = compile_script(
        "def score(node, req):\n    return 0\n\ndef batch_hint(reqs):\n    return 1 / 0\n", "policy.py"
    )
    gate = Gate(BatchingSettings(enabled=True, max_wait_s=FOREVER_S), script)

    await gate.arrive(*map(str, range(100)))

    assert len(gate.through) == 100
    assert "batching.hint_failed" in capsys.readouterr().out
