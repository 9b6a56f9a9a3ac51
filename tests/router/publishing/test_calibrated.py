"""Calibrations on their way into routers: what is newer, signed and in range is taken, and nothing else."""

import pytest

from ccr.book import OVERHEAD_S, SPEED
from ccr.calibration import Calibration, NodeConstants, signed
from ccr.hashing import hash64
from router.publishing import calibrated
from router.publishing.calibrated import FAMILY, KEY, LATEST_S, Calibrated
from router.store.embedded import EmbeddedStore
from router.store.store import StoreDownError
from tests.router.fake_node import FakeNode
from tests.router.harness import running_router, until
from tests.router.publishing.publications import KEY as SECRET

NOW_S = 10_000.0


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


class Bench:
    def __init__(self, tmp_path):
        self.store = EmbeddedStore(tmp_path)
        self.taken = []
        self.looks = Calibrated(self.store, SECRET, self.taken.append, wall=lambda: NOW_S)

    def put(self, at_s=NOW_S, speed=2.0, key=SECRET):
        found = Calibration(at_s, {hash64("a"): NodeConstants(speed, 0.1)})
        self.store.put(FAMILY, KEY, signed(found, key), 60.0)
        self.looks.look()


def test_a_newer_one_is_taken_once(bench):
    bench.put(NOW_S - 5.0)
    bench.looks.look()
    bench.put(NOW_S)

    assert [one.at_s for one in bench.taken] == [NOW_S - 5.0, NOW_S]


@pytest.mark.parametrize(
    "at_s", [NOW_S - 6.0, NOW_S - 5.0], ids=["older", "the same again, with something else in it"]
)
def test_one_that_was_put_back_is_refused(bench, at_s):
    bench.put(NOW_S - 5.0)
    bench.put(at_s, speed=4.0)

    assert len(bench.taken) == 1
    assert bench.looks.refused == {"old": 1}


def test_one_of_a_learner_that_is_long_gone_is_refused(bench):
    bench.put(NOW_S - LATEST_S - 1.0)

    assert bench.taken == []


def test_unsigned_and_out_of_range_are_refused_and_counted(bench):
    bench.put(key=b"somebody else's key")
    bench.put(speed=100.0)
    bench.put(NOW_S)

    assert bench.looks.refused == {"unsigned": 1, "out_of_range": 1}
    assert len(bench.taken) == 1


def test_a_store_that_is_away_is_no_trouble(bench, monkeypatch):
    def fails(_):
        raise StoreDownError("away")

    monkeypatch.setattr(bench.store, "values", fails)
    bench.looks.look()

    assert bench.taken == []


async def test_a_running_router_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        calibrated.Calibrated.__init__,
        "__defaults__",
        (0.02, *calibrated.Calibrated.__init__.__defaults__[1:]),
    )
    settings = {"store": {"directory": str(tmp_path)}, "publication": {"key": SECRET.decode()}}
    store = EmbeddedStore(tmp_path)
    async with running_router(settings, FakeNode("a"), FakeNode("b")) as router:
        assert (await router.post()).status == 200
        fleet = router.router.fleet
        at_s = calibrated.time.time()
        told = Calibration(at_s, {hash64(state.spec.id): NodeConstants(2.0, 0.25) for state in fleet.states})
        store.put(FAMILY, KEY, signed(told, SECRET), 60.0)
        await until(lambda: fleet.calibration.at_s == at_s)
        load = fleet.expect(0.0).book.load

    assert load[OVERHEAD_S].tolist() == [0.25, 0.25]
    assert 2.0 in load[SPEED].tolist()
