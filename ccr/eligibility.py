"""Who may serve a request: the action mask, and the reasons in words when it is empty."""

from ccr.types import Fleet, Mask, Request


def eligible(request: Request, fleet: Fleet, exclude: Mask | None = None) -> Mask:
    """The action mask.

    A node may be chosen when it is in rotation (not ejected, draining, backing off or full), serves
    the model and version, carries every tag the request insists on, and either has the weights
    resident or has room for them.

    Args:
        request: with ``model`` resolved.
        fleet: the nodes now.
        exclude: true for nodes that must not be chosen again (a retry), shape ``(n,)``.

    Returns:
        Shape ``(n,)``; not to be written to.
    """
    mask = fleet.candidates(request.model, request.model_gib)
    if request.tags:
        mask = mask & fleet.tagged(request.tags)
    if exclude is not None:
        mask = mask & ~exclude
    return mask


def reasons(request: Request, fleet: Fleet, exclude: Mask | None = None) -> dict[str, str]:
    """Why each node that is not eligible is not; node id -> words."""
    serving, resident = fleet.serving(request.model), fleet.resident(request.model)
    found: dict[str, str] = {}
    for i, spec in enumerate(fleet.specs):
        if not serving[i]:
            found[spec.id] = "does not serve it"
        elif missing := request.tags - spec.tags:
            found[spec.id] = f"lacks tag {', '.join(sorted(missing))}"
        elif not resident[i] and fleet.room_gib[i] < request.model_gib:
            found[spec.id] = f"needs {request.model_gib:.1f} GiB, has {fleet.room_gib[i]:.1f}"
        elif not fleet.available[i]:
            why = fleet.why_unavailable[i] if fleet.why_unavailable else ""
            found[spec.id] = why or "out of rotation"
        elif exclude is not None and exclude[i]:
            found[spec.id] = "already failed this request"
    return found
