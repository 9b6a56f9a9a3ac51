"""Keep a conversation on the node that has its prefix cached, unless that node is overloaded."""

from dataclasses import dataclass

import numpy as np

from ccr.hashing import hash64, mix
from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, Request, Scores


@dataclass(frozen=True, slots=True)
class SessionAffinity:
    """Rendezvous hashing of the session over the nodes, with bounded load.

    Each node's weight for a session is a hash of both (Thaler and Ravishankar, 1998), so a node that
    leaves moves only its own sessions. A node above ``factor`` times the mean in-flight steps back
    behind all others until it is below again. Requests without a session hash by their model: that
    keeps a model's weights in few places.

    Args:
        factor: bound on in-flight, in means of the fleet.
        min_inflight: a node with fewer requests never steps back.
    """

    factor: float = 1.5
    min_inflight: int = 4
    name: str = "session_affinity"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Hash weight in [0, 1), minus 1 and the load for nodes over the bound; shape ``(n,)``."""
        weight = mix(fleet.id_hashes ^ np.uint64(hash64(request.session or request.model))) / 2.0**64
        bound = max(self.factor * (fleet.inflight.mean() + 1.0 / len(fleet)), self.min_inflight)
        over = fleet.inflight + 1.0 > bound
        scores: Scores = np.where(over, -1.0 - fleet.inflight, weight)
        return scores
