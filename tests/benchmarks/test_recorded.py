"""The program that makes the trace of the package, at a speed at which nobody has to wait for it."""

import numpy as np

from benchmarks.recorded import Wanted, record
from envs.traces.trace import read


def test_a_drawn_workload_becomes_a_recorded_trace_that_says_how_it_was_made(tmp_path):
    wanted = Wanted(seconds=30.0, nodes=2, speed=20.0, seed=3)

    header, summary = record(wanted, tmp_path / "recorded.csv.gz")

    trace = read(tmp_path / "recorded.csv.gz")
    assert trace.header == header
    assert len(trace) == summary.ok > 30
    assert f"arrivals drawn by: {wanted.workload}" in header.notes
    assert any("2 emulated A10" in note and "at 20 times their speed" in note for note in header.notes)
    assert set(trace.outcomes.node) == {"a10-1", "a10-2"}
    assert np.isfinite(trace.outcomes.propensity).all()
