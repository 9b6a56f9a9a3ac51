"""Where the registry is, and what happens when nobody is there."""

import logging
import socket
import subprocess
import sys
import time

import pytest

from rl.registry import cache_folder
from rl.tracking import Tracking, default_uri
from rl.versions import RegistryError

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
