"""How one node is chosen: filter, score, pick, guard."""

import math
from dataclasses import dataclass, field
from itertools import compress

from ccr.admission import HOLD_S, may_hold, may_reject, retry_after_s
from ccr.eligibility import eligible, reasons
from ccr.errors import HeldError, NoEligibleNodeError, PolicyError, SaturatedError
from ccr.exploration import Exploration
from ccr.guard import BoundedLoad
from ccr.picker import draw
from ccr.policy import Policy
from ccr.types import Decision, Fleet, Mask, Request, Scores

MAX_REASON = 200
"""Characters of a failure that are kept: the text is an operator script's."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A policy, what stands behind it, and the guard; replaced as one value when any of them changes.

    Args:
        policy: proposes.
        fallback: scores instead when the policy fails; must not fail itself.
        guard: disposes.
        exploration: tries other nodes, where that breaks no promise; not with the fallback.
    """

    policy: Policy
    fallback: Policy
    guard: BoundedLoad = field(default_factory=BoundedLoad)
    exploration: Exploration | None = None

    def decide(
        self, request: Request, fleet: Fleet, u: float, exclude: Mask | None = None, held_s: float = math.inf
    ) -> Decision:
        """One node for the request, by the policy or, where that fails, by the fallback.

        Args:
            request: with ``model`` resolved.
            fleet: the nodes now; not changed.
            u: the draw, in [0, 1).
            exclude: nodes that already failed this request, shape ``(n,)``; such a request is not refused any more.
            held_s: how long it has been held; by default it may not be.

        Raises:
            NoEligibleNodeError: if the action mask is empty.
            SaturatedError: if the policy refuses it, and the fleet is saturated.
            HeldError: if the policy would rather decide in a moment.
        """
        try:
            return decide(request, fleet, self.policy, self.guard, u, exclude, held_s, self.exploration)
        except PolicyError as failure:
            decision = decide(request, fleet, self.fallback, self.guard, u, exclude)
            return decision._replace(fallback=(str(failure) or type(failure).__name__)[:MAX_REASON])

    def priority(self, decision: Decision, arrived_s: float) -> int | None:
        """What the policy wants the node's engine to order its queue by, lower first; ``None`` if it does not say.

        Args:
            decision: of this engine.
            arrived_s: when the request arrived, on the clock that its other priorities came from.
        """
        prioritise = getattr(self.policy, "priority", None)
        if prioritise is None or decision.look is None or decision.fallback:
            return None
        number: int | None = prioritise(decision.look, decision.index, arrived_s)
        return number


def decide(
    request: Request, fleet: Fleet, policy: Policy, guard: BoundedLoad, u: float, exclude: Mask | None = None,
    held_s: float = math.inf, exploration: Exploration | None = None,
) -> Decision:  # fmt: skip
    """One node by one policy; same arguments, same decision.

    Raises:
        NoEligibleNodeError: if the action mask is empty.
        SaturatedError: if the policy refuses the request, and may.
        HeldError: if it would rather decide in a moment, and may.
        PolicyError: if the policy gives no usable scores.
    """
    mask = eligible(request, fleet, exclude)
    if True not in mask.tolist():
        raise NoEligibleNodeError(request.model, reasons(request, fleet, exclude))
    fleet.looked, fleet.may = None, mask
    scores = policy.scores(request, fleet)
    if len(scores) > len(mask):
        scores = _to_a_node(request, fleet, scores, mask, exclude is None, held_s)
    probabilities = policy.picker.probabilities(scores, mask)
    explored = None
    if exploration is not None:
        probabilities, explored = exploration.mixed(probabilities, scores, mask, fleet.looked)
    drawn = draw(probabilities, u)
    executed, chosen = guard.executed(probabilities, scores, mask, fleet, drawn)
    specs = fleet.specs
    # By position, in the order of the fields: names would take as long as a third of the scores.
    return Decision(
        request.id, specs[chosen].id, chosen, policy.name, executed.item(chosen), u,
        specs[drawn].id, probabilities.item(drawn), "bounded_load" if chosen != drawn else "",
        scores, executed, mask, "", fleet.looked, explored,
    )  # fmt: skip


def _to_a_node(
    request: Request, fleet: Fleet, scores: Scores, mask: Mask, may_be_refused: bool, held_s: float
) -> Scores:
    """The scores of the nodes, shape ``(n,)``, unless refusing or holding scores higher and is allowed now."""
    n, look = len(mask), fleet.looked
    *values, reject, hold = scores.tolist()
    best = max(compress(values, mask.tolist()))
    if look is None or (reject <= best and hold <= best):
        return scores[:n]
    refuses = reject > best and may_be_refused and may_reject(look, mask)
    if hold > best and not (refuses and reject >= hold) and may_hold(look, mask, held_s):
        raise HeldError(HOLD_S)
    if refuses:
        raise SaturatedError(request.model, retry_after_s(look))
    return scores[:n]
