"""What the router reads of a request: a few headers and a few fields of the body; the rest passes as it came."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from router.refusals import Refusal

Scope = dict[str, Any]

#: Never shown to policies or logs, never sent on when the router checks keys itself.
CREDENTIALS: Final = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"cookie", b"proxy-authorization"}
)
HOP_BY_HOP: Final = frozenset(
    {
        b"connection", b"content-length", b"expect", b"host", b"http2-settings", b"keep-alive", b"proxy-authenticate",
        b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
#: Headers that decide where a request goes: given twice, they are refused rather than guessed at.
ROUTING: Final = frozenset(
    {
        b"authorization", b"content-length", b"host", b"x-api-key", b"x-ccr-node-tags", b"x-ccr-priority",
        b"x-conversation-id", b"x-model-name", b"x-model-version", b"x-session-id", b"x-session-token",
    }
)  # fmt: skip


class Body(msgspec.Struct, gc=False):
    """The fields of a JSON body that routing needs; every other one is passed on unread."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    priority: msgspec.Raw = msgspec.Raw()


_DECODE_BODY = msgspec.json.Decoder(Body).decode


_NONE: Final[Mapping[bytes, bytes]] = {}


class HeaderView(Mapping[str, str]):
    """Request headers under lower-case names, decoded when looked at, without credentials."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        key = name.lower().encode("latin-1", "replace")
        if key in CREDENTIALS:
            raise KeyError(name)
        return self._raw[key].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw if name not in CREDENTIALS)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forget(self) -> None:
        """Let go of them: what is remembered of a request after its decision has no headers."""
        self._raw = _NONE


def header_map(raw: list[tuple[bytes, bytes]], max_headers: int, max_bytes: int) -> dict[bytes, bytes]:
    """The headers by lower-case name, after the checks that come before any parsing.

    Raises:
        Refusal: 431 if there are too many or too large, 400 if one that routing reads is given twice
            or ``Host`` is missing or malformed, 415 for an encoded body.
    """
    headers = dict(raw)
    if len(raw) > max_headers:
        raise Refusal(431, "too_many_headers", f"{len(raw)} headers; at most {max_headers} are accepted")
    if sum(map(len, chain.from_iterable(raw))) > max_bytes:
        raise Refusal(431, "headers_too_large", f"headers of more than {max_bytes} bytes")
    if len(headers) != len(raw):
        names = [name for name, _ in raw]
        for name in ROUTING:
            if names.count(name) > 1:
                raise Refusal(400, "repeated_header", f"header {name.decode()!r} is given more than once")
    host = headers.get(b"host")
    if host is None or not is_host(host):
        raise Refusal(400, "bad_host", "the Host header is missing or malformed")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(415, "encoded_body", "send the body without Content-Encoding")
    return headers


_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_seen_hosts: Final[set[bytes]] = set()


def is_host(host: bytes) -> bool:
    """Whether a Host header names a host, with or without a port, and nothing more."""
    if host in _seen_hosts:
        return True
    good = _HOST.fullmatch(host) is not None
    if good and len(_seen_hosts) < 64:
        _seen_hosts.add(host)
    return good


def parse_body(body: bytes) -> Body:
    """The routing fields of a JSON body.

    Raises:
        Refusal: 400 naming what is wrong; a model given twice is refused, because nodes and routers need
            not agree on which one counts.
    """
    try:
        parsed = _DECODE_BODY(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"the body is not what this API takes: {_safe(error)}") from None
    if not _names_model_once(body) and len(_model_values(body)) > 1:
        raise Refusal(400, "repeated_field", "field 'model' is given more than once", param="model")
    return parsed


def with_model(body: bytes, given: str | None, model: str) -> bytes:
    """The body asking for ``model``, byte for byte the same otherwise.

    Args:
        body: a JSON object that :func:`parse_body` took.
        given: the model it asks for now.
        model: the id the node knows.
    """
    if given == model:
        return body
    encoded = msgspec.json.encode(model)
    found = _MODEL_FIELD.search(body) if given is not None and _names_model_once(body) else None
    spans = [found.span(1)] if found else _model_values(body)
    if spans:
        start, end = spans[0]
        return body[:start] + encoded + body[end:]
    return _with_first(body, b'"model":' + encoded)


def with_priority(body: bytes, priority: int) -> bytes:
    """The body with a place in the engine's queue, lower first, byte for byte the same otherwise.

    Args:
        body: a JSON object that :func:`parse_body` took, without a ``priority`` of the client's own.
        priority: a whole number, as vLLM's ``--scheduling-policy priority`` takes it.
    """
    return _with_first(body, b'"priority":%d' % priority)


def _with_first(body: bytes, field: bytes) -> bytes:
    """The body with one more field, before all others."""
    start = body.index(b"{") + 1
    is_empty = _EMPTY.match(body, start) is not None
    return b"".join((body[:start], field, b"" if is_empty else b",", body[start:]))


_EMPTY = re.compile(rb"\s*}")
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MODEL_FIELD = re.compile(rb'"model"\s*:\s*(' + _STRING + rb")")
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]")
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb"|null)")
_ESCAPED = re.compile(rb"\\u00([0-9A-Fa-f]{2})")


def _names_model_once(body: bytes) -> bool:
    r"""Whether ``"model"`` stands there at most once, and no name can hide it: its letters are ``\u006.`` when escaped."""
    return body.count(b'"model"') <= 1 and b"\\u006" not in body


def _model_values(body: bytes) -> list[tuple[int, int]]:
    """Where the values of the outermost fields called ``model`` begin and end, however the name is spelled."""
    spans, depth = [], 0
    for token in _TOKEN.finditer(body):
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
        elif depth == 1 and _ESCAPED.sub(_unescaped, text) == b'"model"':
            value = _VALUE.match(body, token.end())
            if value:
                spans.append(value.span(1))
    return spans


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 16)])


def _safe(error: Exception) -> str:
    """The parser's message names positions and types, never content."""
    return str(error) if isinstance(error, msgspec.DecodeError) else "invalid text encoding"


def positive_ms(headers: Mapping[bytes, bytes], *names: bytes) -> float:
    """The first of the headers that is given, milliseconds on the wire, in seconds; 0 when none is.

    Raises:
        Refusal: 400 if it is not a positive number.
    """
    for name in names:
        value = headers.get(name)
        if value is not None:
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if not 0.0 < number < 1e9:
                raise Refusal(
                    400, "bad_header", f"header {name.decode()!r} must be a positive number of milliseconds"
                )
            return number / 1000.0
    return 0.0


class Steering(NamedTuple):
    """What the headers of a request say about where it should go.

    Args:
        model: wins over the body's; empty when not given.
        version: or an alias of one; empty when not given.
        session: the conversation's id; empty when not given.
        tags: node tags it insists on.
        priority: as :func:`priority_of`.
        slo_ttft_s: wanted time to the first token; 0 when none is.
        slo_tpot_s: wanted time per output token; 0 when none is.
    """

    model: str = ""
    version: str = ""
    session: str = ""
    tags: frozenset[str] = frozenset()
    priority: int = 0
    slo_ttft_s: float = 0.0
    slo_tpot_s: float = 0.0


def steering_of(headers: Mapping[bytes, bytes]) -> Steering:
    """What the headers ask for; most requests ask for nothing, which is found out at once.

    Raises:
        Refusal: 400 if one of them makes no sense.
    """
    if _STEERING.isdisjoint(headers):
        return _UNSTEERED
    return Steering(
        model=headers.get(b"x-model-name", b"").decode("latin-1"),
        version=headers.get(b"x-model-version", b"").decode("latin-1"),
        session=session_of(headers),
        tags=tags_of(headers),
        priority=priority_of(headers),
        slo_ttft_s=positive_ms(headers, b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms"),
        slo_tpot_s=positive_ms(headers, b"x-llm-d-slo-tpot-ms", b"x-slo-tpot-ms"),
    )


_UNSTEERED: Final = Steering()
_STEERING: Final = frozenset(
    {
        b"x-ccr-node-tags", b"x-ccr-priority", b"x-conversation-id", b"x-llm-d-slo-tpot-ms", b"x-llm-d-slo-ttft-ms",
        b"x-model-name", b"x-model-version", b"x-session-id", b"x-session-token", b"x-slo-tpot-ms", b"x-slo-ttft-ms",
    }
)  # fmt: skip
_PRIORITIES: Final = {b"low": -1, b"normal": 0, b"high": 1}


def priority_of(headers: Mapping[bytes, bytes]) -> int:
    """``x-ccr-priority``: low, normal, high, or a whole number in [-100, 100]; 0 when absent.

    Raises:
        Refusal: 400 if it is anything else.
    """
    value = headers.get(b"x-ccr-priority")
    if value is None:
        return 0
    if value in _PRIORITIES:
        return _PRIORITIES[value]
    try:
        number = int(value)
    except ValueError:
        number = 1000
    if not -100 <= number <= 100:
        raise Refusal(
            400, "bad_header", "x-ccr-priority must be low, normal, high or a number from -100 to 100"
        )
    return number


def tags_of(headers: Mapping[bytes, bytes]) -> frozenset[str]:
    """``x-ccr-node-tags: a, b`` as a set."""
    value = headers.get(b"x-ccr-node-tags")
    if not value:
        return frozenset()
    return frozenset(tag for part in value.decode("latin-1").split(",") if (tag := part.strip()))


def session_of(headers: Mapping[bytes, bytes]) -> str:
    """The conversation's id, from the header names in use; at most 256 characters count."""
    value = (
        headers.get(b"x-session-id")
        or headers.get(b"x-session-token")
        or headers.get(b"x-conversation-id")
        or b""
    )
    return value[:256].decode("latin-1") if value else ""
