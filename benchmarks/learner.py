"""How many records the learner takes in a second of one core, and its memory: ``python -m benchmarks.learner``.

The records are the router's own, of 8 nodes at work. The process that is measured reads them from the store, checks them,
corrects constants, looks for drift and keeps the traffic, as ``ccr learn`` does; it neither retrains nor registers meanwhile. Another
process puts them there. The rate is that of the core: records over seconds of processor time.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.feedback import BLOCK, Stage
from ccr import log
from ccr.settings import LearnerSettings, PublicationSettings, Settings, StoreSettings
from rl.online.cli import store_of
from rl.online.learner import Learner, key_of
from rl.online.shelf import Shelf
from router.demo.redis_server import RedisServer, binary
from router.feedback.feeder import STREAM
from router.store.embedded import EmbeddedStore
from router.store.store import Entry, Store

NODES: Final = 8
KEY: Final = "0123456789abcdef"
TARGET_PER_S: Final = 2000.0
TARGET_MB: Final = 700.0
_MADE: Final = 4_000
_AT_ONCE: Final = 500
_BYTES: Final = 2**30
_LENGTH: Final = 1_000_000


def made(nodes: int = NODES) -> list[bytes]:
    """Records of a router at work."""
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder), _BYTES)
        stage = Stage(nodes, store)
        for _ in range(_MADE // BLOCK + 1):
            stage.block_s(told=True)
            stage.bring_away_s()
        found = store.read(STREAM, "copy", "me", _MADE, 1e9)
        store.close()
    return [one.data for one in found]


def append(store: Store, records: Sequence[bytes], count: int, already: int = 0) -> None:
    """Put so many into the store, the same ones over and over, under numbers of their own."""
    for begin in range(already, already + count, _AT_ONCE):
        entries = [
            Entry(k, records[k % len(records)]) for k in range(begin, min(begin + _AT_ONCE, already + count))
        ]
        store.append(STREAM, "router", entries)


def settings_of(url: str, directory: Path) -> Settings:
    """Of a learner that only reads."""
    where = (
        {"redis_url": url, "stream_length": _LENGTH}
        if url
        else {"directory": directory / "store", "stream_bytes": _BYTES}
    )
    return Settings(
        store=StoreSettings.model_validate(where),
        publication=PublicationSettings.model_validate({"key": KEY}),
        learner=LearnerSettings.model_validate({"directory": directory / "learner", "retrain_every": 0}),
    )


def read(url: str, directory: Path, count: int) -> dict[str, float]:
    """In the process that is measured: read so many."""
    log.configure("json", "error")
    settings = settings_of(url, directory)
    store = store_of(settings)
    learner = Learner(settings, store, Shelf(directory / "learner", key_of(settings)))
    learner._register = _nothing  # type: ignore[method-assign]
    learner.turn()
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    while learner.counts.records < count:
        learner.turn()
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    found = {
        "records": learner.counts.records, "per_core_s": learner.counts.records / cpu_s, "per_s": learner.counts.records / took_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }  # fmt: skip
    learner.close()
    store.close()
    return found


def _nothing(now_s: float) -> None:
    """Register nothing."""


def measured(kind: str, records: Sequence[bytes], count: int) -> dict[str, Any]:
    """One store.

    Args:
        kind: ``embedded`` or ``redis``.
        records: to put there.
        count: how many in all.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(("--appendonly", "no"))) if kind == "redis" else None
        url = server.url if server else ""
        store = store_of(settings_of(url, directory))
        append(store, records, count)
        command = [sys.executable, "-m", "benchmarks.learner", "--child", url, str(directory), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        store.close()
        if done.returncode:
            raise click.ClickException(done.stderr.strip()[-500:])
        return {"store": kind, **json.loads(done.stdout)}


@click.command()
@click.option("--records", type=click.IntRange(min=1000), default=60_000, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--child", nargs=3, type=str, hidden=True)
def main(*, records: int, as_json: bool, child: tuple[str, str, str] | None) -> None:
    """What the learner takes in a second of one core, from the store in a directory and from Redis."""
    if child is not None:
        url, directory, count = child
        print(json.dumps(read(url, Path(directory), int(count))))
        return
    some = made()
    kinds = ["embedded", *(["redis"] if binary() else [])]
    found = [measured(kind, some, records) for kind in kinds]
    if as_json:
        print(json.dumps({"rows": found, "target_per_s": TARGET_PER_S, "target_mb": TARGET_MB}, indent=2))
        return
    for one in found:
        verdict = "met" if one["per_core_s"] >= TARGET_PER_S and one["peak_mb"] < TARGET_MB else "missed"
        print(
            f"{one['store']}: {one['per_core_s']:,.0f} records of {NODES} nodes in a second of one core, {one['peak_mb']:.0f} MB at most "
            f"after {one['records']:,} (target: {TARGET_PER_S:,.0f}, below {TARGET_MB:g} MB: {verdict})"
        )


if __name__ == "__main__":
    main()
