"""The learner of the demo: what it needs in the router's config, and what it tells while traffic flows."""

import importlib.util
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from ccr.settings import StoreSettings
from router.demo.redis_server import RedisServer
from router.learner_lines import lines
from router.store.opened import opened
from router.store.store import Store, StoreError

#: What `ccr learn` imports and a router does not have.
_NEEDS: Final = ("cmaes", "numba")
_FAMILY: Final = "learner"
_SEARCH_S: Final = 20.0
_RETRAIN_EVERY_S: Final = 120.0
_LEAST_REQUESTS: Final = 400
_TIMEOUT_S: Final = 0.5


def is_installed() -> bool:
    """Whether there is what it needs."""
    return all(importlib.util.find_spec(name) is not None for name in _NEEDS)


@dataclass(frozen=True, slots=True)
class Learning:
    """What router and learner share.

    Args:
        store: in a directory, or a Redis of our own.
        config: sections of the config of both.
        key: signs what is published.
    """

    store: Store
    config: Mapping[str, Any]
    key: str = field(repr=False)

    @property
    def env(self) -> dict[str, str]:
        """Of both processes."""
        return {"CCR_PUBLICATION__KEY": self.key}

    def status(self) -> dict[str, Any] | None:
        """What the learner said last; ``None`` before its first word, or when it has been silent for long."""
        try:
            found = list(self.store.values(_FAMILY).values())
            return dict(json.loads(found[0])) if found else None
        except (StoreError, ValueError):
            return None

    def lines(self) -> list[str]:
        """The same for people."""
        status = self.status()
        return ["learner: not there yet"] if status is None else lines(status, time.time())


@contextmanager
def learning(directory: Path, *, full: bool) -> Iterator[Learning]:
    """A store for router and learner, gone afterwards.

    Args:
        directory: for files.
        full: whether in a real Redis.

    Raises:
        RedisMissingError: if there is none.
    """
    with ExitStack() as stack:
        where: dict[str, Any] = {"directory": str(directory / "store")}
        if full:
            where = {"redis_url": stack.enter_context(RedisServer()).url, "timeout": _TIMEOUT_S}
        given = {**where, "redis_url": SecretStr(where["redis_url"])} if full else where
        store = opened(StoreSettings.model_validate(given))
        assert store is not None  # noqa: S101 - one of the two is given
        stack.callback(store.close)
        config = {
            "store": where,
            "feedback": {"directory": str(directory / "spool")},
            "learner": {
                "directory": str(directory / "learner"),
                "tracking_uri": f"sqlite:///{directory / 'mlflow.db'}",
                "retrain_every": _RETRAIN_EVERY_S,
                "search": _SEARCH_S,
                "least_requests": _LEAST_REQUESTS,
            },
        }
        yield Learning(store, config, secrets.token_hex(24))
