"""The recorder between the serving thread and the disk: never in the way, bounded, and honest about what it lost."""

import json
from collections import Counter

import pytest
import structlog.testing

from ccr.segments import rows
from ccr.types import Outcome, Reading
from router.dispatch import Times
from router.recording.recorder import BEFORE_START, FAILED, QUEUE_FULL, Counts, Recorder
from router.recording.writer import Limits, Writer
from tests.factories import a_request


class Untouchable:
    """A request that must not be looked at: whatever is asked of it fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"looked at .{name}")


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(Writer(tmp_path, Limits()), 100.0, max_queued=5)
    yield recorder
    recorder.writer.abandon()


def refuse(recorder, arrived_s=101.0, request=None):
    recorder.refused(Outcome.REJECTED, arrived_s, arrived_s + 0.001, request)


def finish(recorder):
    recorder.finish()
    recorder.start()
    assert recorder.join(20.0)


def written(recorder, kind="requests"):
    return list(rows(recorder.writer.directory, Counter(), kind))


def test_the_serving_thread_looks_at_nothing(recorder):
    recorder.ended(Untouchable(), Untouchable(), Untouchable())
    recorder.refused(Untouchable(), Untouchable(), Untouchable(), Untouchable())
    recorder.read(Untouchable(), Untouchable(), Untouchable())

    assert sum(recorder.counts().rows.values()) == 0


def test_what_happened_is_written_by_its_kind(recorder):
    refuse(recorder, request=a_request("llama@2"))
    recorder.read("a", Reading(loaded=frozenset()), 101.0)
    recorder.read("a", Reading(loaded=frozenset({"llama@2"})), 102.0)

    finish(recorder)

    assert [row["model"] for row in written(recorder)] == ["llama"]
    assert [row["t"] for row in written(recorder, "telemetry")] == [1.0, 2.0]
    assert [row["model"] for row in written(recorder, "loads")] == ["llama"]
    assert recorder.counts().rows == {"requests": 1, "telemetry": 2, "loads": 1}


@pytest.mark.parametrize("kind", ["requests", "telemetry", "loads"])
def test_only_what_is_wanted_is_written(kind, tmp_path):
    recorder = Recorder(Writer(tmp_path, Limits()), 100.0, frozenset({kind}))
    refuse(recorder)
    recorder.read("a", Reading(loaded=frozenset()), 101.0)
    recorder.read("a", Reading(loaded=frozenset({"llama@2"})), 102.0)

    finish(recorder)

    assert [name for name, number in recorder.counts().rows.items() if number] == [kind]


def test_what_does_not_fit_the_queue_is_dropped_and_counted(recorder):
    for _ in range(8):
        refuse(recorder)

    finish(recorder)

    assert len(written(recorder)) == 5
    assert recorder.counts().dropped == {QUEUE_FULL: 3, BEFORE_START: 0, FAILED: 0}


def test_a_request_from_before_the_start_is_left_out_and_counted(recorder):
    refuse(recorder, arrived_s=99.9)
    refuse(recorder, arrived_s=100.0)

    finish(recorder)

    assert [row["t"] for row in written(recorder)] == [0.0]
    assert recorder.counts().dropped[BEFORE_START] == 1


def test_the_header_of_the_last_segment_says_what_was_lost(recorder):
    for _ in range(8):
        refuse(recorder)
    finish(recorder)

    (path,) = recorder.writer.directory.glob("*.jsonl")

    assert json.loads(path.read_text().splitlines()[0])["rows_dropped"] == {QUEUE_FULL: 3}


def test_more_rows_than_one_slice_all_arrive(tmp_path):
    recorder = Recorder(Writer(tmp_path, Limits()), 0.0)
    for number in range(500):
        refuse(recorder, arrived_s=float(number))

    finish(recorder)

    assert [row["t"] for row in written(recorder)] == [float(number) for number in range(500)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a fault of ours")])
def test_an_error_ends_the_recording_with_one_event_and_counts_every_row(error, recorder, monkeypatch):
    def fail(kind, batch):
        raise error

    monkeypatch.setattr(recorder.writer, "append", fail)
    for _ in range(3):
        refuse(recorder)

    with structlog.testing.capture_logs() as logged:
        finish(recorder)
        refuse(recorder)

    assert [event["event"] for event in logged] == ["record.failed"]
    assert logged[0]["error"] in recorder.error
    assert recorder.counts().dropped[FAILED] == 4
    assert recorder.counts().failures == 1


def test_after_an_error_the_directory_is_free_again(recorder, monkeypatch):
    monkeypatch.setattr(recorder.writer, "append", lambda kind, batch: 1 / 0)
    refuse(recorder)
    finish(recorder)

    Writer(recorder.writer.directory, Limits()).abandon()


def test_counts_add_up_over_recordings_and_bytes_are_the_last_ones():
    first, second = Counts(bytes=5, deleted=1), Counts(bytes=7, failures=1)
    first.rows["requests"] = second.rows["requests"] = 2
    second.dropped[QUEUE_FULL] = 3

    both = first.plus(second)

    assert (both.rows["requests"], both.dropped[QUEUE_FULL]) == (4, 3)
    assert (both.bytes, both.deleted, both.failures) == (7, 1, 1)


def test_times_of_the_router_are_what_rows_are_made_of():
    """The recorder knows the router's types only by their shape; this is where the two meet."""
    assert {"queue_s", "total_s", "ttft_s", "prompt_tokens", "output_tokens"} <= set(Times._fields)
