import json

import pytest

from ccr.errors import TraceError
from envs.traces.convert import detected
from envs.traces.trace import read


def line(t, ids, prompt=1500, output=10, **more):
    record = {"timestamp": t, "input_length": prompt, "output_length": output, "hash_ids": ids, **more}
    return json.dumps(record) + "\n"


def test_milliseconds_become_seconds_and_blocks_stay(file, imported):
    path = file(line(0, [0, 1, 2]) + line(1500, [0, 1, 7]), "trace.jsonl")

    assert detected(path) == "mooncake"
    header, rows = imported("auto", path)
    assert [(row.t, row.prefix_blocks, row.session) for row in rows] == [
        (0.0, "0 1 2", ""),
        (1.5, "0 1 7", ""),
    ]
    assert header.block_tokens == 512


def test_without_sessions_a_prefix_is_what_anybody_said_before(file, imported, tmp_path):
    imported(
        "mooncake",
        file(line(0, [0, 1, 2]) + line(1, [0, 1, 7]) + line(2, [5]) + line(3, [0, 1, 7], prompt=1100)),
    )

    assert read(tmp_path / "out.jsonl").prefix_tokens.tolist() == [0, 1024, 0, 1100]


@pytest.mark.parametrize(
    ("broken", "story"),
    [
        pytest.param('{"timestamp": 1,', "not JSON", id="broken JSON"),
        pytest.param("[1, 2]\n", "expected a JSON object, found a list", id="no object"),
        pytest.param(
            '{"timestamp": 1}\n', "this is not mooncake: it lacks hash_ids, input_length", id="keys missing"
        ),
        pytest.param(line(1, [-3]), "hash_ids holds -3", id="negative block"),
        pytest.param(line(1, {"a": 1}), "hash_ids is", id="no list"),
        pytest.param(line(-1, [1]), "timestamp is -1", id="negative time"),
        pytest.param(line(1, [1], prompt=True), "input_length is True", id="truth is no number"),
        pytest.param(line(1, [1], prompt=1.5), "input_length is 1.5", id="half a token"),
        pytest.param(line(1, [1], chat_id=3), "it has chat_id", id="another format"),
    ],
)
def test_a_broken_line_stops_with_its_number_and_reason(file, imported, broken, story):
    path = file(line(0, [1]) + broken, "trace.jsonl")

    with pytest.raises(TraceError, match=r"trace.jsonl, line 2: ") as error:
        imported("mooncake", path)
    assert story in str(error.value)


def test_very_long_prompts_fit(file, imported):
    _, rows = imported("mooncake", file(line(0, list(range(20_000)), prompt=10_240_000)))

    assert len(rows[0].prefix_blocks.split()) == 20_000
