from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import UnknownModelError
from ccr.versions import Catalogue, ModelEntry, Version
from tests.factories import DRAWS

ALMOST_ONE = float(np.nextafter(1.0, 0.0))


def a_catalogue(aliases=(), **weights):
    """One model, ``llama``; versions and their canary weights by name."""
    versions = {
        name: Version(id=f"llama@{name}", name="llama", version=name, weight=weight)
        for name, weight in weights.items()
    }
    return Catalogue({"llama": ModelEntry("llama", versions, dict(aliases))})


def resolved(catalogue, model, version="", u=0.0):
    return catalogue.resolve(model, version, u, is_served=lambda _: False).version


@pytest.mark.parametrize(
    ("u", "version"),
    [
        pytest.param(0.0, "v1", id="from 0"),
        pytest.param(0.7499, "v1", id="to just below 3 of 4"),
        pytest.param(0.75, "v2", id="from 3 of 4"),
        pytest.param(ALMOST_ONE, "v2", id="to just below 1"),
    ],
)
def test_canary_weights_are_quantiles_of_the_draw(u, version):
    assert resolved(a_catalogue(v1=3.0, v2=1.0), "llama", u=u) == version


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_a_version_gets_its_weight_of_the_traffic(weights):
    """In the middle of each version's share of the draws, exactly that version."""
    catalogue = a_catalogue(**{f"v{i}": float(weight) for i, weight in enumerate(weights)})

    begins = Fraction(0)
    for i, weight in enumerate(weights):
        share = Fraction(weight, sum(weights))
        if weight:
            assert resolved(catalogue, "llama", u=float(begins + share / 2)) == f"v{i}"
        begins += share


@given(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1e-9, 7.0]), min_size=1, max_size=6).filter(any), DRAWS)
def test_a_version_with_weight_zero_gets_no_traffic(weights, u):
    catalogue = a_catalogue(**{f"v{i}": weight for i, weight in enumerate(weights)})

    for draw in (u, 0.0, ALMOST_ONE):
        assert weights[int(resolved(catalogue, "llama", u=draw)[1:])] > 0.0


def test_a_version_with_weight_zero_can_be_asked_for():
    assert resolved(a_catalogue(v1=1.0, v2=0.0), "llama@v2") == "v2"


def test_all_weights_zero_is_refused_with_what_to_ask_for():
    with pytest.raises(UnknownModelError, match="weight above 0; ask for one of v1, v2"):
        resolved(a_catalogue(v1=0.0, v2=0.0), "llama")


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        pytest.param("llama@v2", "", "v2", id="name@version"),
        pytest.param("llama@champion", "", "v1", id="name@alias"),
        pytest.param("llama", "v2", "v2", id="version header"),
        pytest.param("llama", "champion", "v1", id="alias in the header"),
        pytest.param("llama@v1", "v2", "v2", id="the header wins"),
        pytest.param("llama@", "", "v1", id="an empty version is none"),
    ],
)
def test_a_version_is_found_by_name_or_alias(model, version, expected):
    catalogue = a_catalogue(aliases={"champion": "v1"}, v1=1.0, v2=0.0)

    assert resolved(catalogue, model, version) == expected


def test_an_unknown_version_is_refused_with_those_there_are():
    catalogue = a_catalogue(aliases={"champion": "v1"}, v1=1.0, v2=1.0)

    with pytest.raises(UnknownModelError, match="unknown model 'llama@v3': it has v1, v2, champion"):
        resolved(catalogue, "llama@v3")


def test_an_alias_to_nowhere_is_refused():
    with pytest.raises(UnknownModelError, match="'llama@champion'"):
        resolved(a_catalogue(aliases={"champion": "v9"}, v1=1.0), "llama@champion")


@pytest.mark.parametrize(
    ("model", "version", "id_"), [("qwen", "", "qwen"), ("qwen@2", "", "qwen@2"), ("qwen", "3", "qwen@3")]
)
def test_a_model_the_config_does_not_list_is_found_when_a_node_serves_it(model, version, id_):
    asked = []

    found = Catalogue().resolve(model, version, 0.5, is_served=lambda id_: not asked.append(id_))

    assert (found.id, found.name) == (id_, "qwen")
    assert asked == [id_]


def test_a_model_nobody_knows_is_refused_with_what_to_do():
    with pytest.raises(
        UnknownModelError, match="'qwen@2': no node serves it and the config does not list it"
    ):
        resolved(a_catalogue(v1=1.0), "qwen@2")


def test_a_model_without_versions_is_itself():
    only = Version(id="qwen", name="qwen", gib=7.0)
    catalogue = Catalogue({"qwen": ModelEntry("qwen", {"": only})})

    assert catalogue.resolve("qwen", "", 0.5, is_served=lambda _: False) is only
