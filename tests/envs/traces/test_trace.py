import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import TraceError
from envs.traces.header import Header, beside
from envs.traces.trace import Outcomes, Trace, numbered, read, write

COLUMNS = ("t", "model", "prompt_tokens", "output_tokens", "session", "prefix_tokens", "priority")
HEADER = "t,model,version,prompt_tokens,output_tokens,session,prefix_blocks,priority,node,queue_ms,ttft_ms,total_ms,cold_start,status\n"


def a_trace(t=(0.0, 0.5), **columns):
    count = len(t)
    given = {
        "models": ("llama", "qwen@2"), "t": np.array(t, np.float64), "model": np.arange(count) % 2,
        "prompt_tokens": np.full(count, 100), "output_tokens": np.full(count, 10), "session": np.full(count, -1),
        "prefix_tokens": np.zeros(count), "priority": np.zeros(count),
    } | columns  # fmt: skip
    kinds = {"t": np.float64, "model": np.int32}
    arrays = {name: np.asarray(given[name], kinds.get(name, np.int64)) for name in COLUMNS}
    return Trace(**{**given, **arrays})


def assert_same(a, b):
    assert (a.models, a.header) == (b.models, b.header)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# -- reading


def test_a_row_of_each_column(file):
    path = file(HEADER + "0.5,llama,2,128,64,s1,,-1,,,,,,\n1.25,qwen,,1,0,,,,,,,,,\n")

    trace = read(path)

    assert trace.models == ("llama@2", "qwen")
    assert trace.t.tolist() == [0.5, 1.25]
    assert trace.prompt_tokens.tolist() == [128, 1]
    assert trace.output_tokens.tolist() == [64, 0]
    assert trace.session.tolist() == [0, -1]
    assert trace.priority.tolist() == [-1, 0]
    assert trace.prefix_tokens.tolist() == [0, 0]
    assert trace.outcomes is None


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_packing_line_ends_and_byte_order_mark_do_not_matter(file, ending, packed):
    content = ("\ufeff" + HEADER + "0,a,,1,1,,,,,,,,,\n\n1,b,,1,1,,,,,,,,,\n").replace("\n", ending).encode()

    assert read(file(gzip.compress(content) if packed else content)).models == ("a", "b")


def test_json_lines_with_and_without_a_header_read_alike(file):
    rows = [
        {"t": 0, "model": "a", "version": 1, "prompt_tokens": 3, "output_tokens": 4, "more": {}},
        {"t": 1, "model": "a", "prompt_tokens": 3, "output_tokens": 4.0, "session": None},
    ]
    text = "\n".join(map(json.dumps, rows))
    header = json.dumps(
        {
            "ccr_trace": 1,
            "kind": "requests",
            "source": "made",
            "rows_dropped": {"old": 2},
            "rows_read": None,
            "later": 1,
        }
    )

    bare, full = read(file(text, "bare")), read(file(header + "\n" + text, "full"))

    assert bare.models == full.models == ("a@1", "a")
    assert (bare.header, full.header) == (Header(), Header(source="made", rows_dropped={"old": 2}))


def test_a_limit_reads_no_further(file):
    path = file(HEADER + "0,a,,1,1,,,,,,,,,\nrubbish\n")

    assert len(read(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "story"),
    [
        pytest.param("x,a,,1,1,,,,,,,,,", "t is 'x'; expected seconds", id="t no number"),
        pytest.param("nan,a,,1,1,,,,,,,,,", "t is 'nan'", id="t NaN"),
        pytest.param(",a,,1,1,,,,,,,,,", "t is missing", id="t empty"),
        pytest.param("0.5,a,,1,1,,,,,,,,,", "t is 0.5 after 1; rows must be in order", id="t goes back"),
        pytest.param("2,,,1,1,,,,,,,,,", "the row names no model. .*--drop-unknown.*--model NAME", id="no model"),
        pytest.param("2,a,,,1,,,,,,,,,", "prompt_tokens is unknown.*--default-prompt N.*--drop-unknown", id="no prompt"),
        pytest.param("2,a,,1,,,,,,,,,,", "output_tokens is unknown.*--default-output N", id="no output"),
        pytest.param("2,a,,0,1,,,,,,,,,", "prompt_tokens is '0'; expected a whole number >= 1", id="prompt 0"),
        pytest.param("2,a,,1,-1,,,,,,,,,", "output_tokens is '-1'", id="output negative"),
        pytest.param("2,a,,1,1,,,high,,,,,,", "priority is 'high'", id="priority in words"),
        pytest.param("2,a,,1,1,,1 x,,,,,,,", "prefix_blocks holds 'x'", id="no chain"),
        pytest.param("2,a,,1,1,,1 2,,,,,,,", "no header tells how many tokens.*--block-tokens N", id="block size unknown"),
        pytest.param("2,a,,1,1,,,,,-5,,,,", "queue_ms is '-5'", id="negative latency"),
        pytest.param("2,a,,1,1,,,,,,,,maybe,", "cold_start is 'maybe'; expected 0 or 1", id="cold start in words"),
        pytest.param("2,a,,1,1,,,,,,,,,fine", "status is 'fine'; expected one of", id="status unknown"),
        pytest.param("2,a\x00,,1,1,,,,,,,,,", "model is 'a", id="unprintable"),
        pytest.param("2,a", "2 fields under 14 columns", id="short row"),
        pytest.param('2,"a,,1,1,,,,,,,,,', "not CSV", id="open quote"),
        pytest.param(b"2,\xff,,1,1,,,,,,,,,", "not UTF-8", id="bytes"),
    ],
)  # fmt: skip
def test_a_bad_row_stops_with_file_line_and_remedy(file, row, story):
    row = row if isinstance(row, bytes) else row.encode()

    with pytest.raises(TraceError, match=rf"source.csv, line 3: .*{story}"):
        read(file(HEADER.encode() + b"1,a,,1,1,,,,,,,,,\n" + row + b"\n"))


@pytest.mark.parametrize(
    ("content", "story"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("\n \n", "is empty", id="blank"),
        pytest.param("a,b\n1,2\n", "no column t and no column model.*ccr traces import auto", id="another table"),
        pytest.param("t,model,t\n", "names a column twice", id="a column twice"),
        pytest.param("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", id="LFS pointer"),
        pytest.param(gzip.compress((HEADER + "0,a,,1,1,,,,,,,,,\n" * 999).encode())[:-20], "gzip stream is broken after line", id="cut off gzip"),
        pytest.param(HEADER + "x" * 2**21, "line 2 is longer than", id="endless line"),
        pytest.param('{"ccr_trace": 2}\n', "of format 2; this version reads format 1", id="a later format"),
        pytest.param('{"ccr_trace": 1, "kind": "telemetry"}\n', "holds 'telemetry' records", id="another kind"),
        pytest.param('{"ccr_trace": 1, "seed": "x"}\n', "header of .* is wrong: .*seed", id="a wrong header"),
        pytest.param('{"ccr_trace": 1, "rows": 2}\n{"t":0,"model":"a","prompt_tokens":1,"output_tokens":1}\n', "has 1 rows, its header says 2", id="cut off"),
        pytest.param('{"t": 0, "model": "a"\n', "not JSON", id="broken JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused(file, content, story):
    with pytest.raises(TraceError, match=story):
        read(file(content))


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(TraceError, match=r"cannot read .*nowhere.csv: No such file"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(TraceError, match="is a directory, not a trace"):
        read(tmp_path)


def test_unknown_lengths_are_minus_one_where_they_are_allowed(file):
    trace = read(file(HEADER + "0,,,,,,7,,,,,,,\n"), is_complete=False)

    assert trace.models == ("",)
    assert (trace.prompt_tokens[0], trace.output_tokens[0], trace.prefix_tokens[0]) == (-1, -1, -1)


def test_recorded_outcomes_come_along(file):
    header = HEADER.strip() + ",policy,propensity,candidates\n"
    rows = '0,a,,1,1,,,,,,,,,,,,\n1,a,,1,1,,,,n1,1.5,20,300,1,ok,lr@3,0.25,"[{""node"": ""n1"", ""score"": 1.0}]"\n'

    outcomes = read(file(header + rows)).outcomes

    assert outcomes.node.tolist() == ["", "n1"]
    assert outcomes.cold_start.tolist() == [-1, 1]
    assert np.isnan(outcomes.total_ms[0])
    assert (outcomes.total_ms[1], outcomes.propensity[1], outcomes.status[1]) == (300.0, 0.25, "ok")
    assert json.loads(outcomes.candidates[1]) == [{"node": "n1", "score": 1.0}]


@pytest.mark.parametrize("propensity", ["0", "1.5", "-0.1", "nan"])
def test_a_propensity_outside_zero_to_one_is_refused(file, propensity):
    with pytest.raises(TraceError, match=rf"line 2: propensity is '{propensity}'; expected a probability"):
        read(file(f"t,model,propensity\n0,a,{propensity}\n"))


# -- writing


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_what_is_written_reads_the_same(tmp_path, name):
    header = Header(source="made", sha256_source="00", rows_dropped={"why": 3}, seed=5, notes=("n",), rows=3)
    outcomes = Outcomes(
        node=np.array(["", "n1", "n2"]), queue_ms=np.array([np.nan, 0.1, 2]), ttft_ms=np.array([np.nan, 1, 3]),
        total_ms=np.array([np.nan, 1, 3]), cold_start=np.array([-1, 0, 1]), status=np.array(["", "ok", "timeout"]),
        policy=np.array(["", "p@1", "p@1"]), propensity=np.array([np.nan, 0.5, 1.0]),
        candidates=np.array(["", '[{"node":"n1"}]', "[]"]),
    )  # fmt: skip
    trace = a_trace(
        t=(0.1, 0.1, 1 / 3), session=(-1, 0, 0), prefix_tokens=(0, 0, 77), priority=(0, -2, 3),
        prompt_tokens=(-1, 5, 100), header=header, outcomes=outcomes,
    )  # fmt: skip

    write(trace, tmp_path / name)

    again = read(tmp_path / name, is_complete=False)
    assert_same(again, trace)
    for column in Outcomes.__slots__:
        np.testing.assert_array_equal(getattr(again.outcomes, column), getattr(outcomes, column))


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(0, 10**6), st.integers(-1, 5)),
        max_size=30,
    )
)
def test_any_trace_survives_a_file(tmp_path_factory, rows):
    t, prompt, output, session = (
        (list(column) for column in zip(*sorted(rows), strict=True)) if rows else ([],) * 4
    )
    trace = a_trace(
        t=t, prompt_tokens=prompt, output_tokens=output, session=numbered(np.array(session, np.int64)),
        models=("llama", "qwen@2")[: len(t)], header=Header(rows=len(t)),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"

    write(trace, path)

    assert_same(read(path), trace)


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        write(a_trace(), tmp_path / name)

    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_the_header_of_a_csv_stands_beside_it_and_must_fit(tmp_path):
    path = tmp_path / "a.csv"
    write(a_trace(header=Header(source="made")), path)

    assert path.read_text().startswith("t,model,version,")
    assert read(path).header.source == "made"

    path.write_text(path.read_text() + "9,llama,,1,1,,,,,,,,,\n")
    with pytest.raises(TraceError, match="has 3 rows, its header says 2"):
        read(path)

    beside(path).write_text("{")
    with pytest.raises(TraceError, match="is no header"):
        read(path)

    beside(path).unlink()
    assert read(path).header == Header()


def test_a_name_that_does_not_tell_the_format_is_refused(tmp_path):
    with pytest.raises(TraceError, match=r"cannot tell the format of 'a.txt'; let it end in .csv"):
        write(a_trace(), tmp_path / "a.txt")
    with pytest.raises(TraceError, match="cannot write"):
        write(a_trace(), tmp_path / "missing" / "a.csv")


# -- the columns


@pytest.mark.parametrize(
    ("columns", "story"),
    [
        pytest.param({"t": (1.0, 0.5)}, "in order of arrival", id="falling"),
        pytest.param({"t": (-1.0, 0.5)}, "not negative", id="negative"),
        pytest.param({"t": (0.0, np.inf)}, "finite", id="infinite"),
        pytest.param({"session": (1,)}, r"column session has shape \(1,\), t has \(2,\)", id="too short"),
        pytest.param({"model": (0, 2)}, "index into the 2 models", id="no such model"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, story):
    with pytest.raises(TraceError, match=story):
        a_trace(**columns)


def test_a_trace_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        a_trace().t[0] = 5.0


def test_a_part_keeps_times_and_models():
    part = a_trace(t=(0.0, 1.0, 2.0)).take(np.array([False, True, True]))

    assert (part.t.tolist(), part.models, part.span_s) == ([1.0, 2.0], ("llama", "qwen@2"), 2.0)


def test_numbers_follow_first_appearance():
    assert numbered(np.array([7, -1, 3, 7, 9, 3])).tolist() == [0, -1, 1, 0, 2, 1]
