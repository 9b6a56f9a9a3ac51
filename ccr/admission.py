"""When a policy may do something else than send a request to a node at once: refuse it, or hold it for a moment.

Both are harmful mistakes below saturation, so both are masked until the fleet's state asks for them.
"""

from typing import Final

import numpy as np

from ccr import cost
from ccr.look import BACKLOG_S, IDEAL_S, KV_WAIT_S, LOAD_WAIT_S, Look
from ccr.reward import slo_s
from ccr.types import Mask

SATURATED_S: Final = 2.0
"""Mean seconds before a first token over the nodes, without loads, from which the fleet counts as saturated."""
IN_DANGER: Final = 0.5
"""Of what was promised to a request: what it has to be expected to take on the best of its nodes before it may be refused."""
HOLD_S: Final = 0.1
"""How long one hold lasts."""
MAX_HOLD_S: Final = 0.4
"""How long a request may be held in all."""


def may_reject(look: Look, mask: Mask) -> bool:
    """Whether the fleet as a whole is saturated, and the promise in danger.

    Saturated: prefill and KV cache keep a request waiting on the average node. That alone is a matter of course where
    prompts are long; then it takes longer to break a promise, too.

    Args:
        look: the request on every node.
        mask: who may take it, at least one, shape ``(n,)``.
    """
    if (look.pairs[BACKLOG_S] + look.pairs[KV_WAIT_S]).mean() <= SATURATED_S:
        return False
    best_s = np.min(np.where(mask, cost.latency_s(cost.terms(look)), np.inf))
    return bool(best_s > IN_DANGER * slo_s(look.asked[IDEAL_S]))


def retry_after_s(look: Look) -> float:
    """When a refused client may try again: the mean backlog above saturation, at least a second."""
    waits_s = look.pairs[BACKLOG_S] + look.pairs[KV_WAIT_S]
    return max(float(waits_s.mean()) - SATURATED_S, 1.0)


def may_hold(look: Look, mask: Mask, held_s: float) -> bool:
    """Whether every node that may take the request would have to load its weights, and it has not been held too long.

    Args:
        look: the request on every node.
        mask: who may take it, shape ``(n,)``.
        held_s: how long it has been held.
    """
    return bool(
        held_s + HOLD_S <= MAX_HOLD_S + 1e-9 and mask.any() and (look.pairs[LOAD_WAIT_S][mask] > 0.0).all()
    )
