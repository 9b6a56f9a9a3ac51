"""MLflow, as far as we use it: opened when needed, quiet, and with errors that say which server or file they are about."""

import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ccr.weights import Weights
from rl.versions import RegistryError, RunFacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER: Final = "policy"
"""Where the weights are among the files of a run."""
FILE: Final = "weights.npz"
_SQLITE: Final = "sqlite:///"
_LONGEST_PARAM: Final = 5_000
_PARAMS_AT_ONCE, _METRICS_AT_ONCE = 100, 1_000  # what one call may carry
# Read when mlflow is imported. Against a server that is gone it would try for four minutes.
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


class Tracking:
    """A tracking server, or a database file that needs none.

    Args:
        uri: ``sqlite:///FILE`` or ``http(s)://...``; empty: ``MLFLOW_TRACKING_URI``, or a file among the user's data.
    """

    def __init__(self, uri: str = "") -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default_uri()
        if not self.uri.startswith((_SQLITE, "http://", "https://")):
            raise RegistryError(
                f"cannot use the tracking URI {self.uri!r}: give sqlite:///FILE or http://HOST:PORT"
            )

    @property
    def file(self) -> Path | None:
        """The database, where it is a file."""
        return Path(self.uri.removeprefix(_SQLITE)) if self.uri.startswith(_SQLITE) else None

    @property
    def is_new(self) -> bool:
        """Whether there is no database yet; looking does not make one."""
        return self.file is not None and not self.file.exists()

    @contextmanager
    def asked(self) -> "Iterator[MlflowClient]":
        """The client, without MLflow's warnings, which are about its own dependencies; its errors in our words."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield self._client
            except Exception as error:
                if not isinstance(error, _trouble()):
                    raise
                raise RegistryError(
                    f"the registry at {self.uri}: {str(error).partition(chr(10))[0]}"
                ) from error

    def experiment(self, client: "MlflowClient", name: str) -> str:
        """Id of an experiment, made if it is not there."""
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Without a place of their own, artefacts would go into the directory the command happens to run in.
        beside = (self.file.parent / "mlartifacts").absolute().as_uri() if self.file else None
        return str(client.create_experiment(name, beside))

    @cached_property
    def _client(self) -> "MlflowClient":
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient  # noqa: PLC0415 - see above
        except ModuleNotFoundError as error:
            raise RegistryError(
                f"the registry needs {error.name}: install it with `pip install 'ccr-autopilot[mlflow-server]'`"
            ) from error
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


def _trouble() -> tuple[type[Exception], ...]:
    """What goes wrong between us and the registry, as far as it is loaded: the client alone has no database."""
    raised = (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError"))
    return (
        OSError,
        *(getattr(sys.modules[module], name) for module, name in raised if module in sys.modules),
    )


def default_uri() -> str:
    """A file among the user's data."""
    data = os.environ.get("XDG_DATA_HOME", "")
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return f"{_SQLITE}{root / 'ccr-autopilot' / 'mlflow.db'}"


def log_training(client: "MlflowClient", run_id: str, path: Path, loaded: Weights, facts: RunFacts) -> None:
    """Keep a training with its run: the weights as a plain file, their manifest, params, metrics, curves and files.

    Args:
        client: MLflow's.
        run_id: of the run.
        path: of the weights.
        loaded: what is in them.
        facts: of the run.
    """
    from mlflow.entities import Metric, Param  # noqa: PLC0415 - see above

    now_ms = int(datetime.now(UTC).timestamp() * 1e3)
    training = {f"training.{name}": value for name, value in loaded.manifest["training"].items()}
    params = [
        Param(name, str(value)[:_LONGEST_PARAM]) for name, value in {**training, **facts.params}.items()
    ]
    metrics = [Metric(name, float(value), now_ms, 0) for name, value in facts.metrics.items()]
    metrics += [
        Metric(name, float(value), now_ms, step)
        for name, values in facts.curves.items()
        for step, value in enumerate(values)
    ]
    for first in range(0, len(params), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])
    for first in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[first : first + _METRICS_AT_ONCE])
    with tempfile.TemporaryDirectory() as folder:
        client.log_artifact(run_id, str(shutil.copyfile(path, Path(folder) / FILE)), FOLDER)
    client.log_text(run_id, json.dumps(loaded.manifest, indent=2), f"{FOLDER}/manifest.json")
    for artefact in facts.artefacts:
        client.log_artifact(run_id, str(artefact), "report")
