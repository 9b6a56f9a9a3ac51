"""Who lies gains nothing: FAULTS rows 6, 10, 25, 26, 39 and S13, at the learner."""

import itertools
import math

import numpy as np
import pytest

from ccr.lesson import Flag, encode
from ccr.types import Outcome
from rl.online.batch import batch_of
from rl.online.calibration import Calibrator
from router.publishing.follower import Follower
from router.publishing.publisher import LEASE_S, NAME
from router.store.store import FencedError
from tests.records import an_answer, answers
from tests.rl.online.fleet import KEY
from tests.rl.online.test_learner import judged, versions
from tests.router.publishing.publications import Told, weights_file

RNG = np.random.default_rng


def after(lessons, minutes=10):
    """What is believed when records like these were seen for so long."""
    calibrator = Calibrator()
    calibrator.add(batch_of(lessons))
    now_s = max(one.at_s for one in lessons)
    for _ in range(60 * minutes):
        calibrator._turned_s = now_s - 1.0
        calibrator.turn(now_s)
    return calibrator


def test_a_node_whose_telemetry_lies_is_doubted_and_never_taken_for_fast():
    """Row 10: it tells of 1 request where the router has 6, and answers as fast as half an A10."""
    lies = [an_answer(0, n=1, inflight=6.0, told=1.0, speed=0.5, at_s=1000.0 + k / 10) for k in range(200)]

    calibrator = after(lies)

    assert calibrator.doubted() == [100]
    assert calibrator.calibration().nodes[100].speed >= 1.0
    assert calibrator.calibration().nodes[100].is_doubted


def test_an_honest_node_is_not_doubted_though_its_telemetry_is_a_little_late():
    rng = RNG(1)
    honest = [
        an_answer(0, n=1, inflight=6.0, told=6.0 + float(rng.integers(-2, 3)), at_s=1000.0 + k / 10)
        for k in range(200)
    ]

    assert after(honest).doubted() == []


def test_an_honest_node_with_bursts_is_not_doubted_though_its_readings_are_of_a_moment_before():
    """Where the router has many there, it had fewer a moment ago: that is no lie."""
    rng = RNG(9)
    inflight = [float(one) for one in rng.poisson(1.5, 601)]
    lessons = [
        an_answer(0, n=1, inflight=now, told=before, at_s=1000.0 + k / 10)
        for k, (before, now) in enumerate(itertools.pairwise(inflight))
    ]

    assert after(lessons).doubted() == []


def test_a_node_that_others_use_too_is_not_doubted():
    assert (
        after(
            [an_answer(0, n=1, inflight=4.0, told=12.0, at_s=1000.0 + k / 10) for k in range(100)]
        ).doubted()
        == []
    )


def test_doubt_ends_when_telemetry_is_honest_again():
    calibrator = after([an_answer(0, n=1, inflight=6.0, told=1.0, at_s=1000.0 + k / 10) for k in range(100)])
    calibrator.add(
        batch_of([an_answer(0, n=1, inflight=6.0, told=6.0, at_s=1100.0 + k / 10) for k in range(300)])
    )
    calibrator.turn(1250.0)

    assert calibrator.doubted() == []


def test_a_node_that_hands_its_tokens_out_all_at_once_is_not_taken_for_fast():
    """It holds an answer back and sends it in one go: from first to last token no time passes."""
    held = [
        an_answer(0, n=1, overhead_s=1.2, speed=0.25, prefill_speed=1.0, at_s=1000.0 + k / 10)
        for k in range(200)
    ]

    assert after(held).calibration().nodes[100].speed >= 0.99


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_node_that_fails_fast_gains_nothing(share):
    """Row 6: failures in a millisecond are no evidence of speed, however many there are."""
    rng = RNG(2)
    lessons = [
        an_answer(0, n=1, at_s=1000.0 + k / 10, speed=0.01, output=2, outcome=Outcome.UPSTREAM_5XX)
        if rng.random() < share else an_answer(0, n=1, at_s=1000.0 + k / 10)
        for k in range(1000)
    ]  # fmt: skip

    state = after(lessons).nodes[100]

    assert math.exp(state.speed) == pytest.approx(1.0, abs=0.02)
    assert state.failures == pytest.approx(share, abs=0.2)


def test_a_node_that_only_fails_is_not_known_at_all():
    lessons = [
        an_answer(0, n=1, at_s=1000.0 + k / 10, speed=0.01, outcome=Outcome.UPSTREAM_5XX) for k in range(300)
    ]

    assert after(lessons).calibration().nodes == {}


def test_clients_that_hang_up_at_once_make_no_node_fast():
    lessons = [
        an_answer(0, n=1, at_s=1000.0 + k / 10, speed=0.01, outcome=Outcome.CLIENT_CLOSED) for k in range(300)
    ]

    assert after(lessons).calibration().nodes == {}


@pytest.mark.parametrize("lie", [0.3, 4.0])
def test_a_fifth_of_the_clients_moves_no_constant_by_a_tenth(lie):
    """S13, sybils: a fifth of the sessions make a node look fast, or slow by reading slowly; each asks five times as often."""
    rng = RNG(3)
    lessons = []
    for k in range(2000):
        is_sybil = k % 5 < 1
        session = 1 + k % 20 if is_sybil else 1000 + int(rng.integers(80))
        speed = (lie if is_sybil else 1.0) * float(np.exp(0.1 * rng.standard_normal()))
        lessons.append(an_answer(0, n=1, at_s=1000.0 + k / 20, speed=speed, session=session))

    assert after(lessons).calibration().nodes[100].speed == pytest.approx(1.0, abs=0.1)


def test_one_client_that_asks_for_nearly_everything_still_counts_for_little():
    lessons = [an_answer(0, n=1, at_s=1000.0 + k / 10, speed=4.0, session=5) for k in range(200)]
    lessons += [an_answer(0, n=1, at_s=1000.0 + k, session=100 + k) for k in range(40)]

    assert after(lessons).calibration().nodes[100].speed == pytest.approx(1.0, abs=0.05)


def test_times_that_callers_report_move_nothing():
    lies = [an_answer(0, n=1, at_s=1000.0 + k / 10, speed=0.2, flags=int(Flag.REPORTED)) for k in range(300)]

    assert after(lies + answers(RNG(4), 100, speeds=(1.0,))).calibration().nodes[100].speed == pytest.approx(
        1.0, abs=0.05
    )


def test_a_few_very_long_answers_are_no_trend():
    rng = RNG(5)
    lessons = answers(rng, 240, output=50, model=7, speeds=(1.0,))
    lessons += [an_answer(0, n=1, at_s=1024.0, output=50_000, model=7) for _ in range(12)]

    assert after(lessons).calibration().models[7].output_tokens < 75.0


def test_feedback_that_is_not_finite_is_left_out_and_counted(bench):
    """Row 39, NaN: the record is refused, the next one is read."""
    learner = bench.learner()
    poison = encode(an_answer(at_s=bench.clock.now_s - 2.0, total_s=float("nan")))
    bench.tell([poison, b"\xff junk", *bench.answers(RNG(6), 30)])
    bench.turn(learner, 2)

    assert learner.counts.records == 30
    assert learner.status()["left_out"] == {"not_finite": 1, "unreadable": 1}


def test_of_two_learners_one_stands_by_and_takes_over_when_the_other_is_gone(bench):
    """Row 26."""
    first, second = bench.learner(), bench.learner("another")
    bench.turn(first)
    bench.tell(bench.answers(RNG(7), 60))
    bench.turn(second)
    bench.turn(first, 3)

    assert (str(first.doing), str(second.doing)) == ("reading", "standby")
    assert (first.counts.records, second.counts.records) == (60, 0)

    first.close()
    bench.turn(second, 8)
    bench.tell(bench.answers(RNG(8), 25))
    bench.turn(second, 2)

    assert str(second.doing) == "reading"
    assert second.counts.records == 25


def test_a_learner_that_was_asleep_over_its_lease_does_not_publish(bench):
    """Row 26: the stale one's publication is refused."""
    first, second = bench.learner(), bench.learner("another")
    bench.turn(first)
    bench.clock.now_s += LEASE_S + 1.0
    bench.turn(second)
    before = versions(bench)

    with pytest.raises(FencedError):
        first._publisher.hold()
    assert first.publish(weights_file("stale"), "retrained") is None
    bench.turn(first, 2)

    assert str(first.doing) == "standby"
    assert versions(bench) == before


def killed(*_args, **_fields):
    raise SystemExit("killed")


@pytest.mark.parametrize(
    ("whose", "step"),
    [
        ("store", "put_blob"),
        ("store", "point"),
        ("store", "hint"),
        ("store", "drop_blob"),
        ("shelf", "remember"),
        ("shelf", "enqueue"),
    ],
)
def test_a_learner_killed_at_a_step_of_publishing_leaves_old_or_new_and_the_next_one_goes_on(
    bench, monkeypatch, whose, step
):
    """Row 25; every line of the publisher itself: tests/router/publishing."""
    learner = bench.learner()
    bench.turn(learner)
    learner.close()
    learner = bench.learner()
    bench.turn(learner)
    judged(learner, bench)
    with monkeypatch.context() as moment:
        moment.setattr(bench.store if whose == "store" else learner._shelf, step, killed)
        if step == "drop_blob":  # reached when there are more files than are kept
            moment.setattr("router.publishing.publisher.KEPT", 1)
        with pytest.raises(SystemExit):
            bench.turn(learner)

    replica = Told()
    Follower(bench.store, KEY, replica).look()
    assert replica.names[-1] in {"better", *[one[0] for one in versions(bench)]}
    bench.clock.now_s += LEASE_S + 1.0
    after_it = bench.learner()
    bench.turn(after_it, 6)
    (now,) = versions(bench)
    assert after_it.current.name == now[0]
    waiting = [one.facts["version"] for one in after_it._shelf.waiting()]
    assert sorted(set(waiting)) == sorted(waiting)
    assert after_it.current.version in waiting
    assert bench.store.pointer(NAME) is not None
