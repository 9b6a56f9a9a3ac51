"""Journeys: `ccr learn` as a user starts it, on a directory and on a real Redis."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ccr.hashing import hash64
from ccr.lesson import encode
from rl.online.learner import FAMILY
from router.demo.redis_server import RedisServer
from router.feedback.feeder import STREAM
from router.publishing.publisher import Publisher
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from router.store.store import Entry, StoreError
from tests.records import answers
from tests.redis import REDIS
from tests.rl.online.fleet import IDS, KEY, MODELS, a_config

pytestmark = pytest.mark.timeout(
    180
)  # processes that import the simulator: seconds each where the machine is busy


@contextmanager
def running(tmp_path, *arguments, store=None, **learner):
    config = a_config(tmp_path, **learner) | ({"store": store} if store else {})
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "ccr", "learn", "--config", str(path), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, what, limit_s=80.0):
    give_up_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < give_up_s, f"never happened: {what}"
        threading.Event().wait(0.05)
    return found


def told(store):
    try:
        return [json.loads(one) for one in store.values(FAMILY).values()]
    except StoreError:
        return []


def tell(store, count, begin=0):
    lessons = answers(
        np.random.default_rng(1),
        count,
        begin_s=time.time() - count / 10.0 - 5.0,
        nodes=IDS,
        model=hash64(MODELS[0]),
    )
    store.append(STREAM, "router", [Entry(begin + k, encode(one)) for k, one in enumerate(lessons)])


def children_of(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found]


def test_it_publishes_reads_tells_and_ends_when_it_is_asked_to(tmp_path):
    store = EmbeddedStore(tmp_path / "store")
    with running(tmp_path, retrain_every=0) as process:
        tell(store, 300)
        wait_for(lambda: any(one["records"] == 300 for one in told(store)), "300 records are read")
        process.send_signal(signal.SIGTERM)
        begun_s = time.monotonic()
        _, stderr = process.communicate(timeout=10)

    assert process.returncode == 0, stderr
    assert time.monotonic() - begun_s < 8.0
    assert Publisher(store, KEY).current().reason == "initial"
    assert store.lease("weights", "the-next", 1.0) is not None  # given back: nobody has to wait for its end
    assert all(line.startswith("{") for line in stderr.splitlines())


def test_ended_in_the_middle_of_a_retraining_it_leaves_no_process_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))  # the simulator is compiled first: minutes
    store = EmbeddedStore(tmp_path / "store")
    code = "import rl.online.learner as l; l._FIRST_AFTER_S = 0.0; from ccr.cli import main; main()"
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(a_config(tmp_path, retrain_every=600)))
    tell(store, 300)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "learn", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: any(one["state"] == "retraining" for one in told(store)), "it retrains")
        pids = children_of(process)
        assert pids
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    finally:
        process.kill()

    assert process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_once_reads_what_is_there_and_says_how_it_is(tmp_path):
    tell(EmbeddedStore(tmp_path / "store"), 60)
    with running(tmp_path, "--once", "--json") as process:
        stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    status = json.loads(stdout)
    assert status["records"] == 60
    assert status["version"]["version"] == 1
    assert "a10-0" in status["calibration"]["nodes"]


@pytest.mark.parametrize(
    ("change", "says"), [({"store": {}}, "store.redis_url"), ({"publication": {}}, "publication.key")]
)
def test_without_what_it_needs_it_says_so(tmp_path, change, says):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(a_config(tmp_path) | change))

    done = subprocess.run(
        [sys.executable, "-m", "ccr", "learn", "--config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 1
    assert says in done.stderr


@REDIS
def test_it_outlives_its_redis_and_goes_on(tmp_path):
    with RedisServer() as server:
        store = RedisStore(server.url, timeout_s=2.0)
        with running(tmp_path, store={"redis_url": server.url}, retrain_every=0) as process:
            tell(store, 100)
            wait_for(lambda: any(one["records"] == 100 for one in told(store)), "100 records are read")
            server.kill()
            threading.Event().wait(1.0)
            server.start()
            tell(store, 50, begin=1000)
            wait_for(lambda: any(one["records"] >= 150 for one in told(store)), "the others are read")
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)

    assert process.returncode == 0, stderr
    assert stderr.count("learner.store_down") == 1
    assert stderr.count("learner.store_back") == 1


def test_a_learner_that_is_killed_loses_no_record_that_it_had_not_learned_from(tmp_path):
    store = EmbeddedStore(tmp_path / "store")
    with running(tmp_path, retrain_every=0) as process:
        wait_for(lambda: told(store), "it is there")
        process.kill()
        process.communicate()
    tell(store, 80)
    later = EmbeddedStore(
        tmp_path / "store", wall=lambda: time.time() + 60.0
    )  # the lease of the dead one is over
    later.release(later.lease("weights", "nobody", 1.0))

    with running(tmp_path, retrain_every=0):
        wait_for(
            lambda: any(one["records"] == 80 for one in told(store)), "all of them are read by the next one"
        )
