"""The shapes of public models weigh what is published of them."""

import pytest

from ccr.shapes import SHAPES, int8
from ccr.timing import weights_gib

#: GiB in fp16, and in int8 with embedding and head left in fp16.
PUBLISHED = {
    "llama-2-7b": (12.6, 6.5),
    "mistral-7b": (13.5, 7.0),
    "llama-3-8b": (15.0, 8.5),
    "qwen2.5-7b": (14.2, 8.1),
    "yi-1.5-6b": (11.3, 6.1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_weighs_what_is_published(name):
    fp16_gib, int8_gib = PUBLISHED[name]

    assert weights_gib(SHAPES[name]) == pytest.approx(fp16_gib, abs=0.06)
    assert weights_gib(int8(SHAPES[name])) == pytest.approx(int8_gib, abs=0.06)
