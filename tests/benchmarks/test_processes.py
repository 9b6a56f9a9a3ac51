"""Programs under measurement: started, watched, always ended."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.processes import BenchmarkError, Probe, free_ports, running

MOCK = [sys.executable, "-m", "benchmarks.mock"]


def test_a_server_is_handed_over_when_it_answers_and_ended_after(tmp_path):
    (port,) = free_ports(1)

    with running("mock", [*MOCK, str(port)], Probe(port, "/any"), core=None, folder=tmp_path) as server:
        assert Probe(port, "/any").answered() == ""
        assert server.first_answer_s > 0.0
        assert server.cpu_s() > 0.0
        rss_mb, pss_mb = server.memory_mb()

    assert rss_mb >= pss_mb > 1.0
    assert not psutil.pid_exists(server.process.pid)


def test_a_failure_while_it_runs_ends_it_too(tmp_path):
    (port,) = free_ports(1)

    with (
        pytest.raises(KeyboardInterrupt),
        running("mock", [*MOCK, str(port)], Probe(port, "/any"), core=None, folder=tmp_path) as server,
    ):
        raise KeyboardInterrupt

    assert not psutil.pid_exists(server.process.pid)


def test_a_program_that_stops_is_an_error_with_the_end_of_its_log(tmp_path):
    (port,) = free_ports(1)
    command = [sys.executable, "-c", "raise SystemExit('no such setting: colour')"]

    with (
        pytest.raises(BenchmarkError, match="no such setting: colour"),
        running("broken", command, Probe(port, "/any"), core=None, folder=tmp_path),
    ):
        pass


def test_the_operators_own_settings_do_not_reach_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("CCR_SERVER__PORT", "1")
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-c",
        "import os; print(sorted(k for k in os.environ if k.startswith('CCR_')))",
    ]

    with (
        pytest.raises(BenchmarkError),
        running("names", command, Probe(port, "/any"), core=None, folder=tmp_path),
    ):
        pass

    assert Path(tmp_path / "names.log").read_text() == "[]\n"
