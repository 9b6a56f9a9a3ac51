"""The arithmetic of the benchmarks."""

import pytest

from benchmarks.stats import Spread, compared, percentile, spreads


@pytest.mark.parametrize(
    ("share", "value"),
    [
        pytest.param(0.5, 50, id="the median of 1..100 is the 50th"),
        pytest.param(0.99, 99, id="1 in 100 is above p99"),
        pytest.param(1.0, 100, id="the largest"),
        pytest.param(0.001, 1, id="never before the first"),
    ],
)
def test_percentiles_are_values_that_were_measured(share, value):
    assert percentile(range(1, 101), share) == value


def test_nothing_has_no_percentile():
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_a_spread_quotes_the_median_and_keeps_the_repeats():
    spread = Spread.of([3.0, 1.0, 2.0])

    assert (spread.median, spread.low, spread.high, spread.values) == (2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    assert spread.width == 1.0


def test_ratios_and_added_latency_stay_within_one_repeat():
    repeat = {
        "direct": {"p50_ms": 0.25, "rate_per_s": 900.0},
        "nginx": {"p50_ms": 0.5, "rate_per_s": 300.0},
        "router": {"p50_ms": 0.75, "rate_per_s": 60.0},
    }

    whole = compared(repeat, "nginx", "rate_per_s", {"added_p50_ms": "p50_ms"})

    assert {name: sample["ratio"] for name, sample in whole.items()} == {
        "direct": 3.0,
        "nginx": 1.0,
        "router": 0.2,
    }
    assert whole["router"]["added_p50_ms"] == 0.5
    assert "added_p50_ms" not in whole["direct"]


def test_without_a_reference_there_are_no_ratios():
    whole = compared({"router": {"rate_per_s": 60.0}}, "", "rate_per_s")

    assert whole == {"router": {"rate_per_s": 60.0}}


def test_the_ratio_quoted_is_the_median_of_ratios_not_the_ratio_of_medians():
    repeats = [
        compared({"nginx": {"rate_per_s": a}, "router": {"rate_per_s": b}}, "nginx", "rate_per_s")
        for a, b in [(100.0, 50.0), (200.0, 20.0), (50.0, 30.0)]
    ]

    assert spreads(repeats)["router"]["ratio"].median == 0.5
