import json

import pytest

from ccr.errors import TraceError
from envs.traces.convert import detected
from envs.traces.trace import read


def line(chat, parent, t, ids=(1,), prompt=64, output=5):
    record = {
        "chat_id": chat, "parent_chat_id": parent, "timestamp": t, "input_length": prompt, "output_length": output,
        "type": "text", "turn": 1, "hash_ids": list(ids),
    }  # fmt: skip
    return json.dumps(record) + "\n"


def test_a_session_is_the_root_of_the_chain_of_parents(file, imported):
    path = file(line(10, -1, 0) + line(20, -1, 1) + line(11, 10, 2) + line(12, 11, 3.5), "q.jsonl")

    assert detected(path) == "qwen-bailian"
    header, rows = imported("auto", path)
    assert [row.session for row in rows] == ["10", "20", "10", "10"]
    assert [row.t for row in rows] == [0.0, 1.0, 2.0, 3.5]
    assert header.block_tokens == 16


def test_children_of_one_unknown_parent_belong_together(file, imported):
    _, rows = imported("qwen-bailian", file(line(11, 9, 0) + line(12, 9, 1) + line(13, 12, 2)))

    assert [row.session for row in rows] == ["9", "9", "9"]


def test_a_dropped_turn_still_links_its_children(file, imported):
    header, rows = imported("qwen-bailian", file(line(1, -1, 0) + line(2, 1, 1, output=0) + line(3, 2, 2)))

    assert [row.session for row in rows] == ["1", "1"]
    assert dict(header.rows_dropped) == {"no output tokens (failed)": 1}


def test_a_prefix_is_what_the_session_said_before(file, imported, tmp_path):
    """The same blocks in another session count for nothing."""
    imported(
        "qwen-bailian",
        file(
            line(1, -1, 0, (1, 2))
            + line(2, -1, 1, (1, 2))
            + line(3, 1, 2, (1, 2, 3))
            + line(4, 3, 3, (1, 9, 3))
        ),
    )

    assert read(tmp_path / "out.jsonl").prefix_tokens.tolist() == [0, 0, 32, 16]


def test_a_git_lfs_pointer_is_named_as_such(file, imported):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4bb3\nsize 52283111\n"

    for form in ("auto", "qwen-bailian"):
        with pytest.raises(TraceError, match="Git LFS pointer, not the trace; run `git lfs pull`"):
            imported(form, file(pointer, "q.jsonl"))


def test_an_id_that_is_none_is_refused(file, imported):
    with pytest.raises(TraceError, match=r"line 1: chat_id is 'x'; expected a whole number"):
        imported("qwen-bailian", file(line("x", -1, 0)))
