import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.settings import ServerSettings, UpstreamSettings
from ccr.types import Outcome
from router.refusals import Refusal
from router.routes.body import Limits, answer, answer_json, read_body


def a_receive(*messages):
    """Hands over the messages one by one; more are a mistake of the reader."""
    left = list(messages)

    async def receive():
        return left.pop(0)

    receive.left = left
    return receive


def in_parts(*parts):
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": i < last} for i, part in enumerate(parts)]


async def refusal_of(headers, *messages, most=10):
    receive = a_receive(*messages)
    with pytest.raises(Refusal) as refused:
        await read_body(headers, receive, most)
    return refused.value, len(receive.left)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=5))
async def test_a_body_comes_together_from_any_parts(parts):
    assert await read_body({}, a_receive(*in_parts(*parts)), 25) == b"".join(parts)


async def test_a_message_without_a_body_is_an_empty_part():
    assert await read_body({}, a_receive({"type": "http.request"}), 10) == b""


@pytest.mark.parametrize("parts", [[b"x" * 10], [b"x" * 5, b"x" * 5], [b"x" * 10, b""]])
async def test_a_body_of_just_the_allowed_size_passes(parts):
    assert len(await read_body({}, a_receive(*in_parts(*parts)), 10)) == 10


async def test_a_body_that_says_it_is_too_large_is_refused_unread():
    refusal, unread = await refusal_of({b"content-length": b"11"}, *in_parts(b"x" * 11))

    assert (refusal.status, refusal.code, unread) == (413, "body_too_large", 1)


async def test_a_body_that_turns_out_too_large_is_refused_at_once():
    refusal, unread = await refusal_of({}, *in_parts(b"x" * 6, b"x" * 5, b"x", b"x"))

    assert (refusal.status, unread) == (413, 2)


async def test_a_body_that_lies_about_its_size_is_refused():
    refusal, _ = await refusal_of({b"content-length": b"1"}, *in_parts(b"x" * 11))

    assert refusal.status == 413


@pytest.mark.parametrize("before", [[], [{"type": "http.request", "body": b"x", "more_body": True}]])
async def test_a_client_that_leaves_is_nobodys_failure(before):
    refusal, _ = await refusal_of({}, *before, {"type": "http.disconnect"})

    assert refusal.outcome is Outcome.CLIENT_CLOSED


class Sent(list):
    async def __call__(self, message):
        self.append(message)

    @property
    def headers(self):
        return dict(self[0]["headers"])


@pytest.mark.parametrize(
    ("status", "closes"), [(400, False), (408, True), (413, True), (429, False), (431, True)]
)
async def test_after_a_refusal_for_size_or_time_the_connection_closes(status, closes):
    """What is left of the body would be taken for the next request."""
    sent = Sent()

    await answer(sent, Refusal(status, "why", "what to do"), "r1")

    assert (sent.headers.get(b"connection") == b"close") is closes
    assert sent[0]["status"] == status
    assert sent.headers[b"x-request-id"] == b"r1"
    assert sent.headers[b"content-length"] == b"%d" % len(sent[1]["body"])


async def test_a_refusal_after_a_decision_tells_of_it_and_gives_the_id_once():
    sent = Sent()

    more = [(b"x-request-id", b"r1"), (b"x-ccr-node", b"a")]
    await answer(sent, Refusal(504, "upstream_timeout", ""), "r1", anthropic=True, more=more)

    assert [value for name, value in sent[0]["headers"] if name == b"x-request-id"] == [b"r1"]
    assert sent.headers[b"x-ccr-node"] == b"a"
    assert json.loads(sent[1]["body"])["error"]["type"] == "timeout_error"


async def test_a_small_answer_says_what_it_is():
    sent = Sent()

    await answer_json(sent, b"{}", 201)

    assert sent[0]["status"] == 201
    assert sent.headers == {b"content-type": b"application/json", b"content-length": b"2"}


def test_limits_are_those_of_the_settings():
    limits = Limits.of(ServerSettings(max_headers=7, body_timeout_s=2.0), UpstreamSettings(retries=3))

    assert (limits.max_headers, limits.body_timeout_s, limits.retries) == (7, 2.0, 3)
