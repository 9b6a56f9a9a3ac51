"""The one cost: a quarter per second, two for a missed promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.reward import LATENCY_CAP_S, cost, cost_of_rejection, slo_s

SECONDS = st.floats(0.0, 300.0)


def of(latency_s, ideal_s):
    return float(cost(np.array([latency_s]), np.array([ideal_s]))[0])


def rejected(ideal_s):
    return float(cost_of_rejection(np.array([ideal_s]))[0])


@pytest.mark.parametrize(
    ("latency_s", "expected"),
    [
        pytest.param(2.0, 0.5, id="in time"),
        pytest.param(4.5, 1.125, id="just in time: 2.5 x 1 s + 2 s"),
        pytest.param(4.6, 1.15 + 2.0, id="late"),
        pytest.param(600.0, 15.0 + 2.0, id="beyond a minute it no longer matters"),
        pytest.param(np.inf, 15.0 + 2.0, id="failed"),
    ],
)
def test_what_a_request_costs(latency_s, expected):
    assert of(latency_s, 1.0) == pytest.approx(expected)


@given(SECONDS, SECONDS, st.floats(0.0, 60.0))
def test_later_never_costs_less(latency_s, more_s, ideal_s):
    assert of(latency_s + more_s, ideal_s) >= of(latency_s, ideal_s)


@given(st.floats(0.0, 60.0))
def test_refusing_costs_more_than_serving_in_time_and_less_than_failing(ideal_s):
    in_time = of(float(slo_s(np.array([ideal_s]))[0]), ideal_s)

    assert in_time < rejected(ideal_s) <= of(np.inf, ideal_s)


def test_refusing_is_better_than_serving_very_late():
    assert rejected(1.0) < of(LATENCY_CAP_S, 1.0)
