"""One request on its way through: what changes while it does, whichever way it goes."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ccr.types import Outcome, Request
from router.auth import Tenant
from router.call import HOP_BY_HOP
from router.upstream import RawHeaders, UpstreamAnswer
from router.watchdog import Watch

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Answers up to this size are sent in one piece.
WHOLE_BYTES: Final = 64 * 2**10
#: Engines put the usage into the end of an answer, in JSON and in the final event; this much of it is looked at.
TAIL_BYTES: Final = 4096
#: The request id is ours to write, in both directions.
NOT_RELAYED: Final = HOP_BY_HOP | {b"x-request-id"}


class Exchange:
    """One request.

    Args:
        method: of HTTP.
        path: decides which API's shape errors have.
        target: path and query, as the client encoded them.
        raw_headers: as they came, with lower-case names.
        arrived_s: when.
    """

    __slots__ = (
        "anthropic", "arrived_s", "body", "fields_model", "first_byte_s", "has_priority", "headers", "is_over", "is_sending",
        "is_stream", "method", "path", "raw_headers", "request", "request_id", "send", "started", "status", "tail",
        "target", "tenant", "watch",
    )  # fmt: skip

    request: Request
    tenant: Tenant
    watch: Watch
    send: Send

    def __init__(
        self, method: str, path: str, target: str, raw_headers: RawHeaders, arrived_s: float
    ) -> None:
        self.method = method
        self.path = path
        self.target = target
        self.raw_headers = raw_headers
        self.arrived_s = arrived_s
        self.anthropic = path == "/v1/messages"
        self.headers: Mapping[bytes, bytes] = {}
        self.body = b""
        self.fields_model: str | None = None
        self.has_priority = False
        self.is_over = False
        self.is_sending = False
        self.is_stream = False
        self.request_id = ""
        self.started = False
        self.status = 0
        self.first_byte_s: float | None = None
        self.tail = b""

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and output, as the end of the answer tells."""
        return (
            _last_number(self.tail, b'"prompt_tokens"', b'"input_tokens"'),
            _last_number(self.tail, b'"completion_tokens"', b'"output_tokens"'),
        )


def relayed(answer: UpstreamAnswer) -> RawHeaders:
    """The node's headers that the client gets."""
    headers = [item for item in answer.headers if item[0] not in NOT_RELAYED]
    if answer.content_length is not None:
        headers.append((b"content-length", b"%d" % answer.content_length))
    return headers


def outcome_of(status: int) -> Outcome:
    """What a whole answer with this status counts as."""
    if status < 400:
        return Outcome.OK
    return Outcome.UPSTREAM_4XX if status < 500 else Outcome.UPSTREAM_5XX


_NUMBER = re.compile(rb"\s*:\s*(\d{1,9})")


def _last_number(tail: bytes, *names: bytes) -> int | None:
    """The last number under the first of the names that has one: a stream tells it more than once."""
    for name in names:
        at = tail.rfind(name)
        while at >= 0:
            found = _NUMBER.match(tail, at + len(name))
            if found is not None:
                return int(found[1])
            at = tail.rfind(name, 0, at)
    return None
