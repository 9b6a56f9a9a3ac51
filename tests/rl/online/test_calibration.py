"""The fast loop: constants follow what is seen, robustly, and no faster than they may."""

import math

import numpy as np
import pytest

from rl.online.batch import batch_of
from rl.online.calibration import LEAST_ANSWERS, Calibrator, regressed
from rl.online.windows import Windows, capped, clipped_mean, median
from tests.records import OVERHEAD_S, an_answer, answers

RNG = np.random.default_rng


def calibrated(lessons, minutes=10.0, calibrator=None):
    """After so many minutes in which records like these were seen."""
    calibrator = calibrator or Calibrator()
    calibrator.add(batch_of(lessons))
    now_s = max(one.at_s for one in lessons)
    calibrator.turn(now_s)
    for k in range(int(60 * minutes)):  # the same evidence stays the latest
        calibrator.turn(now_s + (k + 1) / 1e6)
        calibrator._turned_s = now_s - 1.0
    return calibrator


def test_speeds_are_found():
    found = calibrated(answers(RNG(1), 400, speeds=(1.0, 2.0, 0.8, 1.3))).calibration().nodes

    assert [found[100 + k].speed for k in range(4)] == pytest.approx([1.0, 2.0, 0.8, 1.3], rel=0.05)


def test_overhead_and_prefill_speed_are_told_apart():
    found = calibrated(answers(RNG(2), 800, overhead_s=0.12, prefill_speed=1.4), minutes=20)

    state = found.nodes[100]
    assert state.overhead_s == pytest.approx(0.12, abs=0.02)
    assert math.exp(state.prefill) == pytest.approx(1.4, rel=0.1)


def test_without_streams_whole_answers_tell_the_speed():
    found = calibrated(answers(RNG(3), 400, speeds=(1.0, 2.0), streamed=False)).calibration().nodes

    assert found[101].speed == pytest.approx(2.0, rel=0.08)
    assert math.isnan(found[101].overhead_s)


def test_loads_and_lengths_of_models_are_found():
    lessons = answers(RNG(4), 100) + [an_answer(k % 4, load_s=12.0, model=7, at_s=1009.0) for k in range(6)]

    found = calibrated(lessons).calibration().models[7]

    assert found.load_s == pytest.approx(12.0, rel=0.02)
    assert found.output_tokens == pytest.approx(50.0, rel=0.15)


def test_too_little_says_nothing():
    found = calibrated(answers(RNG(5), LEAST_ANSWERS - 1, speeds=(3.0,)))

    assert found.calibration().nodes == {}


def test_what_is_old_is_forgotten():
    calibrator = calibrated(answers(RNG(6), 100, speeds=(2.0,)))
    calibrator.turn(1000.0 + 1000.0)

    assert calibrator.nodes[100].answers == 0


@pytest.mark.parametrize(("speed", "most"), [(0.3, 1.0 / 1.1), (4.0, 1.5)])
def test_a_node_s_constants_move_only_so_fast(speed, most):
    """FAULTS S13: the influence of one node's data is capped."""
    calibrator = Calibrator()
    calibrator.add(batch_of(answers(RNG(7), 200, begin_s=1000.0, per_s=100.0, speeds=(speed,))))
    calibrator.turn(1002.0)
    before = calibrator.nodes[100].speed
    for k in range(60):
        calibrator.turn(1002.0 + k + 1.0)

    assert math.exp(calibrator.nodes[100].speed - before) == pytest.approx(most, rel=1e-3)


def test_however_long_it_was_away_it_moves_by_a_minute_at_most():
    calibrator = Calibrator()
    calibrator.add(batch_of(answers(RNG(8), 100, speeds=(4.0,))))
    calibrator.turn(1010.0)
    calibrator.add(batch_of(answers(RNG(8), 100, begin_s=9000.0, speeds=(4.0,))))
    before = calibrator.nodes[100].speed
    calibrator.turn(9010.0)

    assert math.exp(calibrator.nodes[100].speed - before) <= 1.5 + 1e-9


def test_constants_stay_within_limits():
    found = calibrated(answers(RNG(9), 200, speeds=(40.0,), overhead_s=20.0), minutes=60).calibration()

    assert found.nodes[100].speed == pytest.approx(5.0)
    assert found.nodes[100].overhead_s <= 5.0


def test_what_an_earlier_process_found_out_is_where_this_one_begins():
    known = calibrated(answers(RNG(10), 400, speeds=(2.0, 1.0))).calibration()
    fresh = Calibrator()
    fresh.begin_with(known)

    assert math.exp(fresh.nodes[100].speed) == pytest.approx(known.nodes[100].speed)


def test_names_stand_for_hashes_and_what_has_none_is_told_as_unknown():
    told = calibrated(answers(RNG(11), 100)).as_json({100: "a10-0"})

    assert "a10-0" in told["nodes"]
    assert "unknown-0000000000000065" in told["nodes"]


def test_outliers_do_not_bend_the_regression():
    rng = RNG(12)
    work_s = rng.uniform(0.05, 0.5, 200)
    first_s = OVERHEAD_S + 1.2 * work_s + rng.normal(0.0, 0.005, 200)
    first_s[::8] += 3.0

    found = regressed(first_s, work_s, np.ones(200), 1.0)

    assert found.overhead_s == pytest.approx(OVERHEAD_S, abs=0.02)
    assert found.prefill == pytest.approx(1.2, rel=0.08)


def test_windows_keep_the_latest_of_each_key():
    windows = Windows(3)
    ids = np.array([1, 2, 1, 1, 1], dtype=np.uint64)
    windows.add(ids, np.arange(5.0), np.arange(5.0), np.zeros(5, dtype=np.uint64))

    assert sorted(windows.latest(1, 0.0)[0][0]) == [2.0, 3.0, 4.0]
    assert windows.latest(1, 3.5)[0][0].tolist() == [4.0]
    assert windows.latest(2, 0.0)[0][0].tolist() == [1.0]
    assert windows.latest(9, 0.0)[0].shape == (1, 0)


def test_windows_hold_as_many_keys_as_there_are():
    windows = Windows(2)
    keys = np.arange(100, dtype=np.uint64)
    windows.add(keys, np.arange(100.0), np.zeros(100), keys)

    assert [windows.latest(k, -1.0)[0][0, 0] for k in (0, 57, 99)] == [0.0, 57.0, 99.0]


def test_one_session_counts_for_a_tenth_as_long_as_there_are_others():
    whose = np.array([5] * 80 + list(range(10, 30)), dtype=np.uint64)

    weights = capped(whose, 0.1)

    assert weights[:80].sum() == pytest.approx(10.0)
    assert (weights[80:] == 1.0).all()
    assert capped(np.zeros(50, dtype=np.uint64), 0.1).sum() == 50.0


def test_median_and_mean_are_weighted_and_robust():
    values, weights = np.array([1.0, 2.0, 3.0, 1000.0]), np.array([1.0, 1.0, 1.0, 0.1])

    assert median(values, weights) == 2.0
    assert clipped_mean(values, np.ones(4), 8.0) == pytest.approx((1 + 2 + 3 + 16) / 4)
