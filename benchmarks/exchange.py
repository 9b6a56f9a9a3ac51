"""What sharing the ledger costs the thread that serves, and the thread beside it: ``python -m benchmarks.exchange``.

The serving thread is asked for its part, and enters that of the others; the sharer's thread makes bytes of the one and
reads those of the others. Redis is left out: no request waits for it.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import click
import numpy as np

from benchmarks.feedback import undisturbed
from ccr.fleet import FleetRules
from ccr.hashing import hash64
from ccr.ledger import Ledger
from ccr.prices import PriceList
from ccr.types import NodeSpec, Request
from router.sharing.fleet import SharedFleet
from router.sharing.sharer import Heard, Own
from router.sharing.told import decode, encode, summed

PEERS: Final = 3
MODELS: Final = tuple(f"model-{k}" for k in range(20))
PER_NODE: Final = 6
"""Requests in flight of each router at each node."""


def router(nodes: int) -> SharedFleet:
    """The fleet of a router at work."""
    fleet = SharedFleet(FleetRules(), PEERS + 1, 0.0, PriceList())
    fleet.replace(
        [NodeSpec(f"n{i}", f"http://10.0.{i // 250}.{i % 250}:1", models=frozenset(MODELS), loads_on_demand=True,
                  gpu_total_gib=24.0) for i in range(nodes)],
        0.0,
    )  # fmt: skip
    fleet.expect(0.0, facts=[(model, 7.5, 5.0) for model in MODELS])
    ledger = Ledger(fleet)
    for i, state in enumerate(fleet.states):
        for k in range(PER_NODE):
            request = Request(
                id=f"{i}.{k}", model=MODELS[(i + k % 3) % len(MODELS)], name="model", prompt_tokens=300
            )
            ledger.lease(state, request, 0.0)
    return fleet


def measured(nodes: int, rounds: int) -> dict[str, float]:
    """Medians of each step of a turn, in microseconds, and the bytes of a part.

    Args:
        nodes: of the fleet.
        rounds: turns.
    """
    fleets = [router(nodes) for _ in range(PEERS + 1)]
    own = fleets[0].own(1.0)
    ids = {name: hash64(name) for name in (*own.models, *own.nodes)}
    models, columns = (np.array([ids[name] for name in names], dtype=np.uint64) for names in own[1:])
    rows, places = ({ids[name]: k for k, name in enumerate(names)} for names in own[1:])
    told = [_told(fleet.own(1.0), models, columns) for fleet in fleets[1:]]
    heard = Heard(summed([decode(raw) for raw in told], rows, places), own, PEERS)
    fewer = Heard(summed([decode(raw) for raw in told[1:]], rows, places), own, PEERS - 1)
    turn = iter(range(2 * rounds))
    with undisturbed():
        return {
            "nodes": nodes,
            "bytes": len(told[0]),
            "own_us": _median_us(lambda: fleets[0].own(1.0), rounds),
            "enter_us": _median_us(lambda: fleets[0].hear(heard if next(turn) % 2 else fewer, 1.0), rounds),
            "encode_us": _median_us(lambda: _told(own, models, columns), rounds),
            "read_us": _median_us(lambda: summed([decode(raw) for raw in told], rows, places), rounds),
        }


def _told(own: Own, models: Any, columns: Any) -> bytes:
    return encode(own.part, models, columns, b"a key of sixteen bytes or more")[32:]


def _median_us(step: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        step()
        found.append(time.perf_counter() - started_s)
    return 1e6 * statistics.median(found)


@click.command()
@click.option("--nodes", type=click.IntRange(1, 1024), multiple=True, default=(8, 64), show_default=True)
@click.option("--rounds", type=click.IntRange(10, 100_000), default=1000, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(*, nodes: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """What a turn costs in the serving thread (its own part, entering that of three others) and beside it."""
    found = [measured(n, rounds) for n in nodes]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        print(
            f"{one['nodes']:4.0f} nodes, {len(MODELS)} models, {PER_NODE} requests of each of {PEERS + 1} routers per node: "
            f"serving thread {one['own_us']:.0f} us to tell and {one['enter_us']:.0f} us to enter; "
            f"beside it {one['encode_us']:.0f} us to write {one['bytes']:.0f} bytes and {one['read_us']:.0f} us to read {PEERS}"
        )


if __name__ == "__main__":
    main()
