"""What telling the learner costs a request, beside the same request untold: ``python -m benchmarks.feedback``.

A request here is what the router does between the wire and the core: decide, lease, release, count. Blocks with and
without feedback take turns on the same fleet in the middle of its work; making the records and bringing them into a
store in a directory happens between the blocks, timed by itself: in the router that is another thread's work.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from ccr.settings import Settings
from ccr.types import NodeSpec, Outcome, Reading
from router.app import Router
from router.dispatch import Times
from router.feedback.feeder import Feeder
from router.feedback.make import Maker
from router.store.embedded import EmbeddedStore

BLOCK: Final = 200
OPEN: Final = 24
"""Requests in flight meanwhile."""
MODELS: Final = tuple(f"model-{k}" for k in range(6))
TARGET_US: Final = 20.0


class Stage:
    """A router that serves nobody, with a fleet at work.

    Args:
        nodes: how many.
        store: where records go.
    """

    def __init__(self, nodes: int, store: EmbeddedStore) -> None:
        self.now_s = 1.0
        router = Router(Settings(), "", clock=lambda: self.now_s, seed=1)
        self.dispatch = router.dispatch
        self.feeder = Feeder(store, Maker(lambda moment_s: time.time() + moment_s, penalty_s=30.0))
        self.tenant = router.dispatch.keys.anyone
        self.open: list[Any] = []
        specs = [NodeSpec(f"n{i}", f"http://10.0.0.{i}:1", models=frozenset(MODELS), loads_on_demand=True,
                          gpu_total_gib=24.0) for i in range(nodes)]  # fmt: skip
        router.fleet.replace(specs, 0.0)
        for i in range(nodes):
            loaded = frozenset({MODELS[i % 6], MODELS[(i + 1) % 6]})
            reading = Reading(
                running=3.0, waiting=0.0, kv_used=0.3, gpu_free_gib=4.0, gpu_total_gib=24.0, loaded=loaded
            )
            router.fleet.observe(f"n{i}", reading, self.now_s)

    def block_s(self, *, told: bool) -> list[float]:
        """Seconds of each request of a block."""
        self.dispatch.feedback = self.feeder if told else None
        with undisturbed():
            return [self._request_s(k) for k in range(BLOCK)]

    def bring_away_s(self) -> float:
        """Seconds to make the records of a block and to store them."""
        before, started_s = self.feeder.counts().stored, time.perf_counter()
        self.feeder.turn()
        took_s = time.perf_counter() - started_s
        return took_s / (self.feeder.counts().stored - before)

    def _request_s(self, k: int) -> float:
        self.now_s += 0.002
        dispatch = self.dispatch
        request = dispatch.resolve(
            {}, MODELS[k % 6], self.tenant, request_id=str(k), prompt_tokens=200, output_tokens=100
        )
        started_s = time.perf_counter()
        attempt = dispatch.attempt(request, self.tenant, self.now_s, held_s=1.0)
        self.open.append(attempt)
        if len(self.open) > OPEN:
            ended = self.open.pop(0)
            ended.times = times = Times(0.001, self.now_s - ended.arrived_s, 0.01, 200, 100)
            ended.end(Outcome.OK)
            ended.close()
            dispatch.ended(ended, Outcome.OK, 200, times)
        return time.perf_counter() - started_s


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage is collected meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measured(nodes: int, rounds: int) -> dict[str, float]:
    """The medians, over the rounds, of the medians of each block, in microseconds.

    Args:
        nodes: of the fleet.
        rounds: of two blocks, whose order alternates.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder))
        stage, pairs, away_us = Stage(nodes, store), [], []
        stage.block_s(told=True)
        stage.bring_away_s()
        for number in range(rounds):
            order = (True, False) if number % 2 else (False, True)
            found = {told: 1e6 * statistics.median(stage.block_s(told=told)) for told in order}
            pairs.append((found[False], found[True]))
            away_us.append(1e6 * stage.bring_away_s())
        store.close()
    return {
        "nodes": nodes,
        "untold_us": statistics.median(untold for untold, _ in pairs),
        "told_us": statistics.median(told for _, told in pairs),
        "added_us": statistics.median(told - untold for untold, told in pairs),
        "ratio": statistics.median(told / untold for untold, told in pairs),
        "record_us": statistics.median(away_us),
    }


@click.command()
@click.option("--nodes", type=click.IntRange(1, 1024), multiple=True, default=(8, 64), show_default=True)
@click.option("--rounds", type=click.IntRange(2, 1000), default=60, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(*, nodes: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """What telling the learner costs a request, and what a record costs the thread that makes and stores it."""
    found = [measured(n, rounds) for n in nodes]
    if as_json:
        print(json.dumps({"rows": found, "target_us": TARGET_US}, indent=2))
        return
    for one in found:
        verdict = "met" if one["added_us"] < TARGET_US else "missed"
        print(
            f"{one['nodes']:4.0f} nodes: a request takes {one['untold_us']:.1f} us, told {one['told_us']:.1f} us: "
            f"{one['added_us']:+.2f} us, ratio {one['ratio']:.3f} (target: below {TARGET_US:g} us added, {verdict}); "
            f"a record takes its thread {one['record_us']:.1f} us"
        )


if __name__ == "__main__":
    main()
