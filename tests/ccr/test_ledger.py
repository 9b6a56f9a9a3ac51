from collections import Counter

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ccr import book as b
from ccr.expectations import look_of
from ccr.fleet import LiveFleet
from ccr.ledger import Lease, Ledger
from ccr.types import Reading
from tests.factories import MODELS, a_live_fleet, a_request, a_spec


def a_ledger(*nodes):
    live = a_live_fleet(*nodes)
    return live, Ledger(live)


def test_a_lease_counts_until_it_is_released():
    live, ledger = a_ledger("a", "b")

    lease = ledger.lease(live.state("a"), a_request("llama", seq=4), 1.0)
    held = (live.at(1.0).inflight.tolist(), ledger.in_flight, lease.is_open)
    lease.release()

    assert held == ([1.0, 0.0], 1, True)
    assert (live.at(1.0).inflight.tolist(), ledger.in_flight, lease.is_open) == ([0.0, 0.0], 0, False)
    assert (lease.request_id, lease.model, lease.since_s) == ("r4", "llama", 1.0)


def test_only_the_first_release_counts():
    live, ledger = a_ledger("a")
    lease, other = (ledger.lease(live.state("a"), a_request(), 0.0) for _ in range(2))

    releases = [lease.release() for _ in range(3)]

    assert releases == [True, False, False]
    assert other.is_open
    assert live.state("a").inflight == 1


def test_leaving_the_context_releases_whatever_happened():
    live, ledger = a_ledger("a")

    with pytest.raises(ConnectionError), ledger.lease(live.state("a"), a_request(), 0.0):
        raise ConnectionError

    assert (ledger.in_flight, live.state("a").inflight) == (0, 0)


def test_a_release_after_the_node_left_lands_on_the_incarnation_that_served():
    """Elsewhere a late decrement drove the counter of the node that returned below zero for ever."""
    live, ledger = a_ledger("a", "b")
    before = live.state("a")
    lease = ledger.lease(before, a_request(), 0.0)
    live.replace([a_spec("b")], 1.0)
    live.replace([a_spec("a"), a_spec("b")], 2.0)
    after = live.state("a")

    lease.release()

    assert after is not before
    assert (before.inflight, after.inflight) == (0, 0)
    assert live.at(2.0).inflight.tolist() == [0.0, 0.0]


def test_a_lease_past_its_lifetime_is_named_but_not_ended():
    live, ledger = a_ledger("a")
    short, endless = (
        ledger.lease(live.state("a"), a_request(), 0.0, 5.0),
        ledger.lease(live.state("a"), a_request(), 0.0),
    )

    assert ledger.expired(4.9) == []
    assert ledger.expired(5.0) == [short]
    assert ledger.open_leases() == [short, endless]


def test_there_is_no_reset():
    """A count is only ever moved by the lease that moved it."""
    offered = {name for name in dir(Ledger) if not name.startswith("_")}

    assert offered == {"in_flight", "lease", "expired", "open_leases"}
    assert not {name for name in dir(LiveFleet) if "reset" in name or "clear" in name}


def test_a_first_token_counts_once_and_only_while_the_lease_is_open():
    live, ledger = a_ledger("a")
    live.expect(0.0)
    lease, other = (ledger.lease(live.state("a"), a_request(), 0.0) for _ in range(2))

    for now_s in (1.0, 2.0):
        lease.first_token(now_s)
    spoke = live.expected.book.load[b.PENDING, 0]
    other.release()
    other.first_token(3.0)

    assert (spoke, live.expected.book.load[b.PENDING, 0]) == (1.0, 0.0)
    assert (lease.has_first_token, other.has_first_token) == (True, False)
    assert live.expected.book.progress_s[0] == 1.0


def test_a_first_token_means_nothing_where_no_book_is_kept():
    live, ledger = a_ledger("a")
    lease = ledger.lease(live.state("a"), a_request(), 0.0)

    lease.first_token(1.0)

    assert lease.placed is None
    assert not lease.has_first_token


def test_a_lease_remembers_what_its_dispatch_added_to_the_book():
    live, ledger = a_ledger("a", "b")
    live.expect(0.0)

    lease = ledger.lease(live.state("b"), a_request(prompt_tokens=300), 2.0)

    assert (lease.placed.node, lease.placed.prompt_tokens, lease.placed.at_s) == (1, 300.0, 2.0)
    assert lease.placed.was_cold


class Life(RuleBasedStateMachine):
    """Nodes leave, return and restart; leases end in any order; the counts equal an oracle's.

    The oracle knows nothing of the ledger: it numbers the incarnations itself and keeps each lease
    beside the number it was taken under.
    """

    leases = Bundle("leases")
    ended = Bundle("ended")
    nodes = "abc"
    ledger_class: type[Ledger] = Ledger

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.live = a_live_fleet()
        self.live.expect(0.0)
        self.ledger = self.ledger_class(self.live)
        self.incarnations = []  # each state object there ever was, in order
        self.present = {}  # node id -> number of its incarnation
        self.held = {}  # lease -> (number, model)

    @initialize()
    def all_join(self):
        self.configure(set(self.nodes))

    def configure(self, ids):
        self.live.replace([a_spec(id_) for id_ in sorted(ids)], self.now_s)
        self.present = {id_: number for id_, number in self.present.items() if id_ in ids}
        for id_ in ids - set(self.present):
            self.begin(id_)

    def begin(self, id_):
        self.present[id_] = len(self.incarnations)
        self.incarnations.append(self.live.state(id_))

    @rule(target=leases, data=st.data(), model=st.sampled_from(MODELS), whole=st.booleans())
    @precondition(lambda self: self.present)
    def dispatch(self, data, model, whole):
        id_ = data.draw(st.sampled_from(sorted(self.present)))
        lease = self.ledger.lease(self.live.state(id_), a_request(model), self.now_s, comes_whole=whole)
        self.held[lease] = (self.present[id_], model)
        return lease

    @rule(target=ended, lease=consumes(leases))
    def release(self, lease):
        assert lease.release()
        del self.held[lease]
        return lease

    @rule(lease=leases)
    def speak(self, lease):
        lease.first_token(self.now_s)

    @rule(model=st.sampled_from(MODELS))
    @precondition(lambda self: self.present)
    def look(self, model):
        """What comes whole is presumed to have begun by now, wherever its node is gone to."""
        look_of(a_request(model), self.live.at(self.now_s))

    @rule(lease=ended)
    def release_again(self, lease):
        assert not lease.release()

    @rule(id_=st.sampled_from(nodes))
    def leave(self, id_):
        self.configure(set(self.present) - {id_})

    @rule(id_=st.sampled_from(nodes))
    def join(self, id_):
        self.configure({*self.present, id_})

    @rule(data=st.data())
    @precondition(lambda self: self.present)
    def restart(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.present)))
        self.live.observe(id_, Reading(boot_id=f"first of {self.present[id_]}"), self.now_s)
        assert self.live.observe(id_, Reading(boot_id="another"), self.now_s)
        self.begin(id_)

    @rule(passing_s=st.floats(0.0, 60.0))
    def time_passes(self, passing_s):
        self.now_s += passing_s

    @invariant()
    def counts_equal_the_oracle(self):
        expected = Counter(self.held.values())
        for number, state in enumerate(self.incarnations):
            by_model = {model: count for (n, model), count in expected.items() if n == number}
            assert state.inflight == sum(by_model.values())
            assert state.inflight_by_model == by_model
        assert self.ledger.in_flight == len(self.held)

    @invariant()
    def the_column_is_the_count_of_those_present(self):
        fleet = self.live.at(self.now_s)
        here = [self.present[spec.id] for spec in fleet.specs]
        assert fleet.inflight.tolist() == [sum(n == number for n, _ in self.held.values()) for number in here]

    @invariant()
    def the_book_has_what_is_in_flight(self):
        book = self.live.expected.book
        for i, spec in enumerate(self.live.at(self.now_s).specs):
            held = [lease for lease, (n, _) in self.held.items() if n == self.present[spec.id]]
            assert book.load[b.IN_BATCH, i] == book.inflight[:, i].sum() == len(held)
            assert book.load[b.PENDING, i] == sum(not lease.is_prefilled for lease in held)
            if not held:
                assert (book.load[b.PENDING : b.WEIGHTS_GIB, i] == 0.0).all()

    @invariant()
    def what_is_in_flight_is_resident(self):
        fleet = self.live.at(self.now_s)
        for number, model in self.held.values():
            for i, spec in enumerate(fleet.specs):
                if self.present[spec.id] == number:
                    assert fleet.resident(model)[i]


TestLife = Life.TestCase


class ReleasesByName(Ledger):
    """Ends the lease at whoever has the node's name now."""

    def _end(self, lease):
        del self._open[lease]
        if (present := self._fleet.state(lease.state.spec.id)) is not None:
            self._fleet.finished(present, lease.model)


class ForgetsWhoLeft(Ledger):
    """Does not end a lease whose node is gone."""

    def _end(self, lease):
        del self._open[lease]
        if lease.state.index >= 0:
            self._fleet.finished(lease.state, lease.model)


class EndlessLease(Lease):
    __slots__ = ()

    def release(self):
        first = self._ledger._open.pop(self, self) is None
        self._ledger._fleet.finished(self.state, self.model)
        return first


class EndsEveryTime(Ledger):
    """Takes every release for the first."""

    def lease(self, *args, **kwargs):
        lease = super().lease(*args, **kwargs)
        lease.__class__ = EndlessLease
        return lease


class StartsAgainOnReturn(Ledger):
    """Sets the count of a node to zero now and then, as a health check elsewhere did."""

    def lease(self, state, *args, **kwargs):
        if self.granted_total % 10 == 9:
            state.inflight = 0
        return super().lease(state, *args, **kwargs)


@pytest.mark.parametrize("broken", [ReleasesByName, ForgetsWhoLeft, EndsEveryTime, StartsAgainOnReturn])
def test_the_machine_above_finds_a_broken_ledger(broken):
    class BrokenLife(Life):
        ledger_class = broken

    enough = settings(
        max_examples=300,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )

    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(BrokenLife, settings=enough)
