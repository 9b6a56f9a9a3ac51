import json

import numpy as np
import pytest

from envs.traces.describe import describe, summary
from envs.traces.header import Header
from envs.traces.trace import Outcomes, Trace


def a_trace(t, **columns):
    t = np.array(t, np.float64)
    count = t.size
    given = {
        "models": ("a",), "model": np.zeros(count, np.int32), "prompt_tokens": np.full(count, 10), "output_tokens": np.full(count, 2),
        "session": np.full(count, -1), "prefix_tokens": np.zeros(count, np.int64), "priority": np.zeros(count, np.int64),
    } | {name: np.array(value) if isinstance(value, list) else value for name, value in columns.items()}  # fmt: skip
    return Trace(t=t, **given)


def test_a_clockwork_has_no_variation():
    found = describe(a_trace(np.arange(0, 1000, 0.5)))

    assert found["requests"] == 2000
    assert found["rate"] == pytest.approx(2.0, rel=0.001)
    assert found["peak_rate"] == 2
    assert found["interarrival_cv"] == pytest.approx(0.0, abs=1e-9)
    assert found["dispersion"] == {"1": 0.0, "10": 0.0, "60": 0.0}


def test_a_poisson_process_has_one():
    t = np.cumsum(np.random.default_rng(1).exponential(0.1, 50_000))

    found = describe(a_trace(t))

    assert found["interarrival_cv"] == pytest.approx(1.0, rel=0.03)
    assert found["dispersion"]["1"] == pytest.approx(1.0, rel=0.1)


def test_empty_windows_count_in_the_dispersion():
    """Ten arrivals at once in every tenth second: mean 1, variance 9."""
    t = np.repeat(np.arange(0, 1000, 10), 10)

    assert describe(a_trace([*t, 1000.0]))["dispersion"]["1"] == pytest.approx(9.0)


def test_models_stand_in_order_of_their_share():
    found = describe(
        a_trace([0, 1, 2, 3], models=("a", "b"), model=[1, 0, 1, 1], prompt_tokens=[1, 9, 3, 5])
    )["models"]

    assert [(row["model"], row["requests"], row["share"], row["first_s"], row["prompt_p50"]) for row in found] == [
        ("b", 3, 0.75, 0.0, 3.0), ("a", 1, 0.25, 1.0, 9.0),
    ]  # fmt: skip


def test_sessions_and_repeated_prompt_tokens():
    found = describe(a_trace([0, 1, 2], session=[0, -1, 0], prefix_tokens=[0, 0, 6]))

    assert found["sessions"] == {"sessions": 1, "requests": 2, "turns_mean": 2.0, "turns_max": 2}
    assert found["prefix"] == {"tokens": 6, "share": 0.2}


def test_what_is_unknown_is_said_to_be():
    found = describe(a_trace([0, 1], prompt_tokens=[-1, -1], output_tokens=[-1, 4]))

    assert found["prompt_tokens"]["unknown"] == 2
    assert found["prompt_tokens"]["mean"] is None
    assert found["output_tokens"]["mean"] == 4.0
    assert found["prefix"] == {"tokens": None, "share": None}
    assert found["outcomes"] is None


def test_recorded_outcomes():
    outcomes = Outcomes(
        node=np.array(["n1", "n2", ""]), queue_ms=np.full(3, np.nan), ttft_ms=np.array([1.0, 3.0, np.nan]),
        total_ms=np.array([10.0, 30.0, np.nan]), cold_start=np.array([1, 0, -1]), status=np.array(["ok", "ok", "timeout"]),
        policy=np.array(["p", "p", "p"]), propensity=np.array([0.5, 0.25, np.nan]), candidates=np.array([""] * 3),
    )  # fmt: skip

    found = describe(a_trace([0, 1, 2], outcomes=outcomes))["outcomes"]

    assert found["status"] == {"ok": 2, "timeout": 1}
    assert found["nodes"] == {"n1": 1, "n2": 1}
    assert (found["cold_starts"], found["cold_start_share"], found["propensity_min"]) == (1, 0.5, 0.25)
    assert (found["total_ms"]["mean"], found["queue_ms"]["mean"]) == (20.0, None)


@pytest.mark.parametrize("t", [[], [0.0], [0.0, 0.0], [5.0, 1e9]], ids=str)
def test_any_trace_can_be_described_and_is_plain_json(t):
    found = describe(a_trace(t, models=("a",), header=Header(rows_dropped={"x": 1})))

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(row["what"] and row["value"] is not None for row in summary(found))
