"""Points of the unit cube and options of a policy are two ways to say the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import ConfigError
from envs.tuning.space import Space
from tests.envs.evaluation.synthetic import Between

SPACE = Space({"weight": Between(0.5, 50.0, log=True), "slope": Between(-1.0, 1.0)})
UNIT = st.floats(0.0, 1.0)


@given(UNIT, UNIT)
def test_there_and_back_again(x, y):
    point = np.array([x, y])

    assert SPACE.point(SPACE.options(point)) == pytest.approx(point, abs=1e-4)


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_options_stay_in_their_ranges(x, y):
    options = SPACE.options(np.array([x, y]))

    assert 0.5 <= options["weight"] <= 50.0
    assert -1.0 <= options["slope"] <= 1.0


def test_the_middle_is_the_geometric_mean_on_a_log_scale():
    assert SPACE.options(np.array([0.5, 0.5])) == {"weight": 5.0, "slope": 0.0}


def test_a_default_outside_its_range_starts_at_the_wall():
    assert SPACE.point({"weight": 0.0, "slope": 7.0}) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(Between(2.0, 1.0), id="upside down"),
        pytest.param(Between(0.0, 1.0, log=True), id="zero on a log scale"),
    ],
)
def test_a_range_that_cannot_be_is_refused(bad):
    with pytest.raises(ConfigError, match="the range of 'weight' is"):
        Space({"weight": bad})
