"""Reading recorded traces: in order of time over all segments, whatever a crash left."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import TraceError
from ccr.segments import PART, TORN, headers, name_of, rows, segment_at, segments

ONE, TWO = "20260102T030405Z-0a1b", "20260103T030405Z-0a1b"


def write(directory, *times, recording=ONE, kind="requests", number=1, part=False, tail=b""):
    """A segment whose rows are nothing but their times."""
    header = {"ccr_trace": 1, "kind": kind}
    lines = [
        json.dumps(line, separators=(",", ":")) for line in (header, *({"t": t, "n": number} for t in times))
    ]
    path = directory / (name_of(recording, kind, number) + (PART if part else ""))
    path.write_bytes("\n".join([*lines, ""]).encode() + tail)
    return path


def times_of(path, skipped=None, **which):
    return [row["t"] for row in rows(path, Counter() if skipped is None else skipped, **which)]


@given(st.lists(st.lists(st.floats(0.0, 1e6).map(lambda t: round(t, 6)), max_size=8), min_size=1, max_size=4))
def test_rows_come_in_order_of_time_over_all_segments(tmp_path_factory, per_segment):
    """Sealed segments are in order; they overlap where a request lasted long. The last one is still being written."""
    directory = tmp_path_factory.mktemp("trace")
    *sealed, part = per_segment
    for number, times in enumerate(sealed, 1):
        write(directory, *sorted(times), number=number)
    write(directory, *part, number=len(per_segment), part=True)

    assert times_of(directory) == sorted(t for times in per_segment for t in times)


def test_a_torn_last_line_is_left_out_and_counted(tmp_path):
    path = write(tmp_path, 2.0, 1.0, part=True, tail=b'{"t":3.0,"n"')
    skipped = Counter()

    assert times_of(path, skipped) == [1.0, 2.0]
    assert skipped == {TORN: 1}


def test_headers_say_what_the_segments_say_of_themselves(tmp_path):
    write(tmp_path, 1.0)
    torn = write(tmp_path, number=2, part=True)
    torn.write_bytes(b'{"ccr_trace":1,"ki')

    assert headers(tmp_path) == [{"ccr_trace": 1, "kind": "requests"}]
    assert headers(write(tmp_path, kind="loads")) == [{"ccr_trace": 1, "kind": "loads"}]
    with pytest.raises(TraceError, match="holds no recorded telemetry"):
        headers(tmp_path, "telemetry")
    with pytest.raises(TraceError, match="cannot read"):
        headers(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="before its header"),
        pytest.param(b'{"ccr_trace":1,"ki', id="in its header"),
        pytest.param(b'{"ccr_trace":1}\n', id="after its header"),
    ],
)
def test_a_segment_torn_at_its_beginning_has_no_rows(content, tmp_path):
    path = write(tmp_path, part=True)
    path.write_bytes(content)

    assert times_of(path) == []


def test_pages_that_never_reached_the_disk_are_no_rows(tmp_path):
    path = write(tmp_path, 1.0, part=True, tail=b'{"t":2.0,' + bytes(100) + b"}\n" + b'{"t":3.0}\n')
    skipped = Counter()

    assert times_of(path, skipped) == [1.0, 3.0]
    assert skipped == {TORN: 1}


def test_damage_in_a_sealed_segment_is_an_error_that_names_the_line(tmp_path):
    path = write(tmp_path, 1.0, 2.0, tail=b'{"t":3.0')

    with pytest.raises(TraceError, match=r"requests\.000001\.jsonl, line 4: .*damaged"):
        times_of(path)


def test_what_is_no_recording_is_refused(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"hello": 1}\n')

    with pytest.raises(TraceError, match="not the header of a trace"):
        times_of(other)
    with pytest.raises(TraceError, match="holds no recorded requests"):
        times_of(tmp_path)
    with pytest.raises(TraceError, match="cannot read"):
        times_of(tmp_path / "nowhere")


def test_of_several_recordings_one_has_to_be_named(tmp_path):
    write(tmp_path, 1.0, recording=ONE)
    write(tmp_path, 2.0, recording=TWO)

    with pytest.raises(TraceError, match=f"2 recordings .{ONE}, {TWO}."):
        times_of(tmp_path)
    assert times_of(tmp_path, recording=TWO) == [2.0]


def test_kinds_are_kept_apart(tmp_path):
    write(tmp_path, 1.0)
    write(tmp_path, 2.0, kind="telemetry")

    assert (times_of(tmp_path), times_of(tmp_path, kind="telemetry")) == ([1.0], [2.0])


def test_a_crash_between_a_sealed_segment_and_the_end_of_its_part_doubles_nothing(tmp_path):
    sealed = write(tmp_path, 1.0, 2.0)
    write(tmp_path, 2.0, 1.0, part=True)

    assert [segment.path for segment in segments(tmp_path)] == [sealed]


@pytest.mark.parametrize(
    "name", ["x.jsonl", "notes.txt", f"{ONE}.other.000001.jsonl", f"{ONE}.loads.000001.jsonl.tmp"]
)
def test_other_files_are_no_segments(name, tmp_path):
    assert segment_at(tmp_path / name) is None
