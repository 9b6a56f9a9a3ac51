"""The table of what may be tuned fits the policies it names."""

from dataclasses import fields

import pytest

from ccr.policies import POLICIES
from ccr.policies.tunable import TUNABLE

OPTIONS = [(policy, option) for policy, options in TUNABLE.items() for option in options]
UNTUNED = {"random", "round_robin", "least_latency", "learned"}
every_option = pytest.mark.parametrize(("policy", "option"), OPTIONS)


@every_option
def test_an_option_is_one_that_the_policy_has(policy, option):
    assert option in {field.name for field in fields(POLICIES[policy])}


@every_option
def test_the_default_lies_in_the_range(policy, option):
    """The search starts there."""
    low, high, _ = TUNABLE[policy][option]

    assert low <= getattr(POLICIES[policy](), option) <= high


@every_option
def test_a_range_is_one_and_a_logarithm_has_no_zero(policy, option):
    low, high, log = TUNABLE[policy][option]

    assert low < high
    assert low > 0.0 or not log


@every_option
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_policy_can_be_made_at_either_end(policy, option, end):
    value = getattr(TUNABLE[policy][option], end)

    assert getattr(POLICIES[policy](**{option: value}), option) == value


def test_every_policy_with_weights_can_be_tuned():
    assert set(TUNABLE) == set(POLICIES) - UNTUNED
