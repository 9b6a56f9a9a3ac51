"""The learner as a whole: reads, publishes, tells, stands by, and outlives its store."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from ccr.calibration import opened
from ccr.control import Veto, paused, refusing, resumed
from ccr.errors import ConfigError
from ccr.hashing import hash64
from ccr.policies.learned import SHIPPED
from ccr.settings import parse
from rl.online import retrain
from rl.online.learner import EXPIRES_S, FAMILY, Learner
from rl.online.limits import Limits, thinly_seen
from rl.online.retrain import Verdict
from router.publishing import calibrated
from router.publishing.board import Board
from router.publishing.follower import Follower
from router.publishing.publisher import LEASE_S, NAME, Publisher
from router.store.store import StoreDownError
from tests.records import an_answer
from tests.rl.online.fleet import KEY
from tests.router.publishing.publications import Told, weights_file

PASSED = Verdict(True, 0.9, 0.85, 0.95, 0.97, 1.01, 0.8, 120, 10.0)
FAILED = Verdict(False, 0.99, 0.95, 1.03, 1.0, 1.1, 0.8, 120, 10.0)
RNG = np.random.default_rng


def told(bench):
    return [json.loads(one) for one in bench.store.values(FAMILY).values()]


def versions(bench):
    replica = Told()
    Follower(bench.store, KEY, replica).look()
    return replica.said


def judged(learner, bench, verdict=PASSED, name="better"):
    """As if a retraining had ended with this."""
    path = bench.tmp_path / "found.npz"
    path.write_bytes(weights_file(name))
    learner._job, learner._wanted = retrain.Job(1, why="the test"), learner.current.sha256
    learner._judged(verdict, path)


def test_without_a_key_it_does_not_begin(bench):
    with pytest.raises(ConfigError, match="CCR_PUBLICATION__KEY"):
        Learner(parse(b"{}", "the test"), bench.store, None)


def test_what_serves_is_the_first_version(bench):
    bench.turn(bench.learner())

    assert versions(bench)[0][1] == 1


def test_records_become_constants_that_routers_can_take(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(1), 600, speeds=(1.0, 2.0, 1.0, 1.0)))
    bench.turn(learner, 110)

    found = opened(bench.store.values(calibrated.FAMILY)[calibrated.KEY], KEY)

    assert found.nodes[hash64("a10-1")].speed == pytest.approx(2.0, rel=0.1)
    assert found.nodes[hash64("a10-0")].speed == pytest.approx(1.0, rel=0.1)


def test_its_heartbeat_says_how_it_is(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(2), 300))
    bench.turn(learner, 5)

    (status,) = told(bench)

    assert status["state"] == "reading"
    assert status["version"]["version"] == 1
    assert status["records"] == 300
    assert set(status) >= {"since_s", "gate", "drift", "calibration", "records_per_s"}
    assert "a10-0" in status["calibration"]["nodes"]
    bench.clock.now_s += EXPIRES_S + 1.0
    assert told(bench) == []


def test_what_passed_the_gate_is_published(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner, 3)

    assert versions(bench) == [("better", 2)]
    assert told(bench)[0]["gate"]["has_passed"]
    assert told(bench)[0]["version"]["reason"] == "retrained"


def test_what_did_not_pass_is_not(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench, FAILED)
    bench.turn(learner)

    assert versions(bench)[0][1] == 1


def a_router(bench):
    """The board of one, on the same store."""
    return Board(bench.store, KEY, "router-1", clock=bench.clock)


def says(bench, change):
    router = a_router(bench)
    router.turn()
    router.change(change)
    router.turn()
    assert router.is_told


def refused(data):
    return refusing(
        Veto(
            sha256=hashlib.sha256(data).hexdigest(),
            name="better",
            why="missed 60%",
            by="router-1",
            at_s=20_000.0,
        )
    )


def test_while_a_person_pauses_it_what_passed_waits_and_is_published_when_it_may(bench):
    learner = bench.learner()
    bench.turn(learner)
    says(bench, paused("a release"))
    bench.turn(learner, 2)
    judged(learner, bench)
    bench.turn(learner, 5)

    assert (told(bench)[0]["state"], told(bench)[0]["why"]) == ("paused", "a release")
    assert versions(bench)[0][1] == 1

    says(bench, resumed(bench.clock()))
    bench.turn(learner, 3)

    assert versions(bench) == [("better", 2)]
    assert told(bench)[0]["state"] == "reading"


def test_a_pause_that_it_has_not_heard_of_yet_stops_it_too(bench):
    """The store is asked again at the moment of publishing."""
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    says(bench, paused("now"))
    learner._publish_ready()

    assert versions(bench)[0][1] == 1

    says(bench, resumed(bench.clock()))
    bench.turn(learner, 3)

    assert versions(bench) == [("better", 2)]


def test_a_paused_learner_reads_on_and_begins_no_retraining(bench):
    learner = bench.learner()
    bench.turn(learner)
    says(bench, paused("a release"))
    learner._settings.learner.__dict__["retrain_every_s"] = 1.0
    learner._retrain_due_s = 0.0
    bench.tell(bench.answers(RNG(12), 300))
    bench.turn(learner, 5)

    assert learner.counts.records == 300
    assert learner._work is None


def test_what_a_router_rolled_back_is_not_published_again_and_what_was_before_is(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner, 3)
    says(bench, refused(weights_file("better")))
    bench.turn(learner, 5)

    after = Publisher(bench.store, KEY).current()
    assert (after.version, after.reason) == (3, "rollback")
    assert bench.store.blob(after.sha256) == SHIPPED.read_bytes()

    judged(learner, bench)  # the same weights once more
    bench.turn(learner, 5)

    assert Publisher(bench.store, KEY).current().version == 3
    assert learner._ready is None


def test_what_was_refused_is_not_put_back_into_a_flushed_store(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner, 3)
    says(bench, refused(weights_file("better")))
    learner.board.turn()
    learner.close()
    shutil.rmtree(bench.tmp_path / "store")

    bench.turn(bench.learner(), 5)

    after = Publisher(bench.store, KEY)
    assert bench.store.blob(after.current().sha256) == SHIPPED.read_bytes()
    assert after.control().vetoes[0].name == "better"  # the store has that again, too


def test_twice_rolled_back_it_publishes_nothing_until_a_person_acts(bench):
    learner = bench.learner()
    bench.turn(learner)
    for name in ("better", "even better"):
        judged(learner, bench, name=name)
        bench.turn(learner, 3)
        says(bench, refused(weights_file(name)))
        bench.turn(learner, 5)
    judged(learner, bench, name="good")
    bench.turn(learner, 5)

    assert told(bench)[0]["state"] == "paused"
    assert "good" not in [name for name, _ in versions(bench)]

    says(bench, resumed(bench.clock(), keep_vetoes=True))
    bench.turn(learner, 5)

    assert versions(bench)[0][0] == "good"


def test_what_was_judged_against_other_weights_is_not_published(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner)
    judged(learner, bench, name="later")
    learner._wanted = "of before"
    bench.turn(learner)

    assert versions(bench) == [("better", 2)]


def test_a_store_that_goes_away_at_the_moment_of_publishing_loses_nothing(bench, monkeypatch):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    with monkeypatch.context() as away:
        away.setattr(bench.store, "point", fails)
        bench.turn(learner, 3)
    bench.turn(learner, 10)

    assert versions(bench) == [("better", 2)]


def fails(*_):
    raise StoreDownError("away")


def test_a_store_that_is_away_is_told_once_and_waited_for(bench, monkeypatch, capsys):
    learner = bench.learner()
    bench.turn(learner)
    with monkeypatch.context() as away:
        for name in ("read", "lease", "put", "pointer", "values"):
            away.setattr(bench.store, name, fails)
        bench.turn(learner, 20)
    bench.tell(bench.answers(RNG(3), 50))
    bench.turn(learner, 10)

    lines = capsys.readouterr().out
    assert lines.count("learner.store_down") == 1
    assert lines.count("learner.store_back") == 1
    assert learner.counts.records == 50


def test_a_flushed_store_is_published_to_again_under_a_higher_version(bench):
    """FAULTS row 18."""
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner)
    shutil.rmtree(bench.tmp_path / "store")
    bench.turn(learner, 10)

    assert versions(bench) == [("better", 3)]


def test_a_learner_that_starts_after_the_flush_publishes_from_its_own_disk(bench):
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    bench.turn(learner)
    learner.close()
    shutil.rmtree(bench.tmp_path / "store")

    bench.turn(bench.learner(), 3)

    assert versions(bench) == [("better", 3)]


def test_a_store_that_turned_back_is_set_right(bench):
    """FAULTS row 19."""
    learner = bench.learner()
    bench.turn(learner)
    old = bench.store.pointer(NAME)
    judged(learner, bench)
    bench.turn(learner)
    (bench.tmp_path / "store" / "pointers" / NAME).write_bytes(old)
    bench.turn(learner, 3)

    assert versions(bench) == [("better", 3)]


def test_what_another_published_is_adopted_and_becomes_a_version_of_the_registry_too(bench):
    learner = bench.learner()
    bench.turn(learner)
    learner.close()
    Publisher(bench.store, KEY, wall=bench.clock).publish(weights_file("by hand"), "rollback")
    bench.clock.now_s += LEASE_S + 1.0
    after = bench.learner()
    bench.turn(after, 5)

    assert after.current.name == "by hand"
    assert [one.facts["reason"] for one in after._shelf.waiting()] == ["initial", "rollback"]


def test_weights_that_the_config_names_are_the_first_version(bench):
    path = bench.tmp_path / "mine.npz"
    path.write_bytes(weights_file("mine"))
    bench.settings = bench.settings.model_copy(
        update={"policy": bench.settings.policy.model_copy(update={"options": {"weights": str(path)}})}
    )
    bench.turn(bench.learner())

    assert versions(bench) == [("mine", 1)]


def test_records_that_were_not_acknowledged_come_again_to_the_next_learner(bench):
    learner = bench.learner()
    bench.turn(learner)
    bench.tell(bench.answers(RNG(4), 40))
    learner._read()  # and it is killed before the next look
    bench.clock.now_s += 60.0
    after = bench.learner("another")
    bench.turn(after, 3)

    assert after.counts.records == 40


def test_retraining_waits_for_enough_records(bench):
    learner = bench.learner()
    bench.turn(learner)
    bench.tell(bench.answers(RNG(5), 50))
    bench.turn(learner)

    assert not learner.begin_retraining()


def test_a_drift_brings_the_next_retraining_forward_and_says_why(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(6), 1500))
    bench.turn(learner, 2)
    learner._retrain_due_s = bench.clock.now_s + 600.0
    bench.tell(bench.answers(RNG(7), 400, speeds=(1.0, 3.0, 1.0, 1.0)))
    bench.turn(learner, 2)

    assert learner._retrain_due_s < bench.clock.now_s + 60.0
    drift = told(bench)[0]["drift"][0]
    assert (drift["quantity"], drift["whose"]) == ("speed", "a10-1")
    assert "node a10-1" in learner._recorded()[1]


def test_after_a_drift_of_the_traffic_what_came_since_is_trained_on(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(8), 3000, output=50))
    bench.turn(learner, 2)
    bench.clock.now_s += 100.0
    bench.tell(bench.answers(RNG(9), 900, output=200))
    bench.turn(learner, 2)

    rows, why = learner._recorded()

    assert "answer length" in why or "requests per second" in why
    assert np.median(rows["output"]) == 200.0


def test_states_of_late_are_what_the_limit_is_asked_about(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(10), 600))
    bench.turn(learner)

    states = learner._states()

    assert len(states) >= 300  # ten a second at most: enough that what is usual is in no thin bucket
    assert states[0].nodes.shape[0] == 4
    assert states[0].mask.all()
    assert not thinly_seen(states, Limits().least).all()


def test_of_a_rush_of_records_the_states_do_not_all_come_from_one_moment(bench):
    learner = bench.learner()
    bench.tell([an_answer(at_s=1000.0 + k / 1000.0) for k in range(2000)])
    bench.turn(learner)

    assert len(learner._states()) <= 21


def test_a_result_that_was_lost_with_its_process_is_told_and_nothing_is_published(bench, capsys):
    learner = bench.learner()
    bench.turn(learner)

    class Dead:
        def poll(self):
            return -9

        def last_words(self):
            return "killed"

        def end(self):
            pass

    learner._work = Dead()
    bench.turn(learner)

    assert "learner.retraining_failed" in capsys.readouterr().out
    assert versions(bench)[0][1] == 1
    assert str(learner.doing) == "reading"


def test_unknown_models_are_told_as_such(bench):
    learner = bench.learner()
    bench.tell(bench.answers(RNG(11), 50, model=123456))
    bench.turn(learner, 2)

    assert list(told(bench)[0]["calibration"]["models"]) == [f"unknown-{123456:016x}"]


def test_the_shipped_weights_are_what_is_published_without_others(bench):
    bench.turn(bench.learner())

    assert bench.store.blob(Publisher(bench.store, KEY).current().sha256) == SHIPPED.read_bytes()
