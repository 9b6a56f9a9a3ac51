"""Shapes: what is known by name, and what an operator adds."""

import pytest

from ccr.errors import ConfigError, UnknownModelError
from envs.calibration.shapes import BAICHUAN_7B, OPT_6_7B, QWEN_7B, known_shapes, shape_of

OWN = """
my-13b: {parameters: 13015864320, embedding_parameters: 163840000, layers: 40, hidden: 5120,
         weight_bytes: 2, kv_bytes_per_token: 819200}
"""


def parameters(vocabulary, biases=0, hidden=4096, layers=32, mlp=11008):
    """Of a Llama-like model with an untied head, by counting."""
    layer = 4 * hidden**2 + 3 * hidden * mlp + 2 * hidden + biases
    return 2 * vocabulary * hidden + layers * layer + hidden


def test_published_shapes_have_the_parameters_their_config_adds_up_to():
    assert BAICHUAN_7B.parameters == parameters(64_000)
    assert QWEN_7B.parameters == parameters(151_936, biases=3 * 4096)


def test_opt_takes_the_13_3_gb_that_its_load_times_were_published_for():
    assert OPT_6_7B.stored_bytes == pytest.approx(13.3e9, rel=0.01)


def test_an_operator_adds_a_shape_by_file(tmp_path):
    path = tmp_path / "shapes.yaml"
    path.write_text(OWN)

    name, shape = shape_of(known_shapes(path), "my-13b@3", "my-13b")

    assert name == "my-13b"
    assert (shape.layers, shape.kv_bytes_per_token, shape.architecture) == (40, 819_200, "my-13b")


def test_a_model_without_a_shape_is_refused_with_the_remedy():
    with pytest.raises(UnknownModelError, match=r"'gpt-9'.*--shapes"):
        shape_of(known_shapes(), "gpt-9")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("- a\n", "expected a mapping", id="a list"),
        pytest.param("a: {", "not YAML", id="torn"),
        pytest.param("a: 7\n", "a: expected the fields", id="no fields"),
        pytest.param(OWN.replace("layers", "storeys"), "my-13b: unknown storeys", id="a word too many"),
        pytest.param(OWN.replace("layers: 40", "layers: 0"), "layers is 0", id="no layers"),
    ],
)
def test_a_file_of_shapes_that_cannot_be_is_refused(tmp_path, text, says):
    path = tmp_path / "shapes.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=says):
        known_shapes(path)
