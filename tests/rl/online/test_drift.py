"""Drift is seen, named and measured; where nothing drifts, hardly ever is one seen."""

import math

import numpy as np
import pytest

from rl.online.batch import batch_of
from rl.online.drift import LEARNED_BLOCKS, SPEED, Detector, Drift, Stream
from tests.records import an_answer, answers

STREAMS, BLOCKS = 200, 300


def noise(seed, blocks, hangs, heavy=False):
    """Blocks of a stationary stream, each hanging on the one before; unit spread."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(4, blocks) / math.sqrt(2.0) if heavy else rng.standard_normal(blocks)
    for k in range(1, blocks):
        drawn[k] = hangs * drawn[k - 1] + math.sqrt(1.0 - hangs**2) * drawn[k]
    return drawn


def alarms(values):
    stream, found = Stream(SPEED, 1), []
    for k, value in enumerate(values):
        if (drift := stream.take(float(value), float(k))) is not None:
            found.append(drift)
    return found


@pytest.mark.parametrize(("hangs", "heavy"), [(0.0, False), (0.5, False), (0.3, True)])
def test_where_nothing_drifts_there_is_less_than_one_alarm_in_two_thousand_blocks(hangs, heavy):
    count = sum(len(alarms(0.1 * noise(seed, BLOCKS, hangs, heavy))) for seed in range(STREAMS))

    assert count <= STREAMS * (BLOCKS - LEARNED_BLOCKS) / 2000


@pytest.mark.parametrize("factor", [2.0, 0.5, 3.0])
def test_a_level_that_moves_is_seen_within_six_blocks_and_measured(factor):
    delays = []
    for seed in range(50):
        values = 0.12 * noise(seed, 100, 0.3)
        values[60:] += math.log(factor)
        found = [one for one in alarms(values) if one.found_s >= 60.0]
        assert found, "it was not seen"
        delays.append(found[0].found_s - 60.0)
        assert found[0].factor == pytest.approx(factor, rel=0.25)
        assert 57.0 <= found[0].since_s <= 62.0

    assert np.quantile(delays, 0.9) <= 6.0


def test_what_moved_too_little_to_matter_is_not_told():
    values = 0.02 * noise(1, 200, 0.0)
    values[60:] += math.log(1.1)

    assert alarms(values) == []


def test_the_new_level_is_what_is_normal_from_then_on():
    values = 0.1 * noise(2, 200, 0.0)
    values[60:] += math.log(2.0)
    values[130:] -= math.log(2.0)

    found = alarms(values)

    assert [round(math.log2(one.factor)) for one in found] == [1, -1]


def seen(before, after):
    """What a detector finds in ``after`` that it did not in ``before``."""
    detector = Detector()
    for k in range(0, len(before), 256):
        detector.add(batch_of(before[k : k + 256]))
    detector.found.clear()
    for k in range(0, len(after), 64):
        detector.add(batch_of(after[k : k + 64]))
    return list(detector.found)


def test_a_node_that_becomes_slow_is_named_and_no_other_is():
    rng = np.random.default_rng(3)

    found = seen(answers(rng, 3000), answers(rng, 1200, begin_s=1300.0, speeds=(1.0, 2.0, 1.0, 1.0)))

    assert {one.quantity.name for one in found} <= {"speed", "prefill"}
    assert {one.whose for one in found} == {101}
    speed = next(one for one in found if one.quantity is SPEED)
    assert speed.factor == pytest.approx(2.0, rel=0.15)
    assert 1290.0 <= speed.since_s <= 1330.0
    assert (
        speed.told({101: "a10-1"})
        == f"time of answers of node a10-1, warm: {speed.factor:.2f} times what it was"
    )


def test_a_load_that_takes_twice_as_long_is_named():
    rng = np.random.default_rng(4)

    def loads(count, begin_s, load_s):
        return [
            an_answer(k % 4, model=7 + k % 2, load_s=(load_s if k % 2 else 6.0) * float(np.exp(0.1 * rng.standard_normal())),
                      at_s=begin_s + k) for k in range(count)
        ]  # fmt: skip

    found = seen(loads(200, 1000.0, 6.0), loads(40, 1200.0, 12.0))

    assert {(one.quantity.name, one.whose) for one in found if one.quantity.name == "load"} == {("load", 8)}


def test_answers_that_become_three_times_as_long_are_named():
    rng = np.random.default_rng(5)
    before = answers(rng, 3000)
    after = [an_answer(k % 4, model=7, output=150, at_s=1300.0 + k / 10) for k in range(200)]

    assert ("length", 7) in {(one.quantity.name, one.whose) for one in seen(before, after)}


def test_a_swap_of_popularity_is_named_by_both_models():
    rng = np.random.default_rng(6)

    def traffic(count, begin_s, share):
        return [
            an_answer(k % 4, model=1 if rng.random() < share else 2, at_s=begin_s + k / 10, output=50) for k in range(count)
        ]  # fmt: skip

    found = seen(traffic(5000, 1000.0, 0.8), traffic(1500, 1500.0, 0.2))

    shares = {one.whose: one.factor for one in found if one.quantity.name == "share"}
    assert shares[1] < 0.5
    assert shares[2] > 2.0


def test_a_rush_is_named():
    rng = np.random.default_rng(7)

    found = seen(answers(rng, 5000, per_s=10.0), answers(rng, 6000, begin_s=1500.0, per_s=40.0))

    assert "rate" in {one.quantity.name for one in found}


def test_what_no_config_names_is_told_as_that():
    drift = Drift(SPEED, 17, 2.0, 0.0, 1.0)

    assert "node unknown-0000000000000011" in drift.told({})
    assert drift.as_json({17: "a10-1"})["whose"] == "a10-1"
