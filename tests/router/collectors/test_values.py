"""Numbers within what a quantity can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import TelemetryError
from router.collectors import values


def samples(*numbers):
    return [({}, number) for number in numbers]


@pytest.mark.parametrize(("share", "taken"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.004, 1.0), (1.01, 1.0)])
def test_a_full_cache_may_overshoot_a_little_and_is_taken_as_full(share, taken):
    assert values.fraction(samples(share)) == taken


def test_percent_where_a_fraction_belongs_is_refused():
    with pytest.raises(TelemetryError) as refused:
        values.fraction(samples(42.0))
    assert refused.value.reason == "out_of_range"


@pytest.mark.parametrize("of", [values.count, values.fraction, values.mean_fraction, values.gib])
def test_no_samples_are_unknown_not_zero(of):
    assert of([]) is None


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_a_count_is_the_sum_or_refused(numbers):
    try:
        total = values.count(samples(*numbers))
    except TelemetryError as error:
        total = error.reason

    good = all(0.0 <= number <= 1e6 for number in numbers) and sum(numbers) <= 1e6
    assert total == sum(numbers) if good else total in {"not_finite", "negative", "out_of_range"}


def test_devices_add_up_in_gib():
    assert values.gib(samples(2.0**30, 2.0**31)) == 3.0
