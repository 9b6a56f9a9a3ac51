"""The guardian: what does harm is taken back by each router alone, and stays away until a person says otherwise."""

from dataclasses import replace

import pytest
import structlog.testing

from ccr.policies.learned import learned
from ccr.publication import NOTHING, Fence, Publication
from ccr.types import Outcome
from router.publishing import presence
from router.publishing.board import Board
from router.publishing.guardian import KEPT, RECOVER_S, TRIAL_S, Desk, Guardian
from router.publishing.watch import Watch
from router.store.backoff import Backoff
from router.store.embedded import EmbeddedStore
from router.store.store import StoreDownError
from tests.router.publishing.publications import KEY
from tests.router.publishing.requests import an_attempt, ends

RATE_PER_S = 20


class Force:
    """Remembers what it was told: names of weights, `stale` or `harm`."""

    def __init__(self):
        self.said = []
        self.policy = None

    def take(self, policy, fence):
        self.policy = policy
        self.said.append(policy.version)

    def let_go(self):
        self.policy = None
        self.said.append("stale")

    def fall_back(self):
        self.policy = None
        self.said.append("harm")


class Replica:
    """A router's guardian, a clock, and traffic."""

    def __init__(self, store, name="r1", base="base", **fields):
        self.now_s = 1000.0
        self.force = Force()
        self.store = store
        self.base = replace(learned(), version=base)
        self.board = Board(store, KEY, name, clock=lambda: self.now_s, backoff=Backoff(draw=lambda: 0.0))
        self.guardian = Guardian(
            self.force, Watch(lambda: None), self.board, self.base, name, clock=lambda: self.now_s,
            wall=lambda: 1e9 + self.now_s, **fields,
        )  # fmt: skip
        self.force.policy = self.base
        self.desk = Desk(self.guardian, store, clock=lambda: self.now_s, backoff=Backoff(draw=lambda: 0.0))
        self.version = 0

    def publish(self, name, sha256=""):
        self.version += 1
        sha256 = sha256 or name.ljust(64, "0")
        self.guardian.announce(
            Publication(epoch=7, version=self.version, sha256=sha256, size=1, name=name, created_at_s=1.0)
        )
        self.guardian.take(replace(learned(), version=name), Fence(7, self.version))

    def runs(self, length_s, *, bad=False, rate=RATE_PER_S, **how):
        """Traffic for so long; by bad weights it goes where it will be late, if those are in force."""
        end_s = self.now_s + length_s
        while self.now_s < end_s:
            for _ in range(rate):
                is_bad = bad and self.force.policy is not None and self.force.policy.version.startswith("bad")
                attempt = an_attempt(self.force.policy, 3 if is_bad else 0, arrived_s=self.now_s)
                self.guardian.watch.decided(attempt)
                ends(self.guardian.watch, attempt, **how)
            self.now_s += 1.0
            self.desk.turn()

    @property
    def serves(self):
        return self.guardian.state.serves


@pytest.fixture
def store(tmp_path):
    return EmbeddedStore(tmp_path / "store")


@pytest.fixture
def replica(store):
    return Replica(store)


def passed(replica, name):
    replica.publish(name)
    replica.runs(TRIAL_S + 10.0)
    assert not replica.guardian.state.on_trial


def test_good_weights_pass_their_trial(replica):
    replica.publish("good")
    replica.runs(TRIAL_S - 10.0)
    during = replica.guardian.state.on_trial
    replica.runs(20.0)

    assert during
    assert not replica.guardian.state.on_trial
    assert replica.force.said == ["good"]


def test_weights_without_traffic_stay_on_trial(replica):
    replica.publish("good")
    replica.runs(10.0 * TRIAL_S, rate=0)

    assert replica.guardian.state.on_trial


def test_bad_weights_are_rolled_back_within_30_s_to_those_that_passed(replica):
    passed(replica, "good")
    replica.publish("bad")

    replica.runs(30.0, bad=True)

    assert replica.force.said == ["good", "bad", "good"]
    assert dict(replica.guardian.state.rollbacks) == {"avoidable": 1}


def test_without_any_that_passed_it_goes_back_to_those_of_the_config(replica):
    replica.publish("untried")
    replica.publish("bad")

    replica.runs(30.0, bad=True)

    assert replica.force.said == ["untried", "bad", "base"]


def test_failures_of_weights_on_trial_roll_them_back(replica):
    replica.runs(60.0)
    replica.publish("bad")

    replica.runs(30.0, outcome=Outcome.UPSTREAM_5XX)

    assert replica.serves == "base"


def test_failures_of_weights_that_passed_do_not(replica):
    """Nothing changed: the nodes fail, and other weights would send requests to the same ones."""
    replica.runs(60.0)
    passed(replica, "good")

    replica.runs(300.0, outcome=Outcome.UPSTREAM_5XX)

    assert replica.serves == "good"


def test_weights_of_the_config_are_what_is_usual(replica):
    """Before anything was published there is nothing to go back to, whatever the figures are."""
    replica.base = replica.force.policy = replace(learned(), version="bad")
    replica.guardian._in_force = replica.guardian._base = replace(replica.guardian._base, policy=replica.base)

    replica.runs(120.0, bad=True)

    assert replica.force.said == []


def test_it_works_while_the_store_is_away(replica):
    passed(replica, "good")
    for name in ("pointer", "point", "lease", "put", "values"):
        setattr(replica.store, name, down)
    replica.publish("bad")

    replica.runs(30.0, bad=True)

    assert replica.serves == "good"
    assert not replica.board.is_told


def down(*_):
    raise StoreDownError("away")


def test_refused_weights_do_not_come_back_however_they_are_published(replica):
    passed(replica, "good")
    replica.publish("bad", sha256="b" * 64)
    replica.runs(30.0, bad=True)

    replica.publish("bad again", sha256="b" * 64)
    replica.runs(5.0)

    assert replica.serves == "good"


def test_other_weights_are_taken_after_a_rollback(replica):
    replica.publish("bad")
    replica.runs(30.0, bad=True)

    replica.publish("better")
    replica.runs(60.0)

    assert replica.serves == "better"


def test_all_replicas_roll_back_when_one_does(store):
    one, other = Replica(store, "one"), Replica(store, "other")
    for replica in (one, other):
        replica.publish("bad")
    one.runs(30.0, bad=True)

    other.runs(2.0, rate=0)

    assert (one.serves, other.serves) == ("base", "base")
    assert not other.guardian.state.rollbacks
    assert [veto.by for veto in other.board.control.vetoes] == ["one"]


def test_two_rollbacks_within_an_hour_leave_the_heuristic_until_a_person_acts(replica):
    replica.publish("bad")
    replica.runs(60.0, bad=True)
    replica.publish("bad 2")
    with structlog.testing.capture_logs() as logged:
        replica.runs(60.0, bad=True)
    stopped = replica.force.said[-1]
    replica.publish("good")
    replica.runs(7200.0, rate=0)

    assert stopped == "harm"
    assert replica.force.said[-1] == "harm"
    assert "weights.stopped" in [event["event"] for event in logged]

    replica.guardian.resume(keep_vetoes=False)
    replica.runs(5.0)

    assert replica.serves == "good"


def test_two_rollbacks_more_than_an_hour_apart_do_not(replica):
    replica.publish("bad")
    replica.runs(60.0, bad=True)
    replica.runs(3700.0, rate=1)
    replica.publish("bad 2")
    replica.runs(60.0, bad=True)

    assert replica.serves == "base"


def test_two_replicas_that_roll_back_the_same_weights_are_one_rollback(store):
    one, other = Replica(store, "one"), Replica(store, "other")
    for replica in (one, other):
        replica.publish("bad")
        for name in ("pointer", "point"):
            setattr(store, name, down)
        replica.runs(30.0, bad=True)
    del store.pointer, store.point

    for replica in (one, other, one, other):
        replica.runs(10.0, rate=0)

    assert len(one.board.control.vetoes) == 1
    assert (one.serves, other.serves) == ("base", "base")


def test_resuming_takes_refused_weights_again_and_keeping_the_vetoes_does_not(replica):
    replica.publish("bad")
    replica.runs(30.0, bad=True)

    replica.guardian.resume(keep_vetoes=True)
    replica.runs(2.0, rate=0)
    kept = replica.serves
    replica.guardian.resume(keep_vetoes=False)
    replica.runs(2.0, rate=0)

    assert (kept, replica.serves) == ("base", "bad")
    assert replica.guardian.state.on_trial


def test_weights_of_the_config_that_do_harm_themselves_give_way_to_the_heuristic(store):
    replica = Replica(store, base="bad base")
    replica.runs(60.0)
    replica.publish("bad")
    replica.runs(30.0, bad=True)
    replica.now_s += RECOVER_S

    replica.runs(60.0, bad=True)

    assert replica.force.said == ["bad", "bad base", "harm"]


def test_what_a_rollback_leaves_behind_is_not_held_against_who_clears_it_up(replica):
    passed(replica, "good")
    replica.publish("bad")
    replica.runs(30.0, bad=True)

    assert replica.serves == "good"
    assert replica.guardian._deaf_s > replica.now_s


def test_stale_weights_are_let_go_and_come_back_with_their_publisher(replica):
    passed(replica, "good")
    policy = replica.force.policy

    replica.guardian.let_go()
    replica.guardian.take(policy, Fence(7, 1))

    assert replica.force.said == ["good", "stale", "good"]


def test_weights_that_were_rolled_back_do_not_come_back_with_their_publisher(replica):
    replica.publish("bad")
    policy = replica.force.policy
    replica.runs(30.0, bad=True)
    replica.guardian.let_go()

    replica.guardian.take(policy, Fence(7, 1))

    assert replica.serves == "base"


def test_a_rollback_by_hand_to_weights_that_passed_is_no_trial(replica):
    passed(replica, "good")
    replica.publish("other")

    replica.publish("good", sha256="good".ljust(64, "0"))

    assert (replica.serves, replica.guardian.state.on_trial) == ("good", False)


def test_only_the_latest_that_passed_are_kept(replica):
    for k in range(KEPT + 2):
        passed(replica, f"good {k}")

    assert len(replica.guardian._passed) == KEPT


def test_another_policy_that_was_configured_is_nobodys_base(store):
    guardian = Guardian(Force(), Watch(), Board(store, KEY, "r"), object(), "r")

    assert guardian.state.serves == ""
    assert guardian.state.fence == NOTHING


# -- what is told


def test_replicas_tell_what_they_serve(store):
    one, other = Replica(store, "one"), Replica(store, "other")
    one.publish("good")
    one.runs(3.0, rate=0)
    other.runs(3.0, rate=0)

    told = one.desk.status(None)["replicas"]

    assert [(each["replica"], each["serves"], each["version"]) for each in told] == [
        ("one", "good", 1),
        ("other", "base", 0),
    ]


def test_the_learner_is_shown_as_it_tells_itself(replica):
    presence.tell(replica.store, presence.LEARNER, "any-name", {"state": "reading", "version": 3})

    assert replica.desk.status(None)["learner"] == {"state": "reading", "version": 3}


def test_what_is_no_json_is_nobody(replica):
    replica.store.put(presence.LEARNER, "x", b"\xff{", 10.0)
    replica.store.put(presence.REPLICAS, "x", b"[" * 100_000, 10.0)

    found = replica.desk.status(None)

    assert found["learner"] is None
    assert len(found["replicas"]) == 1


def test_without_a_store_the_router_tells_what_it_knows(replica):
    for name in ("pointer", "point", "lease", "put", "values"):
        setattr(replica.store, name, down)
    replica.guardian.pause("a release")
    replica.runs(1.0, rate=0)

    found = replica.desk.status(None)

    assert found["control"] == {
        "paused": True,
        "stopped": False,
        "why": "a release",
        "in_store": False,
        "vetoes": [],
    }
    assert [each["serves"] for each in found["replicas"]] == ["base"]
