import pytest

from router.demo.contest import Result, went_wrong
from router.load_tally import Answer, Sample, Tally, Window


def a_result(*errors, lag_p99_s=0.001):
    tally = Tally(Window(measure_s=10.0))
    for error in errors or ("",):
        tally.began()
        tally.add(Sample(1.0, 1.0, 1.5, "m", Answer(error)))
    return Result(
        "p", tally.summary(10.0), cold_starts=3, warmup_cold_starts=5, peak_gib=17.123, lag_p99_s=lag_p99_s
    )


def test_a_row_is_in_emulated_time():
    row = a_result().row(speed=10.0)

    assert row["p50_ms"] == pytest.approx(5_000.0)
    assert row["qps"] == pytest.approx(0.01)
    assert row["seconds"] == pytest.approx(100.0)
    assert (row["cold_starts"], row["cold_starts_in_warm_up"], row["peak_gpu_gib"]) == (3, 5, 17.12)


@pytest.mark.parametrize(
    ("results", "in_flight", "wrong"),
    [
        pytest.param([a_result(), a_result()], 0, False, id="all well"),
        pytest.param([a_result(), a_result("", "timeout")], 0, True, id="a failed request"),
        pytest.param([a_result()], 1, True, id="a lost request"),
    ],
)
def test_a_failed_or_lost_request_fails_the_demo(results, in_flight, wrong):
    assert went_wrong(results, in_flight) is wrong


def test_a_machine_that_cannot_keep_up_is_noticed():
    assert a_result(lag_p99_s=0.05).machine_too_busy
    assert not a_result(lag_p99_s=0.002).machine_too_busy
