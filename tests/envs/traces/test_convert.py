import gzip
import hashlib

import pytest

from ccr.errors import TraceError
from envs.traces import READERS, convert
from envs.traces.convert import Cut, cut_trace, detected
from envs.traces.files import rows_of
from envs.traces.header import header_beside
from envs.traces.source import Source, head_of

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def azure(*seconds):
    return HEADER + "".join(f"2023-11-16 00:00:{at:02d},{at + 1},1\n" for at in seconds)


# -- importing


def test_rows_out_of_order_are_sorted_in_and_counted(file, imported):
    header, rows = imported("azure2023", file(azure(3, 1, 2, 2)))

    assert [(row.t, row.prompt_tokens) for row in rows] == [(0.0, 2), (1.0, 3), (1.0, 3), (2.0, 4)]
    assert "3 rows came out of order and were sorted in" in header.notes


def test_a_row_too_late_to_be_sorted_in_is_refused_with_its_line(file, imported, monkeypatch, tmp_path):
    monkeypatch.setattr(convert, "REORDER_ROWS", 2)

    with pytest.raises(TraceError, match=r"line 7: the time goes back by 2 s.* Sort the file by time first"):
        imported("azure2023", file(azure(1, 2, 3, 4, 5, 0)))

    assert [path.name for path in tmp_path.iterdir()] == ["source.csv"]


def test_sorting_holds_across_the_rows_that_wait(file, imported, monkeypatch):
    monkeypatch.setattr(convert, "REORDER_ROWS", 2)

    _, rows = imported("azure2023", file(azure(1, 3, 2, 5, 4, 7, 6, 8)))

    assert [row.prompt_tokens for row in rows] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_a_part_of_the_source_begins_at_zero_and_stops_early(file, imported):
    source = azure(0, 10, 20, 30) + "rubbish\n"

    header, rows = imported("azure2023", file(source), from_s=10.0, until_s=30.0, skip_bad=True)

    assert [row.t for row in rows] == [0.0, 10.0]
    assert "from 10 s to 30 s of the source" in header.notes


def test_a_scaled_rate_makes_time_run_faster(file, imported):
    _, rows = imported("azure2023", file(azure(0, 10, 20)), rate_scale=4.0)

    assert [row.t for row in rows] == [0.0, 2.5, 5.0]


def test_the_model_of_a_source_without_one_can_be_named(file, imported):
    _, rows = imported("azure2023", file(azure(0)), model="llama-7b")

    assert rows[0].model == "llama-7b"


def test_the_hash_is_that_of_the_file_as_it_came(file, imported):
    packed = gzip.compress(azure(0).encode(), mtime=0)

    header, _ = imported("azure2023", file(packed))

    assert header.sha256_source == hashlib.sha256(packed).hexdigest()
    assert header.source == "azure2023: source.csv"


def test_a_stream_cut_off_leaves_what_was_there_before(file, imported, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious")
    whole = gzip.compress(
        "".join([HEADER, *[f"2023-11-16 00:00:00,{i},1\n" for i in range(1, 9000)]]).encode()
    )

    with pytest.raises(TraceError, match="gzip stream is broken after line"):
        imported("azure2023", file(whole[: len(whole) // 2]))

    assert (tmp_path / "out.jsonl").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_of_no_known_format_is_refused_with_what_it_begins_with(file):
    with pytest.raises(
        TraceError, match=r"is none of the formats .* it begins 'a,b'. Formats: azure2023, .*, ccr"
    ):
        detected(file("a,b\n1,2\n"))


def test_every_format_keeps_away_from_a_foreign_file(file):
    for content in ("a,b\n1,2\n", "{}\n", "[]\n", "\x00\x01\n", '"\n'):
        head = head_of(file(content))
        assert not [name for name, reader in READERS.items() if reader.recognises(head)]


# -- our own format as a source

OWN = "t,model,prompt_tokens,output_tokens,node,propensity,session\n1,a,5,6,n1,0.5,s\n0.5,,,,,,\n"


def test_our_own_format_is_sorted_completed_and_keeps_outcomes(file, imported):
    header, rows = imported("auto", file(OWN), model="b", block_tokens=16)

    assert [(row.t, row.model, row.node, row.propensity) for row in rows] == [
        (0.5, "b", "", None),
        (1.0, "a", "n1", 0.5),
    ]
    assert header.block_tokens == 16


def test_bad_rows_of_our_own_format_can_be_left_out(file, imported):
    header, rows = imported("ccr", file("t,model\n0,a\nx,b\n1,c\n"), skip_bad=True)

    assert [row.model for row in rows] == ["a", "c"]
    assert dict(header.rows_dropped) == {"t is no number": 1}


def test_importing_again_keeps_the_provenance(file, imported, tmp_path):
    first, _ = imported("azure2023", file(azure(0, 1)))
    again, _ = imported("ccr", (tmp_path / "out.jsonl").rename(tmp_path / "first.jsonl"))

    assert again == first


# -- cutting


@pytest.fixture
def trace(file):
    rows = [(0, "a", "1"), (1, "a", "2"), (2, "b", ""), (3, "a", "1"), (4, "b", ""), (5, "a", "1")]
    return file(
        "t,model,version,prompt_tokens,output_tokens\n" + "".join(f"{t},{m},{v},1,1\n" for t, m, v in rows),
        "in.csv",
    )


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        pytest.param(Cut(), [(0, "a"), (1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a")], id="everything"),
        pytest.param(Cut(from_s=2, until_s=4), [(0, "b"), (1, "a")], id="a window, its end not in it"),
        pytest.param(Cut(models=frozenset({"b"})), [(0, "b"), (2, "b")], id="one model, from zero"),
        pytest.param(Cut(models=frozenset({"a@1"})), [(0, "a"), (3, "a"), (5, "a")], id="one version"),
        pytest.param(Cut(every=2), [(0, "a"), (2, "b"), (4, "b")], id="one in two"),
        pytest.param(Cut(limit=2), [(0, "a"), (1, "a")], id="the first two"),
        pytest.param(Cut(from_s=1, rate_scale=2), [(0, "a"), (0.5, "b"), (1, "a"), (1.5, "b"), (2, "a")], id="twice as dense"),
    ],
)  # fmt: skip
def test_a_cut_is_the_part_asked_for(trace, tmp_path, cut, expected):
    out = tmp_path / "out.csv.gz"

    header = cut_trace(trace, out, cut)

    assert [(row.t, row.model) for row in rows_of(Source(out))] == expected
    assert header.rows == len(expected)
    assert header_beside(out) == header


def test_requests_that_are_too_long_are_left_out_and_counted(file, tmp_path):
    trace = file("t,model,prompt_tokens,output_tokens\n0,a,90,10\n1,a,90,11\n2,a,,200\n3,a,1,0\n", "in.csv")
    out = tmp_path / "out.csv"

    header = cut_trace(trace, out, Cut(most_tokens=100))

    assert [row.t for row in rows_of(Source(out))] == [0, 3]
    assert header.rows_dropped == {"longer than 100 tokens": 2}


def test_a_trace_can_be_cut_into_its_own_place(trace):
    cut_trace(trace, trace, Cut(limit=3))

    assert len(list(rows_of(Source(trace)))) == 3


def test_unknown_lengths_are_dropped_or_chosen_on_request(file, tmp_path):
    path = file("t,model,prompt_tokens,output_tokens\n0,a,1,\n1,a,,2\n2,a,3,0\n3,,1,1\n")
    out = tmp_path / "out.csv"

    dropped = cut_trace(path, out, Cut(drop_unknown=True))
    assert ([row.t for row in rows_of(Source(out))], dict(dropped.rows_dropped)) == (
        [0.0],
        {"unknown length": 2, "unknown model": 1},
    )

    cut_trace(path, out, Cut(default_prompt=9, default_output=8))
    assert [(row.prompt_tokens, row.output_tokens) for row in rows_of(Source(out))] == [
        (1, 8),
        (9, 2),
        (3, 0),
        (1, 1),
    ]


def test_nothing_left_is_refused(trace, tmp_path):
    with pytest.raises(TraceError, match=r"nothing is left of .*Choose another part"):
        cut_trace(trace, tmp_path / "out.csv", Cut(models=frozenset({"c"})))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_a_trace_out_of_order_is_refused_with_the_remedy(file, tmp_path):
    with pytest.raises(
        TraceError, match=r"line 3: t is 0 after 1; .*`ccr traces import ccr source.csv -o OUT` sorts them"
    ):
        cut_trace(file("t,model\n1,a\n0,a\n"), tmp_path / "out.csv", Cut())
