"""What a policy is: a value that scores the nodes for a request."""

from typing import Protocol, runtime_checkable

from ccr.picker import Picker
from ccr.types import Fleet, Request, Scores


@runtime_checkable
class Policy(Protocol):
    """Same inputs, same scores, nothing remembered: that is what makes shadow mode safe."""

    @property
    def name(self) -> str:
        """Stable name, as in the table and in logs."""

    @property
    def picker(self) -> Picker:
        """How scores become probabilities."""

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """One score per node, higher preferred, shape ``(len(fleet),)``; ``-inf`` means never.

        A policy that may also refuse or hold a request gives two more, in this order; the engine heeds them where
        :mod:`ccr.admission` allows it.

        Raises:
            PolicyError: if no usable scores can be given.
        """
