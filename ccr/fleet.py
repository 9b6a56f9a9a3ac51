"""The live fleet: turns readings, dispatches and outcomes into the columns that policies see."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ccr import columns as seen
from ccr import shared
from ccr.book import Placed
from ccr.calibration import NOTHING, Calibration
from ccr.expectations import Expectations, Facts
from ccr.first_tokens import Awaited, Unheard, expected_after_s, presume
from ccr.look import Look
from ccr.outlier import Health, OutlierRules, Phase
from ccr.prices import PriceList
from ccr.shared import IN_FLIGHT, Part
from ccr.types import COLUMNS, UNKNOWN, Column, Fleet, Mask, NodeSpec, Outcome, Reading, Request

_ROWS = tuple(COLUMNS)
_INFLIGHT, _QPS = _ROWS.index("inflight"), _ROWS.index("qps")
_LATENCY, _ROOM = _ROWS.index("latency_s"), _ROWS.index("room_gib")
_TOTAL = _ROWS.index("gpu_total_gib")


@dataclass(frozen=True, slots=True)
class FleetRules:
    """Constants of the live fleet.

    Args:
        stale_after_s: a reading older than this is masked to a neutral value.
        qps_window_s: time constant of the decayed request rate.
        latency_weight: weight of a new observation in the mean latency.
        latency_memory_s: time constant with which a node that gets no traffic drifts back to the
            fleet's mean: what was slow once must be tried again some day.
        penalty_s: latency charged for a failure, so that failing fast never looks fast.
        grid_s: columns that depend on time are refreshed at most this often.
        max_backoff_s: longest a node is left alone for its ``429``.
        outlier: when a node leaves rotation.
    """

    stale_after_s: float = 2.0
    qps_window_s: float = 5.0
    latency_weight: float = 0.1
    latency_memory_s: float = 10.0
    penalty_s: float = 30.0
    grid_s: float = 0.01
    max_backoff_s: float = 30.0
    outlier: OutlierRules = field(default_factory=OutlierRules)


class NodeState:
    """One incarnation of a node: what leases hold on to.

    It outlives its place in the fleet: a release after the node left lands here, and nowhere else, so
    a node that returns under the same name starts from its own zero. What other routers that share their ledger have
    in flight there (``elsewhere``, ``elsewhere_models``) is apart from what this one's leases count.
    """

    __slots__ = (
        "backoff_until_s",
        "boot_id",
        "draining",
        "elsewhere",
        "elsewhere_models",
        "health",
        "index",
        "inflight",
        "inflight_by_model",
        "last_dispatch_s",
        "latency_at_s",
        "latency_s",
        "load_s",
        "loading",
        "probe_under_way",
        "qps",
        "reading",
        "reading_s",
        "reported",
        "requests",
        "spec",
    )  # fmt: skip

    def __init__(self, spec: NodeSpec, rules: FleetRules, now_s: float, *, joined_late: bool) -> None:
        self.spec = spec
        self.index = -1
        self.inflight = 0
        self.inflight_by_model: dict[str, int] = {}
        self.elsewhere = 0
        self.elsewhere_models: frozenset[str] = frozenset()
        self.reported: frozenset[str] = frozenset() if spec.loads_on_demand else spec.models
        self.loading: frozenset[str] = frozenset()
        self.load_s: dict[str, float] = {}
        self.reading = Reading()
        self.reading_s = -math.inf
        self.boot_id = ""
        self.health = Health(rules.outlier, healthy_since_s=now_s if joined_late else -1e18)
        self.probe_under_way = False
        self.draining = False
        self.backoff_until_s = -math.inf
        self.qps = 0.0
        self.last_dispatch_s = -math.inf
        self.latency_s = 0.0
        self.latency_at_s = now_s
        self.requests = 0

    @property
    def loaded(self) -> frozenset[str]:
        """Models reported resident, or in flight here: a node with one in flight has it or is loading it."""
        if self.inflight_by_model.keys() <= self.reported and self.elsewhere_models <= self.reported:
            return self.reported
        return self.reported | self.inflight_by_model.keys() | self.elsewhere_models


class LiveFleet:
    """Owns the columns; everything that happens to a node goes through here.

    Args:
        rules: constants.
        specs: the nodes at the start.
        now_s: the moment.
        prices: what models cost on nodes, for policies that look at what is expected of each node.
    """

    def __init__(
        self,
        rules: FleetRules | None = None,
        specs: Sequence[NodeSpec] = (),
        now_s: float = 0.0,
        prices: PriceList | None = None,
    ) -> None:
        self.rules = rules or FleetRules()
        self.prices = prices or PriceList()
        self.expected: Expectations | None = None
        self.calibration = NOTHING
        self._unheard = Unheard()
        self.states: list[NodeState] = []
        self.ejections_total = 0
        self._mean_latency_s = 0.0
        self._by_id: dict[str, NodeState] = {}
        self._due_s = -math.inf
        self._restless: set[NodeState] = set()
        self._rebuild([NodeState(spec, self.rules, now_s, joined_late=False) for spec in specs], now_s)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def panic(self) -> bool:
        """Whether so many nodes fail that no more are taken out for errors."""
        return len(self.states) > 1 and not self._may_eject_softly()

    def state(self, node_id: str) -> NodeState | None:
        """The node's present incarnation; ``None`` if it is not in the fleet."""
        return self._by_id.get(node_id)

    def at(self, now_s: float) -> Fleet:
        """The fleet as it stands at ``now_s``: live read-only columns, valid until the next event."""
        if now_s >= self._due_s:
            self._refresh(now_s)
        return self._view

    # What is expected of the nodes

    def expect(
        self, now_s: float, *, coverage: float = 1.0, observed: bool = False, facts: Sequence[Facts] = ()
    ) -> Expectations:
        """Keep a book of what is expected of each node, from now on; what is in flight already shows by telemetry only.

        A book that is kept already goes on, with this coverage: what is in flight is in it.

        Args:
            now_s: the moment.
            coverage: share of the traffic that comes through this router, in (0, 1].
            observed: whether observed latencies are to be learned from, for the policies that use them.
            facts: models known already; others come with their first request.
        """
        if self.expected is not None:
            self.expected.coverage, self.expected.observed = coverage, observed
            return self.expected
        specs = [state.spec for state in self.states]
        self.expected = Expectations(self.prices, specs, coverage=coverage, observed=observed, facts=facts)
        for state in self.states:
            self._tell_of(self.expected, state, now_s)
        self.expected.take(self.calibration)
        return self.expected

    def calibrate(self, calibration: Calibration) -> None:
        """Take what a learner found out about nodes and models, now and whenever a book is begun."""
        self.calibration = calibration
        if self.expected is not None:
            self.expected.take(calibration)

    def placed(self, state: NodeState, request: Request, now_s: float) -> Placed | None:
        """Enter a dispatch into the book, if one is kept; only the ledger calls this."""
        if self.expected is None or state.index < 0:
            return None
        self._unheard.come(now_s)
        self.expected.arrived(request)
        return self.expected.place(request, state.index, self._columns, now_s)

    def first_token(self, state: NodeState, placed: Placed, now_s: float) -> None:
        """The first token of a placed request arrived."""
        if self.expected is not None and state.index >= 0:
            self.expected.first_token(placed._replace(node=state.index), now_s)

    def comes_whole(self, lease: Awaited, placed: Placed) -> None:
        """Nobody will tell of the first token of a request that was just placed; only the ledger calls this."""
        if self.expected is not None:
            after_s = expected_after_s(self.expected.book, placed, self._columns)
            self._unheard.add(placed.at_s + after_s, lease)

    def presume_first_token(self, state: NodeState, placed: Placed, now_s: float) -> None:
        """The first token of a placed request should have come."""
        if self.expected is not None and state.index >= 0:
            presume(self.expected.book, placed._replace(node=state.index), now_s)

    def left(self, state: NodeState, placed: Placed, *, has_first_token: bool) -> None:
        """A placed request is over; only the ledger calls this."""
        if self.expected is not None and state.index >= 0:
            here = placed._replace(node=state.index)
            self.expected.leave(here, self._view.now_s, has_first_token=has_first_token)

    def learn(
        self,
        state: NodeState,
        placed: Placed,
        ttft_s: float | None,
        total_s: float,
        output_tokens: int,
        now_s: float,
    ) -> None:
        """A placed request, which is over, was answered in full; times from its dispatch, ``None`` if it was not streamed."""
        if not 0.0 <= total_s < math.inf or not (ttft_s is None or 0.0 <= ttft_s < math.inf):
            return  # no times: a caller told nonsense
        if self.expected is not None and state.index >= 0:
            here = placed._replace(node=state.index)
            self.expected.learn(here, ttft_s, total_s, float(output_tokens), now_s)

    # What other routers placed

    def part(self, now_s: float) -> Part:
        """What this router has placed, by the rows and columns of its book; it keeps one from now on."""
        expected = self.expected or self.expect(now_s)
        return expected.part(self.sent_per_s(now_s), now_s)

    def sent_per_s(self, now_s: float) -> Column:
        """Requests that this router sent per second, decayed, shape ``(len(self),)``."""
        rate, at_s = self._seen[seen.QPS], self._seen[seen.DISPATCHED_S]
        if self.expected is None:
            own: Column = rate * np.exp(-np.maximum(now_s - at_s, 0.0) / self.rules.qps_window_s)
            return own
        entered = self.expected.entered
        others, entered_s = entered.part.sent_per_s, entered.at_s.item(0)
        return shared.own_rate(rate, at_s, others, entered_s, now_s, self.rules.qps_window_s)

    def enter(self, others: Part, now_s: float) -> None:
        """This is what other routers have placed, by the rows and columns of this router's book."""
        expected = self.expected or self.expect(now_s)
        rate = self.sent_per_s(now_s) + others.sent_per_s
        others_at = others.inflight > 0
        for i in np.flatnonzero((others_at != (expected.entered.part.inflight > 0)).any(axis=0)).tolist():
            there = np.flatnonzero(others_at[:, i]).tolist()
            self.states[i].elsewhere_models = frozenset(expected.rows[row] for row in there)
            self._residency(self.states[i])
        expected.enter(others, now_s)
        counts, rates = others.load[IN_FLIGHT].tolist(), rate.tolist()
        for state, elsewhere, per_s in zip(self.states, counts, rates, strict=True):
            state.elsewhere = int(elsewhere)
            state.qps, state.last_dispatch_s = per_s, now_s
            self._columns[_INFLIGHT, state.index] = state.inflight + state.elsewhere
        self._columns[_QPS] = self._seen[seen.QPS] = rate
        self._seen[seen.DISPATCHED_S] = now_s

    # Membership

    def replace(self, specs: Iterable[NodeSpec], now_s: float) -> tuple[list[str], list[str]]:
        """Make ``specs`` the fleet; a node whose spec is unchanged keeps its state.

        Returns:
            Ids that joined and ids that left. A changed spec appears in both: it is a new incarnation.
        """
        late = bool(self.states)
        joined: list[str] = []
        states: list[NodeState] = []
        for spec in specs:
            known = self._by_id.get(spec.id)
            if known is None or known.spec != spec:
                fresh = NodeState(spec, self.rules, now_s, joined_late=late)
                fresh.draining = known is not None and known.draining
                known = fresh
                joined.append(spec.id)
            states.append(known)
        left = [state.spec.id for state in self.states if state not in states]
        self._rebuild(states, now_s)
        return joined, left

    def drain(self, node_id: str, *, draining: bool, now_s: float) -> None:
        """Take a node out of rotation while its requests finish, or put it back.

        Raises:
            KeyError: if there is no such node.
        """
        state = self._by_id[node_id]
        state.draining = draining
        self._availability(state, now_s)

    # What happens to a node

    def observe(self, node_id: str, reading: Reading, now_s: float) -> bool:
        """Take in a telemetry reading.

        Returns:
            Whether the node turned out to be a new incarnation (it restarted).
        """
        state = self._by_id.get(node_id)
        if state is None:
            return False
        restarted = bool(reading.boot_id and state.boot_id and reading.boot_id != state.boot_id)
        if restarted:
            state = self._reincarnate(state, now_s)
        state.boot_id = reading.boot_id or state.boot_id
        state.reading, state.reading_s = reading, now_s
        state.load_s.update(reading.load_s)
        if reading.loading is not None:
            state.loading = reading.loading
        if reading.loaded is not None and reading.loaded != state.reported:
            state.reported = reading.loaded
            self._residency(state)
        if self.expected is not None:
            self._tell_of(self.expected, state, now_s)
        self._note(state)
        self._refresh(now_s)
        return restarted

    def dispatched(self, state: NodeState, request: Request, now_s: float) -> bool:
        """Count a request as in flight at the node; only the ledger calls this. Returns whether it is the node's probe."""
        state.requests += 1
        state.inflight += 1
        here = state.inflight_by_model.get(request.model, 0)
        state.inflight_by_model[request.model] = here + 1
        window_s = self.rules.qps_window_s
        state.qps = state.qps * math.exp(-max(now_s - state.last_dispatch_s, 0.0) / window_s) + 1.0 / window_s
        state.last_dispatch_s = now_s
        if state.index >= 0:
            self._columns[_INFLIGHT, state.index] = state.inflight + state.elsewhere
            self._columns[_QPS, state.index] = state.qps
            self._seen[seen.QPS, state.index] = state.qps
            self._seen[seen.DISPATCHED_S, state.index] = now_s
            if not here and request.model not in state.reported:
                self._residency(state)
            is_probe = state.health.phase is Phase.PROBING
            state.probe_under_way |= is_probe
            if is_probe or state.spec.max_inflight:
                self._availability(state, now_s)
            return is_probe
        return False

    def finished(self, state: NodeState, model: str, *, was_probe: bool = False) -> None:
        """Count a request as no longer in flight; only the ledger calls this."""
        state.inflight -= 1
        here = state.inflight_by_model[model] - 1
        if here:
            state.inflight_by_model[model] = here
        else:
            del state.inflight_by_model[model]
        if state.index >= 0:
            self._columns[_INFLIGHT, state.index] = state.inflight + state.elsewhere
            if not here and model not in state.reported:
                self._residency(state)
            if was_probe:
                state.probe_under_way = False
            if was_probe or state.spec.max_inflight:
                self._availability(state, self._view.now_s)

    def record(
        self,
        state: NodeState,
        outcome: Outcome,
        latency_s: float,
        now_s: float,
        u: float,
        *,
        refused: bool = False,
        was_cold: bool = False,
    ) -> bool:
        """Learn from how a request at the node ended, for its latency and its place in rotation.

        Args:
            state: the incarnation that served it.
            outcome: how it ended.
            latency_s: from dispatch to the end.
            now_s: the moment.
            u: jitter draw for an ejection, in [0, 1).
            refused: nothing listened at the node.
            was_cold: the weights had to be loaded first; policies price that by itself, so it must not make
                the node look slow as well.

        Returns:
            Whether this ejected the node.
        """
        if outcome.is_censored:
            return False  # the client or the router ended it: it says nothing about the node
        is_failure = outcome.is_node_failure
        if not 0.0 <= latency_s < math.inf:  # a caller told nonsense: that it failed is still so
            if not is_failure:
                return False
            latency_s = 0.0
        # Not from a refusal (4xx): it comes back fast and would draw traffic to the node that refuses.
        if (outcome is Outcome.OK and not was_cold) or is_failure:
            seen_s = max(latency_s, self.rules.penalty_s) if is_failure else latency_s
            self.at(now_s)  # the mean is at most one grid step old
            known_s = self._latency(state, self._mean_latency_s, now_s)
            weight = self.rules.latency_weight if state.latency_s else 1.0
            state.latency_s = known_s + weight * (seen_s - known_s)
            state.latency_at_s = now_s
        before = state.health.phase
        if before is Phase.PROBING and now_s - latency_s < state.health.until_s - 1e-6:
            return False  # sent before the ejection ended: it says nothing about how the node is now
        may_eject = is_failure and self._may_eject_softly()
        state.health.record(
            outcome, now_s, u, refused=refused, may_eject_softly=may_eject, sent_s=now_s - latency_s
        )
        ejected = state.health.phase is Phase.EJECTED and before is not Phase.EJECTED
        self.ejections_total += ejected
        if state.index >= 0:
            self._columns[_LATENCY, state.index] = state.latency_s
            self._note(state)
            if state.health.phase is not before:
                self._availability(state, now_s)
        return ejected

    def back_off(self, state: NodeState, retry_after_s: float, now_s: float) -> None:
        """Leave a node alone that answered ``429``, as long as it asked for, within reason."""
        state.backoff_until_s = now_s + min(max(retry_after_s, 0.0), self.rules.max_backoff_s)
        if state.index >= 0:
            self._availability(state, now_s)

    def served(self, state: NodeState, model: str) -> None:
        """A request for the model succeeded there, so the model is resident, whatever the last reading says."""
        if model not in state.reported and state.spec.loads_on_demand:
            state.reported |= {model}
            self._residency(state)

    # Inside

    def _rebuild(self, states: list[NodeState], now_s: float) -> None:
        for state in self.states:
            state.index = -1
        self.states = states
        self._by_id = {state.spec.id: state for state in states}
        n = len(states)
        self._columns = np.zeros((len(COLUMNS), n))
        self._seen = np.zeros((len(seen.SEEN), n))
        self._available: Mask = np.zeros(n, dtype=np.bool_)
        self._why = [""] * n
        self._loaded = [state.loaded for state in states]
        for i, state in enumerate(states):
            state.index = i
            self._columns[_INFLIGHT, i] = state.inflight + state.elsewhere
            self._columns[_LATENCY, i] = state.latency_s
        self._view = Fleet(
            [state.spec for state in states], self._columns, self._available, self._loaded, self._why, now_s,
            self._look,
        )  # fmt: skip
        if self.expected is not None:
            self.expected.replace([state.spec for state in states])
            for state in states:
                self._tell_of(self.expected, state, now_s)
        self._restless.clear()
        for state in states:
            self._availability(state, now_s)
            self._note(state)
        self._refresh(now_s)

    def _reincarnate(self, old: NodeState, now_s: float) -> NodeState:
        fresh = NodeState(old.spec, self.rules, now_s, joined_late=True)
        fresh.draining = old.draining
        fresh.health.inherit(old.health)
        if self.expected is not None and old.index >= 0:
            self.expected.forget(old.index)
        self._rebuild([fresh if state is old else state for state in self.states], now_s)
        return fresh

    def _look(self, request: Request, columns: Column, now_s: float, observed: bool = False) -> Look:
        expected = self.expected or self.expect(now_s)
        self._unheard.come(now_s)
        expected.observed |= observed
        return expected.look(request, columns, now_s)

    def _tell_of(self, expected: Expectations, state: NodeState, now_s: float) -> None:
        if state.index >= 0:
            expected.report(state.index, state.reported)
            expected.loading(state.index, state.loading, now_s)
            if state.reading.running is not None:
                expected.read(state.index, state.reading.running + (state.reading.waiting or 0.0))

    def _residency(self, state: NodeState) -> None:
        if state.index >= 0:
            self._loaded[state.index] = state.loaded
            self._view.residency_changed()

    def _refresh(self, now_s: float) -> None:
        """Bring the columns that depend on time up to date."""
        rules = self.rules
        self._due_s = now_s + rules.grid_s
        self._view.now_s = now_s
        for state in tuple(self._restless):
            self._availability(state, now_s)
        self._mean_latency_s = seen.refreshed(
            self._seen, rules.stale_after_s, rules.qps_window_s, rules.latency_memory_s, rules.outlier.slow_start_s,
            now_s, self._columns,
        )  # fmt: skip

    def _note(self, state: NodeState) -> None:
        """Take down what was last seen of a node, for :func:`ccr.columns.refresh` to age."""
        if state.index < 0:
            return
        told = state.reading
        self._seen[:, state.index] = (
            state.qps, state.last_dispatch_s, state.latency_s, state.latency_at_s, state.reading_s,
            math.nan if told.gpu_free_gib is None else told.gpu_free_gib,
            told.running or 0.0, told.waiting or 0.0, told.kv_used or 0.0, state.health.healthy_since_s,
        )  # fmt: skip
        total_gib = told.gpu_total_gib or state.spec.gpu_total_gib
        self._columns[_TOTAL, state.index] = total_gib
        if self._columns[_ROOM, state.index] != (total_gib or UNKNOWN):
            self._columns[_ROOM, state.index] = total_gib or UNKNOWN
            self._view.residency_changed()

    def _latency(self, state: NodeState, mean_s: float, now_s: float) -> float:
        """The node's latency, drifted towards the fleet's mean since it last answered; 0 where nothing was seen."""
        if not state.latency_s:
            return 0.0
        kept = math.exp(-max(now_s - state.latency_at_s, 0.0) / self.rules.latency_memory_s)
        return mean_s + (state.latency_s - mean_s) * kept

    def _availability(self, state: NodeState, now_s: float) -> None:
        health = state.health
        health.advance(now_s)
        why = self._why_unavailable(state, now_s)
        self._why[state.index] = why
        if health.phase is Phase.EJECTED or now_s < state.backoff_until_s:
            self._restless.add(state)  # time alone will change it
        else:
            self._restless.discard(state)
        if self._available[state.index] == bool(why):
            self._available[state.index] = not why
            self._view.availability_changed()

    def _why_unavailable(self, state: NodeState, now_s: float) -> str:
        health = state.health
        if state.draining:
            return "draining"
        if health.phase is Phase.EJECTED:
            return f"ejected for {health.until_s - now_s:.0f} s ({health.why})"
        if health.phase is Phase.PROBING and state.probe_under_way:
            return f"on probation, one probe under way ({health.why})"
        if now_s < state.backoff_until_s:
            return f"asked to be left alone for {state.backoff_until_s - now_s:.0f} s (429)"
        if state.spec.max_inflight and state.inflight >= state.spec.max_inflight:
            return f"full ({state.inflight} in flight)"
        return ""

    def _may_eject_softly(self) -> bool:
        return self._softly_ejected() < self._soft_limit()

    def _soft_limit(self) -> int:
        return int(len(self.states) * self.rules.outlier.soft_share)

    def _softly_ejected(self) -> int:
        # Probing nodes count: else the other half could be ejected before the first half has proved itself.
        return sum(
            1 for state in self.states if state.health.phase is not Phase.HEALTHY and not state.health.hard
        )
