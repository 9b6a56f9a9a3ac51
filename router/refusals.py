"""Answers the router gives instead of a node: status, code, reason, and the shape each API expects."""

from dataclasses import dataclass
from typing import Final

import msgspec

from ccr.types import Outcome, Request

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
_ANTHROPIC_TYPES: Final = {
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(eq=False)
class Refusal(Exception):
    """A request that ends in the router.

    Args:
        status: HTTP status.
        code: stable word for programs, e.g. ``model_not_found``.
        message: for people: what was wrong and what to do.
        outcome: what it counts as.
        retry_after_s: when to come back; 0 says nothing.
        param: the field that was wrong, if one was.
        request: that ended so, where it had been understood.
    """

    status: int
    code: str
    message: str
    outcome: Outcome = Outcome.REJECTED
    retry_after_s: float = 0.0
    param: str | None = None
    request: Request | None = None

    def body(self, request_id: str = "", *, anthropic: bool = False) -> bytes:
        """The JSON body: OpenAI's four fields and ours, or Anthropic's shape.

        Args:
            request_id: echoed, so that an operator can find the request.
            anthropic: whether the caller speaks Anthropic's API.
        """
        kind = _TYPES.get(self.status, "server_error")
        if anthropic:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else kind)
            return msgspec.json.encode(
                {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}
            )
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": kind,
                    "param": self.param,
                    "code": self.code,
                    "request_id": request_id,
                    "retryable": self.is_retryable,
                }
            }
        )

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in {408, 429, 502, 503, 504}

    def headers(self, request_id: str = "") -> list[tuple[bytes, bytes]]:
        """Response headers: reason, and when to come back."""
        headers = [
            (b"content-type", b"application/json"),
            (b"x-ccr-reason", self.code.encode()),
            (b"x-llm-d-request-dropped-reason", self.code.encode()),
        ]
        if request_id:
            headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
        if self.retry_after_s > 0.0:
            headers.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers
