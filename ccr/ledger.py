"""Who has what in flight: a lease is the only way to reach a node, and ends exactly once.

There is no reset: a count is only ever moved by the lease that moved it (``docs/decisions``,
and the failures of others listed in ``docs/faults.md``).
"""

from types import TracebackType
from typing import Self

from ccr.book import Placed
from ccr.fleet import LiveFleet, NodeState
from ccr.types import Request


class Lease:
    """The right to have one request in flight at one incarnation of a node.

    Use it as a context manager, or call :meth:`release` on every path; a second release changes nothing.
    """

    __slots__ = (
        "_ledger",
        "expires_s",
        "has_first_token",
        "is_prefilled",
        "is_probe",
        "model",
        "placed",
        "request_id",
        "since_s",
        "state",
    )

    def __init__(
        self, ledger: "Ledger", state: NodeState, request: Request, now_s: float, expires_s: float
    ) -> None:
        self._ledger: Ledger | None = ledger
        self.state = state
        self.model = request.model
        self.request_id = request.id
        self.since_s = now_s
        self.expires_s = expires_s
        self.is_probe = False
        self.placed: Placed | None = None
        self.has_first_token = False
        self.is_prefilled = False

    @property
    def is_open(self) -> bool:
        """Whether the request still counts as in flight."""
        return self._ledger is not None

    def release(self) -> bool:
        """End the lease. Returns whether this call ended it."""
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            return False
        ledger._end(self)
        return True

    def first_token(self, now_s: float) -> None:
        """The first token arrived; only the first call counts."""
        if self._ledger is not None and self.placed is not None and not self.is_prefilled:
            self.has_first_token = self.is_prefilled = True
            self._ledger._fleet.first_token(self.state, self.placed, now_s)

    def presume_first_token(self, now_s: float) -> None:
        """Nobody tells of the first token, and by now it should have come."""
        if self._ledger is not None and self.placed is not None and not self.is_prefilled:
            self.is_prefilled = True
            self._ledger._fleet.presume_first_token(self.state, self.placed, now_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Ledger:
    """All open leases.

    Args:
        fleet: whose in-flight columns follow the leases.
    """

    def __init__(self, fleet: LiveFleet) -> None:
        self._fleet = fleet
        self._open: dict[Lease, None] = {}
        self.granted_total = 0

    @property
    def in_flight(self) -> int:
        """Requests in flight, over all nodes."""
        return len(self._open)

    def lease(
        self,
        state: NodeState,
        request: Request,
        now_s: float,
        lifetime_s: float = float("inf"),
        *,
        comes_whole: bool = False,
    ) -> Lease:
        """Count the request as in flight at the node from now on.

        Args:
            state: the node's incarnation.
            request: that goes there.
            now_s: the moment.
            lifetime_s: after which it should be ended.
            comes_whole: whether nobody will tell of its first token.
        """
        lease = Lease(self, state, request, now_s, now_s + lifetime_s)
        self._open[lease] = None
        self.granted_total += 1
        lease.is_probe = self._fleet.dispatched(state, request, now_s)
        if self._fleet.expected is not None:
            lease.placed = placed = self._fleet.placed(state, request, now_s)
            if comes_whole and placed is not None:
                self._fleet.comes_whole(lease, placed)
        return lease

    def expired(self, now_s: float) -> list[Lease]:
        """Open leases past their lifetime; for the owner to end."""
        return [lease for lease in self._open if lease.expires_s <= now_s]

    def open_leases(self) -> list[Lease]:
        """Every open lease, oldest first."""
        return list(self._open)

    def _end(self, lease: Lease) -> None:
        del self._open[lease]
        self._fleet.finished(lease.state, lease.model, was_probe=lease.is_probe)
        if lease.placed is not None:
            self._fleet.left(lease.state, lease.placed, has_first_token=lease.is_prefilled)
