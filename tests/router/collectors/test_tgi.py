"""TGI."""

import pytest

from ccr.types import Reading
from router.collectors import tgi
from router.collectors.collector import METRICS, MODELS
from tests.router.collectors.pages import PAGES, TGI_PAGE, models


def test_a_page_and_its_model_make_a_reading():
    assert tgi.read(PAGES["tgi"]) == Reading(running=5.0, waiting=1.0, loaded=frozenset({"mistral"}))


@pytest.mark.parametrize(
    ("pages", "loaded"),
    [
        pytest.param({tgi.INFO: b'{"model_id": "a"}'}, {"a"}, id="info alone"),
        pytest.param({MODELS: models("b")}, {"b"}, id="list alone"),
        pytest.param({tgi.INFO: b'{"model_id": "a"}', MODELS: models("b")}, {"a", "b"}, id="both"),
        pytest.param({}, None, id="neither: unknown"),
    ],
)
def test_the_model_comes_from_whichever_page_came(pages, loaded):
    assert tgi.read({METRICS: TGI_PAGE, **pages}).loaded == loaded
