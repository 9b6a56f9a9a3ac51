"""The trained policy: :mod:`ccr.policies.network` behind the interface of every other policy."""

from dataclasses import dataclass, field

import numpy as np

from ccr.book import Floats
from ccr.expectations import look_of
from ccr.features import node_features, request_features
from ccr.look import Look
from ccr.picker import GREEDY, Picker
from ccr.policies.network import EXTRA, PRIORITY, REJECT, Network, logits, priority, service_s
from ccr.types import Fleet, Mask, Request, Scores

PRIORITY_LOGIT = 4.0
"""What each step of a request's priority takes off the logit of refusing it: low ones are refused first."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Trained weights over cost terms and a network beside them; may refuse a request or hold it.

    Args:
        network: what was trained.
        version: of the weights, for logs and records; empty when they are not published.
        name: as in the table.
        picker: how logits become probabilities.
    """

    network: Network
    version: str = ""
    name: str = "learned"
    picker: Picker = field(default=GREEDY)

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Logits of the nodes, then of refusing and of holding, shape ``(len(fleet) + 2,)``."""
        look = look_of(request, fleet)
        mask = np.ones(len(fleet), dtype=np.bool_) if fleet.may is None else fleet.may
        found = self.logits(look, mask)
        found[REJECT - EXTRA] -= PRIORITY_LOGIT * request.priority
        return found

    def logits(self, look: Look, mask: Mask) -> Floats:
        """Logits of a look, shape ``(n + 2,)``; ``mask`` tells whom the network pools over, shape ``(n,)``."""
        return logits(node_features(look), request_features(look), mask, self.network)

    def priority(self, look: Look, chosen: int, arrived_s: float) -> int | None:
        """The number for the chosen node's engine, lower first, in tenths of a second; ``None`` where arrival alone decides."""
        if self.network.scalars[PRIORITY] <= 0.0:
            return None
        return priority(self.network, arrived_s, service_s(node_features(look), chosen))
