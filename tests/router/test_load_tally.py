import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.load_tally import Answer, Sample, Tally, Window, percentile


def a_sample(due_s=0.0, total_s=0.1, error="", *, sent_late_s=0.0, ttft_s=None, node="n", model="m"):
    answer = Answer(error=error, status=200, ttft_s=ttft_s, node=node, prompt_tokens=10, output_tokens=5)
    return Sample(due_s, due_s + sent_late_s, due_s + total_s, model, answer)


def tally_of(*samples, window=None, **options):
    tally = Tally(window or Window(), **options)
    for sample in samples:
        tally.began()
        tally.add(sample)
    return tally


@pytest.mark.parametrize(("per_cent", "expected"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentiles_of_one_to_hundred_are_exact(per_cent, expected):
    assert percentile([float(i) for i in range(1, 101)], per_cent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values, per_cent):
    values.sort()

    found = percentile(values, per_cent)

    assert found in values
    assert sum(value <= found for value in values) * 100 >= per_cent * len(values)
    assert sum(value < found for value in values) * 100 < per_cent * len(values)


def test_no_values_have_no_percentile():
    assert math.isnan(percentile([], 99))
    assert tally_of().summary(1.0).in_ms()["p99_ms"] is None


def test_every_request_of_the_window_is_ok_or_an_error():
    tally = tally_of(
        a_sample(), a_sample(error="timeout"), a_sample(error="http_503"), a_sample(error="timeout")
    )

    summary = tally.summary(10.0)

    assert (summary.requests, summary.ok, summary.errors) == (4, 1, 3)
    assert summary.errors_by_kind == {"timeout": 2, "http_503": 1}
    assert tally.in_flight == 0


def test_a_failure_has_no_latency():
    """Failing fast must not look fast, and failing slowly must not look like an answer."""
    summary = tally_of(a_sample(total_s=1.0), a_sample(total_s=0.001, error="reset")).summary(10.0)

    assert summary.p50_s == summary.p99_s == summary.mean_s == 1.0


def test_warm_up_is_not_measured():
    tally = tally_of(
        a_sample(due_s=0.5, total_s=9.0), a_sample(due_s=1.5, error="reset"), a_sample(due_s=2.0),
        window=Window(warmup_s=2.0, measure_s=10.0),
    )  # fmt: skip

    summary = tally.summary(12.0)

    assert (summary.requests, summary.errors) == (1, 0)
    assert summary.p99_s == pytest.approx(0.1)


def test_a_late_answer_counts_in_latency_but_not_in_throughput():
    tally = tally_of(
        a_sample(due_s=1.0), a_sample(due_s=3.9, total_s=5.0), a_sample(due_s=4.0),
        window=Window(warmup_s=0.0, measure_s=4.0),
    )  # fmt: skip

    summary = tally.summary(8.9)

    assert (summary.requests, summary.finished_late) == (2, 1)
    assert summary.p99_s == pytest.approx(5.0)
    assert summary.qps == pytest.approx(1 / 4.0)


def test_throughput_counts_answers_inside_the_window_whenever_they_were_sent():
    tally = tally_of(
        a_sample(due_s=1.5, total_s=1.0), a_sample(due_s=3.0, total_s=0.5), window=Window(2.0, 10.0)
    )

    summary = tally.summary(12.0)

    assert summary.requests == 1
    assert summary.qps == pytest.approx(2 / 10.0)


def test_a_window_that_was_not_reached_to_its_end_is_shorter():
    summary = tally_of(a_sample(due_s=1.0), window=Window(warmup_s=1.0)).summary(3.0)

    assert summary.seconds == pytest.approx(2.0)
    assert summary.qps == pytest.approx(0.5)


def test_latency_counts_from_when_a_request_was_due():
    sample = a_sample(due_s=1.0, total_s=0.5, sent_late_s=0.3, ttft_s=0.1)

    assert sample.total_s == pytest.approx(0.5)
    assert sample.ttft_s == pytest.approx(0.4)
    assert tally_of(sample).summary(2.0).late_p99_s == pytest.approx(0.3)


def test_memory_is_bounded_and_the_summary_says_so():
    tally = tally_of(*(a_sample(total_s=i / 1000, model=f"m{i}") for i in range(1000)), keep=100)

    summary = tally.summary(10.0)

    assert (summary.ok, summary.kept) == (1000, 100)
    assert summary.mean_s == pytest.approx(0.4995)
    assert 0.35 < summary.p50_s < 0.65
    assert len(summary.by_model) <= 257
    assert sum(summary.by_model.values()) == 1000


def test_milliseconds_and_rates_follow_the_scale():
    """Ten emulated seconds a second: latencies are ten times longer, rates ten times smaller."""
    figures = tally_of(a_sample(total_s=0.1), window=Window(0.0, 4.0)).summary(4.0).in_ms(scale=10.0)

    assert figures["p50_ms"] == pytest.approx(1000.0)
    assert figures["qps"] == pytest.approx(0.025)
    assert figures["seconds"] == pytest.approx(40.0)
