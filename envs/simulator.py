"""The fleet in virtual time: the router's own core in front of emulated nodes, event by event.

This is the readable reference, and it runs every policy, operator scripts included. ``envs.kernel`` runs the built-in
ones some thirty times faster, and a test holds the two equal.

At equal times: nodes, then troubles, readings taken, readings arriving, ledgers shared, batches that start, requests.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from typing import Final

import numpy as np

from ccr.batching import Batch, BatchingWindow, FixedHint
from ccr.book import count_arrival
from ccr.engine import Engine
from ccr.errors import ConfigError, HeldError, NoEligibleNodeError, SaturatedError
from ccr.fleet import LiveFleet
from ccr.ledger import Lease, Ledger
from ccr.policies import POLICIES
from ccr.policies.least_request import LeastRequest
from ccr.policy import Policy
from ccr.shared import Part, add, nothing
from ccr.types import Mask, Outcome, Reading, Request
from envs.episode import FAILED, OK, REJECTED, Episode, span_of
from envs.kernel.choice import chooser_of
from envs.kernel.stepping import compiled_episode
from envs.node import EmulatedNode
from envs.scenario import REFERENCE_ONLY, SHARE_KEPT_S, Arrivals, Scenario, Trouble, draws
from envs.scenarios import scenario_of
from envs.words import Finished, FirstToken, Job, NodeState, Place

Told = Callable[[int, int, float, float], tuple[float, float]]
"""What the routers are told: of a request and its node, time to first token and latency as they were, as told."""

RETRIES: Final = 2
"""How often a request whose node broke is tried elsewhere, as the router's default."""
PREFER_S: Final = 5.0
"""How often nodes are told the models' popularity, where they evict by it."""


@dataclass(slots=True)
class Replica:
    """One router: its own fleet, its own ledger, its own batches."""

    fleet: LiveFleet
    ledger: Ledger
    engine: Engine
    window: BatchingWindow
    told: Part | None = None
    seq: int = 0


@dataclass(slots=True)
class _Flight:
    """A request at a node."""

    replica: Replica
    lease: Lease
    request: Request
    was_cold: bool
    node: int
    dispatched_s: float
    first_s: float = inf
    tried: Mask | None = None
    retries: int = RETRIES


@dataclass(slots=True)
class _Outcomes:
    """What becomes of the requests, in columns."""

    arrived_s: np.ndarray
    total_s: np.ndarray
    ttft_s: np.ndarray
    node: np.ndarray
    status: np.ndarray
    cold: np.ndarray

    @classmethod
    def of(cls, arrivals: Arrivals) -> "_Outcomes":
        r = len(arrivals.t)
        return cls(
            arrivals.t.copy(), np.full(r, np.nan), np.full(r, np.nan),
            np.full(r, -1), np.full(r, FAILED), np.zeros(r, dtype=np.bool_),
        )  # fmt: skip


@dataclass(slots=True)
class _Frozen:
    """Nodes that are out of order."""

    telemetry: set[int] = field(default_factory=set)
    down: set[int] = field(default_factory=set)
    lying: set[int] = field(default_factory=set)
    failing: set[int] = field(default_factory=set)


class Simulator:
    """One episode.

    Args:
        scenario: what happens.
        policy: who decides; one value serves all replicas.
        seed: of arrivals, noise and draws.
        told: what the routers are told of a request's time to first token and latency, given the request, its node and
            both; as it was if nothing is given.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        seed: int,
        told: Told = lambda _, __, ttft_s, latency_s: (ttft_s, latency_s),
    ) -> None:
        self._told = told
        self.scenario = scenario
        self.policy = policy
        self.seed = seed
        self.arrivals = scenario.arrivals(seed)
        self.now_s = 0.0
        self.overrides = 0
        self._ids = list(scenario.models)
        self._facts = scenario.facts()
        self._noise = scenario.noise(seed)
        self._loads = [0] * len(scenario.nodes)
        self.nodes = [self._node(n) for n in range(len(scenario.nodes))]
        for plan, node in zip(scenario.nodes, self.nodes, strict=True):
            for model in plan.warm:
                node.place(model)
        self.replicas = [self._replica() for _ in range(scenario.replicas)]
        self._boots = [0] * len(scenario.nodes)
        self._u = draws(seed, len(self.arrivals.t))
        self._flights: dict[int, _Flight] = {}
        self._out = _Outcomes.of(self.arrivals)
        self._broken = _Frozen()
        self._due: list[tuple[float, int]] = []
        self._followers: dict[int, list[int]] = {}
        self._readings: list[tuple[float, int, int, Reading]] = []
        self._samples: list[tuple[float, int]] = []
        self._troubles: list[tuple[float, int, int, Trouble]] = []
        self._waiting: set[int] = set()
        self._held: dict[int, tuple[Replica, Batch, list[tuple[int, Request]]]] = {}
        self._starts: list[tuple[float, int]] = []
        self._share = np.full(len(self._ids), 1.0 / len(self._ids))
        self._prefer_s = PREFER_S if scenario.eviction == "popularity" else inf
        self._turn = 0
        self._share_every_s = scenario.share_s / scenario.replicas if scenario.share_s > 0.0 else inf
        self._share_s = self._share_every_s
        self._deciding_s = 0.0
        self._decisions = 0
        self._schedule()

    def run(self) -> Episode:
        """To the last answer."""
        while (at_s := self._step()) < inf:
            self.now_s = at_s
        return self._episode()

    # -- time

    def _schedule(self) -> None:
        period_s = self.scenario.telemetry_period_s
        count = len(self.nodes)
        for n in range(count):
            heappush(self._samples, (period_s * n / count, n))
        for k, trouble in enumerate(self.scenario.troubles):
            heappush(self._troubles, (trouble.from_s, k, 1, trouble))
            heappush(self._troubles, (trouble.until_s, k, 0, trouble))
        for j, (at_s, after) in enumerate(zip(self.arrivals.t, self.arrivals.after, strict=True)):
            if after < 0:
                heappush(self._due, (float(at_s), j))
            else:
                self._followers.setdefault(int(after), []).append(j)

    def _step(self) -> float:
        """The next thing that happens; returns when, or ``inf`` when nothing is left to do."""
        if not self._due and not self._flights and not self._held:
            return inf
        node_s, n = min((node.next_event_s(), n) for n, node in enumerate(self.nodes))
        times = (
            node_s,
            self._troubles[0][0] if self._troubles else inf,
            self._prefer_s,
            self._samples[0][0],
            self._readings[0][0] if self._readings else inf,
            self._share_s,
            self._starts[0][0] if self._starts else inf,
            self._due[0][0] if self._due else inf,
        )
        at_s = min(times)
        match times.index(at_s):
            case 0:
                self._node_happens(n, at_s)
            case 1:
                self._trouble(at_s)
            case 2:
                self._tell_popularity(at_s)
            case 3:
                self._sample(at_s)
            case 4:
                self._deliver(at_s)
            case 5:
                self._exchange(at_s)
            case 6:
                self._start(heappop(self._starts)[1], at_s)
            case _:
                self._arrive(heappop(self._due)[1], at_s)
        return at_s

    # -- nodes

    def _node(self, n: int) -> EmulatedNode:
        return EmulatedNode(
            self.scenario.models,
            self.scenario.nodes[n].settings(keep_evicted=self.scenario.keep_evicted),
            lambda: self._next_noise(n),
        )

    def _next_noise(self, n: int) -> float:
        factor = float(self._noise[n, self._loads[n] % self._noise.shape[1]])
        self._loads[n] += 1
        return factor

    def _node_happens(self, n: int, at_s: float) -> None:
        for event in self.nodes[n].advance(at_s):
            if isinstance(event, FirstToken):
                for job in event.job_ids:
                    self._first_token(int(job), event.at_s)
            elif isinstance(event, Finished):
                self._finished(int(event.job.id), event.at_s)

    def _first_token(self, j: int, now_s: float) -> None:
        flight = self._flights[j]
        flight.first_s = now_s
        flight.lease.first_token(now_s)
        self._out.ttft_s[j] = now_s - self._out.arrived_s[j]

    def _finished(self, j: int, now_s: float) -> None:
        flight = self._flights.pop(j)
        fleet, state = flight.replica.fleet, flight.lease.state
        ttft_s, latency_s = self._told(
            j, flight.node, flight.first_s - flight.dispatched_s, now_s - flight.dispatched_s
        )
        flight.lease.release()
        fleet.record(state, Outcome.OK, latency_s, now_s, 0.5, was_cold=flight.was_cold)
        fleet.served(state, flight.request.model)
        if flight.lease.placed is not None:
            fleet.learn(
                state, flight.lease.placed, ttft_s, latency_s, int(self.arrivals.output_tokens[j]), now_s,
            )  # fmt: skip
        out = self._out
        out.total_s[j] = now_s - out.arrived_s[j]
        out.status[j], out.node[j], out.cold[j] = OK, flight.node, flight.was_cold
        self._follow(j, now_s)

    def _follow(self, j: int, now_s: float) -> None:
        for follower in self._followers.get(j, ()):
            self._out.arrived_s[follower] = now_s + self.arrivals.t[follower]
            heappush(self._due, (self._out.arrived_s[follower], follower))

    # -- troubles

    def _trouble(self, at_s: float) -> None:
        _, _, begins, trouble = heappop(self._troubles)
        node, broken = self.nodes[trouble.node], self._broken
        if trouble.kind == "slow":
            node.slow(trouble.factor if begins else 1.0, at_s)
        elif trouble.kind != "crash":
            marked = {"freeze": broken.telemetry, "lie": broken.lying, "fail": broken.failing}[trouble.kind]
            (marked.add if begins else marked.discard)(trouble.node)
        elif begins:
            self._crash(trouble.node, at_s)
        else:
            broken.down.discard(trouble.node)

    def _crash(self, n: int, now_s: float) -> None:
        self._broken.down.add(n)
        self._boots[n] += 1
        self.nodes[n].crash(now_s)
        self.nodes[n].advance(now_s)
        lost = sorted(j for j, flight in self._flights.items() if flight.node == n)
        for j in lost:
            self._broke(j, now_s, refused=False)

    def _broke(self, j: int, now_s: float, *, refused: bool) -> None:
        """The node went away under a request, or was not there: try another, as the router does."""
        flight = self._flights.pop(j)
        flight.lease.release()
        flight.replica.fleet.record(
            flight.lease.state, Outcome.UPSTREAM_RESET, now_s - flight.dispatched_s, now_s, 0.5,
            refused=refused, was_cold=flight.was_cold,
        )  # fmt: skip
        here = np.arange(len(self.nodes)) == flight.node
        tried = here if flight.tried is None else flight.tried | here
        if flight.first_s < inf or flight.retries == 0:
            self._fail(j, now_s)
        else:
            self._dispatch(j, flight.replica, flight.request, now_s, tried, flight.retries - 1)

    def _fail(self, j: int, now_s: float) -> None:
        self._out.status[j] = FAILED
        self._out.ttft_s[j] = np.nan
        self._follow(j, now_s)

    # -- telemetry

    def _sample(self, at_s: float) -> None:
        _, n = heappop(self._samples)
        heappush(self._samples, (at_s + self.scenario.telemetry_period_s, n))
        if n not in self._broken.telemetry and n not in self._broken.down:
            reading = reading_of(self.nodes[n].state(), f"{n}.{self._boots[n]}")
            if n in self._broken.lying:
                reading = replace(
                    reading, running=0.0, waiting=0.0, kv_used=0.0, gpu_free_gib=reading.gpu_total_gib
                )
            due_s = at_s + self.scenario.telemetry_delay_s
            heappush(self._readings, (due_s, n, len(self._readings), reading))

    def _deliver(self, at_s: float) -> None:
        _, n, _, reading = heappop(self._readings)
        for replica in self.replicas:
            replica.fleet.observe(self.scenario.nodes[n].id, reading, at_s)

    def _tell_popularity(self, at_s: float) -> None:
        self._prefer_s = at_s + PREFER_S
        weights: Mapping[str, float] = dict(zip(self._ids, self._share.tolist(), strict=True))
        for node in self.nodes:
            node.prefer(weights)

    # -- the shared ledger

    def _exchange(self, at_s: float) -> None:
        """The next router tells what it has placed, and takes in what the others told."""
        replica, until_s = self.replicas[self._turn], self.scenario.share_until_s
        self._turn = (self._turn + 1) % len(self.replicas)
        self._share_s = at_s + self._share_every_s
        expected = replica.fleet.expected
        assert expected is not None  # noqa: S101 - asked for at the start
        is_over = at_s >= until_s + SHARE_KEPT_S
        if (is_over and expected.coverage != 1.0) or (at_s >= until_s and not is_over):
            return
        others = nothing(len(expected.rows), len(self.nodes))
        if is_over:
            expected.coverage = 1.0 / self.scenario.replicas
        else:
            replica.told = replica.fleet.part(at_s)
            for other in self.replicas:
                if other is not replica and other.told is not None:
                    add(others, other.told)
        replica.fleet.enter(others, at_s)

    # -- requests

    def _replica(self) -> Replica:
        scenario = self.scenario
        fleet = LiveFleet(specs=scenario.specs(), prices=scenario.prices())
        for plan in scenario.nodes:  # what is resident at the start is known: the routers were there before
            fleet.observe(plan.id, Reading(loaded=frozenset(plan.warm)), 0.0)
        observed = bool(getattr(self.policy, "observes", False))
        coverage = 1.0 if scenario.share_s > 0.0 else 1.0 / scenario.replicas
        fleet.expect(0.0, coverage=coverage, observed=observed, facts=self._facts)
        window = BatchingWindow(FixedHint(scenario.batch_wait_s, scenario.batch_size))
        return Replica(fleet, Ledger(fleet), Engine(self.policy, LeastRequest()), window)

    def _arrive(self, j: int, now_s: float) -> None:
        replica = self.replicas[j % len(self.replicas)]
        request = self._request(j, replica)
        if j in self._waiting:  # it was held: its arrival has been counted
            self._waiting.discard(j)
            self._dispatch(j, replica, request, now_s, None, RETRIES)
            return
        count_arrival(self._share, int(self.arrivals.model[j]))
        replica.seq += 1
        batch = replica.window.arrive(request, now_s) if self.scenario.batch_wait_s else None
        if batch is None:
            self._dispatch(j, replica, request, now_s, None, RETRIES)
        else:
            self._hold(j, replica, request, batch, now_s)

    def _hold(self, j: int, replica: Replica, request: Request, batch: Batch, now_s: float) -> None:
        key = id(batch)
        if key not in self._held:
            self._held[key] = (replica, batch, [])
            heappush(self._starts, (batch.due_s, key))
        self._held[key][2].append((j, request))
        if batch.is_closed:
            self._start(key, now_s)

    def _start(self, key: int, now_s: float) -> None:
        """A batch starts: full, or its time has come."""
        if key not in self._held:
            return  # it was full before
        replica, batch, members = self._held.pop(key)
        replica.window.close(batch)
        for j, request in members:
            self._dispatch(j, replica, request, now_s, None, RETRIES)

    def _request(self, j: int, replica: Replica) -> Request:
        arrivals = self.arrivals
        model, gib, load_s = self._facts[arrivals.model[j]]
        session = int(arrivals.session[j])
        name, _, version = model.partition("@")
        return Request(
            id=str(j), model=model, name=name, version=version, seq=replica.seq,
            session=f"s{session}" if session >= 0 else "", priority=int(arrivals.priority[j]),
            prompt_tokens=int(arrivals.prompt_tokens[j]), model_gib=gib, load_s=load_s,
        )  # fmt: skip

    def _dispatch(
        self, j: int, replica: Replica, request: Request, now_s: float, tried: Mask | None, retries: int
    ) -> None:
        fleet = replica.fleet.at(now_s)
        started_s = time.perf_counter()
        try:
            held_s = now_s - self._out.arrived_s[j] if tried is None else inf
            decision = replica.engine.decide(request, fleet, float(self._u[j]), tried, held_s)
        except (NoEligibleNodeError, SaturatedError):
            self._fail(j, now_s)
            self._out.status[j] = REJECTED if tried is None else FAILED
            return
        except HeldError as held:
            self._waiting.add(j)
            heappush(self._due, (now_s + held.hold_s, j))
            return
        self._deciding_s += time.perf_counter() - started_s
        self._decisions += 1
        self.overrides += bool(decision.guard_reason)
        n = decision.index
        was_cold = not fleet.resident(request.model)[n]
        lease = replica.ledger.lease(replica.fleet.states[n], request, now_s)
        self._flights[j] = _Flight(replica, lease, request, was_cold, n, now_s, tried=tried, retries=retries)
        if n in self._broken.down or n in self._broken.failing:
            self._broke(j, now_s, refused=n in self._broken.down)
            return
        number = replica.engine.priority(decision, self._out.arrived_s[j])
        self.nodes[n].submit(self._job(j, number), now_s)

    def _job(self, j: int, number: int | None) -> Job:
        arrivals = self.arrivals
        session = int(arrivals.session[j])
        return Job(
            id=str(j),
            model=self._ids[arrivals.model[j]],
            prompt_tokens=int(arrivals.prompt_tokens[j]),
            output_tokens=int(arrivals.output_tokens[j]),
            session=f"s{session}" if session >= 0 else "",
            prefix_tokens=int(arrivals.prefix_tokens[j]),
            priority=number or 0,
        )

    # -- the end

    def _episode(self) -> Episode:
        scenario, out = self.scenario, self._out
        states = [node.state() for node in self.nodes]
        counted = out.arrived_s >= scenario.warmup_s
        return Episode(
            scenario=scenario.name, policy=self.policy.name, seed=self.seed,
            arrived_s=out.arrived_s, total_s=out.total_s, ttft_s=out.ttft_s,
            ideal_s=scenario.ideal_s(self.arrivals), node=out.node, status=out.status, cold=out.cold,
            counted=counted,
            evictions=sum(state.evicted for state in states),
            loads=sum(state.loads for state in states),
            peak_gib=max(state.gpu_peak_gib for state in states),
            span_s=span_of(out.arrived_s, out.total_s, counted),
            decision_s=self._deciding_s / max(self._decisions, 1), guard_overrides=self.overrides,
        )  # fmt: skip


def reading_of(state: NodeState, boot_id: str = "") -> Reading:
    """What a collector would read off a node."""
    return Reading(
        running=float(state.running),
        waiting=float(state.waiting),
        kv_used=state.kv_used,
        gpu_free_gib=state.gpu_total_gib - state.gpu_used_gib,
        gpu_total_gib=state.gpu_total_gib,
        loaded=frozenset(state.at(Place.RESIDENT)),
        loading=frozenset(state.at(Place.LOADING)),
        boot_id=boot_id,
    )


def run(
    scenario: str,
    policy: str,
    seed: int,
    options: Mapping[str, float | str] | None = None,
    engine: str = "auto",
) -> Episode:
    """One episode of a scenario by name.

    Args:
        scenario: in :data:`envs.scenarios.SCENARIOS`, or ``trace:FILE``.
        policy: in :data:`ccr.policies.POLICIES`.
        seed: of arrivals, noise and draws.
        options: of the policy, on top of its defaults.
        engine: ``compiled``, ``reference``, or ``auto``: compiled where it can.

    Raises:
        ConfigError: if something has no such name, or cannot be run compiled.
        WeightsError: if the policy's weights are refused.
    """
    if policy not in POLICIES:
        raise ConfigError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}")
    return simulate(scenario_of(scenario), POLICIES[policy](**(options or {})), seed, engine)


def simulate(scenario: Scenario, policy: Policy, seed: int, engine: str = "auto") -> Episode:
    """One episode; arguments as of :func:`run`."""
    if engine not in {"auto", "compiled", "reference"}:
        raise ConfigError(f"no engine is called {engine!r}; there are auto, compiled, reference")
    has_siblings = any(
        spec.base for spec in scenario.models.values()
    )  # the kernel prices them as whole models
    is_foul = any(trouble.kind in REFERENCE_ONLY for trouble in scenario.troubles)
    is_readable_only = scenario.batch_wait_s > 0.0 or is_foul or has_siblings
    rule = None if is_readable_only or engine == "reference" else chooser_of(policy)
    if rule is None:
        if engine == "compiled":
            raise ConfigError(
                f"policy {policy.name!r} on scenario {scenario.name!r} runs on the reference only"
            )
        return Simulator(scenario, policy, seed).run()
    return compiled_episode(scenario, policy, seed, rule)


#: What can be compared in simulation: every policy of the table.
POLICIES_SIMULATED: Final = tuple(POLICIES)
