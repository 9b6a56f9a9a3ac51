"""The study of the watch: a few runs of what `python -m benchmarks.watching` does two hundred of."""

import pytest

from benchmarks.watching import BAD, Fleet, delay_s, false_alarms, good


def test_the_same_seed_is_the_same_run():
    assert false_alarms(3, 0.4, 0.55) == false_alarms(3, 0.4, 0.55)


def test_requests_fare_as_in_a_fleet_that_is_not_idle():
    fleet = Fleet(1)

    fleet.until(600.0)

    assert 1500 < fleet.requests < 4500
    usual = fleet.judge.usual
    assert 0.0 < usual.counted[0].sum() / usual.number[0].sum() < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_good_versions_are_not_rolled_back(seed):
    assert false_alarms(seed, 0.7, 0.55)[0] == 0


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in {"at random", "loads all the time"}])
def test_absurd_versions_are_rolled_back_within_half_a_minute(kind):
    assert max(delay_s(seed, kind, 0.55) for seed in range(3)) <= 30.0


def test_a_version_that_loads_all_the_time_is_rolled_back_though_not_always_within_half_a_minute():
    """Three of four times within 30 s (docs/guardrails.md): in a fleet that loads much anyway it takes longer to tell."""
    assert max(delay_s(seed, "loads all the time", 0.55) for seed in range(3)) <= 120.0


def test_a_version_is_judged_by_what_it_does_and_not_by_what_others_did():
    fleet = Fleet(2)
    fleet.until(600.0)

    fleet.publish(good(fleet.rng))

    assert not fleet._ends
    assert fleet.judge.on_trial
