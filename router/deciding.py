"""``ccr bench decide``: how long one decision takes, features included, in a process that does nothing else.

A fleet in the middle of its work: between two decisions a request is sent, another has its first token, a third ends, so
that nothing is decided twice in the same state. Bringing the fleet's columns up to date, mask, look, features, scores, pick
and guard are inside the clock; the events are not.
"""

import gc
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ccr.cli import print_table
from ccr.engine import Engine
from ccr.errors import SaturatedError
from ccr.fleet import LiveFleet
from ccr.ledger import Lease, Ledger
from ccr.native import IS_NATIVE
from ccr.policies import POLICIES
from ccr.types import NodeSpec, Reading, Request

_MODELS: Final = 6
_PER_NODE: Final = 4
"""Requests in flight on the average node."""
_STEP_S: Final = 0.002
_ROUNDS: Final = 5


class Stage:
    """A fleet at work.

    Args:
        nodes: how many.
        seed: of everything drawn.
    """

    def __init__(self, nodes: int, seed: int) -> None:
        self.nodes = nodes
        self.rng = np.random.default_rng(seed)
        self.models = [f"model-{k}@1" for k in range(_MODELS)]
        models = frozenset(self.models)
        specs = [
            NodeSpec(f"n{i}", f"http://10.0.0.{i}:1", models=models, loads_on_demand=True, gpu_total_gib=24.0)
            for i in range(nodes)
        ]
        self.now_s = 1.0
        self.fleet = LiveFleet(specs=specs)
        self.fleet.expect(self.now_s, facts=[(model, 7.5, 5.0) for model in self.models])
        self.ledger = Ledger(self.fleet)
        self.leases: deque[Lease] = deque()
        self.number = 0
        self.tell()

    def tell(self) -> None:
        """Every node is read: two models are on it, and a request of somebody else's."""
        for i in range(self.nodes):
            loaded = frozenset({self.models[i % _MODELS], self.models[(i + 1) % _MODELS]})
            reading = Reading(running=float(_PER_NODE + 1), waiting=0.0, kv_used=0.3, gpu_free_gib=4.0,
                              gpu_total_gib=24.0, loaded=loaded)  # fmt: skip
            self.fleet.observe(f"n{i}", reading, self.now_s)

    def request(self) -> Request:
        """The next one."""
        self.number += 1
        return Request(
            id=str(self.number), model=self.models[int(self.rng.integers(_MODELS))], seq=self.number,
            session=f"s{self.rng.integers(10 * self.nodes)}", prompt_tokens=int(self.rng.integers(50, 1000)),
            output_tokens=256, model_gib=7.5, load_s=5.0,
        )  # fmt: skip

    def happens(self, request: Request, node: int) -> None:
        """The request goes to the node, the one before it speaks, the earliest ends."""
        self.now_s += _STEP_S
        self.leases.append(self.ledger.lease(self.fleet.states[node], request, self.now_s))
        self.leases[-min(2, len(self.leases))].first_token(self.now_s)
        if len(self.leases) > _PER_NODE * self.nodes:
            self.leases.popleft().release()


def timed(policy: str, nodes: int, decisions: int, seed: int = 1) -> list[float]:
    """Seconds of each decision.

    Args:
        policy: in :data:`ccr.policies.POLICIES`.
        nodes: of the fleet.
        decisions: how many are timed, after a tenth as many that are not.
        seed: of the fleet and the requests.
    """
    stage = Stage(nodes, seed)
    engine = Engine(POLICIES[policy](), POLICIES["hot_cold"]())
    seconds = []
    with settled_memory():
        for k in range(decisions + decisions // 10):
            if k % 500 == 0:
                stage.tell()
            request, u = stage.request(), float(stage.rng.random())
            begun = time.perf_counter()
            try:
                node = engine.decide(request, stage.fleet.at(stage.now_s), u).index
            except SaturatedError:
                node = k % nodes
            seconds.append(time.perf_counter() - begun)
            stage.happens(request, node)
    return seconds[decisions // 10 :]


def measured(policy: str, nodes: int, decisions: int) -> dict[str, Any]:
    """Medians, over several rounds, of the rounds' percentiles, in microseconds."""
    rounds = [
        np.quantile(timed(policy, nodes, decisions, seed), (0.5, 0.99)) for seed in range(1, _ROUNDS + 1)
    ]
    p50_us, p99_us = (round(1e6 * statistics.median(column), 1) for column in zip(*rounds, strict=True))
    return {
        "nodes": nodes, "policy": policy, "p50_us": p50_us, "p99_us": p99_us,
        "decisions": decisions * _ROUNDS, "native": IS_NATIVE,
    }  # fmt: skip


class _Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 on, separated by commas."""

    name = "counts"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdigit() and int(word) > 0 for word in words):
            self.fail(f"{value!r}: numbers of nodes are wanted, by commas, as in 8,64", param, ctx)
        return tuple(int(word) for word in words)


@click.command()
@click.option(
    "--nodes", type=_Counts(), default=(8, 64), show_default="8,64", help="Sizes of the fleet, by commas."
)
@click.option(
    "--policies", default="learned,least_cost,article,hot_cold", show_default=True, help="By commas."
)
@click.option(
    "--decisions", type=click.IntRange(100), default=4000, show_default=True, help="Of each of five rounds."
)
@click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON there as well."
)
def decide(nodes: Sequence[int], policies: str, decisions: int, json_to: Path | None) -> None:
    """Measure how long one decision takes, features included."""
    names = policies.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        raise click.BadParameter(f"no policy is called {', '.join(unknown)}; there are {', '.join(POLICIES)}")
    rows = []
    for n in nodes:
        for name in names:
            click.echo(f"{name}, {n} nodes ...", err=True)
            rows.append(measured(name, n, decisions))
    print_table(rows, ("nodes", "policy", "p50_us", "p99_us"), as_json=False,
                title="One decision, in microseconds" + ("" if IS_NATIVE else ", nothing compiled"))  # fmt: skip
    if json_to is not None:
        json_to.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


@contextmanager
def settled_memory() -> Iterator[None]:
    """What was there before is not looked through again, as in a router that serves."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
