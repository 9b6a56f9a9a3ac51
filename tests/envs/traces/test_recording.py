import json

import pytest

from ccr.errors import TraceError
from envs.traces.convert import Cut, cut_trace, detected, import_trace
from envs.traces.reader import Wishes
from envs.traces.trace import read

ONE, OTHER = "20260101T000000Z-0001", "20260102T000000Z-0002"


def row(t, model="llama", **more):
    recorded = {
        "t": t, "model": model, "version": "2", "prompt_tokens": 10, "output_tokens": 3, "node": "n1", "queue_ms": 0.5,
        "ttft_ms": 20.0, "total_ms": 90.0, "cold_start": 0, "status": "ok", "policy": "p@1", "propensity": 0.5,
        "candidates": [{"node": "n1", "score": None}], "outcome": "ok", "retry": 0, "prompt_estimate": 9,
    } | more  # fmt: skip
    return json.dumps(recorded, separators=(",", ":")) + "\n"


@pytest.fixture
def directory(tmp_path):
    """A directory with a recording of two segments; the second was being written when the router died."""
    header = json.dumps({"ccr_trace": 1, "kind": "requests", "rows_read": None, "block_tokens": None}) + "\n"
    path = tmp_path / "recorded"
    path.mkdir()
    (path / f"{ONE}.requests.000001.jsonl").write_text(header + row(1.0) + row(3.0))
    (path / f"{ONE}.requests.000002.jsonl.part").write_text(header + row(4.0) + row(2.0) + '{"t":5.0,"mod')
    (path / f"{ONE}.telemetry.000001.jsonl").write_text(header)
    return path


@pytest.mark.parametrize("name", ["out.csv.gz", "out.jsonl"])
def test_segments_are_one_trace_with_outcomes(directory, tmp_path, name):
    assert detected(directory) == "recording"

    header = import_trace("auto", directory, tmp_path / name, Wishes())

    trace = read(tmp_path / name)
    assert trace.t.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert trace.models == ("llama@2",)
    assert trace.outcomes.propensity.tolist() == [0.5] * 4
    assert json.loads(trace.outcomes.candidates[0]) == [{"node": "n1", "score": None}]
    assert dict(header.rows_dropped) == {"torn line": 1}


def test_what_the_router_could_not_write_and_who_it_was_stand_in_the_header(directory, imported):
    segment = directory / f"{ONE}.requests.000001.jsonl"
    header = {
        "ccr_trace": 1, "source": "ccr-autopilot 9", "recording": ONE, "rows_dropped": {"queue_full": 7},
    }  # fmt: skip
    segment.write_text(json.dumps(header) + "\n" + row(1.0))

    found, _ = imported("recording", directory, notes=("said by hand",))

    assert dict(found.rows_dropped) == {"queue_full": 7, "torn line": 1}
    assert found.notes[:2] == ("recorded by the router, with outcomes", f"recording {ONE} of ccr-autopilot 9")
    assert found.notes[-1] == "said by hand"


def test_the_outcome_in_full_is_the_status(directory, imported):
    """Of a client that left, the true latency is not known: an `error` would say that the node failed."""
    segment = directory / f"{ONE}.requests.000001.jsonl"
    segment.write_text('{"ccr_trace": 1}\n' + row(1.0, status="error", outcome="client_closed"))

    _, rows = imported("recording", directory)

    assert [one.status for one in rows] == ["client_closed", "ok", "ok"]


def test_several_recordings_have_to_be_told_apart(directory, imported):
    (directory / f"{OTHER}.requests.000001.jsonl").write_text('{"ccr_trace": 1}\n' + row(7.0))

    with pytest.raises(TraceError, match="2 recordings"):
        imported("recording", directory)
    assert [one.t for one in imported("recording", directory, recording=OTHER)[1]] == [7.0]


def test_refused_requests_come_along_and_can_be_left_out(directory, imported, tmp_path):
    (directory / f"{ONE}.requests.000003.jsonl").write_text(
        '{"ccr_trace": 1}\n'
        + row(
            9.0,
            "",
            prompt_tokens=None,
            output_tokens=None,
            status="rejected",
            outcome="rejected",
            candidates=[],
        )
    )
    imported("recording", directory)

    with pytest.raises(TraceError, match=r"line 6: the row names no model.*--drop-unknown"):
        read(tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl", is_complete=False).outcomes.status[-1] == "rejected"

    cut_trace(tmp_path / "out.jsonl", tmp_path / "cut.jsonl", Cut(drop_unknown=True))
    assert len(read(tmp_path / "cut.jsonl")) == 4
