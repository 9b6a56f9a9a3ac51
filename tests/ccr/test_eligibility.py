import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.eligibility import eligible, reasons
from tests.factories import MODELS, ROWS, a_fleet, a_node, a_request, a_spec

SHUT_OUT = [
    pytest.param(
        a_node(spec=a_spec("x", serves="qwen")), a_request("llama"),
        "does not serve it", id="another model",
    ),
    pytest.param(
        a_node(spec=a_spec("x", serves="llama", loads_on_demand=False)), a_request("llama"),
        "does not serve it", id="cannot load it",
    ),
    pytest.param(
        a_node("x", models="llama@3"), a_request("llama@4"),
        "does not serve it", id="another version",
    ),
    pytest.param(
        a_node(spec=a_spec("x", tags="eu")), a_request("llama", tags="eu canary gold"),
        "lacks tag canary, gold", id="tags",
    ),
    pytest.param(
        a_node("x", room_gib=2.1), a_request("llama", model_gib=7.9),
        "needs 7.9 GiB, has 2.1", id="no room",
    ),
    pytest.param(
        a_node("x", available=False, why="ejected for 4 s (5 errors in a row)"), a_request("llama"),
        "ejected for 4 s (5 errors in a row)", id="out of rotation",
    ),
    pytest.param(
        a_node("x", available=False), a_request("llama"),
        "out of rotation", id="out of rotation, nobody said why",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("node", "request_", "words"), SHUT_OUT)
def test_one_reason_is_enough_and_is_put_in_words(node, request_, words):
    fleet = a_fleet(node)

    assert not eligible(request_, fleet).any()
    assert reasons(request_, fleet) == {"x": words}


def test_a_node_that_already_failed_the_request_is_not_tried_again():
    fleet = a_fleet(a_node("a"), a_node("b"))
    tried = np.array([True, False])

    assert eligible(a_request(), fleet, tried).tolist() == [False, True]
    assert reasons(a_request(), fleet, tried) == {"a": "already failed this request"}


def test_a_node_that_has_the_weights_needs_no_room():
    fleet = a_fleet(a_node(models="llama", room_gib=0.0))

    assert eligible(a_request("llama", model_gib=7.9), fleet).all()


def test_a_model_that_just_fits_fits():
    fleet = a_fleet(a_node(room_gib=7.9))

    assert eligible(a_request("llama", model_gib=7.9), fleet).all()


def test_a_model_of_unknown_size_goes_anywhere():
    fleet = a_fleet(a_node(room_gib=0.0))

    assert eligible(a_request("llama", model_gib=0.0), fleet).all()


@given(
    rows=ROWS,
    model=st.sampled_from([*MODELS, "unheard-of"]),
    gib=st.sampled_from([0.0, 8.0, 99.0]),
    tags=st.sampled_from(["", "canary"]),
    data=st.data(),
)
def test_there_is_a_reason_exactly_where_a_node_may_not(rows, model, gib, tags, data):
    fleet = a_fleet(*rows)
    exclude = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    request = a_request(model, model_gib=gib, tags=tags)

    mask = eligible(request, fleet, exclude)

    shut_out = {spec.id for spec, may in zip(fleet.specs, mask, strict=True) if not may}
    assert set(reasons(request, fleet, exclude)) == shut_out


def test_asking_who_may_does_not_change_who_is_available():
    fleet = a_fleet(a_node("a"), a_node("b"))

    eligible(a_request(model_gib=99.0, tags="canary"), fleet, np.array([True, True]))

    assert fleet.available.all()
    assert fleet.serving("llama").all()
