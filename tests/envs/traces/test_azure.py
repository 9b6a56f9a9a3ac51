import gzip

import pytest

from ccr.errors import TraceError
from envs.traces.convert import detected

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
Y2023 = HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:46.6805901,396,109\n"
Y2024 = HEADER + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
Y2025 = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:00,2,577,20\n"


@pytest.mark.parametrize(
    ("content", "form"), [(Y2023, "azure2023"), (Y2024, "azure2024"), (Y2025, "azure2025-lmm")], ids=lambda one: one[:9]
)  # fmt: skip
def test_the_years_are_told_apart(file, content, form):
    assert detected(file(content)) == form


def test_a_row_is_an_arrival_and_nothing_else(file, imported):
    header, rows = imported("azure2023", file(Y2023))

    assert [(row.t, row.model, row.prompt_tokens, row.output_tokens) for row in rows] == [
        (0.0, "azure2023", 374, 44), (1e-7, "azure2023", 396, 109),
    ]  # fmt: skip
    assert all(not row.node and row.total_ms is None and not row.status for row in rows)
    assert (header.licence, header.rows_read, header.generated) == ("CC-BY-4.0", 2, False)


@pytest.mark.parametrize(
    ("form", "content", "other"), [("azure2024", Y2023, "azure2023"), ("azure2023", Y2024, "azure2024")]
)
def test_the_wrong_year_is_refused_with_the_right_one(file, imported, form, content, other):
    with pytest.raises(
        TraceError, match=rf"source.csv, line 2: TIMESTAMP is .*: this is {other}, not {form}"
    ):
        imported(form, file(content))


def test_images_are_left_out_and_said_so(file, imported):
    header, rows = imported("auto", file(gzip.compress(Y2025.encode()), "lmm.csv.gz"))

    assert len(rows) == 1
    assert any("NumImages" in note for note in header.notes)


def test_columns_go_by_name_and_lines_may_end_as_on_windows(file, imported):
    content = "ContextTokens,GeneratedTokens,TIMESTAMP\r\n7,8,2023-11-16 18:00:00\r\n\r\n"

    _, rows = imported("auto", file("\ufeff" + content))

    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(7, 8)]


@pytest.mark.parametrize(
    ("row", "story"),
    [
        pytest.param("2023-11-16 18:15:47,x,1", "ContextTokens is 'x'", id="no number"),
        pytest.param("2023-11-16 18:15:47,-1,1", "ContextTokens is '-1'", id="negative"),
        pytest.param("2023-11-16 18:15:47,1", "2 fields under 3 columns", id="cut off"),
        pytest.param("noon,1,1", "TIMESTAMP is 'noon'", id="no time"),
    ],
)
def test_a_broken_row_stops_with_its_line_or_is_counted(file, imported, tmp_path, row, story):
    path = file(Y2023 + row + "\n2023-11-16 18:15:48,1,1\n")

    with pytest.raises(TraceError, match=r"source.csv, line 4: .*--skip-bad") as error:
        imported("azure2023", path)

    assert story in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()

    header, rows = imported("azure2023", path, skip_bad=True)
    assert (header.rows_read, len(rows), sum(header.rows_dropped.values())) == (4, 3, 1)


def test_rows_without_tokens_are_dropped_by_reason(file, imported):
    header, rows = imported("azure2023", file(Y2023 + "2023-11-16 18:15:47,5,0\n2023-11-16 18:15:47,0,5\n"))

    assert len(rows) == 2
    assert dict(header.rows_dropped) == {"no output tokens (failed)": 1, "no prompt tokens": 1}


def test_another_header_is_refused_with_what_differs(file, imported):
    with pytest.raises(TraceError, match=r"line 1: this is not azure2023: it also has NumImages"):
        imported("azure2023", file(Y2025))
    with pytest.raises(TraceError, match=r"it lacks ContextTokens, GeneratedTokens, it also has a"):
        imported("azure2023", file("TIMESTAMP,a\n"))
