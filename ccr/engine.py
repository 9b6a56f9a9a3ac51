"""How one node is chosen: filter, score, pick, guard."""

from dataclasses import dataclass, field

from ccr.eligibility import eligible, reasons
from ccr.errors import NoEligibleNodeError, PolicyError
from ccr.guard import BoundedLoad
from ccr.picker import draw
from ccr.policy import Policy
from ccr.types import Decision, Fleet, Mask, Request

MAX_REASON = 200
"""Characters of a failure that are kept: the text is an operator script's."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A policy, what stands behind it, and the guard; replaced as one value when any of them changes.

    Args:
        policy: proposes.
        fallback: scores instead when the policy fails; must not fail itself.
        guard: disposes.
    """

    policy: Policy
    fallback: Policy
    guard: BoundedLoad = field(default_factory=BoundedLoad)

    def decide(self, request: Request, fleet: Fleet, u: float, exclude: Mask | None = None) -> Decision:
        """One node for the request, by the policy or, where that fails, by the fallback.

        Args:
            request: with ``model`` resolved.
            fleet: the nodes now; not changed.
            u: the draw, in [0, 1).
            exclude: nodes that already failed this request, shape ``(n,)``.

        Raises:
            NoEligibleNodeError: if the action mask is empty.
        """
        try:
            return decide(request, fleet, self.policy, self.guard, u, exclude)
        except PolicyError as failure:
            decision = decide(request, fleet, self.fallback, self.guard, u, exclude)
            return decision._replace(fallback=(str(failure) or type(failure).__name__)[:MAX_REASON])


def decide(
    request: Request, fleet: Fleet, policy: Policy, guard: BoundedLoad, u: float, exclude: Mask | None = None
) -> Decision:
    """One node by one policy; same arguments, same decision.

    Raises:
        NoEligibleNodeError: if the action mask is empty.
        PolicyError: if the policy gives no usable scores.
    """
    mask = eligible(request, fleet, exclude)
    if True not in mask.tolist():
        raise NoEligibleNodeError(request.model, reasons(request, fleet, exclude))
    fleet.looked = None
    scores = policy.scores(request, fleet)
    probabilities = policy.picker.probabilities(scores, mask)
    drawn = draw(probabilities, u)
    executed, chosen = guard.executed(probabilities, scores, mask, fleet, drawn)
    specs = fleet.specs
    # By position, in the order of the fields: names would take as long as a third of the scores.
    return Decision(
        request.id, specs[chosen].id, chosen, policy.name, executed.item(chosen), u,
        specs[drawn].id, probabilities.item(drawn), "bounded_load" if chosen != drawn else "",
        scores, executed, mask, "", fleet.looked,
    )  # fmt: skip
