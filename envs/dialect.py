"""What the APIs of a node have in common: what is asked, what is answered, how it is read and written.

Pure: a decoded body in, bytes of an answer out. Every answer is as long as was asked for, a word for each token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from ccr.errors import CCRError

DEFAULT_OUTPUT_TOKENS = 64
DEFAULT_DIMENSIONS = 64
# The usual rule of thumb for English text.
_BYTES_PER_TOKEN = 4
_WORDS = ("the", "node", "counts", "its", "tokens", "and", "says", "words", "that", "mean", "nothing")

Body = Mapping[str, Any]
Json = dict[str, Any]


class BadAskError(CCRError):
    """A request cannot be understood; ``param`` names the field, ``status`` is 400 or 413."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        self.param = param
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants, whichever API it came through.

    Args:
        model: id as the client gave it.
        prompt_tokens: about one for four bytes of text.
        output_tokens: to generate; 0 for embeddings.
        limited: whether the client set the limit, so that reaching it is the reason to stop.
        stream: whether the answer is streamed.
        include_usage: whether a stream ends with usage.
        priority: lower goes first.
        prompt: its text, one after the other; empty for embeddings.
        inputs: token counts of the texts to embed.
        dimensions: of an embedding.
        base64: whether an embedding is packed.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    limited: bool = False
    stream: bool = False
    include_usage: bool = False
    priority: int = 0
    prompt: bytes = b""
    inputs: tuple[int, ...] = ()
    dimensions: int = DEFAULT_DIMENSIONS
    base64: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An ask about to be answered: ``request_id`` becomes part of the ids, ``created`` is in seconds since 1970."""

    ask: Ask
    request_id: str
    created: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed answer as bytes: one opening, one event for each token, one closing."""

    opening: bytes
    token: Callable[[int], bytes]
    closing: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


class Dialect(Protocol):
    """One API."""

    def parse(self, body: Body) -> Ask:
        """What the body asks for; raises :class:`BadAskError`."""

    def answer(self, reply: Reply) -> bytes:
        """The whole answer."""

    def stream(self, reply: Reply) -> Stream:
        """The answer in pieces."""

    def error(self, refusal: Refusal) -> bytes:
        """The body of an error."""


# -- reading ---------------------------------------------------------------------------------------------------------


def decode(raw: bytes) -> Body:
    """A request body; raises :class:`BadAskError` when it is not a JSON object."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAskError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadAskError(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def text_of(*values: Any) -> bytes:
    """The text in messages and content parts, in their order; of token numbers, their digits."""
    return b"".join(map(_text_in, values))


def _text_in(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return b"".join(map(_text_in, value))
    if isinstance(value, dict):
        return b"".join(_text_in(value.get(key)) for key in ("text", "content", "arguments", "output"))
    return b"%d " % value if isinstance(value, int) else b""


def tokens_in(text: bytes) -> int:
    """About how many tokens a text has, at least 1."""
    return max(1, -(-len(text) // _BYTES_PER_TOKEN))


def texts(value: Any, field: str, most: int) -> tuple[int, ...]:
    """Token counts of a text, a list of texts, a list of tokens, or a list of lists of tokens."""
    if isinstance(value, str):
        return (tokens_in(value.encode()),)
    if all(isinstance(item, int) for item in value):
        return (len(value),)
    if len(value) > most or not all(item and isinstance(item, str | list) for item in value):
        raise BadAskError(
            f"{field!r} must be one text or its tokens, or a list of at most {most} of them", field
        )
    return tuple(tokens_in(item.encode()) if isinstance(item, str) else len(item) for item in value)


def filled(body: Body, field: str, kinds: tuple[type, ...]) -> Any:
    """The field's value, not empty and of one of ``kinds``."""
    value = body.get(field)
    if not isinstance(value, kinds) or not value:
        names = " or ".join("a string" if kind is str else "a list" for kind in kinds)
        raise BadAskError(f"{field!r} must be {names}, not empty", field)
    return value


def model_of(body: Body) -> str:
    """The model's id."""
    model: str = filled(body, "model", (str,))
    return model


def at_least_1(body: Body, field: str) -> int | None:
    """The field's value; ``None`` when it is not there."""
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadAskError(f"{field!r} must be an integer of at least 1, not {value!r}", field)
    return value


def one_answer(body: Body) -> None:
    """Refuse ``n`` above 1."""
    if body.get("n") not in (None, 1):
        raise BadAskError("an emulated node gives one answer: leave 'n' out or at 1", "n")


def generation(body: Body, prompt: bytes, limit: int | None, prompt_tokens: int = 0) -> Ask:
    """The ask of a body that wants text; ``prompt_tokens`` where they are known better than by the text's length."""
    options = body.get("stream_options")
    priority = body.get("priority")
    return Ask(
        model=model_of(body),
        prompt_tokens=prompt_tokens or tokens_in(prompt),
        output_tokens=DEFAULT_OUTPUT_TOKENS if limit is None else limit,
        limited=limit is not None,
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        priority=priority if isinstance(priority, int) else 0,
        prompt=prompt,
    )


# -- writing ---------------------------------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """JSON."""
    return _ENCODER.encode(value)


def word(index: int) -> str:
    """The text of one token."""
    return _WORDS[0] if index == 0 else " " + _WORDS[index % len(_WORDS)]


@lru_cache(maxsize=1024)
def text(tokens: int) -> str:
    """The text of that many tokens."""
    return "".join(map(word, range(tokens)))


_FIRST_WORD = encode(word(0))
_NEXT_WORDS = [encode(" " + each) for each in _WORDS]


def word_json(index: int) -> bytes:
    """The text of one token as a JSON string."""
    return _FIRST_WORD if index == 0 else _NEXT_WORDS[index % len(_NEXT_WORDS)]


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(data) + b"\n\n"


def named_event(data: Json) -> bytes:
    """One server-sent event that carries its type as its name."""
    name: str = data["type"]
    return b"event: " + name.encode() + b"\n" + event(data)


def around(rendered: bytes, mark: str = "@") -> tuple[bytes, bytes]:
    """What stands before and after the JSON string that is exactly ``mark``."""
    before, _, after = rendered.rpartition(encode(mark))
    return before, after
