"""The text format, read from bytes nobody vouches for."""

import contextlib
import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ccr.errors import TelemetryError
from router.prometheus_text import MAX_BYTES, MAX_LINES, MAX_SAMPLES, MAX_WANTED_BYTES, parse

WANTED = frozenset({"vllm:running", "up"})


def refusal(text: bytes) -> str:
    with pytest.raises(TelemetryError) as refused:
        parse(text, WANTED)
    return refused.value.reason


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        pytest.param(b"up 1", ({}, 1.0), id="bare"),
        pytest.param(b"up\t1", ({}, 1.0), id="tab"),
        pytest.param(b"  up   1  ", ({}, 1.0), id="blanks around"),
        pytest.param(b"up 1\r", ({}, 1.0), id="carriage return"),
        pytest.param(b"up{} 1", ({}, 1.0), id="empty labels"),
        pytest.param(b'up{engine="0"} 1', ({"engine": "0"}, 1.0), id="one label"),
        pytest.param(b'up {a="1" , b = "2",} 1', ({"a": "1", "b": "2"}, 1.0), id="blanks and a last comma"),
        pytest.param(b'up{a="x}y,z=\\"{"} 1', ({"a": 'x}y,z="{'}, 1.0), id="brackets and quotes in a value"),
        pytest.param(
            rb'up{a="1\n2\\n3"} 1', ({"a": "1\n2\\n3"}, 1.0), id="escapes, also an escaped backslash"
        ),
        pytest.param('up{a="模型"} 1'.encode(), ({"a": "模型"}, 1.0), id="UTF-8"),
        pytest.param(b"up 1.5e+03 1700000000000", ({}, 1500.0), id="timestamp"),
        pytest.param(b'up{a="b"} 7 # {trace_id="x"} 0.5 1.7', ({"a": "b"}, 7.0), id="exemplar"),
        pytest.param(b"up 7 1.7 # {} 0.5", ({}, 7.0), id="timestamp and exemplar"),
        pytest.param(b"up +Inf", ({}, math.inf), id="infinite"),
        pytest.param(b"up -Inf", ({}, -math.inf), id="minus infinite"),
    ],
)
def test_a_sample_in_any_spelling_of_the_format_is_read(line, sample):
    assert parse(line + b"\n", WANTED) == {"up": [sample]}


def test_nan_is_a_word_of_the_format():
    (_, value) = parse(b"up NaN\n", WANTED)["up"][0]

    assert math.isnan(value)


def test_series_of_a_name_keep_the_order_of_the_page():
    page = b'# TYPE up gauge\nup{e="0"} 3\nother 9\nup{e="1"} 4'

    assert parse(page, WANTED) == {"up": [({"e": "0"}, 3.0), ({"e": "1"}, 4.0)]}


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\n\n",
        b"# HELP up 1\n",
        b"up_bucket 1\n",
        b"sup 1\n",
        b"other{ 1 2 3 garbage\n",
        b"<html>up 1</html>",
    ],
)
def test_other_names_are_not_looked_at(page):
    assert parse(page, WANTED) == {}


@pytest.mark.parametrize(
    "line",
    [
        b"up",
        b"up{",
        b'up{a="1" 1',
        b'up{a="1"b="2"} 1',
        b'up{a="1"}',
        b"up{a=1} 1",
        b'up{="1"} 1',
        b'up{a="\xff"} 1',
        b'up{a="1\\',
        b"up one",
        b"up 1_000",
        b"up 1 2 3",
        b"up 1}",
        b"up \xd9\xa1",
        b"up 0x10",
    ],
)
def test_a_wanted_line_that_cannot_be_read_is_malformed(line):
    assert refusal(b"up 1\n" + line + b"\n") == "malformed"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"x" * (MAX_BYTES + 1), id="bytes"),
        pytest.param(b"\n" * MAX_LINES, id="lines"),
        pytest.param(b"up 1\n" * (MAX_SAMPLES + 1), id="samples"),
        pytest.param(b'up{a="' + b"x" * MAX_WANTED_BYTES + b'"} 1', id="bytes of wanted lines"),
    ],
)
def test_a_page_beyond_a_bound_is_refused(page):
    assert refusal(page) == "too_large"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"up{" + b'b="",' * 50_000 + b"} 1\n", id="labels"),
        pytest.param(b'up{b="' + b"\\\\" * 125_000 + b'"} 1\n', id="escapes"),
        pytest.param(b'up{b="' + b"\\" * 250_001, id="open escape"),
        pytest.param(b"up 1" + b" " * 250_000 + b"x", id="blanks"),
        pytest.param(b"up " + b"#" * 250_000, id="hashes"),
        pytest.param((b"y" * 40 + b"\n") * 49_000, id="lines of others"),
    ],
)
def test_no_page_takes_long(page):
    """Linear in the page: what takes 20-60 ms on a quiet machine is given 2 s; anything quadratic takes minutes."""
    started_s = time.perf_counter()

    with contextlib.suppress(TelemetryError):
        parse(page, WANTED)

    assert time.perf_counter() - started_s < 2.0


LINES = st.builds(
    lambda name, labels, tail: name + labels + tail,
    st.sampled_from([b"up", b"vllm:running", b"# up", b" up", b""]),
    st.one_of(
        st.just(b""), st.binary(max_size=20).map(lambda raw: b"{" + raw + b"}"), st.binary(max_size=10)
    ),
    st.one_of(st.just(b" 1"), st.binary(max_size=12)),
)


@given(st.one_of(st.binary(max_size=300), st.lists(LINES, max_size=8).map(b"\n".join)))
@example(b'up{a="\\')
@example(b"up 1e999")
def test_no_bytes_raise_anything_but_a_telemetry_error(page):
    with contextlib.suppress(TelemetryError):
        assert set(parse(page, WANTED)) <= WANTED


LABEL_VALUES = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(
    labels=st.dictionaries(
        st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,6}", fullmatch=True), LABEL_VALUES, max_size=4
    ),
    value=st.floats(allow_nan=False),
)
def test_what_is_written_by_the_rules_is_read_back(labels, value):
    def quoted(text):
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    inside = ",".join(f'{name}="{quoted(text)}"' for name, text in labels.items())

    found = parse(f"up{{{inside}}} {value!r}\n".encode(), WANTED)

    assert found == {"up": [(labels, value)]}
