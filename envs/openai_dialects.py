"""OpenAI's APIs: chat completions, completions, embeddings and responses."""

from base64 import b64encode
from collections.abc import Callable
from random import Random
from struct import pack
from zlib import crc32

from envs.dialect import (
    DEFAULT_DIMENSIONS,
    Ask,
    BadAskError,
    Body,
    Json,
    Refusal,
    Reply,
    Stream,
    around,
    at_least_1,
    encode,
    event,
    filled,
    generation,
    model_of,
    named_event,
    one_answer,
    text,
    text_of,
    texts,
    word_json,
)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_DONE = b"data: [DONE]\n\n"


def _error(refusal: Refusal) -> bytes:
    """``{"error": {message, type, param, code}}``."""
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    fields = {
        "message": refusal.message,
        "type": kind,
        "param": refusal.param,
        "code": refusal.code,
    }
    return encode({"error": fields})


def _finish_reason(ask: Ask) -> str:
    return "length" if ask.limited else "stop"


def _usage(ask: Ask) -> dict[str, int]:
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": ask.output_tokens,
        "total_tokens": ask.prompt_tokens + ask.output_tokens,
    }


def _head(reply: Reply, prefix: str, kind: str) -> Json:
    return {
        "id": f"{prefix}-{reply.request_id}",
        "object": kind,
        "created": reply.created,
        "model": reply.ask.model,
    }


def _chunks(
    ask: Ask, head: Json, first: Json | None, piece: Callable[[str | None, str | None], Json]
) -> Stream:
    """Chunks with one choice each, the reason to stop, usage if wanted, ``[DONE]``."""
    if ask.include_usage:
        head = {**head, "usage": None}
    opening = event({**head, "choices": [first]}) if first else b""
    before, after = around(event({**head, "choices": [piece("@", None)]}))
    closing = event({**head, "choices": [piece(None, _finish_reason(ask))]})
    if ask.include_usage:
        closing += event({**head, "choices": [], "usage": _usage(ask)})
    return Stream(opening, lambda index: before + word_json(index) + after, closing + _DONE)


class Chat:
    """``/v1/chat/completions``."""

    error = staticmethod(_error)

    def parse(self, body: Body) -> Ask:
        """Messages; ``max_completion_tokens`` or the older ``max_tokens``."""
        one_answer(body)
        messages = filled(body, "messages", (list,))
        limit = at_least_1(body, "max_completion_tokens") or at_least_1(body, "max_tokens")
        return generation(body, text_of(messages), limit)

    def answer(self, reply: Reply) -> bytes:
        """The whole answer, with usage."""
        ask = reply.ask
        message = {"role": "assistant", "content": text(ask.output_tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(ask)}
        head = _head(reply, "chatcmpl", "chat.completion")
        return encode({**head, "choices": [choice], "usage": _usage(ask)})

    def stream(self, reply: Reply) -> Stream:
        """The role, then the content word by word."""
        head = _head(reply, "chatcmpl", "chat.completion.chunk")
        first = _delta({"role": "assistant", "content": ""}, None)
        return _chunks(
            reply.ask,
            head,
            first,
            lambda content, finish: _delta({} if content is None else {"content": content}, finish),
        )


def _delta(delta: Json, finish: str | None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


class Completions:
    """``/v1/completions``."""

    error = staticmethod(_error)

    def parse(self, body: Body) -> Ask:
        """One prompt: a string, a list with one string, or a list of token numbers."""
        one_answer(body)
        prompt = filled(body, "prompt", (str, list))
        (tokens,) = texts(prompt, "prompt", most=1)
        return generation(body, text_of(prompt), at_least_1(body, "max_tokens"), tokens)

    def answer(self, reply: Reply) -> bytes:
        """The whole answer, with usage."""
        ask = reply.ask
        choice = _text_choice(text(ask.output_tokens), _finish_reason(ask))
        head = _head(reply, "cmpl", "text_completion")
        return encode({**head, "choices": [choice], "usage": _usage(ask)})

    def stream(self, reply: Reply) -> Stream:
        """The text word by word."""
        return _chunks(reply.ask, _head(reply, "cmpl", "text_completion"), None, _text_choice)


def _text_choice(content: str | None, finish: str | None) -> Json:
    return {"index": 0, "text": content or "", "logprobs": None, "finish_reason": finish}


class Embeddings:
    """``/v1/embeddings``."""

    error = staticmethod(_error)

    def parse(self, body: Body) -> Ask:
        """One or more texts; they are prefilled together."""
        inputs = texts(filled(body, "input", (str, list)), "input", most=2048)
        return Ask(
            model=model_of(body),
            prompt_tokens=sum(inputs),
            output_tokens=0,
            inputs=inputs,
            dimensions=at_least_1(body, "dimensions") or DEFAULT_DIMENSIONS,
            base64=body.get("encoding_format") == "base64",
        )

    def answer(self, reply: Reply) -> bytes:
        """One vector for each text: the same for the same model, place and length."""
        ask = reply.ask
        data = [
            {"object": "embedding", "index": i, "embedding": _vector(ask, f"{ask.model}/{i}/{tokens}")}
            for i, tokens in enumerate(ask.inputs)
        ]
        usage = {"prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens}
        return encode({"object": "list", "data": data, "model": ask.model, "usage": usage})

    def stream(self, reply: Reply) -> Stream:
        """Embeddings have no stream, and :meth:`parse` never asks for one."""
        raise BadAskError(f"embeddings of {reply.ask.model!r} are not streamed", "stream")


def _vector(ask: Ask, seed: str) -> list[float] | str:
    draw = Random(crc32(seed.encode()))
    values = [draw.uniform(-1.0, 1.0) for _ in range(ask.dimensions)]
    return b64encode(pack(f"<{len(values)}f", *values)).decode() if ask.base64 else values


class Responses:
    """``/v1/responses``."""

    error = staticmethod(_error)

    def parse(self, body: Body) -> Ask:
        """``input`` as text or items, with ``instructions``."""
        source = filled(body, "input", (str, list))
        prompt = text_of(body.get("instructions"), source)
        return generation(body, prompt, at_least_1(body, "max_output_tokens"))

    def answer(self, reply: Reply) -> bytes:
        """The whole response object."""
        return encode(_response(reply, done=True))

    def stream(self, reply: Reply) -> Stream:
        """The typed events of one message with one text part, numbered from 0."""
        opening, closing = _response_opening(reply), _response_closing(reply)
        first = len(opening)
        before, middle, after = _text_delta(reply)

        def token(index: int) -> bytes:
            return before + word_json(index) + middle + b"%d" % (first + index) + after

        return Stream(_numbered(opening, 0), token, _numbered(closing, first + reply.ask.output_tokens))


def _response_opening(reply: Reply) -> list[Json]:
    begun = _response(reply, done=False)
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": _item(reply, None)},
        {"type": "response.content_part.added", **_where(reply), "part": _part("")},
    ]


def _response_closing(reply: Reply) -> list[Json]:
    full, ended = text(reply.ask.output_tokens), _response(reply, done=True)
    return [
        {"type": "response.output_text.done", **_where(reply), "text": full, "logprobs": []},
        {"type": "response.content_part.done", **_where(reply), "part": _part(full)},
        {"type": "response.output_item.done", "output_index": 0, "item": _item(reply, full)},
        {"type": f"response.{ended['status']}", "response": ended},
    ]


def _text_delta(reply: Reply) -> tuple[bytes, bytes, bytes]:
    """What stands before the word, between word and number, and after the number."""
    delta = {"type": "response.output_text.delta", **_where(reply), "logprobs": [], "delta": "@"}
    before, rest = around(named_event({**delta, "sequence_number": "#"}))
    middle, after = around(rest, "#")
    return before, middle, after


def _numbered(events: list[Json], first: int) -> bytes:
    return b"".join(named_event({**each, "sequence_number": first + i}) for i, each in enumerate(events))


def _where(reply: Reply) -> Json:
    return {"item_id": f"msg_{reply.request_id}", "output_index": 0, "content_index": 0}


def _response(reply: Reply, *, done: bool) -> Json:
    ask, status = reply.ask, _status(reply, done=done)
    return {
        "id": f"resp_{reply.request_id}",
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": ask.model,
        "output": [_item(reply, text(ask.output_tokens))] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": _response_usage(ask) if done else None,
    }


def _status(reply: Reply, *, done: bool) -> str:
    if not done:
        return "in_progress"
    return "incomplete" if reply.ask.limited else "completed"


def _response_usage(ask: Ask) -> Json:
    return {
        "input_tokens": ask.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": ask.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": ask.prompt_tokens + ask.output_tokens,
    }


def _item(reply: Reply, content: str | None) -> Json:
    return {
        "id": f"msg_{reply.request_id}",
        "type": "message",
        "role": "assistant",
        "status": _status(reply, done=content is not None),
        "content": [] if content is None else [_part(content)],
    }


def _part(content: str) -> Json:
    return {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
