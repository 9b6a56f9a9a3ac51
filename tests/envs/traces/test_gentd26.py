import pytest

from ccr.errors import TraceError
from envs.traces.convert import Cut, cut_trace, detected
from envs.traces.trace import read

HEADER = (
    "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,negative_prompt_length,"
    "num_images_per_prompt,num_inference_steps,checkpoint_model_version_id,num_lora\n"
)


def line(time, status="SUCCEED", model="M0001"):
    return f"2024-11-15 {time},TXT_2_IMG,{status},32.0,G0,63.0,,1.0,30.0,{model},0\n"


SOURCE = (
    HEADER
    + line("16:57:50")
    + line("16:57:50", model="M0002")
    + line("16:57:51", "FAILED")
    + line("16:57:52", "PENDING")
)


def test_failed_and_pending_rows_are_dropped_by_reason(file, imported):
    path = file(SOURCE)

    assert detected(path) == "gentd26"
    header, rows = imported("auto", path)
    assert [(row.t, row.model) for row in rows] == [(0.0, "M0001"), (0.0, "M0002")]
    assert dict(header.rows_dropped) == {"predict_status FAILED": 1, "predict_status PENDING": 1}


def test_lengths_in_characters_are_not_taken_for_tokens(file, imported):
    _, rows = imported("gentd26", file(SOURCE))

    assert all(
        row.prompt_tokens is None and row.output_tokens is None and row.total_ms is None for row in rows
    )


def test_it_cannot_be_simulated_until_somebody_chooses_lengths(file, imported, tmp_path):
    imported("gentd26", file(SOURCE))
    path = tmp_path / "out.jsonl"

    with pytest.raises(TraceError, match=r"line 2: prompt_tokens is unknown.*--default-prompt N"):
        read(path)
    assert read(path, is_complete=False).prompt_tokens.tolist() == [-1, -1]

    header = cut_trace(path, tmp_path / "full.csv", Cut(default_prompt=64, default_output=8))
    assert read(tmp_path / "full.csv").output_tokens.tolist() == [8, 8]
    assert "default_prompt 64" in header.notes[-1]
