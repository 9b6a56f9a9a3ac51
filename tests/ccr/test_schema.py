"""Weights for other features are refused, and the message names which."""

import pytest

from ccr import schema
from ccr.errors import WeightsError

OURS = schema.described()


def changed(change):
    """A description like ours, but for a list of features that was changed and a digest that tells so."""
    theirs = {**OURS, "schema": "0" * 16, "features": [list(one) for one in OURS["features"]]}
    change(theirs)
    return theirs


def without(name):
    return lambda theirs: theirs["features"].remove([name, dict(OURS["features"])[name]])


def swap(theirs):
    listed = theirs["features"]
    listed[3], listed[4] = listed[4], listed[3]


def rescale(theirs):
    theirs["features"][8] = ["load_time", {**dict(OURS["features"])["load_time"], "divisor": 2.0}]


def test_weights_for_these_features_are_taken():
    assert schema.check(OURS, "weights w") is None
    assert schema.differences(OURS, OURS) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(without("kv_used"), "computed, never seen: kv_used.", id="missing"),
        pytest.param(lambda theirs: theirs["features"].insert(2, ["heat", {}]), "expected, not computed: heat.", id="added"),
        pytest.param(swap, "in another order: kv_term, decode_term.", id="moved"),
        pytest.param(rescale, "defined otherwise: load_time (divisor 2.0, here 3.0).", id="rescaled"),
        pytest.param(lambda theirs: theirs.update(request_features=[]), "computed, never seen: prompt, output, model_memory", id="of the request"),
        pytest.param(lambda theirs: theirs.update(features=None), "the manifest does not list them.", id="no list"),
        pytest.param(lambda theirs: theirs.update(features=[1]), "the manifest does not list them.", id="a list of something"),
        pytest.param(lambda theirs: None, "only the digest differs.", id="digest"),
    ],
)  # fmt: skip
def test_the_difference_is_named(change, says):
    with pytest.raises(WeightsError) as refused:
        schema.check(changed(change), "weights w")

    assert str(refused.value).startswith("weights w: made for other features than this router computes: ")
    assert says in str(refused.value)
    assert "Retrain with `ccr train`" in str(refused.value)


def test_a_feature_that_moved_does_not_make_the_others_move():
    """One more in front shifts all, and that is not what a reader wants to hear."""
    theirs = changed(lambda one: one["features"].insert(0, ["first", {}]))

    assert schema.differences(theirs, OURS) == ["expected, not computed: first"]


def test_several_differences_are_all_named():
    theirs = changed(lambda one: (without("rate")(one), rescale(one)))

    assert len(schema.differences(theirs, OURS)) == 2
