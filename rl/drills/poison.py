"""Who poisons: nodes and clients that lie or fail, and how far they get, on the readable simulator with the router's own core.

Each drill plays a day twice, honest and poisoned, and takes down a few figures of each; the table has the bars on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from ccr.fleet import LiveFleet, NodeState
from ccr.ledger import Lease, Ledger
from ccr.policy import Policy
from ccr.types import Request
from envs.episode import FAILED, Episode
from envs.scenario import Scenario, Trouble
from envs.scenarios import plain
from envs.simulator import Replica, Simulator, Told
from envs.traces.synth import Workload

HONEST: Final = "honest"
POISONED: Final = "poisoned"
_STREAM: Final = 0x9015
_LIARS: Final = 0.2
"""Share of the requests whose callers report what is not so."""
_TIMES: Final = 5.0
"""By how much they exaggerate."""
_AFTER_S: Final = 5.0
_NO_TIMES: Final = (float("nan"), float("inf"), -1.0)

Figures = Mapping[str, float]


class Times(NamedTuple):
    """The parts of an episode.

    Args:
        begins_s: when the poisoning begins.
        end_s: of the arrivals; the poisoning goes on to the end.
    """

    begins_s: float = 60.0
    end_s: float = 180.0


class Limit(NamedTuple):
    """A bar on a figure.

    Args:
        figure: of the episodes.
        most: how much it may be.
        words: what is asked.
        relative: whether the mean counts relative to the honest arm's.
        of_each: whether the worst day counts, not the mean.
    """

    figure: str
    most: float
    words: str
    relative: bool = False
    of_each: bool = False


class Poison(NamedTuple):
    """A row of the table.

    Args:
        name: of the drill.
        about: one sentence for people.
        play: both arms: policy, seed, times, and whether it is the poisoned one; gives the figures.
        limits: the bars.
    """

    name: str
    about: str
    play: Callable[[Policy, int, Times, bool], Figures]
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request that was sent to a node.

    Args:
        at_s: when.
        node: which.
        ejections: how often the router had ejected a node by then.
    """

    at_s: float
    node: int
    ejections: int


class Noting(Ledger):
    """A ledger that notes every lease: the only way a request reaches a node.

    Args:
        fleet: as of :class:`ccr.ledger.Ledger`.
    """

    def __init__(self, fleet: LiveFleet) -> None:
        super().__init__(fleet)
        self.sent: list[_Sent] = []

    def lease(
        self, state: NodeState, request: Request, now_s: float, lifetime_s: float = float("inf"), *,
        comes_whole: bool = False,
    ) -> Lease:  # fmt: skip
        """As :meth:`ccr.ledger.Ledger.lease`."""
        self.sent.append(_Sent(now_s, state.index, self._fleet.ejections_total))
        return super().lease(state, request, now_s, lifetime_s, comes_whole=comes_whole)


def target_of(scenario: Scenario, seed: int) -> int:
    """The node that is poisoned, drawn by the seed."""
    return int(np.random.Generator(np.random.Philox(key=[seed, _STREAM])).integers(len(scenario.nodes)))


def _day(times: Times, *, replicas: int = 1) -> Scenario:
    scenario = plain("drill", "", nodes=6, rate=1.2, workload=Workload(drift=0.0), duration_s=times.end_s)
    return replace(scenario, warmup_s=times.begins_s, replicas=replicas)


def _play(
    scenario: Scenario, policy: Policy, seed: int, told: Told | None = None
) -> tuple[Episode, list[_Sent], Simulator]:
    simulator = Simulator(scenario, policy, seed, told) if told else Simulator(scenario, policy, seed)
    ledgers = [Noting(replica.fleet) for replica in simulator.replicas]
    for replica, ledger in zip(simulator.replicas, ledgers, strict=True):
        replica.ledger = ledger
    episode = simulator.run()
    return episode, [sent for ledger in ledgers for sent in ledger.sent], simulator


def _share(sent: list[_Sent], node: int, from_s: float) -> float:
    """Of what was sent from then on, the share that went to the node."""
    later = [each.node == node for each in sent if each.at_s >= from_s]
    return float(np.mean(later)) if later else 0.0


# -- the drills ------------------------------------------------------------------------------------------------------


def lying_node(policy: Policy, seed: int, times: Times, poisoned: bool, replicas: int = 1) -> Figures:
    """A node that takes twice as long says from some moment on that it is idle; the honest one only takes as long."""
    scenario = _day(times, replicas=replicas)
    node = target_of(scenario, seed)
    troubles = [Trouble("slow", node, 0.0, 1e9, 2.0)]
    troubles += [Trouble("lie", node, times.begins_s, 1e9)] if poisoned else []
    episode, sent, _ = _play(replace(scenario, troubles=tuple(troubles)), policy, seed)
    share = _share(sent, node, times.begins_s)
    return {"cost": episode.metrics()["cost"], "share": share, "of_fair": share * len(scenario.nodes)}


def lying_node_to_four(policy: Policy, seed: int, times: Times, poisoned: bool) -> Figures:
    """The same before four routers with ledgers of their own, which know of each other by telemetry alone."""
    return lying_node(policy, seed, times, poisoned, replicas=4)


def fast_failing_node(policy: Policy, seed: int, times: Times, poisoned: bool) -> Figures:
    """A node fails at once whatever it is sent."""
    scenario = _day(times)
    node = target_of(scenario, seed)
    troubles = (Trouble("fail", node, times.begins_s, 1e9),) if poisoned else ()
    episode, sent, simulator = _play(replace(scenario, troubles=troubles), policy, seed)
    here = [each for each in sent if each.node == node and each.at_s >= times.begins_s]
    by_ejection = np.bincount([each.ejections for each in here]) if here and poisoned else np.zeros(1)
    return {
        "cost": episode.metrics()["cost"],
        "share_after_5s": _share(sent, node, times.begins_s + _AFTER_S),
        "failures_per_ejection": float(by_ejection.max()),
        "failures": float(by_ejection.sum()),
        "ejections": float(simulator.replicas[0].fleet.ejections_total),
        "failed_requests": float((episode.status == FAILED).sum()),
    }


def sybil(policy: Policy, seed: int, times: Times, poisoned: bool) -> Figures:
    """A fifth of the callers say that one node took five times as long as it did."""
    return _lied_about(policy, seed, times, poisoned, lambda ttft_s, latency_s: (ttft_s, _TIMES * latency_s))


def sybil_praise(policy: Policy, seed: int, times: Times, poisoned: bool) -> Figures:
    """A fifth of the callers say that one node took a fifth of the time it did."""
    return _lied_about(
        policy, seed, times, poisoned, lambda ttft_s, latency_s: (ttft_s / _TIMES, latency_s / _TIMES)
    )


def nan_feedback(policy: Policy, seed: int, times: Times, poisoned: bool) -> Figures:
    """A fifth of the callers report what is no time: NaN, infinity, a negative number."""
    turn = iter(range(1 << 30))

    def nonsense(_: float, __: float) -> tuple[float, float]:
        k = next(turn)
        return _NO_TIMES[k % 3], _NO_TIMES[k // 3 % 3]

    return _lied_about(policy, seed, times, poisoned, nonsense, everywhere=True)


def _not_finite(replica: Replica) -> int:
    """Numbers that the router has learned and that are none."""
    fleet = replica.fleet
    learned = [np.array([state.latency_s for state in fleet.states])]
    if fleet.expected is not None:
        learned += [fleet.expected.book.load, fleet.expected.book.output_tokens, fleet.expected.book.load_s]
    return sum(int((~np.isfinite(numbers)).sum()) for numbers in learned)


def _lied_about(
    policy: Policy, seed: int, times: Times, poisoned: bool,
    lie: Callable[[float, float], tuple[float, float]], *, everywhere: bool = False,
) -> Figures:  # fmt: skip
    scenario = _day(times)
    node = target_of(scenario, seed)
    lies = np.random.Generator(np.random.Philox(key=[seed, _STREAM + 1])).random(1 << 16) < _LIARS
    arrivals = scenario.arrivals(seed)
    scenario = replace(scenario, arrivals=lambda _: arrivals)

    def told(j: int, at: int, ttft_s: float, latency_s: float) -> tuple[float, float]:
        is_lie = arrivals.t[j] >= times.begins_s and lies[j % len(lies)] and (everywhere or at == node)
        return lie(ttft_s, latency_s) if is_lie else (ttft_s, latency_s)

    episode, sent, simulator = _play(scenario, policy, seed, told if poisoned else None)
    unsound = sum(map(_not_finite, simulator.replicas))
    share = _share(sent, node, times.begins_s)
    return {
        "cost": episode.metrics()["cost"], "share": share, "of_fair": share * len(scenario.nodes),
        "not_finite": float(unsound),
    }  # fmt: skip


#: Name -> drill.
POISONS: Final[Mapping[str, Poison]] = MappingProxyType(
    {
        poison.name: poison
        for poison in (
            Poison(
                "lying-node", "a slow node claims that it is idle", lying_node,
                (Limit("of_fair", 1.0, "its share of the traffic over an equal share <= 1"),),
            ),
            Poison(
                "lying-node-4", "the same before four routers that do not share their ledgers", lying_node_to_four,
                (Limit("of_fair", 1.0, "its share of the traffic over an equal share <= 1"),),
            ),
            Poison(
                "fast-failing-node", "a node fails at once whatever it is sent", fast_failing_node,
                (
                    Limit("share_after_5s", 0.02, "share of the traffic sent to it after 5 s <= 2 %"),
                    Limit("failures_per_ejection", 5.0, "failures for each time that it is ejected <= 5, on the worst day", of_each=True),
                    Limit("failed_requests", 0.0, "requests that fail for their callers: none", of_each=True),
                ),
            ),
            Poison(
                "sybil", "a fifth of the callers say that one node took five times as long", sybil,
                (Limit("cost", 1.05, "cost over that of an honest day <= 1.05", relative=True),),
            ),
            Poison(
                "sybil-praise", "a fifth of the callers say that one node took a fifth of the time", sybil_praise,
                (
                    Limit("cost", 1.05, "cost over that of an honest day <= 1.05", relative=True),
                    Limit("share", 1.1, "share of the traffic of the praised node <= 1.1 times", relative=True),
                ),
            ),
            Poison(
                "nan-feedback", "a fifth of the callers report what is no time", nan_feedback,
                (
                    Limit("not_finite", 0.0, "numbers in the books that are not finite: none", of_each=True),
                    Limit("cost", 1.02, "cost over that of an honest day <= 1.02", relative=True),
                ),
            ),
        )
    }
)  # fmt: skip
