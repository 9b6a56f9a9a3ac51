"""What the network sees: the order is the schema, the numbers are about one, the nodes are a set."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import features as f
from ccr.cost import terms
from ccr.look import Look
from ccr.types import COLUMNS
from tests.looks import LOOKS, NODES, a_book, look


def test_the_rows_read_here_are_those_of_the_fleets_columns():
    rows = {"qps": f._QPS, "latency_s": f._LATENCY_S, "gpu_free_gib": f._GPU_FREE_GIB, "gpu_total_gib": f._GPU_TOTAL_GIB,
            "kv_used": f._KV_USED, "telemetry_age_s": f._AGE_S}  # fmt: skip

    assert {name: list(COLUMNS).index(name) for name in rows} == rows


@given(LOOKS)
def test_each_column_is_the_feature_of_its_name(seen):
    """The compiled function writes the columns by number; the names are what weights carry."""
    columns = f.node_features(seen)

    assert columns.shape == (NODES, len(f.FEATURES))
    for column, name in zip(columns.T, f.FEATURES, strict=True):
        feature = getattr(f, name)
        expected = feature(terms(seen)) if feature in f._OF_COST else feature(seen)
        np.testing.assert_array_equal(column, expected, err_msg=name)


@given(LOOKS)
def test_features_are_finite_and_about_one(seen):
    """There is no normaliser behind them. The looks are far out: thirty of four thousand tokens on one card."""
    columns, request = f.node_features(seen), f.request_features(seen)

    assert np.isfinite(columns).all()
    assert np.isfinite(request).all()
    assert np.abs(request).max() <= 3.0
    for name, most in zip(f.FEATURES, np.abs(columns).max(axis=0), strict=True):
        assert most <= 6.0, name


@given(LOOKS, st.permutations(range(NODES)))
def test_the_order_of_the_nodes_is_only_an_order(seen, order):
    permuted = Look(seen.columns[:, order], seen.load[:, order], seen.pairs[:, order], seen.asked)

    np.testing.assert_array_equal(f.node_features(permuted), f.node_features(seen)[order])
    np.testing.assert_array_equal(f.request_features(permuted), f.request_features(seen))


@pytest.mark.parametrize("meanings", [f.FEATURES, f.REQUEST_FEATURES], ids=["node", "request"])
def test_every_feature_says_what_it_is_in_a_sentence(meanings):
    assert all(meaning.strip().rstrip(".") for meaning in meanings.values())


def test_the_requests_features_are_in_the_order_of_their_names():
    seen = look(
        a_book(), prompt=math.e**4 - 1, output=math.e**3 - 1, coverage=0.25, running=[0.0, 4.0, 0.0, 0.0]
    )

    named = dict(zip(f.REQUEST_FEATURES, f.request_features(seen), strict=True))

    assert named == pytest.approx(
        {
            "prompt": 0.5, "output": 3 / 7, "model_memory": 6.0 / 20, "popularity": 1 / 3, "copies": 0.0,
            "fleet_load": math.log(2) / 4, "coverage": 0.25,
        }
    )  # fmt: skip


def test_the_schema_changes_with_any_name_meaning_or_order(monkeypatch):
    before = f.schema()
    turned = dict(reversed(list(f.FEATURES.items())))
    reworded = {**f.FEATURES, "resident": "Something else."}

    schemas = set()
    for changed in (turned, reworded):
        monkeypatch.setattr(f, "FEATURES", changed)
        schemas.add(f.schema())

    assert len(schemas | {before}) == 3
    assert len(before) == 16
