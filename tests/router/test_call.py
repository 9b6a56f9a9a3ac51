import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import (
    ROUTING,
    HeaderView,
    header_map,
    parse_body,
    positive_ms,
    priority_of,
    session_of,
    tags_of,
    with_model,
    with_priority,
)
from router.refusals import Refusal

FIELDS = ("model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens")
NAMES = st.sampled_from(["model", 'a"model', "model:", "\\u006dodel", "Model", "x"]) | st.text(max_size=5)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"model"', '{"model": "a"}', "\\", "]}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OTHERS = st.lists(st.tuples(NAMES.filter(lambda name: name not in FIELDS), VALUES), max_size=4)
SPACE = st.text(" \t\n\r", max_size=2)
SPELLINGS = st.lists(st.sampled_from(["x", "X", ""]), min_size=5, max_size=5).map(
    lambda forms: '"' + "".join(map(_spelled, "model", forms)) + '"'
)


def _spelled(letter, form):
    return letter if not form else f"\\u{ord(letter):04{form}}"


@st.composite
def documents(draw, models=1):
    """The text of an object around ``models`` outermost model fields: pieces, and the values between them."""
    members = [[json.dumps(name), json.dumps(value)] for name, value in draw(OTHERS)]
    if draw(st.booleans()):
        members = [[json.dumps(name), json.dumps(value, ensure_ascii=False)] for name, value in draw(OTHERS)]
    values = [draw(st.text(max_size=6)) for _ in range(models)]
    for value in values:
        field = [draw(SPELLINGS), "\0" + json.dumps(value, ensure_ascii=draw(st.booleans())) + "\0"]
        members.insert(draw(st.integers(0, len(members))), field)
    space = draw(SPACE)
    text = space + "{" + ",".join(space + name + space + ":" + space + value for name, value in members)
    return (text + space + "}").split("\0"), values


def bodies(pieces):
    return "".join(pieces).encode()


@given(documents(), st.text(min_size=1, max_size=6))
def test_with_model_changes_the_value_of_the_model_and_no_other_byte(document, model):
    pieces, (asked_for,) = document
    before, after = pieces[0].encode(), pieces[2].encode()

    changed = with_model(bodies(pieces), asked_for, model)

    assert changed.startswith(before)
    assert changed.endswith(after)
    assert json.loads(changed[len(before) : len(changed) - len(after)]) == model


@given(documents())
def test_the_model_of_a_body_is_read_however_its_name_is_spelled(document):
    pieces, (model,) = document

    assert parse_body(bodies(pieces)).model == model


@given(documents(models=2))
def test_two_models_are_refused_however_their_names_are_spelled(document):
    """A node that takes the first and a router that takes the last would disagree on what was asked for."""
    with pytest.raises(Refusal) as refused:
        parse_body(bodies(document[0]))

    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "repeated_field", "model")


@given(documents(models=0), st.text(min_size=1, max_size=6))
def test_a_body_without_a_model_gets_one_and_keeps_every_byte(document, model):
    """The client named it in a header."""
    body = bodies(document[0])

    changed = with_model(body, None, model)

    assert json.loads(changed) == {**json.loads(body), "model": model}
    start = body.index(b"{") + 1
    assert changed[:start] == body[:start]
    assert changed.endswith(body[start:])


def test_a_model_of_null_is_replaced_where_it_stands():
    assert (
        with_model(b'{"a": {"model": 1}, "model": null}', None, "x") == b'{"a": {"model": 1}, "model": "x"}'
    )


@pytest.mark.parametrize("body", [b'{"model":"a"}', b' {\n "model" : "a", "n": 1e400 }', b"{ }"])
def test_a_priority_is_one_more_field_and_no_other_byte_changes(body):
    changed = with_priority(body, 17_000_000_000)

    start = body.index(b"{") + 1
    assert json.loads(changed) == {"priority": 17_000_000_000, **json.loads(body)}
    assert (changed[:start], changed.endswith(body[start:])) == (body[:start], True)


def test_whether_a_client_gives_a_priority_is_seen_however_it_is_spelled():
    given = [
        bool(parse_body(body).priority) for body in (b'{"priority":null}', b'{"pr\\u0069ority":[1]}', b"{}")
    ]

    assert given == [True, True, False]


@pytest.mark.parametrize(
    "kept",
    [b'"seed":184467440737095516160', b'"t":1.10', b'"t":1e400', b'"s":1,"s":2', b'"text":"\xff"'],
    ids=["big integer", "trailing zero", "beyond float", "a field twice", "broken UTF-8"],
)
def test_what_a_parser_would_lose_is_passed_on(kept):
    body = b'{"x":{"model":"a"},' + kept + b',"model":"a"}'

    assert with_model(body, "a", "b") == b'{"x":{"model":"a"},' + kept + b',"model":"b"}'


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'"model"', b"{", b'{"model":1}', b'{"stream":"yes"}', b'{"max_tokens":1.5}', b"\xff\xfe{}"],
)
def test_a_body_that_is_not_what_the_api_takes_is_refused(body):
    with pytest.raises(Refusal) as refused:
        parse_body(body)

    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_a_body_nested_without_end_is_refused():
    with pytest.raises(Refusal) as refused:
        parse_body(b'{"model":"a","x":' + b"[" * 100_000)

    assert refused.value.code == "invalid_json"


def test_a_refused_body_is_not_repeated_in_the_message():
    with pytest.raises(Refusal) as refused:
        parse_body(b'{"model": {"my secret prompt": 1}}')

    assert "secret" not in refused.value.message


HOST = (b"host", b"router:8090")


def headers_of(*headers, most=64, most_bytes=1000):
    return header_map(list(headers), most, most_bytes)


def refusal_of(*headers, **limits):
    with pytest.raises(Refusal) as refused:
        headers_of(*headers, **limits)
    return refused.value.status, refused.value.code


def test_good_headers_come_by_name():
    assert headers_of(HOST, (b"a", b"1"), (b"a", b"2")) == {b"host": b"router:8090", b"a": b"2"}


def test_as_many_headers_as_allowed_pass_and_one_more_is_refused():
    headers = [HOST, *[(b"h%d" % i, b"") for i in range(9)]]

    assert len(headers_of(*headers, most=10)) == 10
    assert refusal_of(*headers, (b"more", b""), most=10) == (431, "too_many_headers")


def test_headers_as_large_as_allowed_pass_and_one_byte_more_is_refused():
    size = sum(map(len, HOST)) + 1

    assert headers_of(HOST, (b"a", b"x" * 99), most_bytes=size + 99)
    assert refusal_of(HOST, (b"a", b"x" * 100), most_bytes=size + 99) == (431, "headers_too_large")


@pytest.mark.parametrize("name", sorted(ROUTING - {b"host"}))
def test_a_header_that_decides_the_route_may_not_be_given_twice(name):
    assert refusal_of(HOST, (name, b"a"), (name, b"a")) == (400, "repeated_header")


@pytest.mark.parametrize(
    "host", [b"a", b"a:1", b"a.b-c_d.example:65535", b"127.0.0.1:80", b"[::1]", b"[::1]:80"]
)
def test_a_sane_host_passes(host):
    assert headers_of((b"host", host))


@pytest.mark.parametrize(
    "host",
    [b"", b"a b", b"a/b", b"a@b", b"a:", b"a:123456", b"a:80:80", b"::1", b"[zz]", b"a\xc3\xa9", b"a?b#"],
)
def test_a_strange_host_is_refused(host):
    assert refusal_of((b"host", host)) == (400, "bad_host")


def test_a_missing_or_repeated_host_is_refused():
    assert refusal_of() == (400, "bad_host")
    assert refusal_of(HOST, HOST) == (400, "repeated_header")


def test_an_encoded_body_is_refused():
    assert headers_of(HOST, (b"content-encoding", b"identity"))
    assert refusal_of(HOST, (b"content-encoding", b"gzip")) == (415, "encoded_body")


def test_a_policy_sees_headers_in_any_case_and_no_credentials():
    view = HeaderView(
        {b"x-team": b"caf\xe9", b"authorization": b"Bearer s", b"cookie": b"s", b"x-api-key": b"s"}
    )

    assert view["X-Team"] == "café"
    assert view.get("Authorization") is None
    assert view.get("naïve-☃") is None
    assert (list(view), len(view)) == (["x-team"], 1)


@pytest.mark.parametrize(
    ("value", "priority"),
    [(b"low", -1), (b"normal", 0), (b"high", 1), (b"7", 7), (b"-100", -100), (b"100", 100), (None, 0)],
)
def test_a_priority_is_a_word_or_a_whole_number(value, priority):
    assert priority_of({} if value is None else {b"x-ccr-priority": value}) == priority


@given(
    st.integers().filter(lambda number: abs(number) > 100).map(lambda n: b"%d" % n) | st.binary(max_size=4)
)
def test_a_priority_is_in_range_or_refused(value):
    try:
        found = -100 <= priority_of({b"x-ccr-priority": value}) <= 100
    except Refusal as refused:
        found = refused.code

    assert found in {True, "bad_header"}


@pytest.mark.parametrize(
    ("value", "tags"),
    [(b"", set()), (b"a", {"a"}), (b" a , b,a", {"a", "b"}), (b",, ,", set()), (b"caf\xe9", {"café"})],
)
def test_tags_are_words_between_commas(value, tags):
    assert tags_of({b"x-ccr-node-tags": value}) == tags


def test_the_session_comes_from_the_header_names_in_use():
    headers = {b"x-conversation-id": b"c", b"x-session-token": b"t", b"x-session-id": b"s"}

    assert session_of(headers) == "s"
    assert session_of({**headers, b"x-session-id": b""}) == "t"
    assert session_of({b"x-conversation-id": b"c"}) == "c"
    assert session_of({}) == ""


def test_a_session_is_cut_at_256_characters():
    assert session_of({b"x-session-id": b"x" * 1000}) == "x" * 256


@given(st.floats(min_value=1e-3, max_value=1e8))
def test_milliseconds_on_the_wire_are_seconds_inside(number):
    assert positive_ms({b"b": repr(number).encode()}, b"a", b"b") == pytest.approx(number / 1e3)


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"nan", b"inf", b"1e9", b"fast", b"1,5", b"9" * 5000])
def test_milliseconds_that_are_no_positive_number_are_refused(value):
    with pytest.raises(Refusal) as refused:
        positive_ms({b"x-slo-ttft-ms": value}, b"x-slo-ttft-ms")

    assert "x-slo-ttft-ms" in refused.value.message


def test_the_first_header_given_counts():
    assert positive_ms({b"new": b"1000", b"old": b"2000"}, b"new", b"old") == 1.0
    assert positive_ms({}, b"new", b"old") == 0.0
