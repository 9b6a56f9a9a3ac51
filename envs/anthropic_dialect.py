"""Anthropic's API: messages."""

from envs.dialect import (
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
    filled,
    generation,
    named_event,
    text,
    text_of,
    word_json,
)

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip
# `max_tokens` is required in this API, so it is always the reason to stop.
_STOP = {"stop_reason": "max_tokens", "stop_sequence": None}


class Messages:
    """``/v1/messages``."""

    def parse(self, body: Body) -> Ask:
        """Messages and ``system``; ``max_tokens`` is required."""
        messages = filled(body, "messages", (list,))
        limit = at_least_1(body, "max_tokens")
        if limit is None:
            raise BadAskError("max_tokens: Field required", "max_tokens")
        return generation(body, text_of(body.get("system"), messages), limit)

    def answer(self, reply: Reply) -> bytes:
        """The whole message."""
        block = {"type": "text", "text": text(reply.ask.output_tokens)}
        return encode({**_message(reply, reply.ask.output_tokens), "content": [block], **_STOP})

    def stream(self, reply: Reply) -> Stream:
        """The events of one message with one text block."""
        opening: list[Json] = [
            {"type": "message_start", "message": _message(reply, 1)},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
        ]
        usage = {"output_tokens": reply.ask.output_tokens}
        closing: list[Json] = [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": _STOP, "usage": usage},
            {"type": "message_stop"},
        ]
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "@"}}
        before, after = around(named_event(delta))
        return Stream(
            b"".join(map(named_event, opening)),
            lambda index: before + word_json(index) + after,
            b"".join(map(named_event, closing)),
        )

    def error(self, refusal: Refusal) -> bytes:
        """``{"type": "error", "error": {type, message}}``."""
        kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        return encode({"type": "error", "error": {"type": kind, "message": refusal.message}})


def _message(reply: Reply, output_tokens: int) -> Json:
    return {
        "id": f"msg_{reply.request_id}",
        "type": "message",
        "role": "assistant",
        "model": reply.ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": reply.ask.prompt_tokens, "output_tokens": output_tokens},
    }
