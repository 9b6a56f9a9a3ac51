"""The catalogue holds what the demo says about it."""

from dataclasses import replace
from itertools import combinations

import pytest

from ccr.errors import UnknownModelError
from ccr.shapes import SHAPES
from ccr.timing import GPUS, LOAD_SOURCES, kv_bytes, load_s, weights_gib
from envs.catalogue import catalogue, model_facts

A10 = GPUS["A10"]


def test_six_models_in_one_to_three_versions():
    names = [model.split("@")[0] for model in catalogue()]

    assert len(set(names)) == 6
    assert all(1 <= names.count(name) <= 3 for name in names)


def test_any_two_fit_on_an_a10_and_no_three():
    models = catalogue().values()

    assert all(kv_bytes(A10, pair) > 2 * 2**30 for pair in combinations(models, 2))
    assert all(kv_bytes(A10, three) < 0 for three in combinations(models, 3))


def test_facts_tell_size_and_load_of_every_model():
    facts = model_facts(LOAD_SOURCES["engine_swap"])

    assert facts.keys() == catalogue().keys()
    for model, spec in catalogue().items():
        assert facts[model].gib == pytest.approx(weights_gib(spec), abs=0.01)
        assert facts[model].load_s == pytest.approx(load_s(spec, LOAD_SOURCES["engine_swap"]), abs=0.001)


def test_facts_name_the_architecture_so_that_it_can_be_built_again():
    for model, facts in model_facts(LOAD_SOURCES["engine_swap"]).items():
        spec = catalogue([model])[model]
        assert replace(SHAPES[facts.like], weight_bytes=facts.weight_bytes, architecture="") == replace(
            spec, architecture=""
        )


def test_a_model_nobody_knows_is_refused_with_those_known():
    with pytest.raises(UnknownModelError, match="chat-7b@1"):
        catalogue(["chat-70b@1"])
