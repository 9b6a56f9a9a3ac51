"""Robust constants from relative errors, and what the data cannot tell."""

from math import inf

import numpy as np
import pytest

from envs.calibration.solve import Range, fit_constants

SIZES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])


def line(sizes, measured):
    return lambda values: (values["fixed"] + sizes * values["each"]) / measured - 1.0


def test_constants_come_back_and_outliers_do_not_move_them():
    measured = 3.0 + 0.5 * SIZES
    measured[2] *= 2.0

    found = fit_constants(
        line(SIZES, measured), {"fixed": Range(1.0, 0.1, 100.0), "each": Range(1.0, 0.01, 10.0)}
    )

    assert found["fixed"].value == pytest.approx(3.0, rel=0.02)
    assert found["each"].value == pytest.approx(0.5, rel=0.02)


def test_the_standard_error_is_the_spread_of_repeated_fits():
    rng = np.random.default_rng(4)
    ranges = {"fixed": Range(1.0, 0.1, 100.0), "each": Range(1.0, 0.01, 10.0)}
    truth = 3.0 + 0.5 * SIZES

    fits = [fit_constants(line(SIZES, truth * rng.normal(1.0, 0.01, len(SIZES))), ranges) for _ in range(200)]

    for name in ranges:
        seen = np.std([fit[name].value for fit in fits])
        claimed = np.mean([fit[name].error for fit in fits])
        assert claimed == pytest.approx(seen, rel=0.35)


def test_a_constant_without_effect_keeps_its_start_and_says_so():
    ranges = {"fixed": Range(1.0, 0.1, 100.0), "each": Range(1.0, 0.01, 10.0), "idle": Range(7.0, 1.0, 9.0)}

    found = fit_constants(line(SIZES, 3.0 + 0.5 * SIZES), ranges)

    assert (found["idle"].value, found["idle"].error) == (7.0, inf)
    assert "cannot tell" in found["idle"].note
    assert found["each"].value == pytest.approx(0.5, rel=0.01)
    assert not found["each"].note


def test_two_constants_that_only_show_together_are_not_both_claimed():
    same = np.full(8, 4.0)

    found = fit_constants(
        line(same, 3.0 + 0.5 * same), {"fixed": Range(2.5, 0.1, 100.0), "each": Range(0.4, 0.01, 10.0)}
    )

    kept = [name for name, constant in found.items() if constant.error == inf]
    assert len(kept) == 1
    assert found["fixed"].value + 4.0 * found["each"].value == pytest.approx(5.0, rel=0.01)


def test_fewer_rows_than_constants_tell_less():
    found = fit_constants(
        line(SIZES[:1], np.array([3.5])), {"fixed": Range(2.0, 0.1, 100.0), "each": Range(0.4, 0.01, 10.0)}
    )

    assert all(constant.error == inf for constant in found.values())


def test_a_constant_at_the_end_of_its_range_says_so():
    found = fit_constants(
        line(SIZES, 3.0 + 0.5 * SIZES), {"fixed": Range(1.0, 0.1, 2.9), "each": Range(1.0, 0.01, 10.0)}
    )

    assert found["fixed"].value == pytest.approx(2.9, rel=1e-3)
    assert "plausible range" in found["fixed"].note
