"""Segments on disk: whole lines, in order once sealed, within their bounds, and readable whatever happens."""

import json
import os
import resource
from collections import Counter
from contextlib import contextmanager

import pytest

from ccr.segments import PART, TORN, rows, segments
from router.recording import writer as writing
from router.recording.writer import Limits, RecordingError, Writer

KIB = 2**10


def lines(*times, size=0):
    return [json.dumps({"t": t, "x": "." * size}, separators=(",", ":")).encode() for t in times]


def times_of(directory, skipped=None, **which):
    return [row["t"] for row in rows(directory, Counter() if skipped is None else skipped, **which)]


def disk(directory):
    return sum(path.stat().st_size for path in directory.iterdir())


def header_of(segment):
    with segment.path.open() as stream:
        return json.loads(stream.readline())


@contextmanager
def files_no_larger_than(size):
    """The kernel refuses every byte beyond, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def writer(tmp_path):
    writer = Writer(tmp_path, Limits())
    yield writer
    writer.abandon()


def test_rows_can_be_read_as_soon_as_they_are_written(writer, tmp_path):
    writer.append("requests", lines(2.0, 1.0))

    assert times_of(tmp_path) == [1.0, 2.0]


def test_a_sealed_segment_is_in_order_and_knows_its_counts(writer, tmp_path):
    writer.append("requests", lines(2.0, 1.0))
    writer.append("requests", lines(1.5))

    writer.close({"queue_full": 4})

    (segment,) = segments(tmp_path)
    header = header_of(segment)
    assert segment.is_sealed
    assert [json.loads(line)["t"] for line in segment.path.read_bytes().splitlines()[1:]] == [1.0, 1.5, 2.0]
    assert (header["ccr_trace"], header["kind"]) == (1, "requests")
    assert (header["rows_read"], header["rows_dropped"]) == (3, {"queue_full": 4})


def test_a_kind_without_rows_leaves_no_file(writer, tmp_path):
    writer.append("loads", lines(1.0))

    writer.close({})

    assert [segment.kind for segment in segments(tmp_path)] == ["loads"]


def test_segments_stay_below_their_size(tmp_path):
    writer = Writer(tmp_path, Limits(64 * KIB, 4 * KIB))
    for t in range(40):
        writer.append("requests", lines(float(t), size=500))
    writer.close({})

    assert len(segments(tmp_path)) > 1
    assert all(segment.path.stat().st_size <= 4 * KIB for segment in segments(tmp_path))
    assert times_of(tmp_path) == [float(t) for t in range(40)]


def test_the_directory_never_takes_more_than_allowed(tmp_path, monkeypatch):
    """Not even while a segment is there twice, at the moment before its part is deleted."""
    limits, seen = Limits(16 * KIB, 4 * KIB), []
    fsync = os.fsync
    monkeypatch.setattr(writing.os, "fsync", lambda file: seen.append(disk(tmp_path)) or fsync(file))
    writer = Writer(tmp_path, limits)

    for t in range(400):
        kind = ("requests", "telemetry", "loads")[t % 3]
        writer.append(kind, lines(float(t), size=300))
        seen.append(disk(tmp_path))
        assert writer.held_bytes == seen[-1]
    writer.close({})

    assert max(*seen, disk(tmp_path)) <= limits.max_bytes
    assert writer.deleted > 0
    assert times_of(tmp_path)[-1] == 399.0, "the newest rows are those that stay"


def test_earlier_recordings_in_the_directory_count_and_go_first(tmp_path):
    for _ in range(2):
        writer = Writer(tmp_path, Limits(16 * KIB, 4 * KIB))
        for t in range(30):
            writer.append("requests", lines(float(t), size=500))
        writer.close({})

    assert disk(tmp_path) <= 16 * KIB
    assert {segment.recording for segment in segments(tmp_path)} == {writer.recording}


def test_other_files_are_left_alone(tmp_path):
    other = tmp_path / "precious.jsonl"
    other.write_text("x" * 32 * KIB)
    writer = Writer(tmp_path, Limits(16 * KIB, 4 * KIB))
    for t in range(60):
        writer.append("requests", lines(float(t), size=500))
    writer.close({})

    assert other.exists()


def test_a_full_disk_leaves_whole_rows(writer, tmp_path):
    writer.append("requests", lines(1.0, 2.0))

    with files_no_larger_than(writer.held_bytes + 100), pytest.raises(OSError, match="large"):
        writer.append("requests", lines(3.0, size=500))

    skipped = Counter()
    assert times_of(tmp_path, skipped) == [1.0, 2.0]
    assert not skipped


def test_where_a_segment_cannot_be_sealed_its_rows_stay(writer, tmp_path):
    writer.append("requests", lines(2.0, 1.0))

    with files_no_larger_than(100), pytest.raises(OSError, match="large"):
        writer.close({})

    assert times_of(tmp_path) == [1.0, 2.0]
    assert not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_recorder_left_is_sealed_by_the_next(tmp_path):
    killed = Writer(tmp_path, Limits())
    killed.append("requests", lines(2.0, 1.0))
    killed.abandon()
    (left,) = tmp_path.glob(f"*{PART}")
    with left.open("ab") as stream:
        stream.write(b'{"t":3.0,"x"')
    left.with_name(left.name.removesuffix(PART) + ".tmp").write_bytes(b"half a copy")

    writer = Writer(tmp_path, Limits())
    writer.recover()
    writer.abandon()

    (segment,) = segments(tmp_path)
    assert segment.is_sealed
    assert header_of(segment)["rows_dropped"] == {TORN: 1}
    assert times_of(tmp_path) == [1.0, 2.0]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_part_beside_its_sealed_segment_is_tidied_away(tmp_path):
    first = Writer(tmp_path, Limits())
    first.append("requests", lines(1.0))
    first.close({})
    (sealed,) = segments(tmp_path)
    sealed.path.with_name(sealed.path.name + PART).write_bytes(sealed.path.read_bytes())

    second = Writer(tmp_path, Limits())
    second.recover()
    second.abandon()

    assert not list(tmp_path.glob(f"*{PART}"))
    assert times_of(tmp_path) == [1.0]


def test_one_directory_is_for_one_recorder(writer, tmp_path):
    with pytest.raises(RecordingError, match="give each its own"):
        Writer(tmp_path, Limits())

    writer.close({})

    Writer(tmp_path, Limits()).abandon()


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RecordingError, match=r"cannot record into .*file.*Give a directory"):
        Writer(tmp_path / "file" / "below", Limits())


def test_recordings_are_for_their_owner_only(tmp_path):
    writer = Writer(tmp_path / "new", Limits())
    writer.append("requests", lines(1.0))
    (part,) = (tmp_path / "new").glob(f"*{PART}")
    assert part.stat().st_mode & 0o777 == 0o600

    writer.close({})

    (sealed,) = segments(tmp_path / "new")
    assert sealed.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
