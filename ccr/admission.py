"""When a policy may do something else than send a request to a node at once: refuse it, or hold it for a moment.

Both are harmful mistakes below saturation, so both are masked until the fleet's state asks for them.
"""

from typing import Final

from ccr.look import BACKLOG_S, KV_WAIT_S, LOAD_WAIT_S, Look
from ccr.types import Mask

SATURATED_S: Final = 2.0
"""Mean seconds before a first token over the nodes, without loads, from which the fleet counts as saturated."""
HOLD_S: Final = 0.1
"""How long one hold lasts."""
MAX_HOLD_S: Final = 0.4
"""How long a request may be held in all."""


def may_reject(look: Look) -> bool:
    """Whether the fleet as a whole is saturated: prefill and KV cache keep a request waiting on the average node."""
    return bool((look.pairs[BACKLOG_S] + look.pairs[KV_WAIT_S]).mean() > SATURATED_S)


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
