"""What the network sees: the order is the schema, the numbers are about one, the nodes are a set."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import book as b
from ccr import features as f
from ccr import look as k
from ccr.cost import terms
from ccr.look import Look
from ccr.policies.network import terms_of
from ccr.types import COLUMNS
from tests.looks import LOOKS, NODES, a_book, look


def test_the_rows_read_here_are_those_of_the_fleets_columns():
    rows = {"qps": f._QPS, "latency_s": f._LATENCY_S, "gpu_free_gib": f._GPU_FREE_GIB, "gpu_total_gib": f._GPU_TOTAL_GIB,
            "running": f._RUNNING, "waiting": f._WAITING, "kv_used": f._KV_USED, "telemetry_age_s": f._AGE_S}  # fmt: skip

    assert {name: list(COLUMNS).index(name) for name in rows} == rows


@given(LOOKS)
def test_the_first_columns_give_the_cost_terms_back(seen):
    """A policy is a function of features alone."""
    nodes = f.node_features(seen)

    assert nodes.shape == (NODES, len(f.FEATURES))
    np.testing.assert_allclose(terms_of(nodes), terms(seen), rtol=1e-9, atol=1e-9)


def test_logarithms_come_first():
    """They are taken of the first rows at once."""
    kinds = [feature.is_log for feature in f.FEATURES.values()]

    assert kinds == sorted(kinds, reverse=True)


@given(LOOKS)
def test_each_column_is_the_row_of_its_name(seen):
    named = dict(zip(f.FEATURES, f.node_features(seen).T, strict=True))
    pairs, load, columns = seen.pairs, seen.load, seen.columns

    expected = {
        "load_time": np.log1p(pairs[k.LOAD_S]) / 3,
        "running": np.log1p(columns[list(COLUMNS).index("running")]) / 4,
        "pending": np.log1p(load[b.PENDING]) / 4,
        "speed": np.log(load[b.SPEED]),
        "bandwidth": np.log(load[b.BANDWIDTH]),
        "resident": pairs[k.RESIDENT],
        "step": 10 * pairs[k.STEP_BEFORE_S],
        "kv_used": columns[list(COLUMNS).index("kv_used")],
        "cached_prefix": pairs[k.CACHED_TOKENS] / seen.asked[k.PROMPT_TOKENS],
        "telemetry_age": np.minimum(columns[list(COLUMNS).index("telemetry_age_s")], 10) / 10,
        "mean_remaining": np.log1p(pairs[k.TOKENS_LEFT] / np.maximum(pairs[k.BUSY], 1)) / 6,
    }
    for name, column in expected.items():
        np.testing.assert_allclose(named[name], column, rtol=1e-9, atol=1e-12, err_msg=name)


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
    assert all(getattr(meaning, "meaning", meaning).strip() for meaning in meanings.values())


def test_the_requests_features_are_in_the_order_of_their_names():
    seen = look(
        a_book(), prompt=math.e**4 - 1, output=math.e**3 - 1, coverage=0.25, running=[0.0, 4.0, 0.0, 0.0]
    )

    named = dict(zip(f.REQUEST_FEATURES, f.request_features(seen), strict=True))

    assert named == pytest.approx(
        {
            "prompt": 0.5, "output": 3 / 7, "model_memory": 6.0 / 20, "popularity": 1 / 3, "copies": 0.0,
            "fleet_load": math.log(2) / 4, "coverage": 0.25,
            "promise": math.log1p(2.5 * seen.asked[k.IDEAL_S] + 2) / 3,
        }
    )  # fmt: skip


def test_the_schema_changes_with_any_name_meaning_or_order(monkeypatch):
    before = f.schema()
    turned = dict(reversed(list(f.FEATURES.items())))
    reworded = {**f.FEATURES, "resident": f.FEATURES["resident"]._replace(meaning="something else")}

    schemas = set()
    for changed in (turned, reworded):
        monkeypatch.setattr(f, "FEATURES", changed)
        schemas.add(f.schema())

    assert len(schemas | {before}) == 3
    assert len(before) == 16
