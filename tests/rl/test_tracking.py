"""Where the registry is, and what happens when nobody is there."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ccr.weights import load
from rl.registry import Registry, cache_folder
from rl.tracking import Tracking, default_uri
from rl.versions import RegistryError, RunFacts
from tests.rl.verdicts import a_verdict

pytestmark = pytest.mark.timeout(120)


def test_by_default_it_is_a_file_of_the_user(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")

    assert Tracking().uri == default_uri() == "sqlite:////data/ccr-autopilot/mlflow.db"
    assert str(cache_folder()) == "/cache/ccr-autopilot/weights"


@pytest.mark.parametrize("unusable", ["", "relative/path"])
def test_without_a_usable_place_it_is_at_home(monkeypatch, unusable):
    """The convention says to ignore what is not absolute."""
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("XDG_DATA_HOME", unusable)
    monkeypatch.setenv("XDG_CACHE_HOME", unusable)

    assert default_uri() == "sqlite:////home/x/.local/share/ccr-autopilot/mlflow.db"
    assert str(cache_folder()) == "/home/x/.cache/ccr-autopilot/weights"


def test_the_environment_names_another_place_and_the_option_wins(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    assert Tracking().uri == "http://mlflow:5000"
    assert Tracking("sqlite:///a.db").uri == "sqlite:///a.db"


@pytest.mark.parametrize("uri", ["mlruns", "/var/mlflow", "databricks", "file:///tmp/x"])
def test_a_place_of_another_kind_is_refused(uri):
    with pytest.raises(RegistryError, match="give sqlite:///FILE or http://HOST:PORT"):
        Tracking(uri)


def test_a_server_that_is_gone_is_named_within_seconds():
    """By default MLflow tries for four minutes. Its waits are read when it is imported, so this is another process."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    code = f"from rl.registry import Registry\nfrom ccr.cli import main\nimport sys\nsys.argv = ['ccr', 'policy', 'list', '--tracking-uri', '{uri}']\nmain()"
    started_s = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )

    assert done.returncode == 1
    assert f"error: the registry at {uri}: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - started_s < 60.0


def test_mlflow_says_nothing(uri, capfd, caplog):
    with caplog.at_level(logging.INFO), Tracking(uri).asked() as client:
        client.search_experiments()

    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.fixture
def server(tmp_path):
    """MLflow's own server, on loopback; its address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert any("startup complete" in line for line in process.stderr)
        drained = threading.Thread(target=process.stderr.read)  # a full pipe would stop it
        drained.start()
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGTERM)
        drained.join()


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_a_server_does_all_that_a_file_does(server, weights_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = Registry(server)

    for seed in (1, 2):
        registry.register(weights_file(seed), RunFacts({"a": 1}, {"cost": 0.9}, {"loss": [2.0, 1.0]}))
    first, second = registry.versions()
    registry.store_verdict(first, a_verdict(first))
    registry.promote(registry.get(1), "it passed")
    registry.promote(second, "in a hurry", force=True)
    registry.rollback("no")

    assert registry.champion() == registry.get(1)
    assert registry.get("champion").aliases == ("champion",)
    assert [move.action for move in registry.history()] == ["promote", "promote", "rollback"]
    assert registry.verdict(registry.get(1)) == a_verdict(first)
    assert registry.run_of(first)["metrics"] == {"cost": 0.9, "loss": 1.0}
    assert load(registry.fetch(second)).sha256 == second.sha256
