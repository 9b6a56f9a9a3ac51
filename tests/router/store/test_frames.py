"""Frames on disk: whole or not there, whatever ends the writer and wherever a crash tears the file."""

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.store.frames import FrameLog, frames, packed, path_of, segments, unpacked

CONTENTS = st.lists(st.binary(max_size=40), max_size=8)


def contents(directory, *place):
    return [frame.data for frame in frames(directory, *place)]


@given(CONTENTS)
def test_what_is_packed_is_unpacked(written):
    raw = b"".join(map(packed, written))

    assert [data for _, data in unpacked(raw)] == written


@given(CONTENTS, st.data())
def test_a_torn_file_gives_the_whole_frames_before_the_tear(written, data):
    raw = b"".join(map(packed, written))
    cut = data.draw(st.integers(0, len(raw)))

    found = [content for _, content in unpacked(raw[:cut])]

    assert found == written[: len(found)]
    assert sum(len(packed(one)) for one in found) <= cut


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8), st.data())
def test_a_flipped_bit_ends_what_is_read_before_it(written, data):
    raw = bytearray(b"".join(map(packed, written)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))

    found = [content for _, content in unpacked(bytes(raw))]

    assert found == written[: len(found)]
    assert len(found) < len(written)


def test_a_reader_goes_on_from_a_place(tmp_path):
    log = FrameLog(tmp_path, 1000)
    log.append([b"a", b"b", b"c"])
    first = next(frames(tmp_path))

    assert contents(tmp_path, first.segment, first.end) == [b"b", b"c"]


def test_the_oldest_segments_give_way(tmp_path):
    log = FrameLog(tmp_path, 400)

    gone = [number for k in range(100) for number in log.append([b"%03d" % k])]

    assert log.size <= 400
    assert gone == list(range(1, gone[-1] + 1))
    assert contents(tmp_path) == [b"%03d" % k for k in range(100)][-len(contents(tmp_path)) :]


def test_nothing_follows_a_torn_frame(tmp_path):
    log = FrameLog(tmp_path, 1000)
    log.append([b"a", b"b"])
    log.close()
    path = path_of(tmp_path, 1)
    os.truncate(path, path.stat().st_size - 1)

    FrameLog(tmp_path, 1000).append([b"c"])

    assert contents(tmp_path) == [b"a", b"c"]


def test_a_disk_that_is_full_takes_all_or_nothing(tmp_path):
    log = FrameLog(tmp_path, 10_000)
    log.append([b"before"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            log.append([b"x" * 20, b"y" * 20])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    log.append([b"after"])
    assert contents(tmp_path) == [b"before", b"after"]


def test_what_was_appended_survives_sigkill(tmp_path):
    code = (
        "import os, sys, signal; from pathlib import Path; from router.store.frames import FrameLog; "
        "log = FrameLog(Path(sys.argv[1]), 10**6); log.append([b'a', b'b']); os.kill(os.getpid(), signal.SIGKILL)"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)

    assert contents(tmp_path) == [b"a", b"b"]


def test_a_segment_that_is_removed_is_gone(tmp_path):
    log = FrameLog(tmp_path, 1000)
    log.append([b"a"])

    log.remove(1)

    assert (segments(tmp_path), log.size) == ([], 0)
