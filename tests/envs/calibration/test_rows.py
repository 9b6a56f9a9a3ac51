"""Tables: what is read, and what is refused with its line and its reason."""

import gzip

import pytest

from ccr.errors import TraceError
from envs.calibration.rows import read_rows

CSV = "model,ms\na,1\nb,\n"
JSONL = '{"ccr_trace": 1, "kind": "loads"}\n{"model": "a", "ms": 1}\n\n{"model": "b", "ms": null}\n'


@pytest.mark.parametrize("text", [pytest.param(CSV, id="csv"), pytest.param(JSONL, id="json lines")])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_table_reads_the_same_in_every_form(tmp_path, text, zipped):
    path = tmp_path / "table"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())

    first, second = read_rows(path, ["model", "ms"])

    assert (first.text("model"), first.number("ms")) == ("a", 1.0)
    assert (second.text("model"), second.optional("ms")) == ("b", None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "has no rows|no column", id="empty"),
        pytest.param(b"model,ms\n", "has no rows", id="header only"),
        pytest.param(
            b"model,seconds\na,1\n", "line 1: no column ms; found model, seconds", id="other columns"
        ),
        pytest.param(b"model,ms\na,1\nb\n", "line 3: 1 cells under 2 columns", id="torn line"),
        pytest.param(b'{"model": "a", "ms": 1}\n{"model": ', "line 2: not JSON", id="torn object"),
        pytest.param(b'{"model": "a", "ms": 1}\n[1]\n', "line 2: not a JSON object", id="a list"),
        pytest.param(b'{"model": "a"}\n', "line 1: no ms", id="missing field"),
        pytest.param(b"\x1f\x8b\x08nothing", "cannot be read", id="torn gzip"),
        pytest.param(b"model,ms\n\xff\xfe,1\n", "cannot be read as text", id="not text"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, content, says):
    path = tmp_path / "table.csv"
    path.write_bytes(content)

    with pytest.raises(TraceError, match=says):
        read_rows(path, ["model", "ms"])


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        pytest.param("fast", "line 2: ms is 'fast'; it has to be a number", id="a word"),
        pytest.param("nan", "at least 0", id="not a number"),
        pytest.param("-1", "at least 0", id="negative"),
        pytest.param("1.5", "it has to be a whole number", id="a fraction"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(tmp_path, cell, says):
    path = tmp_path / "table.csv"
    path.write_text(f"model,ms\na,{cell}\n")
    (row,) = read_rows(path, ["ms"])

    with pytest.raises(TraceError, match=says):
        row.whole("ms")
