import pytest

from ccr.errors import CCRError
from envs.evaluation import engine


def test_a_missing_package_is_named_with_the_way_to_get_it():
    with pytest.raises(CCRError, match=r"needs no_such_package.*pip install 'ccr-autopilot\[simulator\]'"):
        engine._module("no_such_package")


def test_a_module_of_ours_that_is_missing_is_not_blamed_on_the_installation():
    with pytest.raises(ModuleNotFoundError):
        engine._module("envs.no_such_module")
