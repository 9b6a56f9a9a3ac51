"""A learner on a store in a directory, by clocks of the test."""

import json
from pathlib import Path

from ccr.hashing import hash64
from ccr.lesson import encode
from ccr.settings import parse
from rl.online.learner import Learner
from rl.online.shelf import Shelf
from router.feedback.feeder import STREAM
from router.store.embedded import EmbeddedStore
from router.store.store import Entry
from tests.records import answers

KEY = b"a key of the tests"
NODES = ("a10-0", "a10-1", "a10-2", "a10-3")
MODELS = ("chat-7b@1", "code-7b@1", "summary-7b@1")
IDS = b"".join(hash64(name).to_bytes(8, "little") for name in NODES)


def a_config(tmp_path, **learner):
    """Of routers and learner: four nodes, three models."""
    return {
        "nodes": [{"id": name, "url": f"http://{name}:8000", "models": list(MODELS)} for name in NODES],
        "store": {"directory": str(tmp_path / "store")},
        "publication": {"key": KEY.decode()},
        "learner": {
            "directory": str(tmp_path / "learner"), "tracking_uri": f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}",
            "least_requests": 100, "search": 0.01, "retrain_every": 0, "episodes": 100, **learner,
        },
    }  # fmt: skip


def settings_of(tmp_path, **learner):
    return parse(json.dumps(a_config(tmp_path, **learner)).encode(), "the test")


class Clock:
    """Moves when it is told to."""

    def __init__(self, now_s=10_000.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


class Bench:
    """A store, records for it, and learners on it."""

    def __init__(self, tmp_path, **learner):
        self.tmp_path = tmp_path
        self.settings = settings_of(tmp_path, **learner)
        self.clock = Clock()
        self.store = EmbeddedStore(tmp_path / "store", wall=self.clock)
        self.learners = []
        self._number = 0

    def learner(self, directory="learner", registers=False, **fields):
        shelf = Shelf(Path(self.tmp_path / directory), KEY)
        learner = Learner(self.settings, self.store, shelf, clock=self.clock, wall=self.clock, **fields)
        if not registers:  # MLflow is tried elsewhere: it takes seconds
            learner._register = lambda now_s: None
        self.learners.append(learner)
        return learner

    def tell(self, lessons):
        """Put records into the store."""
        entries = []
        for lesson in lessons:
            self._number += 1
            entries.append(Entry(self._number, lesson if isinstance(lesson, bytes) else encode(lesson)))
        self.store.append(STREAM, "router", entries)

    def answers(self, rng, count, **fields):
        """Of the nodes of the config, ending about now."""
        begin_s = self.clock.now_s - count / 10.0 - 10.0
        return answers(rng, count, begin_s=begin_s, nodes=IDS, **fields)

    def turn(self, learner, times=1, step_s=1.0):
        """Turns of a learner, each a little later."""
        for _ in range(times):
            while learner.turn():
                pass
            self.clock.now_s += step_s
