"""The fleet as one of several routers sees it: with what the others have in flight as long as they tell, else by its share alone."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoTimeError
from dataclasses import dataclass
from typing import Final

from ccr.expectations import Expectations, Facts
from ccr.fleet import FleetRules, LiveFleet
from ccr.prices import PriceList
from ccr.shared import nothing
from router.sharing.sharer import EXPIRES_S, Heard, Own

_PATIENCE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Shared:
    """How it stands with the ledgers of other routers.

    Args:
        peers: routers that were heard last.
        age_s: since they were; ``None`` if they are not.
        coverage: share of the traffic that this router knows of.
        elsewhere: requests of theirs in flight, by node.
        refused: parts that were not entered, by reason.
    """

    peers: int
    age_s: float | None
    coverage: float
    elsewhere: Mapping[str, int]
    refused: Mapping[str, int]


class SharedFleet(LiveFleet):
    """The fleet as one of several routers sees it.

    What others told holds for so long and no longer: whatever becomes of the exchange, what is not heard again is taken
    out by :meth:`expire`, and the policies are told that this router sees its own share of the traffic.

    Args:
        rules: constants.
        replicas: routers that share the traffic, this one included.
        now_s: the moment.
        prices: what models cost on nodes.
        expires_s: how long it holds what others told, in seconds of the router's clock.
    """

    def __init__(
        self,
        rules: FleetRules,
        replicas: int,
        now_s: float,
        prices: PriceList,
        expires_s: float = EXPIRES_S,
    ) -> None:
        self.peers = 0
        self.heard_s: float | None = None
        self._replicas = replicas
        self._expires_s = expires_s
        super().__init__(rules, now_s=now_s, prices=prices)

    @property
    def coverage(self) -> float:
        """Share of the traffic that this router knows of, in (0, 1]."""
        return 1.0 / self._replicas if self.heard_s is None else 1.0

    def expect(
        self,
        now_s: float,
        *,
        coverage: float | None = None,
        observed: bool = False,
        facts: Sequence[Facts] = (),
    ) -> Expectations:
        """As of any live fleet, with this router's share of the traffic unless another is given."""
        share = self.coverage if coverage is None else coverage
        return super().expect(now_s, coverage=share, observed=observed, facts=facts)

    def own(self, now_s: float) -> Own:
        """What this router has placed."""
        part = self.part(now_s)
        expected = self.expected or self.expect(now_s)
        return Own(part, expected.rows, expected.columns)

    def hear(self, heard: Heard, now_s: float) -> None:
        """What others have placed; it is dropped if the fleet or its models have changed since this router was asked."""
        expected = self.expected or self.expect(now_s)
        if expected.rows is not heard.own.models or expected.columns is not heard.own.nodes:
            return
        self.enter(heard.part, now_s)
        self.peers, self.heard_s = heard.peers, now_s
        expected.coverage = self.coverage

    def expire(self, now_s: float) -> bool:
        """Let go of what others told if it is too old. Returns whether it was."""
        if self.heard_s is None or now_s - self.heard_s <= self._expires_s or self.expected is None:
            return False
        self.peers, self.heard_s = 0, None
        self.enter(nothing(len(self.expected.rows), len(self)), now_s)
        self.expected.coverage = self.coverage
        return True


@dataclass(frozen=True, slots=True)
class Across:
    """Carries what the sharer's thread asks and says to the thread that decides: there it happens between two requests.

    Args:
        loop: of that thread.
        fleet: asked and told in it.
        now_s: the router's clock.
    """

    loop: asyncio.AbstractEventLoop
    fleet: SharedFleet
    now_s: Callable[[], float]

    def own(self) -> Own | None:
        """What this router has placed, now; ``None`` if it has no time to say."""
        asked: Future[Own] = Future()
        self.loop.call_soon_threadsafe(self._answer, asked)
        try:
            return asked.result(_PATIENCE_S)
        except NoTimeError:
            return None

    def hear(self, heard: Heard) -> None:
        """This is what others have placed."""
        self.loop.call_soon_threadsafe(lambda: self.fleet.hear(heard, self.now_s()))

    def _answer(self, asked: "Future[Own]") -> None:
        try:
            asked.set_result(self.fleet.own(self.now_s()))
        except Exception as error:  # it is the sharer's to report, and nobody else's trouble
            asked.set_exception(error)
