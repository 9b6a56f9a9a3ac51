"""Recorded requests and telemetry: what is used, what is left out, what is refused."""

import json

import pytest

from ccr.errors import TraceError
from envs.calibration.recorded import Sample, read_samples, read_served
from envs.calibration.shapes import known_shapes

SHAPES = known_shapes()
RECORDING = "20260102T030405Z-0a1b"
GOOD = {
    "t": 1.0, "model": "chat-7b", "version": "1", "node": "a10-1", "prompt_tokens": 100, "output_tokens": 50,
    "queue_ms": 20.0, "ttft_ms": 120.0, "total_ms": 1620.0, "cold_start": False, "status": "ok",
}  # fmt: skip


def a_trace(tmp_path, *rows):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(GOOD | row) + "\n" for row in rows))
    return path


def test_times_count_from_the_dispatch(tmp_path):
    served, skipped = read_served(a_trace(tmp_path, {}), SHAPES)

    (request,) = served["a10-1"]
    assert (request.at_s, request.first_s, request.total_s) == pytest.approx((1.02, 0.1, 1.6))
    assert (request.model, request.cold, request.line) == ("chat-7b@1", False, 1)
    assert not skipped


def test_a_model_is_found_with_or_without_its_version(tmp_path):
    rows = {"version": ""}, {"model": "llama2_7b", "version": "9"}, {"model": "x", "model_id": "code-7b@1"}

    served, _ = read_served(a_trace(tmp_path, {"model": "mistral_7b"} | rows[0], *rows[1:]), SHAPES)

    assert [request.model for request in served["a10-1"]] == ["mistral_7b", "llama2_7b", "code-7b@1"]


def test_a_recording_is_read_as_the_router_left_it(tmp_path):
    """Requests and telemetry out of one directory; the line that a crash tore is counted."""
    header = '{"ccr_trace":1}\n'
    row = json.dumps({"t": 1.0} | GOOD, separators=(",", ":"))
    (tmp_path / f"{RECORDING}.requests.000001.jsonl.part").write_text(f'{header}{row}\n{{"t":2.0,"no')
    (tmp_path / f"{RECORDING}.telemetry.000001.jsonl").write_text(
        header + '{"t":1.5,"node":"a10-1","running":2,"kv_used_frac":0.5}\n'
    )

    served, skipped = read_served(tmp_path, SHAPES)

    assert [request.total_s for request in served["a10-1"]] == pytest.approx([1.6])
    assert skipped == {"torn line": 1}
    assert read_samples(tmp_path) == {"a10-1": [Sample(1.5, 2.0, 0.5)]}


def test_a_first_byte_at_the_very_end_was_not_a_first_token(tmp_path):
    served, _ = read_served(a_trace(tmp_path, {"ttft_ms": 1619.0}), SHAPES)

    assert served["a10-1"][0].first_s is None


def test_rows_that_say_nothing_about_a_node_are_left_out_and_counted(tmp_path):
    rows = {"status": "timeout"}, {"status": "timeout"}, {"total_ms": None}, {"node": ""}, {}

    served, skipped = read_served(a_trace(tmp_path, *rows), SHAPES)

    assert len(served["a10-1"]) == 1
    assert skipped == {"with status timeout": 2, "without total_ms": 1, "without node": 1}


def test_a_prompt_that_is_not_shorter_than_its_conversations_last_repeats_it(tmp_path):
    """On the same node, for the same model; where the trace tells, that counts."""
    rows = [
        {"t": t, "session": "s", "prompt_tokens": tokens} | more
        for t, tokens, more in (
            (1.0, 100, {}), (2.0, 150, {}), (3.0, 120, {}), (4.0, 130, {"node": "b"}), (5.0, 160, {"version": "2"}),
            (6.0, 170, {"prefix_tokens": 7}), (7.0, 180, {"session": ""}),
        )
    ]  # fmt: skip

    served, _ = read_served(a_trace(tmp_path, *rows), SHAPES)

    assert [request.prefix_tokens for request in served["a10-1"]] == [0, 150, 0, 0, 7, 0]
    assert [request.prefix_tokens for request in served["b"]] == [0]


def test_nodes_have_their_requests_in_order_of_dispatch(tmp_path):
    rows = {"t": 5.0, "node": "b"}, {"t": 9.0, "node": "a"}, {"t": 2.0, "node": "b"}

    served, _ = read_served(a_trace(tmp_path, *rows), SHAPES)

    assert list(served) == ["a", "b"]
    assert [request.line for request in served["b"]] == [3, 1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param({"model": "gpt-9"}, "line 2: unknown model 'gpt-9@1'", id="model"),
        pytest.param({"prompt_tokens": 0}, "line 2: prompt_tokens is 0", id="no prompt"),
        pytest.param({"output_tokens": -1}, "line 2: output_tokens is -1", id="less than nothing"),
        pytest.param({"t": -1}, "line 2: t is -1", id="before the start"),
        pytest.param({"total_ms": 100.0}, "line 2: .*in this order", id="ends before its first token"),
        pytest.param({"queue_ms": 130.0}, "line 2: .*in this order", id="answers before its dispatch"),
        pytest.param({"cold_start": "maybe"}, "line 2: cold_start is 'maybe'", id="cold"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_line(tmp_path, row, says):
    with pytest.raises(TraceError, match=says):
        read_served(a_trace(tmp_path, {}, row), SHAPES)


def test_an_imported_trace_is_refused_because_it_has_no_outcomes(tmp_path):
    path = a_trace(tmp_path, {"node": "", "total_ms": None})

    with pytest.raises(TraceError, match=r"no row to fit on \(1 without node\).*arrivals only"):
        read_served(path, SHAPES)


def test_telemetry_is_read_by_node_in_order_of_time(tmp_path):
    path = tmp_path / "telemetry.csv"
    path.write_text("t,node,running,kv_used_frac\n2,a,4,0.5\n1,a,3,\n1,b,,\n")

    samples = read_samples(path)

    assert [(sample.t, sample.running, sample.kv_used) for sample in samples["a"]] == [
        (1, 3, None),
        (2, 4, 0.5),
    ]
    assert "b" not in samples


def test_a_kv_cache_that_is_more_than_full_is_refused(tmp_path):
    path = tmp_path / "telemetry.csv"
    path.write_text("t,node,running,kv_used_frac\n2,a,4,50\n")

    with pytest.raises(TraceError, match="line 2: kv_used_frac is 50; it is a fraction"):
        read_samples(path)
