"""Decides which weights serve: the newest that nobody refused; takes back what does harm, by itself, store or not.

What should be in force follows from three facts - what was offered, what passed its trial, what is refused - so that a
rollback is a refusal, a resumption is its end, and nothing else has to be remembered.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ccr import log
from ccr.control import Control, Veto, paused, refusing, resumed
from ccr.policies.learned import Learned
from ccr.policy import Policy
from ccr.publication import NOTHING, Fence, Publication
from ccr.watch import EVERY_S, Breach, Judge
from ccr.weights import checksum
from router.publishing import presence
from router.publishing.board import Board
from router.publishing.watch import Watch
from router.store.backoff import Backoff
from router.store.store import Store, StoreError

TRIAL_S: Final = 180.0
#: Requests that a trial takes at least.
TRIED: Final = 100
#: Weights that passed their trial and can be gone back to without asking anybody.
KEPT: Final = 3
#: After a rollback: what it left behind is not held against who has to clear it up.
RECOVER_S: Final = 30.0
_TELL_S: Final = 2.0
_LOOK_S: Final = 1.0
_log = log.get("publication")


class Force(Protocol):
    """Who puts weights in force; called in the follower's thread."""

    def take(self, policy: Policy, fence: Fence) -> None:
        """These weights."""

    def let_go(self) -> None:
        """The fallback, instead of published weights that nobody is heard of."""

    def fall_back(self) -> None:
        """The fallback, instead of any weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights that can be put in force.

    Args:
        policy: made of them.
        fence: their publication; zeros if they were not published.
        sha256: of the file; of the arrays where they were not published.
    """

    policy: Learned
    fence: Fence
    sha256: str

    @property
    def name(self) -> str:
        """What they are called."""
        return self.policy.version


@dataclass(slots=True)
class Guarded:
    """What came of it so far, for people and metrics.

    Args:
        serves: names of the weights in force; empty while the fallback serves.
        sha256: of them.
        fence: of them.
        on_trial: whether they are.
        since_s: when they were put in force, on the router's clock.
        rollbacks: made here, by figure.
        shares: of the latest interval, by figure.
        sums: of the excess, as a share of the alarm, by figure.
    """

    serves: str = ""
    sha256: str = ""
    fence: Fence = NOTHING
    on_trial: bool = False
    since_s: float = 0.0
    rollbacks: "Counter[str]" = field(default_factory=Counter)
    shares: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)


class Guardian:
    """Stands between the follower and what serves.

    Args:
        force: puts weights in force.
        watch: told of requests.
        board: the state of things.
        base: the weights of the config; ``None`` where another policy was configured.
        replica: a name of the process.
        trial_s: how long new weights are on trial, on the router's clock.
        clock: the router's.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        force: Force,
        watch: Watch,
        board: Board,
        base: Policy | None,
        replica: str,
        trial_s: float = TRIAL_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.state = Guarded()
        self.board = board
        self.watch = watch
        self.replica = replica
        self._force = force
        self._trial_s = trial_s
        self._clock = clock
        self._wall = wall
        self._judge = Judge()
        self._base = Weights(base, NOTHING, checksum(base.network)) if isinstance(base, Learned) else None
        self._in_force: Weights | None = self._base
        self._passed: list[Weights] = []
        self._offered: Weights | None = None
        self._sha256 = ""
        self._is_stale = False
        self._since_s = self._due_s = clock()
        self._deaf_s = -math.inf
        self._describe()

    # For the follower

    def announce(self, publication: Publication) -> None:
        """The next weights to take are these."""
        self._sha256 = publication.sha256

    def take(self, policy: Learned, fence: Fence) -> None:
        """These weights are published, or their publisher is heard of again."""
        if self._offered is None or self._offered.policy is not policy:
            self._offered = Weights(policy, fence, self._sha256)
        self._is_stale = False
        self.settle()

    def let_go(self) -> None:
        """Nothing is heard any more of a publisher."""
        self._is_stale = True
        self.settle()

    # In the follower's thread

    def turn(self) -> None:
        """Count, judge if it is time, and put in force what should be."""
        now_s = self._clock()
        self.watch.count(None if self._in_force is None else self._in_force.policy, now_s)
        self.settle()
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            self._judged(now_s)

    def settle(self) -> None:
        """Put in force what should be, if something else is."""
        wanted = self._wanted()
        if wanted is self._in_force:
            return
        before, self._in_force = self._in_force, wanted
        if wanted is not None:
            self._force.take(wanted.policy, wanted.fence)
        elif self._is_stale:
            self._force.let_go()
        else:
            self._force.fall_back()
        now_s = self._clock()
        self._since_s, self._due_s, self._deaf_s = now_s, now_s + EVERY_S, -math.inf
        self.watch.begin()
        self._judge.begin(
            on_trial=wanted is not None and wanted is self._offered and not self._has_passed(wanted)
        )
        self._describe()
        _log.info(
            "weights.in_force", weights=self.state.serves or "none", on_trial=self.state.on_trial,
            before=before.name if before else "none",
        )  # fmt: skip

    def _wanted(self) -> Weights | None:
        """The newest weights that may serve; ``None`` for the fallback."""
        control = self.board.control
        if control.is_stopped:
            return None
        candidates = [self._offered, *reversed(self._passed), self._base]
        may = (one for one in candidates if one is not None and control.veto_of(one.sha256) is None)
        found = next(may, None)
        return None if found is not None and self._is_stale and found.fence != NOTHING else found

    def _has_passed(self, weights: Weights) -> bool:
        return any(one.sha256 == weights.sha256 for one in self._passed)

    def _judged(self, now_s: float) -> None:
        tally = self.watch.interval()
        if now_s < self._deaf_s:
            return
        breaches = self._judge.tick(tally)
        self._describe()
        weights = self._in_force
        if weights is None or (weights is self._base and self._offered is None):
            return  # nothing to go back to, nothing that was published: what is seen is what is usual
        if breaches:
            self._roll_back(weights, breaches)
        elif self._judge.on_trial and self._is_over(now_s):
            self._judge.passed()
            self._passed = [*self._passed, weights][-KEPT:]
            self._describe()
            _log.info("weights.passed", weights=weights.name, version=weights.fence.version)

    def _is_over(self, now_s: float) -> bool:
        return (
            now_s - self._since_s >= self._trial_s and self._judge.requests >= TRIED and self._judge.is_calm
        )

    def _roll_back(self, weights: Weights, breaches: list[Breach]) -> None:
        why = "; ".join(map(str, breaches))
        self.state.rollbacks[breaches[0].figure] += 1
        _log.error("weights.rolled_back", weights=weights.name, version=weights.fence.version, why=why)
        self.board.change(
            refusing(
                Veto(sha256=weights.sha256, name=weights.name, why=why, by=self.replica, at_s=self._wall())
            )
        )
        self._passed = [one for one in self._passed if one is not weights]
        self.settle()
        self._deaf_s = self._clock() + RECOVER_S
        if self.board.control.is_stopped:
            _log.error(
                "weights.stopped",
                why=self.board.control.why,
                remedy="find out why, then `ccr learner resume`",
            )

    # For people

    def pause(self, why: str) -> None:
        """The learner shall publish nothing; what serves goes on serving."""
        _log.warning("learner.paused", why=why)
        self.board.change(paused(why))

    def resume(self, *, keep_vetoes: bool) -> None:
        """Everything may go on."""
        _log.warning("learner.resumed", keep_vetoes=keep_vetoes)
        self.board.change(resumed(self._wall(), keep_vetoes=keep_vetoes))

    def facts(self) -> dict[str, Any]:
        """What this replica serves, as it tells the others."""
        state, control = self.state, self.board.control
        return {
            "replica": self.replica, "serves": state.serves or None, "sha256": state.sha256, "epoch": state.fence.epoch,
            "version": state.fence.version, "on_trial": state.on_trial, "for_s": round(self._clock() - state.since_s, 1),
            "stale": self._is_stale, "stopped": control.is_stopped, "rollbacks": dict(state.rollbacks),
            "shares": {name: round(share, 4) for name, share in state.shares.items()},
        }  # fmt: skip

    def _describe(self) -> None:
        weights, judge, state = self._in_force, self._judge, self.state
        state.serves, state.sha256, state.fence = (
            ("", "", NOTHING) if weights is None else (weights.name, weights.sha256, weights.fence)
        )
        state.on_trial, state.since_s = judge.on_trial, self._since_s
        state.shares, state.sums = dict(judge.shares), judge.closeness()


class Desk:
    """Tells the store what this replica serves, and people what the store knows.

    Args:
        guardian: of this replica.
        store: to tell, and to ask.
        clock: monotonic seconds of the wall.
        backoff: from the store.
    """

    def __init__(
        self,
        guardian: Guardian,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.guardian = guardian
        self._store = store
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._due_s = self._look_s = 0.0

    def turn(self) -> None:
        """Everything that has to be done now and then, in the follower's thread."""
        now_s = self._clock()
        self.guardian.turn()
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_S
            self.guardian.board.turn()
        if now_s >= self._due_s and self._backoff.is_due(now_s):
            self._due_s = now_s + _TELL_S
            try:
                presence.tell(self._store, presence.REPLICAS, self.guardian.replica, self.guardian.facts())
            except StoreError:
                self._backoff.failed(now_s)
            else:
                self._backoff.succeeded()

    def status(self, published: Publication | None) -> dict[str, Any]:
        """What is published, who is there, what was decided; waits for the store.

        Args:
            published: as the store has it, if it is known.
        """
        learner: dict[str, Any] | None = None
        replicas: dict[str, dict[str, Any]] = {}
        try:
            learners = list(presence.present(self._store, presence.LEARNER).values())
            # Who stands by knows little.
            learner = min(learners, key=lambda one: one.get("state") == "standby", default=None)
            replicas = presence.present(self._store, presence.REPLICAS)
        except StoreError as error:
            _log.debug("learner.store_down", error=str(error))
        replicas[self.guardian.replica] = self.guardian.facts()
        return {
            "store_up": self._store.is_up,
            "published": None if published is None else _described(published),
            "learner": learner,
            "replicas": [replicas[name] for name in sorted(replicas)],
            "control": _told(self.guardian.board.control, is_told=self.guardian.board.is_told),
        }


def _described(publication: Publication) -> dict[str, Any]:
    return {
        "epoch": publication.epoch, "version": publication.version, "name": publication.name, "sha256": publication.sha256,
        "at_s": publication.created_at_s, "reason": publication.reason, "kept": len(publication.kept),
    }  # fmt: skip


def _told(control: Control, *, is_told: bool) -> dict[str, Any]:
    return {
        "paused": control.is_paused, "stopped": control.is_stopped, "why": control.why, "in_store": is_told,
        "vetoes": [
            {"name": veto.name, "sha256": veto.sha256, "why": veto.why, "by": veto.by, "at_s": veto.at_s}
            for veto in control.vetoes
        ],
    }  # fmt: skip
