"""A registry of one's own: MLflow for real, in a directory of the test."""

import shutil

import pytest

from ccr.weights import save
from rl.registry import Registry
from rl.tracking import Tracking
from tests.weights import a_network, some_weights


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to make its tables; made once, copied for each test."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with Tracking(f"sqlite:///{file}").asked() as client:
        client.search_experiments()
    return file


@pytest.fixture
def uri(empty_database, tmp_path, monkeypatch):
    """Of a database without versions; the user's cache is another for each test, too."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'data' / 'mlflow.db')}"


@pytest.fixture
def registry(uri):
    return Registry(uri)


@pytest.fixture
def weights_file(tmp_path):
    """Writes weights: the path of a file, the same for the same seed."""

    def write(seed=1, version=""):
        path = tmp_path / f"weights-{seed}.npz"
        save(some_weights(a_network(seed), version=version or f"w{seed}"), path)
        return path

    return write
