import gzip
import json
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import TraceError
from ccr.segments import TORN
from router.replay_reader import MAX_LINE_BYTES, Arrival, read

RECORDING = "20260102T030405Z-0a1b"
HEADER = "t,model,version,prompt_tokens,output_tokens,session,prefix_blocks,priority,node,queue_ms,ttft_ms,total_ms,cold_start,status\n"


@pytest.fixture
def trace(tmp_path):
    def write(content, name="trace"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_csv_row_is_an_arrival(trace):
    path = trace(HEADER + "0.5,llama,2,128,64,s1,1 2 3,-1,n1,1,2,3,0,ok\n")

    assert list(read(path)) == [Arrival(2, 0.5, "llama", "2", 128, 64, "s1", -1, "ok")]


def test_an_empty_field_stays_unknown(trace):
    path = trace(HEADER + "0,llama,,,,,,,,,,,,\n")

    assert list(read(path)) == [Arrival(2, 0.0, "llama", "", None, None, "", 0)]


def test_columns_go_by_name_not_by_place(trace):
    path = trace("model,extra,t\nllama,x,1.5\n")

    assert list(read(path)) == [Arrival(2, 1.5, "llama")]


@pytest.mark.parametrize(
    "header", [[], [{"ccr_trace": 1, "kind": "requests", "source": "made"}]], ids=["bare", "with header"]
)
def test_json_lines_read_like_csv(trace, header):
    rows = [
        {"t": 0.5, "model": "llama", "prompt_tokens": 128, "session": None},
        {"t": 1, "model": "b", "version": 2},
    ]
    path = trace("\n".join(json.dumps(row) for row in header + rows))

    line = len(header) + 1
    assert list(read(path)) == [
        Arrival(line, 0.5, "llama", prompt_tokens=128),
        Arrival(line + 1, 1.0, "b", "2"),
    ]


def test_gzip_is_seen_by_content(trace):
    content = (HEADER + "0,llama,,,,,,,,,,,,\n").encode()

    assert list(read(trace(gzip.compress(content), "zipped.csv"))) == list(
        read(trace(content, "plain.csv.gz"))
    )


def test_byte_order_mark_quotes_and_line_ends_of_windows_are_fine(trace):
    path = trace(b'\xef\xbb\xbft,model\r\n0,"a,b"\r\n\r\n1,c\r\n')

    assert [(row.line, row.model) for row in read(path)] == [(2, "a,b"), (4, "c")]


BAD_ROWS = [
    pytest.param("x,llama,,,,,,,,,,,,", "t is 'x'", "t is no time", id="t no number"),
    pytest.param("-1,llama,,,,,,,,,,,,", "t is '-1'", "t is no time", id="t negative"),
    pytest.param("nan,llama,,,,,,,,,,,,", "t is 'nan'", "t is no time", id="t NaN"),
    pytest.param("1e999,llama,,,,,,,,,,,,", "t is '1e999'", "t is no time", id="t infinite"),
    pytest.param(",llama,,,,,,,,,,,,", "t is missing", "t is missing", id="t empty"),
    pytest.param("0.5,llama,,,,,,,,,,,,", "t is 0.5 after 1", "t goes back", id="t goes back"),
    pytest.param("2,llama,,0,,,,,,,,,,", "prompt_tokens is '0'", "prompt_tokens is no count", id="no prompt"),
    pytest.param("2,llama,,1.5,,,,,,,,,,", "prompt_tokens is '1.5'", "prompt_tokens is no count", id="half a token"),
    pytest.param("2,llama,,,-1,,,,,,,,,", "output_tokens is '-1'", "output_tokens is no count", id="output negative"),
    pytest.param("2,llama,,,,,,high,,,,,,", "priority is 'high'", "priority is no count", id="priority in words"),
    pytest.param("2,lla\x00ma,,,,,,,,,,,,", "model is", "model is no name", id="unprintable"),
    pytest.param("2," + "m" * 300 + ",,,,,,,,,,,,", "at most 256", "model is no name", id="endless name"),
    pytest.param("2,llama", "2 fields under 14 columns", "wrong number of fields", id="short row"),
    pytest.param('2,"llama,,,,,,,,,,,,', "not CSV", "not CSV", id="open quote"),
    pytest.param(b"2,\xff,,,,,,,,,,,,", "not UTF-8", "not UTF-8", id="bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "story", "reason"), BAD_ROWS)
def test_a_bad_row_stops_with_its_line_and_reason(trace, row, story, reason):
    row = row.encode() if isinstance(row, str) else row
    path = trace(HEADER.encode() + b"1,llama,,,,,,,,,,,,\n" + row + b"\n3,llama,,,,,,,,,,,,\n")
    seen = []

    with pytest.raises(TraceError, match=rf"{path}, line 3: .*--skip-bad") as error:
        seen.extend(arrival.t for arrival in read(path))

    assert story in str(error.value)

    skipped = Counter()
    assert [arrival.t for arrival in read(path, skipped, skip_bad=True)] == [1.0, 3.0]
    assert skipped == {reason: 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [("nonsense", "not JSON"), ("[1]", "not an object"), ('{"t": true, "model": "m"}', "t is no time"),
     ('{"t": 2, "model": "m", "prompt_tokens": 1.5}', "prompt_tokens is no count"),
     ('{"t": 2, "model": "m", "prompt_tokens": true}', "prompt_tokens is no count"),
     ('{"t": 2, "model": {"a": 1}}', "model is no name")],
)  # fmt: skip
def test_a_bad_json_line_is_refused_too(trace, line, reason):
    path = trace('{"t": 0, "model": "m"}\n' + line + "\n")
    skipped = Counter()

    with pytest.raises(TraceError, match="line 2"):
        list(read(path))

    assert [arrival.t for arrival in read(path, skipped, skip_bad=True)] == [0.0]
    assert skipped == {reason: 1}


@pytest.mark.parametrize(
    ("content", "story"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"a,b\n1,2\n", "no column t and no column model", id="other columns"),
        pytest.param(b"t,model,t\n1,2,3\n", "twice", id="column twice"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", id="LFS pointer"),
        pytest.param(gzip.compress(b"t,model\n" + b"0,m\n" * 999)[:-20], "broken gzip", id="cut gzip"),
        pytest.param(b"\x1f\x8bnonsense", "broken gzip", id="no gzip"),
        pytest.param(b"t,model\n0," + b"m" * MAX_LINE_BYTES, "line 2 is longer", id="endless line"),
        pytest.param(b'{"ccr_trace": 2, "kind": "requests"}\n', "format 2", id="newer format"),
        pytest.param(b'{"ccr_trace": 1, "kind": "telemetry"}\n', "'telemetry' records", id="other kind"),
        pytest.param(b"\xff\xfe\n", "is this a trace", id="bytes"),
    ],
)
def test_what_is_no_trace_is_refused_even_when_bad_rows_are_skipped(trace, content, story):
    with pytest.raises(TraceError, match=story):
        list(read(trace(content), Counter(), skip_bad=True))


def test_a_recording_is_read_as_the_router_left_it(trace, tmp_path):
    """Over all segments in order of time, the one that was being written too; what a crash tore is counted."""
    header = '{"ccr_trace":1,"kind":"requests"}\n'
    trace(header + '{"t":1.0,"model":"a"}\n{"t":4.0,"model":"b"}\n', f"{RECORDING}.requests.000001.jsonl")
    part = trace(
        header + '{"t":3.0,"model":"c"}\n{"t":2.0,"model":"d"}\n{"t":5.0,"mod',
        f"{RECORDING}.requests.000002.jsonl.part",
    )
    skipped = Counter()

    assert [(row.line, row.t, row.model) for row in read(tmp_path, skipped)] == [
        (1, 1.0, "a"),
        (2, 2.0, "d"),
        (3, 3.0, "c"),
        (4, 4.0, "b"),
    ]
    assert [row.t for row in read(part, skipped)] == [2.0, 3.0]
    assert skipped == {TORN: 2}


def test_a_directory_without_a_recording_is_refused(tmp_path):
    with pytest.raises(TraceError, match="holds no recorded requests"):
        list(read(tmp_path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"cannot read .*absent"):
        list(read(tmp_path / "absent"))


@given(st.binary(max_size=400))
def test_nothing_but_a_trace_error_ever_comes_out(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "trace"
    for prefix in (b"", b"t,model\n", b'{"ccr_trace": 1}\n'):
        path.write_bytes(prefix + content)
        with suppress(TraceError):
            list(read(path, Counter(), skip_bad=True))
