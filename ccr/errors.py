"""Errors a caller would treat differently, one class each, all under :class:`CCRError`.

HTTP status codes are given only in ``router/``.
"""

from collections.abc import Mapping


class CCRError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(CCRError):
    """A setting is wrong; the message names the value, the place and the remedy."""


class UnknownModelError(CCRError):
    """No node and no catalogue entry knows the model.

    Args:
        model: the name as the client gave it.
        hint: what the client could have meant, or what the operator can do.
    """

    def __init__(self, model: str, hint: str = "") -> None:
        self.model = model
        super().__init__(f"unknown model {model!r}" + (f": {hint}" if hint else ""))


class NoEligibleNodeError(CCRError):
    """The action mask is empty: no node may serve the request now.

    Args:
        model: the resolved model id.
        reasons: node id -> why it may not.
    """

    def __init__(self, model: str, reasons: Mapping[str, str]) -> None:
        self.model = model
        self.reasons = dict(reasons)
        detail = (
            "; ".join(f"{node}: {reason}" for node, reason in self.reasons.items()) or "the fleet is empty"
        )
        super().__init__(
            f"no node can serve model {model!r} ({detail}). "
            "Add a node that has it, or relax what excludes these in the config."
        )


class SaturatedError(CCRError):
    """The policy refuses the request: the fleet is saturated, and serving it would cost others more than it is worth.

    Args:
        model: the resolved model id.
        retry_after_s: when the backlog may be gone.
    """

    def __init__(self, model: str, retry_after_s: float) -> None:
        self.model = model
        self.retry_after_s = retry_after_s
        super().__init__(
            f"the fleet is saturated: model {model!r} would be answered too late; "
            f"try again in {retry_after_s:.0f} s, or add nodes"
        )


class HeldError(CCRError):
    """The policy would rather decide in a moment: every node that may take the request would have to load its model.

    Args:
        hold_s: how long to wait before asking again.
    """

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        super().__init__(f"held for {hold_s:g} s")


class PolicyError(CCRError):
    """A policy gave scores that cannot be used, or raised; the decision falls back."""


class ScriptError(PolicyError):
    """An operator script was refused, or failed; the message names file and line where known."""


class TelemetryError(CCRError):
    """A telemetry answer could not be used; ``reason`` is a short label for a counter."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"telemetry refused ({reason})" + (f": {detail}" if detail else ""))


class TraceError(CCRError):
    """A trace or record cannot be read; the message names the line and the reason."""


class WeightsError(CCRError):
    """A file of trained weights is refused, or cannot be written; the message spells the difference out."""
