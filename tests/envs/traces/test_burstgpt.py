import pytest

from ccr.errors import TraceError
from envs.traces.convert import detected

OLD = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
NEW = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_both_layouts_are_known(file):
    assert detected(file(OLD + "5,ChatGPT,472,18,490,Conversation log\n")) == "burstgpt"
    assert detected(file(NEW + "5,,1.2,ChatGPT,472,18,490,API log\n")) == "burstgpt"


def test_sessions_come_with_the_new_layout_and_may_be_empty(file, imported):
    rows = "5,s1,1.2,ChatGPT,472,18,490,Conversation log\n5,,0.3,GPT-4,1087,230,1317,API log\n"

    header, (first, second) = imported("burstgpt", file(NEW + rows))

    assert (first.t, first.model, first.prompt_tokens, first.output_tokens, first.session) == (
        5,
        "ChatGPT",
        472,
        18,
        "s1",
    )
    assert (second.model, second.session) == ("GPT-4", "")
    assert first.total_ms is None
    assert any("Elapsed time" in note for note in header.notes)


def test_ties_keep_their_order(file, imported):
    rows = "".join(f"7,ChatGPT,{tokens},1,1,API log\n" for tokens in (3, 1, 2))

    _, found = imported("burstgpt", file(OLD + rows))

    assert [row.prompt_tokens for row in found] == [3, 1, 2]


def test_failures_are_dropped_by_reason(file, imported):
    rows = "1,ChatGPT,0,0,0,API log\n1,ChatGPT,9,0,9,API log\n2,ChatGPT,0,9,9,API log\n3,,9,9,18,API log\n4,GPT-4,1,1,2,API log\n"

    header, found = imported("burstgpt", file(OLD + rows))

    assert [row.t for row in found] == [4.0]
    assert dict(header.rows_dropped) == {"no model": 1, "no output tokens (failed)": 2, "no prompt tokens": 1}


def test_a_file_of_failures_only_is_refused(file, imported, tmp_path):
    with pytest.raises(TraceError, match=r"nothing is left .* 1 rows read, dropped: 1 no output tokens"):
        imported("burstgpt", file(OLD + "1,ChatGPT,0,0,0,API log\n"))

    assert [path.name for path in tmp_path.iterdir()] == ["source.csv"]
