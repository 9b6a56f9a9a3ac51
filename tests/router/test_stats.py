import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.stats import LATENCY_BUCKETS_S, MAX_LABELS, OTHER, ByModel, Histogram, Stats

BOUNDS = st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=10, unique=True).map(sorted)


@given(BOUNDS, st.lists(st.floats(-200.0, 200.0), max_size=50), st.data())
def test_a_histogram_counts_what_numpy_counts(bounds, values, data):
    """With bounds that belong to the bucket below, as Prometheus wants them."""
    values += data.draw(st.lists(st.sampled_from(bounds), max_size=5))
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)

    edges = np.array([-np.inf, *bounds, np.inf])
    mirrored, _ = np.histogram(
        -np.array(values), -edges[::-1]
    )  # numpy closes the last bucket, and the lower ends
    assert histogram.counts == mirrored[::-1].tolist()
    np.testing.assert_allclose(histogram.total, sum(values))


def test_models_beyond_the_limit_share_one_histogram():
    by_model = ByModel(LATENCY_BUCKETS_S)
    for i in range(2 * MAX_LABELS):
        by_model.observe(f"m{i}", 0.1)
    by_model.observe("m0", 0.1)

    assert len(by_model.histograms) == MAX_LABELS + 1
    assert sum(by_model.histograms[OTHER].counts) == MAX_LABELS
    assert sum(by_model.histograms["m0"].counts) == 2


def test_outcomes_are_bounded_and_none_is_lost():
    stats = Stats()
    for i in range(20 * MAX_LABELS):
        stats.ended(f"m{i}", "1", "ok")

    assert len(stats.outcomes) <= 10 * MAX_LABELS + 1
    assert stats.outcomes.total() == 20 * MAX_LABELS


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(1e-6, 0.1)), max_size=100), st.floats(0.0, 5.0))
def test_the_slowest_decision_is_that_of_the_last_fifteen_seconds(decisions, later_s):
    """Exact but for the last second of the window: there a smaller one may have been forgotten."""
    stats, now_s, seen = Stats(), 0.0, []
    for gap_s, took_s in decisions:
        now_s += gap_s
        stats.decided(took_s, now_s)
        seen.append((now_s, took_s))

    now_s += later_s
    slowest_s = stats.slowest_decision_s(now_s)

    assert slowest_s >= max((took for at, took in seen if now_s - at <= 14.0), default=0.0)
    assert slowest_s <= max((took for at, took in seen if now_s - at <= 15.0), default=0.0)


def test_every_decision_is_counted_in_the_histogram():
    stats = Stats()
    for i in range(100):
        stats.decided(1e-6 * i, 0.0)

    assert sum(stats.decision_s.counts) == 100
