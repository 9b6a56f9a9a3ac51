"""Journeys: the whole demo as a user starts it, small and fast."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from ccr.settings import PolicySettings
from router.demo import demo
from router.demo.command import COMPARED
from tests.redis import REDIS

SMALL = ["--seconds", "2", "--warm-up", "1s", "--speed", "20", "--clients", "10"]


@contextmanager
def running(tmp_path, *arguments):
    """The demo in a process of its own, its temporary files in ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ccr", "demo", *SMALL, *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def children_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(condition, what, limit_s=20.0):
    give_up_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < give_up_s, f"never happened: {what}"
        threading.Event().wait(0.02)
    return found


def is_alive(pid):
    return Path(f"/proc/{pid}").exists()


def test_the_demo_compares_policies_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out.json"
    with running(tmp_path, "--exit", "--json", str(out)) as process:
        pids = wait_for(
            lambda: len(found := children_of(process)) == 3 and found, "nodes, router and learner"
        )
        stdout, stderr = process.communicate(timeout=50)

    figures = json.loads(out.read_text())
    assert process.returncode == 0, stderr
    assert list(figures["policies"]) == list(COMPARED)
    assert figures["in_flight"] == 0
    assert figures["learner"] is None or figures["learner"]["state"] in {
        "reading",
        "publishing",
        "retraining",
    }
    for row in figures["policies"].values():
        assert row["requests"] == row["ok"] > 0
        assert row["errors"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["qps"] > 0
        assert row["cold_starts"] + row["cold_starts_in_warm_up"] > 0
        assert 6.0 < row["peak_gpu_gib"] < 22.05
    assert "round_robin" in stdout
    assert "20 emulated seconds pass in one" in stdout
    assert not any(is_alive(pid) for pid in pids)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_without_a_learner_there_is_none(tmp_path):
    out = tmp_path / "out.json"
    with running(tmp_path, "--exit", "--no-learner", "--policies", "learned", "--json", str(out)) as process:
        wait_for(lambda: len(children_of(process)) == 2, "nodes and router")
        _, stderr = process.communicate(timeout=50)

    assert process.returncode == 0, stderr
    assert json.loads(out.read_text())["learner"] is None


@REDIS
def test_a_node_becomes_slow_and_what_happens_is_measured_and_drawn(tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "drift.svg"
    with running(
        tmp_path, "--drift", "--full", "--json", str(out), "--plot", str(plot), "--seconds", "4"
    ) as process:
        stdout, stderr = process.communicate(timeout=55)

    found = json.loads(out.read_text())
    assert process.returncode == 0, stderr
    assert [row["phase"] for row in found["phases"]] == ["before", "during", "after"]
    assert all(row["requests"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in found["phases"])
    assert found["node"] == "a10-1"
    assert "P99" in plot.read_text()
    assert "learner:" in stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drift.svg", "out.json"]


def test_what_the_router_does_by_default_is_compared():
    assert PolicySettings().name in COMPARED


def test_sigterm_in_the_middle_ends_everything(tmp_path):
    with running(tmp_path) as process:
        pids = wait_for(
            lambda: len(found := children_of(process)) == 3 and found, "nodes, router and learner"
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)

    assert process.returncode == 128 + signal.SIGTERM
    assert not any(is_alive(pid) for pid in pids)
    assert not list(tmp_path.iterdir())


def test_a_child_that_dies_ends_the_demo_with_a_clear_error(tmp_path):
    with running(tmp_path, "--seconds", "60") as process:
        pids = wait_for(
            lambda: len(found := children_of(process)) == 3 and found, "nodes, router and learner"
        )
        wait_for(lambda: "started" in process.stderr.readline(), "the load")
        os.kill(pids[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "error: the nodes ended with status -9" in stderr
    assert "All logs:" in stderr
    assert "Traceback" not in stderr
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("policies", ["nonsense", "article,article", ",", "article,script"])
def test_policies_that_cannot_be_compared_are_refused_before_anything_starts(policies):
    result = CliRunner().invoke(demo, ["--policies", policies])

    assert result.exit_code == 2
    assert "--policies" in result.output
