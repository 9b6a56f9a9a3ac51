"""The figures of an episode, from its columns."""

import numpy as np
import pytest

from ccr.reward import cost_of_rejection
from envs.episode import FAILED, OK, REJECTED, Episode


def an_episode(*rows, **fields):
    """Rows of (status, total_s, ttft_s); ideal latency 1 s for all, all counted, one arrival a second."""
    status, total_s, ttft_s = (np.array(column) for column in zip(*rows, strict=True))
    r = len(rows)
    columns = {
        "arrived_s": np.arange(r, dtype=float), "total_s": total_s.astype(float), "ttft_s": ttft_s.astype(float),
        "ideal_s": np.ones(r), "node": np.where(status == OK, 0, -1), "status": status.astype(int),
        "cold": np.zeros(r, dtype=bool), "counted": np.ones(r, dtype=bool),
    } | {name: np.array(value) for name, value in fields.items()}  # fmt: skip
    return Episode(
        scenario="s", policy="p", seed=1, evictions=3, loads=4, peak_gib=9.5, span_s=10.0, **columns
    )


NAN = float("nan")
MIXED = an_episode((OK, 2.0, 0.5), (OK, 6.0, 1.0), (REJECTED, NAN, NAN), (FAILED, NAN, NAN))


def test_each_request_costs_what_became_of_it():
    refused = float(cost_of_rejection(np.ones(1))[0])

    assert MIXED.costs.tolist() == [0.5, 1.5 + 2.0, refused, 15.0 + 2.0]
    assert MIXED.metrics()["cost"] == pytest.approx(MIXED.costs.mean())


def test_latencies_are_of_those_served():
    figures = MIXED.metrics()

    assert (figures["mean_s"], figures["p50_s"]) == (4.0, 4.0)
    assert figures["p99_s"] == pytest.approx(5.96)
    assert figures["ttft_p99_s"] == pytest.approx(0.995)


def test_promises_count_every_offered_request():
    figures = MIXED.metrics()

    assert figures["slo"] == 0.25  # 2.5 x 1 s + 2 s: one of four
    assert (figures["throughput"], figures["goodput"]) == (0.2, 0.1)
    assert (figures["reject_rate"], figures["failures"]) == (0.25, 1.0)


def test_what_arrived_during_warm_up_does_not_count():
    episode = an_episode(
        (FAILED, NAN, NAN), (OK, 2.0, 0.5), counted=[False, True], cold=[True, True]
    )  # fmt: skip

    figures = episode.metrics()

    assert (figures["cost"], figures["failures"], figures["slo"], figures["cold_starts"]) == (
        0.5,
        0.0,
        1.0,
        1.0,
    )


def test_where_nobody_was_served_there_is_a_cost_but_no_latency():
    figures = an_episode((REJECTED, NAN, NAN), (FAILED, NAN, NAN)).metrics()

    assert figures["cost"] > 2.0
    assert np.isnan([figures["mean_s"], figures["p50_s"], figures["p99_s"], figures["ttft_p99_s"]]).all()
    assert figures["throughput"] == figures["slo"] == 0.0


def test_the_fleets_counters_are_passed_on():
    figures = MIXED.metrics()

    assert (figures["evictions"], figures["loads"], figures["peak_gib"]) == (3.0, 4.0, 9.5)
    assert len(MIXED) == 4
