"""What a node sees of a request, and what is read of its answer; whole requests are journeys."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.settings import KeySettings, Settings
from ccr.types import NodeSpec
from router.app import Router
from router.auth import new_key
from router.batching import BatchGate
from router.call import CREDENTIALS, HOP_BY_HOP
from router.clock import Clock
from router.routes.body import Limits
from router.routes.proxied import Proxied

KEY, HASH = new_key()
BODY = b'{"model": "llama"}'


class Answer:
    """A node's answer that came in these pieces."""

    def __init__(self, *pieces, status=200, headers=(), whole=False):
        self.pieces = pieces
        self.status = status
        self.headers = list(headers)
        self.content_length = sum(map(len, pieces)) if whole else None

    async def chunks(self):
        for piece in self.pieces:
            yield piece

    async def read(self):
        return b"".join(self.pieces)

    def close(self):
        pass


class Node:
    """An upstream without a wire, that gives one answer and remembers what it was sent."""

    def __init__(self, answer):
        self.answer = answer

    async def send(self, node, method, target, headers, body):
        self.method, self.target, self.headers, self.body = method, target, headers, body
        return self.answer


class Exchange:
    """One request through the handler: ``node`` saw it, ``sent`` went to the client."""

    def __init__(self, answer=None, *, keys=(), node_keys=None):
        settings = Settings(keys=keys)
        self.router = Router(settings, "token", clock=lambda: 0.0, seed=0)
        self.router.fleet.replace(
            (NodeSpec("a", "http://a:1", models=frozenset({"llama"}), loads_on_demand=True),), 0.0
        )
        self.node = Node(answer or Answer(b"{}", whole=True))
        gate = BatchGate(settings.batching, self.router.policies, self.router.stats, Clock(lambda: 0.0))
        limits = Limits.of(settings.server, settings.upstream)
        self.handler = Proxied(
            self.router.dispatch, self.node, self.router.watchdog, gate, limits, node_keys or {}
        )
        self.sent = []

    async def run(self, *headers, path="/v1/chat/completions", query=b""):
        scope = {
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(b"host", b"router"), *headers],
        }
        await self.handler(scope, self._receive, self._send)
        return self

    async def _receive(self):
        return {"type": "http.request", "body": BODY}

    async def _send(self, message):
        self.sent.append(message)

    @property
    def reached(self):
        """Headers at the node, but for the request's id."""
        return [item for item in self.node.headers if item[0] != b"x-request-id"]

    @property
    def record(self):
        (record,) = self.router.dispatch.decisions(1)
        return record


NAMES = st.sampled_from(sorted(HOP_BY_HOP - {b"host", b"content-length"})) | st.from_regex(
    rb"x-[a-z]{1,3}", fullmatch=True
)
HEADERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=4).filter(lambda value: b"," not in value)), max_size=8
)


@given(HEADERS)
async def test_headers_reach_the_node_in_order_but_for_those_of_the_connection(headers):
    headers = [item for item in headers if item[0] != b"connection"]

    exchange = await Exchange().run(*headers)

    assert exchange.reached == [item for item in headers if item[0] not in HOP_BY_HOP]


async def test_headers_that_the_client_names_as_its_connections_stay_here():
    headers = [(b"connection", b"close, X-Secret-Hop"), (b"x-secret-hop", b"1"), (b"x-other", b"2")]

    exchange = await Exchange().run(*headers)

    assert exchange.reached == [(b"x-other", b"2")]


async def test_where_the_router_checks_keys_no_credential_reaches_a_node():
    keys = (KeySettings(name="t", hash=HASH, models=("*",)),)
    credentials = [(name, b"Bearer " + KEY.encode()) for name in sorted(CREDENTIALS)]

    exchange = await Exchange(keys=keys).run(*credentials, (b"x-other", b"2"))

    assert exchange.sent[0]["status"] == 200
    assert exchange.reached == [(b"x-other", b"2")]


async def test_where_it_does_not_the_nodes_check_them():
    exchange = await Exchange().run((b"authorization", b"Bearer theirs"))

    assert exchange.reached == [(b"authorization", b"Bearer theirs")]


async def test_a_node_with_a_key_of_its_own_gets_that_one_alone():
    exchange = await Exchange(node_keys={"a": b"node-key"}).run(
        (b"authorization", b"Bearer theirs"), (b"cookie", b"c")
    )

    assert exchange.reached == [(b"authorization", b"Bearer node-key")]


@pytest.mark.parametrize(
    ("given", "is_kept"), [(b"abc-1:2.3_4", True), (b"a b", False), (b"", False), (b"x" * 129, False)]
)
async def test_a_sane_request_id_goes_through_and_another_is_replaced(given, is_kept):
    exchange = await Exchange().run((b"x-request-id", given))

    (at_node,) = [value for name, value in exchange.node.headers if name == b"x-request-id"]
    (at_client,) = [value for name, value in exchange.sent[0]["headers"] if name == b"x-request-id"]
    assert at_node == at_client
    assert (at_node == given) is is_kept


async def test_the_target_is_passed_on_as_the_client_encoded_it():
    exchange = await Exchange().run(path="/v1/chat%2Fcompletions", query=b"a=%C3%A9&b=+")

    assert exchange.node.target == "/v1/chat%2Fcompletions?a=%C3%A9&b=+"


async def test_the_answer_keeps_its_headers_but_those_of_the_connection():
    headers = [
        (b"x-a", b"1"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"x-request-id", b"theirs"),
        (b"set-cookie", b"a"), (b"set-cookie", b"b"),
    ]  # fmt: skip

    exchange = await Exchange(Answer(b"x", headers=headers)).run()

    ours = {b"x-request-id", b"x-ccr-node", b"x-ccr-policy", b"x-ccr-model"}
    got = exchange.sent[0]["headers"]
    assert [item for item in got if item[0] not in ours] == [
        (b"x-a", b"1"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]
    assert {name for name, _ in got} >= ours
    assert (b"x-request-id", b"theirs") not in got


@given(st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=5))
async def test_pieces_are_handed_on_one_by_one(pieces):
    exchange = await Exchange(Answer(*pieces)).run()

    bodies = [message for message in exchange.sent if message["type"] == "http.response.body"]
    assert [message["body"] for message in bodies] == [*pieces, b""]
    assert [message.get("more_body", False) for message in bodies] == [True] * len(pieces) + [False]


USAGE = b'data: {"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\n'


@given(st.integers(0, len(USAGE)), st.integers(0, 9000))
async def test_usage_is_found_at_the_end_however_the_stream_was_cut(cut, before):
    pieces = (b"x" * before, USAGE[:cut], USAGE[cut:] + b"data: [DONE]\n\n")

    exchange = await Exchange(Answer(*[piece for piece in pieces if piece])).run()

    assert (exchange.record.prompt_tokens, exchange.record.output_tokens) == (11, 7)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (b'{"usage":{"input_tokens": 3, "output_tokens": 4}}', (3, 4)),
        (b'{"usage":{"completion_tokens":1}} {"usage":{"prompt_tokens":5,"completion_tokens":6}}', (5, 6)),
        (
            b'{"prompt_tokens":5,"completion_tokens":6} {"prompt_tokens":null,"completion_tokens":null}',
            (5, 6),
        ),
        (json.dumps({"text": '"completion_tokens": 99'}).encode(), (len(BODY) // 4, None)),
        (b"{}", (len(BODY) // 4, None)),
    ],
    ids=[
        "anthropic's names",
        "the last one counts",
        "no number does not count",
        "not what the model wrote",
        "none",
    ],
)
async def test_tokens_are_those_the_engine_reports(answer, tokens):
    exchange = await Exchange(Answer(answer, whole=True)).run()

    assert (exchange.record.prompt_tokens, exchange.record.output_tokens) == tokens


async def test_what_is_remembered_of_a_request_has_none_of_its_headers():
    """They hold credentials, and as much memory as the rest of it."""
    exchange = await Exchange().run((b"x-team", b"red"))

    (attempt,) = exchange.router.dispatch.recent
    assert dict(attempt.request.headers) == {}
